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

// usageOf is the one table of what a key must be for an operation; what is not in it wants
// a symmetric key.
var usageOf = map[fsm.GrantOperation]func(*fsm.Key) bool{
	fsm.GrantEncrypt:      encrypts,
	fsm.GrantDecrypt:      encrypts,
	fsm.GrantSign:         signs,
	fsm.GrantVerify:       signs,
	fsm.GrantGenerateMac:  authenticates,
	fsm.GrantVerifyMac:    authenticates,
	fsm.GrantGetPublicKey: func(k *fsm.Key) bool { return k.Spec.Pair() },
}

func encrypts(k *fsm.Key) bool      { return k.Usage == fsm.UsageEncryptDecrypt }
func signs(k *fsm.Key) bool         { return k.Usage == fsm.UsageSignVerify }
func authenticates(k *fsm.Key) bool { return k.Usage == fsm.UsageMac }

// hasContext tells whether an operation has an encryption context.
func hasContext(operation string) bool {
	op := fsm.GrantOperation(operation)
	return usageOf[op] == nil || op == fsm.GrantEncrypt || op == fsm.GrantDecrypt
}

// fits is nil if a key is of a kind for an operation; otherwise it wraps ErrUnsupported.
func fits(k *fsm.Key, operation string) error {
	suits := usageOf[fsm.GrantOperation(operation)]
	if suits == nil {
		suits = func(k *fsm.Key) bool { return k.Spec == fsm.SpecSymmetric }
	}
	if suits(k) {
		return nil
	}
	return fmt.Errorf("%w: key %s is %s for %s, not for %s", fsm.ErrUnsupported, k.ID, k.Spec, k.Usage, operation)
}

// fitsAlgorithm is nil if an algorithm is one of a key's; symmetric keys have none that is
// named.
func fitsAlgorithm(k *fsm.Key, a hsm.Algorithm) error {
	known := kindOf(k.Spec, k.Usage).Algorithms()
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
