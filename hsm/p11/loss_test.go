//go:build cgo

package p11

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// intruder is another user of the same library in this process: what it does to the
// token happens under the partition's feet.
func intruder(t *testing.T) *pkcs11.Ctx {
	t.Helper()
	path, err := modulePath("")
	if err != nil {
		t.Fatal(err)
	}
	ctx := pkcs11.New(path)
	if err := ctx.Initialize(); !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		t.Fatalf("initialize: %v", err)
	}
	return ctx
}

// pullAway closes every session of the partition behind its back, after change, if it
// is not nil. No call is under way meanwhile: SoftHSM crashes when a session is closed
// in the middle of one.
func pullAway(t *testing.T, p *Partition, change func(*pkcs11.Ctx, uint) error) {
	t.Helper()
	l, err := p.current()
	if err != nil {
		t.Fatal(err)
	}
	for _, pool := range []chan *session{l.work, l.hold} {
		for range cap(pool) {
			s := <-pool
			defer func() { pool <- s }()
		}
	}
	other := intruder(t)
	if change != nil {
		if err := change(other, l.token.id); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.CloseAllSessions(l.token.id); err != nil {
		t.Error(err)
	}
}

func usable(t *testing.T, p *Partition) bool {
	t.Helper()
	_, err := p.SignIdentity(t.Context(), []byte("hello"))
	if err != nil && !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("error %v, want %v", err, hsm.ErrUnavailable)
	}
	return err == nil
}

// TestSessionsPulledAway: the partition notices, comes back by itself, and keys of
// before are stale.
func TestSessionsPulledAway(t *testing.T) {
	p := withDomain(t)
	key, token, want := newKey(t, p, 1)
	before, err := p.current()
	if err != nil {
		t.Fatal(err)
	}
	pullAway(t, p, nil)
	block := make([]byte, 16)
	eventually(t, "the key is stale", func() bool {
		err := key.EncryptBlocks(t.Context(), block, block[:16:16])
		if err == nil {
			t.Fatal("a key outlives its session")
		}
		if !errors.Is(err, hsm.ErrStale) && !errors.Is(err, hsm.ErrUnavailable) {
			t.Fatalf("error %v", err)
		}
		return errors.Is(err, hsm.ErrStale)
	})
	if err := p.Healthy(); err != nil {
		t.Errorf("healthy says %v", err)
	}
	if after, err := p.current(); err != nil || after == before {
		t.Errorf("the link is the same (%v)", err)
	}
	again, err := p.Open(t.Context(), token, want)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.EncryptBlocks(t.Context(), make([]byte, 16), block); err != nil {
		t.Error(err)
	}
	key.Close() // of a link that is gone
}

// TestSecretKeyComesBack: a keyring opens a private key again that went with its session.
func TestSecretKeyComesBack(t *testing.T) {
	p := withDomain(t)
	s := testSpec(1)
	s.Class, s.Bits = hsm.ClassEC, 256
	made, err := p.GenerateKey(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.Header()
	if err != nil {
		t.Fatal(err)
	}
	k := hsm.NewKeyring(p, hsm.KeyringConfig{})
	defer k.Close()
	sign := func() error {
		_, err := k.Apply(t.Context(), hsm.Ref{Token: made.Token, Want: want, Kind: s.Kind(), SPKI: made.SPKI}, hsm.ECDSASHA256, make([]byte, 32))
		return err
	}
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	pullAway(t, p, nil)
	eventually(t, "the key signs again", func() bool {
		err := sign()
		if err != nil && !errors.Is(err, hsm.ErrUnavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	if loads := k.Stats().Loads; loads < 2 {
		t.Errorf("%d loads", loads)
	}
}

// TestIdleLossIsNoticed: without any call.
func TestIdleLossIsNoticed(t *testing.T) {
	p := mustOpen(t, config(newToken(t)))
	before, err := p.current()
	if err != nil {
		t.Fatal(err)
	}
	pullAway(t, p, nil)
	eventually(t, "another link", func() bool {
		l, err := p.current()
		return err == nil && l != before
	})
}

// TestTokenMovedAway takes the token's directory away and brings it back.
func TestTokenMovedAway(t *testing.T) {
	p := withDomain(t)
	key, token, want := newKey(t, p, 1)
	dir := directoryOf(t, p)
	aside := filepath.Join(t.TempDir(), "token")
	if err := os.Rename(dir, aside); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss is noticed", func() bool { return p.Healthy() != nil })
	if err := p.Healthy(); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), p.Info().Label) {
		t.Errorf("healthy says %v", err)
	}
	if err := key.EncryptBlocks(t.Context(), make([]byte, 16), make([]byte, 16)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a key of the lost token says %v", err)
	}
	if _, err := p.Open(t.Context(), token, want); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("open says %v", err)
	}
	if err := os.Rename(aside, dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token is back", func() bool { return usable(t, p) })
	if err := key.EncryptBlocks(t.Context(), make([]byte, 16), make([]byte, 16)); !errors.Is(err, hsm.ErrStale) {
		t.Errorf("a key of before says %v, want %v", err, hsm.ErrStale)
	}
	again, err := p.Open(t.Context(), token, want)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// directoryOf finds the directory of a token by its serial number, of which the last
// digits are those of the directory's name.
func directoryOf(t *testing.T, p *Partition) string {
	t.Helper()
	entries, err := os.ReadDir(tokenDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(strings.ReplaceAll(e.Name(), "-", ""), p.Info().Serial) {
			return filepath.Join(tokenDir(), e.Name())
		}
	}
	t.Fatalf("no directory of token %s", p.Info().Serial)
	return ""
}

// TestPINChangedMeanwhile: the old PIN is tried once more, and never again.
func TestPINChangedMeanwhile(t *testing.T) {
	p := mustOpen(t, config(newToken(t)))
	pullAway(t, p, func(other *pkcs11.Ctx, slot uint) error {
		h, err := other.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return err
		}
		return other.SetPIN(h, testPIN, "another-pin")
	})
	eventually(t, "the token refuses the pin", func() bool { return errors.Is(p.Healthy(), hsm.ErrPIN) })
	if err := p.Healthy(); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("healthy says %v", err)
	}
	if _, err := p.SignIdentity(t.Context(), nil); !errors.Is(err, hsm.ErrPIN) || !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("sign says %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for _, b := range p.cfg.PIN {
		if b != 0 {
			t.Fatal("the pin is still in memory")
		}
	}
}

// TestObjectPulledAway: a domain key that vanishes is noticed; the token itself is
// well.
func TestObjectPulledAway(t *testing.T) {
	p := withDomain(t)
	_, token, want := newKey(t, p, 1)
	var mac pkcs11.ObjectHandle
	onSession(t, p, func(s *session) error {
		d, err := p.domain(s, domainID{testCluster, 1})
		mac = d[hsm.KindMAC]
		return err
	})
	l, err := p.current()
	if err != nil {
		t.Fatal(err)
	}
	other := intruder(t)
	h, err := other.OpenSession(l.token.id, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(other.DestroyObject(h, mac), other.CloseSession(h)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the generation is gone", func() bool {
		_, err := p.Open(t.Context(), token, want)
		if !errors.Is(err, hsm.ErrUnavailable) && !errors.Is(err, hsm.ErrNotFound) {
			t.Fatalf("error %v", err)
		}
		return errors.Is(err, hsm.ErrNotFound)
	})
}

// TestLossUnderLoad pulls the sessions away again and again while many callers work.
// Whatever a call says, it must not crash, hang or answer wrongly.
func TestLossUnderLoad(t *testing.T) {
	const goroutines, losses = 64, 8
	p := withDomain(t)
	first, token, want := newKey(t, p, 1)
	answer := make([]byte, 16)
	if err := first.EncryptBlocks(t.Context(), answer, make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := openAndCompare(t, p, token, want, answer); err != nil &&
					!errors.Is(err, hsm.ErrUnavailable) && !errors.Is(err, hsm.ErrStale) {
					t.Errorf("error %v", err)
					return
				}
			}
		})
	}
	for range losses {
		eventually(t, "the token is open", func() bool { return usable(t, p) })
		pullAway(t, p, nil)
	}
	close(stop)
	wg.Wait()
	eventually(t, "the token is open", func() bool { return usable(t, p) })
	if err := openAndCompare(t, p, token, want, answer); err != nil {
		t.Error(err)
	}
}

func openAndCompare(t *testing.T, p *Partition, token []byte, want hsm.TokenHeader, answer []byte) error {
	key, err := p.Open(t.Context(), token, want)
	if err != nil {
		return err
	}
	defer key.Close()
	dst := make([]byte, len(answer))
	if err := key.EncryptBlocks(t.Context(), dst, make([]byte, len(dst))); err != nil {
		return err
	}
	if !bytes.Equal(dst, answer) {
		return errors.New("another answer")
	}
	return nil
}

// TestClose closes a partition that is lost, and one that is in use.
func TestClose(t *testing.T) {
	t.Run("while lost", func(t *testing.T) {
		p := withDomain(t)
		key, _, _ := newKey(t, p, 1)
		dir := directoryOf(t, p)
		if err := os.Rename(dir, filepath.Join(t.TempDir(), "token")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the loss is noticed", func() bool { return p.Healthy() != nil })
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := key.EncryptBlocks(t.Context(), make([]byte, 16), make([]byte, 16)); !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("error %v, want %v", err, hsm.ErrUnavailable)
		}
	})
	t.Run("under load", func(t *testing.T) {
		p := withDomain(t)
		key, token, want := newKey(t, p, 1)
		var started atomic.Int64
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for {
					opened, err := p.Open(t.Context(), token, want)
					started.Add(1)
					if errors.Is(err, hsm.ErrUnavailable) {
						return
					}
					if err != nil {
						t.Errorf("error %v", err)
						return
					}
					opened.Close()
				}
			})
		}
		eventually(t, "calls are under way", func() bool { return started.Load() > 64 })
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		key.Close()
		if err := p.Close(); err != nil {
			t.Errorf("closing twice: %v", err)
		}
	})
}
