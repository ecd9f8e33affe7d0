package kms

import (
	"fmt"
	"slices"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// kinds are the specs of the state as the HSM knows them.
var kinds = map[fsm.KeySpec]hsm.Kind{
	fsm.SpecSymmetric: {Class: hsm.ClassAES},
	fsm.SpecHMAC256:   {Class: hsm.ClassHMAC, Bits: 256},
	fsm.SpecHMAC384:   {Class: hsm.ClassHMAC, Bits: 384},
	fsm.SpecHMAC512:   {Class: hsm.ClassHMAC, Bits: 512},
	fsm.SpecRSA2048:   {Class: hsm.ClassRSA, Bits: 2048},
	fsm.SpecRSA3072:   {Class: hsm.ClassRSA, Bits: 3072},
	fsm.SpecRSA4096:   {Class: hsm.ClassRSA, Bits: 4096},
	fsm.SpecP256:      {Class: hsm.ClassEC, Bits: 256},
	fsm.SpecP384:      {Class: hsm.ClassEC, Bits: 384},
}

func kindOf(spec fsm.KeySpec, usage fsm.KeyUsage) hsm.Kind {
	k := kinds[spec]
	k.Decrypts = k.Class == hsm.ClassRSA && usage == fsm.UsageEncryptDecrypt
	return k
}

// kindOfKey is what a key is to the HSM.
func kindOfKey(k *fsm.Key) hsm.Kind {
	if k.Resident() {
		return hsm.Kind{Class: hsm.ClassResident}
	}
	return kindOf(k.Spec, k.Usage)
}

// hasContext tells whether an operation has an encryption context.
func hasContext(operation string) bool {
	switch fsm.GrantOperation(operation) {
	case fsm.GrantSign, fsm.GrantVerify, fsm.GrantGetPublicKey, fsm.GrantGenerateMac, fsm.GrantVerifyMac:
		return false
	default:
		return true
	}
}

// fitsAlgorithm is nil if an algorithm is one of a key's; symmetric keys have none that is
// named.
func fitsAlgorithm(k *fsm.Key, a hsm.Algorithm) error {
	known := kindOfKey(k).Algorithms()
	switch {
	case a == "" && len(known) == 0, a == anyAlgorithm, slices.Contains(known, a):
		return nil
	case a == "":
		return invalid("key %s is %s: name the algorithm, %s", k.ID, k.Spec, algorithmNames(known))
	case len(known) == 0:
		return fmt.Errorf("%w: algorithm %s: key %s is %s, name none", fsm.ErrUnsupported, a, k.ID, k.Spec)
	}
	return fmt.Errorf("%w: algorithm %s: key %s is %s for %s, it has %s", fsm.ErrUnsupported, a, k.ID, k.Spec, k.Usage, algorithmNames(known))
}

func algorithmNames(list []hsm.Algorithm) string {
	var names []string
	for _, a := range list {
		names = append(names, string(a))
	}
	return strings.Join(names, " or ")
}

// checkAlgorithm says what is wrong with the name of an algorithm, whatever key it is for.
func checkAlgorithm(a hsm.Algorithm, schemes ...hsm.Scheme) error {
	if slices.Contains(schemes, a.Scheme()) {
		return nil
	}
	if a == "" {
		return invalid("algorithm is missing")
	}
	return invalid("algorithm %.80q is unknown here", a)
}
