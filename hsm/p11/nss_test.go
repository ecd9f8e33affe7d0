//go:build cgo

package p11

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/hsmtest"
)

// nssModule is where distributions put NSS's softoken.
func nssModule(t testing.TB) string {
	t.Helper()
	for _, path := range []string{
		"/usr/lib/x86_64-linux-gnu/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/libsoftokn3.so",
		"/usr/lib/x86_64-linux-gnu/nss/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/nss/libsoftokn3.so",
		"/usr/lib64/libsoftokn3.so",
	} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatal("install NSS: scripts/softhsm.sh install --nss")
	return ""
}

// nssWeaknesses is what NSS's softoken must be accepted with: it is a store of keys behind a
// PIN, and protects them from nobody who has it.
func nssWeaknesses() []string {
	return []string{
		probeAttributes, probeUsages, probeTrust,
		"domain-key-unwraps-readable", "domain-key-mechanisms-not-imposed", "domain-key-leaves",
		"domain-key-other-mechanism", "domain-key-altered", "oaep-key-other-mechanism", "transfer-key-unwraps-readable",
		"master-key-leaves", "master-key-other-mechanism", "master-key-altered", "identity-key-leaves",
	}
}

// nssSlots is how many tokens NSS takes in one process: slots 4 to 99.
const nssSlots = 96

// nss is NSS with many blank tokens, which the process keeps loaded until the test ends.
type nss struct {
	module, dir string
	mu          sync.Mutex
	used        int
}

// newNSS starts NSS. It knows only the tokens that it is started with.
func newNSS(t *testing.T) *nss {
	t.Helper()
	t.Setenv("NSS_MAX_MP_PBE_ITERATION_COUNT", "1") // a PIN of a test needs no stretching
	n := &nss{module: nssModule(t), dir: t.TempDir()}
	for i := range nssSlots {
		if err := os.Mkdir(filepath.Join(n.dir, nssLabel(i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lib, err := acquire(n.module, n.arguments())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lib.release(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func nssLabel(i int) string { return fmt.Sprintf("nss-%d", i) }

func (n *nss) arguments() string {
	var tokens strings.Builder
	for i := range nssSlots {
		fmt.Fprintf(&tokens, "%#x=[configDir='sql:%s/%s' tokenDescription='%s'] ", 4+i, n.dir, nssLabel(i), nssLabel(i))
	}
	return nssArguments(n.dir, "none") + " tokens=<" + tokens.String() + ">"
}

// nssArguments is NSS with one token, below dir.
func nssArguments(dir, label string) string {
	return fmt.Sprintf("configdir='sql:%s/%s' certPrefix='' keyPrefix='' secmod='secmod.db' flags=noModDB dbTokenDescription='%s'", dir, label, label)
}

// newToken makes the next blank token one of ours.
func (n *nss) newToken(t *testing.T) Config {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.used == nssSlots {
		t.Fatal("out of slots")
	}
	label := nssLabel(n.used)
	n.used++
	err := InitToken(t.Context(), InitConfig{Module: n.module, ModuleArguments: n.arguments(), Label: label, PIN: []byte(testPIN), NoOfficer: true})
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(label)
	cfg.Module, cfg.ModuleArguments, cfg.AcceptWeakness = n.module, n.arguments(), nssWeaknesses()
	return cfg
}

func TestNSSConformance(t *testing.T) {
	n := newNSS(t)
	hsmtest.Run(t, func(t *testing.T) hsmtest.Env {
		cfg := n.newToken(t)
		p := mustOpen(t, cfg)
		return hsmtest.Env{
			Partition: p,
			Reopen: func(hsmtest.T) hsm.Partition {
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
				return mustOpen(t, cfg)
			},
			Second: func(hsmtest.T) hsm.Partition { return mustOpen(t, n.newToken(t)) },
			Asking: func(_ hsmtest.T, oaepHash uint8) hsm.Partition {
				p := mustOpen(t, n.newToken(t))
				p.traits.oaep = slices.DeleteFunc(p.traits.oaep, func(h uint8) bool { return h != oaepHash })
				return p
			},
			Cloned: func(hsmtest.T) hsm.Partition { return mustOpen(t, clonedOf(n.newToken(t))) },
			Trust:  func(_ hsmtest.T, p hsm.Partition, spki []byte) { n.trust(t, p, spki) },
		}
	})
}

// trust is the user's step: another process of the user of a token makes the object.
func (n *nss) trust(t *testing.T, p hsm.Partition, spki []byte) {
	t.Helper()
	if out, err := inProcess(t, "trust", p.Info().Label, spkiArgument(spki), n.step(p.Info().Label)...); err != nil {
		t.Fatalf("trust: %v: %s", err, out)
	}
}

// step is the environment in which a process finds one token of n.
func (n *nss) step(label string) []string {
	return []string{childNSS + "=" + n.module, childArguments + "=" + nssArguments(n.dir, label)}
}

// TestNSSRefused: each of the weaknesses is needed, and named.
func TestNSSRefused(t *testing.T) {
	n := newNSS(t)
	cfg := n.newToken(t)
	all := cfg.AcceptWeakness
	for _, name := range all {
		if name == probeUsages { // without it there are fewer kinds of keys
			continue
		}
		cfg.AcceptWeakness = slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == name })
		if p, err := Open(t.Context(), cfg); !errors.Is(err, hsm.ErrSelfTest) || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
			if p != nil {
				_ = p.Close()
			}
		}
	}
	cfg.AcceptWeakness = slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == probeUsages })
	p := mustOpen(t, cfg)
	for _, a := range []hsm.Algorithm{hsm.PSSSHA256, hsm.ECDSASHA256, hsm.OAEPRSA1} {
		if p.Supports(a) {
			t.Errorf("has %s without %s", a, probeUsages)
		}
	}
	if !p.Supports(hsm.HMACSHA256) {
		t.Error("no HMAC")
	}
}

// TestTokensLack: what each token lacks is known here, so that the suite, which takes a lack
// that has a name, hides none that is new.
func TestTokensLack(t *testing.T) {
	for name, c := range map[string]struct {
		cfg   Config
		lacks []hsm.Algorithm
	}{
		"SoftHSM2": {config(newToken(t)), []hsm.Algorithm{hsm.OAEPRSA256}},
		"NSS":      {newNSS(t).newToken(t), nil},
	} {
		p := mustOpen(t, c.cfg)
		if _, made, err := p.EnsureRecoveryKey(t.Context(), "vault"); err != nil || !made {
			t.Errorf("%s: no recovery key: %v", name, err)
		}
		for _, k := range secretKinds() {
			for _, a := range k.Algorithms() {
				if p.Supports(a) == slices.Contains(c.lacks, a) {
					t.Errorf("%s, %s: supported is %t", name, a, p.Supports(a))
				}
			}
		}
	}
}

// TestModuleArguments: what a library is started with is bounded, and one for the process.
func TestModuleArguments(t *testing.T) {
	for what, arguments := range map[string]string{
		"too long": strings.Repeat("x", maxArguments+1), "a zero byte": "configdir='sql:/tmp'\x00",
	} {
		if _, err := acquire("", arguments); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	cfg := newNSS(t).newToken(t)
	mustOpen(t, cfg)
	cfg.ModuleArguments += " "
	if _, err := Open(t.Context(), cfg); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("other arguments at the same time: %v", err)
	}
}

// TestTrustByUser: the user trusts nothing where that weakness is not accepted.
func TestTrustByUser(t *testing.T) {
	cfg := TrustConfig{Token: newToken(t), PIN: []byte(testPIN)}
	transfer, err := embedded(t, 0).NewTransfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := Trust(t.Context(), cfg, transfer.SPKI); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("not accepted: %v", err)
	}
	cfg.AcceptWeakness = []string{probeTrust}
	if err := Trust(t.Context(), cfg, transfer.SPKI); err == nil {
		t.Error("SoftHSM2's user trusts a key")
	}
}
