//go:build cgo

package p11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// TestHangingCall: while a call does not return, the token counts as unusable and other calls
// fail at once; when it returns all is as before.
func TestHangingCall(t *testing.T) {
	for name, pool := range map[string]func(*Partition) func(context.Context, *link, func(*session) error) error{
		"any session":                      func(p *Partition) func(context.Context, *link, func(*session) error) error { return p.on },
		"the session that owns the loaded": func(p *Partition) func(context.Context, *link, func(*session) error) error { return p.held },
	} {
		t.Run(name, func(t *testing.T) {
			var told logged
			cfg := config(newToken(t))
			cfg.patience, cfg.Logger = time.Millisecond, slog.New(slog.NewTextHandler(&told, nil))
			p := mustOpen(t, cfg)
			// With so little patience calls hang now and then.
			eventually(t, "a domain is there", func() bool {
				_, err := p.CreateDomain(t.Context(), testCluster, 1)
				if err != nil && !errors.Is(err, hsm.ErrUnavailable) {
					t.Fatal(err)
				}
				return err == nil
			})
			var key hsm.BlockKey
			eventually(t, "a key is there", func() bool {
				token, err := p.GenerateKey(t.Context(), testSpec(1))
				if err != nil {
					return false
				}
				want, err := testSpec(1).Header()
				if err != nil {
					t.Fatal(err)
				}
				key, err = p.Open(t.Context(), token.Token, want)
				return err == nil
			})
			var before *link
			eventually(t, "the link", func() bool { var err error; before, err = p.current(); return err == nil })
			goOn, returned := make(chan struct{}), make(chan error)
			go func() { returned <- pool(p)(context.Background(), before, func(*session) error { <-goOn; return nil }) }()
			eventually(t, "the token counts as hanging", func() bool { return p.Healthy() != nil })
			if err := p.Healthy(); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "hangs: a call has not returned for ") {
				t.Errorf("healthy says %v", err)
			}
			if usable(t, p) {
				t.Error("a hanging token is used")
			}
			if err := key.EncryptBlocks(t.Context(), make([]byte, 16), make([]byte, 16)); !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("a loaded key says %v", err)
			}
			close(goOn)
			if err := <-returned; err != nil {
				t.Error(err)
			}
			eventually(t, "the token is used again", func() bool { return usable(t, p) })
			eventually(t, "the key is good", func() bool {
				err := key.EncryptBlocks(t.Context(), make([]byte, 16), make([]byte, 16))
				if errors.Is(err, hsm.ErrStale) {
					t.Fatal("the link was made anew")
				}
				return err == nil
			})
			if a := p.Activity(); a.Losses != 0 {
				t.Errorf("%d losses", a.Losses)
			}
			for _, text := range []string{"hsm token hangs", "hsm token answers again"} {
				eventually(t, text, func() bool { return told.says(text) })
			}
		})
	}
}

// logged is a log that is read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) says(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

// TestPatience: each call of a use has its own time, and one that makes a pair more of it.
func TestPatience(t *testing.T) {
	const patience = time.Minute
	l := &link{}
	s := &session{link: l}
	l.sessions = []*session{s}
	hung := func(after time.Duration) bool {
		_, hung := l.judge(time.Now().Add(after), patience)
		return hung > 0
	}
	if hung(time.Hour) {
		t.Error("nothing hangs")
	}
	s.begins()
	if hung(patience/2) || !hung(2*patience) {
		t.Error("a call is not judged by its time")
	}
	s.since.Store(moment() - int64(time.Hour))
	if !hung(0) {
		t.Error("a call of an hour does not hang")
	}
	s.returned()
	if hung(0) {
		t.Error("the next call has no time of its own")
	}
	done := s.takesLong()
	if hung(2*patience) || !hung(2*pairPatience*patience) {
		t.Error("the making of a pair is not judged by its time")
	}
	done()
	if !hung(2 * patience) {
		t.Error("what comes after a pair has its time")
	}
	s.ends()
	if hung(time.Hour) {
		t.Error("what has ended hangs")
	}
	s.returned()
	s.takesLong()()
	if hung(time.Hour) {
		t.Error("a use that has ended counts again")
	}
}

// TestDeviceError: a token that says that it fails is lost if it does, and stays in use if it
// answers what is known: it may have refused what it was asked for.
func TestDeviceError(t *testing.T) {
	failure := fmt.Errorf("sign: %w", pkcs11.Error(pkcs11.CKR_DEVICE_ERROR))
	fails := func(*session) error { return failure }
	for name, pool := range map[string]func(*Partition) func(context.Context, *link, func(*session) error) error{
		"any session":                      func(p *Partition) func(context.Context, *link, func(*session) error) error { return p.on },
		"the session that owns the loaded": func(p *Partition) func(context.Context, *link, func(*session) error) error { return p.held },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(newToken(t))
			cfg.ReopenEvery = time.Hour // a token that is lost stays so
			p := mustOpen(t, cfg)
			l, err := p.current()
			if err != nil {
				t.Fatal(err)
			}
			if err := pool(p)(t.Context(), l, fails); !errors.Is(err, hsm.ErrUnavailable) || !errors.Is(err, failure) {
				t.Errorf("error %v", err)
			}
			if now, err := p.current(); err != nil || now != l || !usable(t, p) {
				t.Errorf("a token that is well is lost: %v", err)
			}
			onSession(t, p, func(*session) error {
				l.identity = l.identity[1:] // what is signed does not verify any more
				return nil
			})
			if err := pool(p)(t.Context(), l, fails); !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("error %v", err)
			}
			if n := p.Activity().Losses; n != 1 {
				t.Errorf("a token that fails was lost %d times, want once", n)
			}
		})
	}
}
