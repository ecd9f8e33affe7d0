package soft_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/hsmtest"
	"github.com/quorumkms/quorumkms/hsm/soft"
)

var pin = []byte("1234")

// openIn opens a partition that is closed when the test ends. Empty dir: in
// memory.
func openIn(t hsmtest.T, dir string) *soft.Partition {
	t.Helper()
	p, err := soft.Open(soft.Config{Dir: dir, PIN: pin, Label: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func trust(t hsmtest.T, p hsm.Partition, spki []byte) {
	t.Helper()
	if err := p.(*soft.Partition).Trust(spki); err != nil {
		t.Fatal(err)
	}
}

func inMemory(t hsmtest.T) hsm.Partition { return openIn(t, "") }

// asking is a partition in memory with this OAEP hash.
func asking(t hsmtest.T, oaepHash uint8) hsm.Partition {
	t.Helper()
	p, err := soft.Open(soft.Config{OAEPHash: oaepHash})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func inMemoryCloned(t hsmtest.T) hsm.Partition {
	t.Helper()
	p, err := soft.Open(soft.Config{Cloned: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestAdopt: a copy gets an identity key of its own, and keeps its domain keys.
func TestAdopt(t *testing.T) {
	dir, cluster := t.TempDir(), hsm.ID{1}
	p := openIn(t, dir)
	if _, err := p.CreateDomain(t.Context(), cluster, 1); err != nil {
		t.Fatal(err)
	}
	came := p.Identity()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	own, err := soft.Adopt(soft.Config{Dir: dir, PIN: pin, Cloned: true})
	if err != nil {
		t.Fatal(err)
	}
	p = openIn(t, dir)
	if all, err := p.Generations(t.Context(), cluster); err != nil || len(all) != 1 || string(p.Identity()) != string(own) || string(own) == string(came) {
		t.Errorf("the adopted partition holds %v, %v; its identity is %x, it was %x, %x was shown", all, err, p.Identity(), came, own)
	}
	for what, c := range map[string]soft.Config{"the profile generic": {Dir: dir, PIN: pin}, "no directory": {Cloned: true}} {
		if _, err := soft.Adopt(c); !errors.Is(err, hsm.ErrRefused) {
			t.Errorf("adopting a partition of %s: %v", what, err)
		}
	}
}

func TestConformanceInMemory(t *testing.T) {
	hsmtest.Run(t, func(t *testing.T) hsmtest.Env {
		return hsmtest.Env{Partition: openIn(t, ""), Second: inMemory, Asking: asking, Cloned: inMemoryCloned, Trust: trust}
	})
}

func TestConformanceInDirectory(t *testing.T) {
	hsmtest.Run(t, func(t *testing.T) hsmtest.Env {
		dir := t.TempDir()
		p := openIn(t, dir)
		reopen := func(t hsmtest.T) hsm.Partition {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			return openIn(t, dir)
		}
		return hsmtest.Env{Partition: p, Reopen: reopen, Second: inMemory, Asking: asking, Cloned: inMemoryCloned, Trust: trust}
	})
}

func TestOAEPHash(t *testing.T) {
	transfer, err := inMemory(t).NewTransfer(t.Context())
	if err != nil || transfer.OAEPHash != hsm.OAEPSHA256 {
		t.Errorf("by default: hash %d, %v", transfer.OAEPHash, err)
	}
	if _, err := soft.Open(soft.Config{OAEPHash: 3}); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("hash 3: %v", err)
	}
}

func TestWrongPIN(t *testing.T) {
	dir := t.TempDir()
	if err := openIn(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []string{"", "1235", "12345"} {
		if _, err := soft.Open(soft.Config{Dir: dir, PIN: []byte(wrong)}); !errors.Is(err, hsm.ErrPIN) {
			t.Errorf("pin %q: %v", wrong, err)
		}
	}
	openIn(t, dir) // a refused attempt leaves no lock behind
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	p := openIn(t, dir)
	if _, err := soft.Open(soft.Config{Dir: dir, PIN: pin}); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("opened twice: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	openIn(t, dir)
}

func TestDirectoryThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := soft.Open(soft.Config{Dir: file, PIN: pin}); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a file: %v", err)
	}
}

// keyFile returns the one file of a new partition that holds its keys.
func keyFile(t *testing.T, dir string) string {
	t.Helper()
	p := openIn(t, dir)
	if _, err := p.CreateDomain(t.Context(), hsm.ID{1}, 1); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "keys.qsp")
}

func TestKeyFileIsPrivateAndSealed(t *testing.T) {
	name := keyFile(t, t.TempDir())
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(b[:4]) != "QSP1" {
		t.Errorf("magic %q", b[:4])
	}
	for _, word := range []string{"identity", "generations", "log_root"} {
		if bytes.Contains(b, []byte(word)) {
			t.Errorf("%q can be read in the file", word)
		}
	}
}

func TestDamagedKeyFile(t *testing.T) {
	dir := t.TempDir()
	name := keyFile(t, dir)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := soft.Open(soft.Config{Dir: dir, PIN: pin}); !errors.Is(err, hsm.ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1
		check("a byte changed", b)
	}
	for _, n := range []int{0, 3, 4, 36, 83, 84, len(whole) / 2, len(whole) - 1} {
		check("cut short", whole[:n])
	}
	check("a byte more", append(bytes.Clone(whole), 0))
	check("too large", make([]byte, 5<<20))
	if err := os.WriteFile(name, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	openIn(t, dir)
}

// A change that cannot be stored is not made.
func TestNothingChangesWithoutStoring(t *testing.T) {
	dir := t.TempDir()
	p := openIn(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "keys.qsp.tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateDomain(t.Context(), hsm.ID{1}, 1); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("not stored: %v", err)
	}
	if all, err := p.Generations(t.Context(), hsm.ID{1}); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestTrustFromAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	donor, recipient := openIn(t, dir), openIn(t, "")
	if _, err := donor.CreateDomain(t.Context(), hsm.ID{1}, 1); err != nil {
		t.Fatal(err)
	}
	transfer, err := recipient.NewTransfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	request := hsm.ExportRequest{
		Cluster: hsm.ID{1}, Generation: 1, Donor: "a", Recipient: "b",
		Transfer: transfer, RecipientIdentity: recipient.Identity(),
	}
	export := func() error {
		_, err := donor.Export(t.Context(), request)
		return err
	}
	if err := soft.Trust(dir, []byte("wrong"), transfer.SPKI); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("wrong pin: %v", err)
	}
	if err := soft.Trust(dir, pin, recipient.Identity()); !errors.Is(err, hsm.ErrRefused) {
		t.Errorf("no transfer key: %v", err)
	}
	if err := soft.Trust(t.TempDir(), pin, transfer.SPKI); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("no partition: %v", err)
	}
	if err := export(); !errors.Is(err, hsm.ErrNotTrusted) {
		t.Errorf("before: %v", err)
	}
	if err := soft.Trust(dir, pin, transfer.SPKI); err != nil {
		t.Fatal(err)
	}
	if err := export(); err != nil {
		t.Errorf("after: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "trusted", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	if err := os.WriteFile(files[0], recipient.Identity(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := export(); !errors.Is(err, hsm.ErrNotTrusted) {
		t.Errorf("with another key in the file: %v", err)
	}
}

func TestTrustAll(t *testing.T) {
	donor, err := soft.Open(soft.Config{TrustAll: true})
	if err != nil {
		t.Fatal(err)
	}
	recipient := openIn(t, "")
	if _, err := donor.CreateDomain(t.Context(), hsm.ID{1}, 1); err != nil {
		t.Fatal(err)
	}
	transfer, err := recipient.NewTransfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = donor.Export(t.Context(), hsm.ExportRequest{
		Cluster: hsm.ID{1}, Generation: 1, Donor: "a", Recipient: "b",
		Transfer: transfer, RecipientIdentity: recipient.Identity(),
	})
	if err != nil {
		t.Error(err)
	}
	if err := donor.Close(); err != nil {
		t.Error(err)
	}
}

func TestUntrust(t *testing.T) {
	dir, pin := t.TempDir(), []byte("1234")
	p, err := soft.Open(soft.Config{Dir: dir, PIN: pin})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	transfer, err := p.NewTransfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fingerprint := hsm.Fingerprint(transfer.SPKI)
	if err := soft.Untrust(dir, pin, fingerprint); !errors.Is(err, hsm.ErrNotTrusted) {
		t.Fatalf("never trusted: %v", err)
	}
	if err := soft.Trust(dir, pin, transfer.SPKI); err != nil {
		t.Fatal(err)
	}
	if err := soft.Untrust(dir, []byte("4321"), fingerprint); !errors.Is(err, hsm.ErrPIN) {
		t.Fatalf("wrong pin: %v", err)
	}
	if err := soft.Untrust(dir, pin, fingerprint); err != nil {
		t.Fatal(err)
	}
	if err := soft.Untrust(dir, pin, fingerprint); !errors.Is(err, hsm.ErrNotTrusted) {
		t.Fatalf("still trusted: %v", err)
	}
}
