//go:build cgo

package p11

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// probe is one step of the self-test.
type probe struct {
	name     string
	required bool // cannot be accepted: nothing works without it
	run      func(*bench, *findings)
}

// The weaknesses that make a difference beyond the self-test.
const (
	probeTemplates  = "existing-templates"
	probeAttributes = "attributes-not-kept"
	probeTrust      = WeaknessTrust
	probeUsages     = "private-key-usages-not-imposed"
)

// probes lists the self-test in the order it runs. The names are stable: operators
// accept weaknesses by them.
func probes() []probe {
	return []probe{
		{"known-answers", true, (*bench).knownAnswers},
		{"random", true, (*bench).random},
		{probeAttributes, false, (*bench).attributes},
		{"scratch-objects", true, (*bench).setUp},
		{"algorithms", true, (*bench).algorithms},
		{probeUsages, false, (*bench).usagesImposed},
		{probeTemplates, false, (*bench).existingTemplates},
		{"domain-key-unwraps-readable", false, (*bench).unwrapsReadable},
		{"domain-key-mechanisms-not-imposed", false, (*bench).mechanismsImposed},
		{"domain-key-leaves", false, (*bench).domainKeyLeaves},
		{"domain-key-other-mechanism", false, (*bench).domainKeyOtherMechanism},
		{"domain-key-altered", false, (*bench).domainKeyAltered},
		{probeTrust, false, (*bench).trustedByUser},
		{"oaep-key-other-mechanism", false, (*bench).oaepKeyOtherMechanism},
		{"transfer-key-unwraps-readable", false, (*bench).transferReadable},
		{"master-key-leaves", false, (*bench).masterKeyLeaves},
		{"master-key-other-mechanism", false, (*bench).masterKeyOtherMechanism},
		{"master-key-altered", false, (*bench).masterKeyAltered},
		{"identity-key-leaves", false, (*bench).identityKeyLeaves},
	}
}

func acceptableNames() []string {
	var names []string
	for _, p := range probes() {
		if !p.required {
			names = append(names, p.name)
		}
	}
	return names
}

// findings is what a probe saw.
type findings struct {
	refused int      // attacks the token refused
	notes   []string // what else to tell people
	faults  []string // attacks that succeeded, and legitimate calls that did not
	lost    error    // the token went away meanwhile

	// alive asks the token whether it is there; nil: not asked.
	alive func() error
}

func (f *findings) note(format string, args ...any) {
	f.notes = append(f.notes, fmt.Sprintf(format, args...))
}

func (f *findings) fault(format string, args ...any) {
	f.faults = append(f.faults, fmt.Sprintf(format, args...))
}

// must notes a legitimate call that failed.
func (f *findings) must(what string, err error) bool {
	if err != nil {
		f.watch(err)
		f.fault("%s: %v", what, err)
	}
	return err == nil
}

// refuse notes an attack, which must have failed.
func (f *findings) refuse(what string, err error) {
	if err == nil {
		f.fault("%s succeeds", what)
		return
	}
	f.watch(err)
	f.refused++
}

// watch tells a refusal from a token that went away. NSS refuses some attacks like a device
// that fails.
func (f *findings) watch(err error) {
	switch code(err) {
	case pkcs11.CKR_DEVICE_ERROR:
		if f.alive == nil || f.alive() != nil {
			f.lost = err
		}
	case pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_USER_NOT_LOGGED_IN:
		f.lost = err
	default:
	}
}

func (f *findings) detail() string {
	var parts []string
	if len(f.faults) > 0 {
		parts = append(parts, brief(ofKinds(f.faults)))
	}
	if f.refused > 0 {
		parts = append(parts, fmt.Sprintf("%d attempts refused", f.refused))
	}
	return strings.Join(append(parts, f.notes...), "; ")
}

// maxFaults is how much of what a probe found is told, in bytes: some tokens fail in a hundred
// ways of one sort.
const maxFaults = 1024

// brief lists as much as fits, and how much more there is.
func brief(faults []string) string {
	text := faults[0]
	if len(text) > maxFaults {
		text = strings.ToValidUTF8(text[:maxFaults], "") + " …"
	}
	for i, f := range faults[1:] {
		rest := fmt.Sprintf("; and %d more", len(faults)-1-i)
		if len(text)+len("; ")+len(f)+len(rest) > maxFaults {
			return text + rest
		}
		text += "; " + f
	}
	return text
}

// kindText is how faults name one kind of domain key.
const kindText = "domain key of kind "

// ofKinds sorts faults, and makes one of those that differ in the kind of domain key only.
func ofKinds(faults []string) []string {
	kinds := map[string][]int{} // by the fault without its number
	for _, f := range faults {
		number, rest := "", ""
		if at := strings.Index(f, kindText); at >= 0 {
			tail := f[at+len(kindText):]
			number = tail[:len(tail)-len(strings.TrimLeft(tail, "0123456789"))]
			rest = f[:at] + kindText + "%" + tail[len(number):]
		}
		if n, err := strconv.Atoi(number); err == nil {
			kinds[rest] = append(kinds[rest], n)
		} else {
			kinds[f] = nil
		}
	}
	var out []string
	for text, all := range kinds {
		slices.Sort(all)
		switch all = slices.Compact(all); {
		case len(all) == 1:
			text = strings.Replace(text, kindText+"%", kindText+strconv.Itoa(all[0]), 1)
		case len(all) > 1:
			list := strings.Trim(strings.ReplaceAll(fmt.Sprint(all), " ", ", "), "[]")
			text = strings.Replace(text, kindText+"%", "domain keys of kinds "+list, 1)
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

// bench is the scratch objects of a self-test. They are objects of one session and
// die with it.
type bench struct {
	*session
	traits traits
	accept []string // weaknesses
	writes bool     // may put an object into the token for a moment

	ordinary pkcs11.ObjectHandle // AES-256 with a known value, may do everything
	payload  pkcs11.ObjectHandle // extractable AES-256, what a key is while it is made
	domain   domain              // with the templates of a real one
	public   pkcs11.ObjectHandle // RSA-2048 with the template of a trusted key, untrusted
	private  pkcs11.ObjectHandle // with the template of a transfer key
	master   pkcs11.ObjectHandle // payload as it is when opened
	wrapped  []byte              // payload under the domain key of class AES
	nik      pkcs11.ObjectHandle // with the template of a node identity key
	secrets  []openedSecret      // a key of every other kind that the token has

	resident        pkcs11.ObjectHandle // a known key as resident ones are when opened, if the token can
	wrappedResident []byte              // it, under the domain key of class resident
	loose           map[hsm.Kind]error  // those that open with more usages than the domain key imposes
}

func (b *bench) accepts(weakness string) bool { return slices.Contains(b.accept, weakness) }

// selfTest tries on l what the token must do and what it must refuse, the latter on
// scratch objects with the templates of the real ones, which are those of the profile
// cloned or of generic. ErrSelfTest names what failed and is not in accept. It puts an
// object into the token only with writes, and if it is accepted that such objects lack
// something.
func selfTest(ctx context.Context, l *link, cloned bool, accept []string, writes bool) (traits, []hsm.Probe, error) {
	h, err := l.open()
	if err != nil {
		return traits{}, nil, err
	}
	b := &bench{session: &session{link: l, h: h}, domain: domain{}, traits: traits{cloned: cloned}, accept: accept, writes: writes}
	var results []hsm.Probe
	var failed []string
	for _, p := range probes() {
		if err = ctx.Err(); err != nil {
			err = fmt.Errorf("%w: self-test: %w", hsm.ErrUnavailable, err)
			break
		}
		f := findings{alive: b.answersStill}
		p.run(b, &f)
		if f.lost != nil {
			err = fmt.Errorf("%w: self-test: %s: %w", hsm.ErrUnavailable, p.name, f.lost)
			break
		}
		r := hsm.Probe{Name: p.name, Passed: len(f.faults) == 0, Detail: f.detail()}
		r.Accepted = !r.Passed && !p.required && slices.Contains(accept, p.name)
		results = append(results, r)
		if !r.Passed && !r.Accepted {
			failed = append(failed, fmt.Sprintf("%s (%s)", r.Name, r.Detail))
			if p.required {
				break
			}
		}
	}
	if closing := l.lib.ctx.CloseSession(h); closing != nil && err == nil {
		err = fmt.Errorf("%w: self-test: close the session: %w", hsm.ErrUnavailable, closing)
	}
	if err == nil && failed != nil {
		err = fmt.Errorf("%w: token %q: %s", hsm.ErrSelfTest, l.token.token.Label, strings.Join(failed, "; "))
	}
	return b.traits, results, err
}

// answersStill is nil while the token serves the self-test's session.
func (b *bench) answersStill() error {
	info, err := b.ctx().GetSessionInfo(b.h)
	if err == nil && info.State != pkcs11.CKS_RW_USER_FUNCTIONS {
		err = pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN)
	}
	if err == nil {
		_, err = b.session.random(hsm.BlockSize)
	}
	return err
}

// knownAnswers finds the mechanism that is RFC 5649, whatever its number, and checks
// ECB (FIPS 197, C.3) and HMAC (RFC 4231, case 6).
func (b *bench) knownAnswers(f *findings) {
	for _, m := range []uint{ckmAESKeyWrapKWP, ckmAESKeyWrapPad} {
		err := b.isRFC5649(m)
		if err == nil {
			b.traits.kwp = m
			f.note("RFC 5649 is mechanism %#x", m)
			b.oddLengths(f)
			break
		}
		f.watch(err)
		f.note("mechanism %#x is not RFC 5649: %v", m, err)
	}
	if b.traits.kwp == 0 {
		f.fault("the token has no RFC 5649")
	}
	f.must("AES-ECB", b.isECB())
	if err := b.encryptsInParts(); err != nil {
		if b.answersStill() != nil {
			f.watch(err)
		}
		f.note("encryptions do not go on: %v", err)
	} else {
		b.traits.inParts = true
	}
	f.must("HMAC-SHA256", b.isHMAC())
}

// The numbers under which tokens have RFC 5649, or something else.
const (
	ckmAESKeyWrapPad = 0x210a // CKM_AES_KEY_WRAP_PAD of PKCS #11 v2.40
	ckmAESKeyWrapKWP = 0x210b // CKM_AES_KEY_WRAP_KWP of PKCS #11 v3.0
)

var errAnswer = errors.New("another answer than the known one")

// wraps compares the wrap of a known key under a known key with a known answer.
func (b *bench) wraps(m uint, kek, key []byte, answer string) error {
	with, err := b.create(known(pkcs11.CKK_AES, kek, pkcs11.CKA_WRAP))
	if err != nil {
		return err
	}
	o, err := b.create(known(pkcs11.CKK_GENERIC_SECRET, key))
	if err != nil {
		return err
	}
	w, err := b.wrap(mechanism(m), with, o)
	if err == nil && hex.EncodeToString(w) != answer {
		err = errAnswer
	}
	return err
}

// isRFC5649 wraps a key of 32 bytes, as domain keys and master keys are. The answer
// was computed with OpenSSL. (The RFC's own examples have odd lengths.)
func (b *bench) isRFC5649(m uint) error {
	return b.wraps(m, ordinaryValue(), wrappedValue(), wrappedAnswer)
}

// wrappedAnswer is wrappedValue, wrapped with ordinaryValue.
const wrappedAnswer = "2c0bff4702d89db6daf59d845d0e456b288cd79fda76faa83e051401efff89bc3fa242a1b90466bd"

func wrappedValue() []byte {
	return unhex("f0e0d0c0b0a090807060504030201000f1e1d1c1b1a191817161514131211101")
}

// oddLengths wraps the longer example of RFC 5649, section 6. SoftHSM first pads a
// key to whole units of 8 bytes: such a key comes back longer than it was.
func (b *bench) oddLengths(f *findings) {
	err := b.wraps(b.traits.kwp, unhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8"),
		unhex("c37b7e6492584340bed12207808941155068f738"), "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a")
	if err != nil {
		f.watch(err)
		f.note("but not of keys whose length is no multiple of 8: %v", err)
	}
}

func (b *bench) isECB() error {
	key, err := b.create(known(pkcs11.CKK_AES, ordinaryValue(), pkcs11.CKA_ENCRYPT))
	if err != nil {
		return err
	}
	out := make([]byte, hsm.BlockSize)
	if err := b.encryptBlocks(key, out, unhex("00112233445566778899aabbccddeeff")); err != nil {
		return err
	}
	if hex.EncodeToString(out) != "8ea2b7ca516745bfeafc49904b496089" {
		return errAnswer
	}
	return nil
}

func (b *bench) isHMAC() error {
	key, err := b.create(known(pkcs11.CKK_GENERIC_SECRET, bytes.Repeat([]byte{0xaa}, 131), pkcs11.CKA_SIGN))
	if err != nil {
		return err
	}
	mac, err := b.mac(key, []byte("Test Using Larger Than Block-Size Key - Hash Key First"))
	if err != nil {
		return err
	}
	if hex.EncodeToString(mac) != "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54" {
		return errAnswer
	}
	return nil
}

// random draws twice: a generator that stands still is broken. More cannot be told
// from outside. And it finds out how much can be drawn at once.
func (b *bench) random(f *findings) {
	const n = 32
	var draws [2][]byte
	for i := range draws {
		var err error
		if draws[i], err = b.session.random(n); !f.must("random", err) {
			return
		}
	}
	if len(draws[0]) != n || bytes.Equal(draws[0], draws[1]) || bytes.Count(draws[0], draws[0][:1]) == n {
		f.fault("random bytes are constant")
	}
	b.traits.draw = hsm.MaxRandom
	if all, err := b.session.random(hsm.MaxRandom); err != nil || len(all) != hsm.MaxRandom {
		b.traits.draw = leastDraw
		f.note("not %d random bytes at once, but %d: %v", hsm.MaxRandom, len(all), err)
	}
}

// leastDraw is how many random bytes every token is believed to give at once.
const leastDraw = 1024

// ordinaryValue is the key of FIPS 197, C.3: known to everybody.
func ordinaryValue() []byte {
	return unhex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
}

// unhex decodes a constant.
func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}
