package node

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/hsmtest"
	"github.com/quorumkms/quorumkms/hsm/p11"
	"github.com/quorumkms/quorumkms/hsm/soft"
)

// HSMCheck is what a check of a token found.
type HSMCheck struct {
	p11.Examination
	Parts  []HSMCheckPart // of the conformance suite, in a scratch token
	Passed bool           // the token can serve a node, with the weaknesses that are accepted
}

// HSMCheckPart is one part of the conformance suite.
type HSMCheckPart struct {
	Name     string
	Passed   bool
	Failures []string
}

// CheckHSM finds out whether a token can serve a node. It writes nothing to it; with scratch
// the token is the caller's to spoil, and the whole conformance suite runs in it, with
// embedded partitions as the other nodes'. A token that holds objects of a node is no scratch
// token: ErrRefused. told hears of each part.
func CheckHSM(ctx context.Context, c HSM, pin, soPIN []byte, scratch bool, told func(HSMCheckPart)) (HSMCheck, error) {
	s := scratchToken{
		cfg: p11.Config{
			Module: c.Module, ModuleArguments: c.ModuleArguments, Token: c.Token, Serial: c.Serial,
			PIN: pin, Sessions: c.Sessions, AcceptWeakness: c.AcceptWeakness,
		},
		trust: p11.TrustConfig{
			Module: c.Module, ModuleArguments: c.ModuleArguments, Token: c.Token, Serial: c.Serial,
			SOPIN: soPIN, AcceptWeakness: c.AcceptWeakness,
		},
	}
	if len(soPIN) == 0 && c.TrustsAsUser() {
		s.trust.PIN = pin
	}
	if scratch && len(soPIN) == 0 && len(s.trust.PIN) == 0 {
		return HSMCheck{}, fmt.Errorf("%w: a check in a scratch token needs the PIN of its Security Officer", ErrConfig)
	}
	x, err := p11.Examine(ctx, s.cfg)
	if err != nil {
		return HSMCheck{}, err
	}
	check := HSMCheck{Examination: x, Passed: true}
	for _, n := range x.Needs {
		check.Passed = check.Passed && (n.Offered || !n.Required)
	}
	for _, p := range x.Info.Probes {
		check.Passed = check.Passed && (p.Passed || p.Accepted)
	}
	if !scratch {
		return check, nil
	}
	if x.Objects > 0 {
		return check, fmt.Errorf("%w: token %q holds %d objects of a node or of a check that was cut short: it is no scratch token; make one with \"kmsd hsm init-token\"",
			hsm.ErrRefused, c.Token, x.Objects)
	}
	s.oaep = x.OAEP
	for _, part := range hsmtest.Parts() {
		if !check.Passed && len(check.Parts) == 0 {
			break // a node would not open it
		}
		result := s.run(ctx, part)
		if ctx.Err() == nil { // otherwise it failed for that
			check.Parts = append(check.Parts, result)
			check.Passed = check.Passed && result.Passed
			told(result)
		}
		if err := p11.Erase(context.WithoutCancel(ctx), s.cfg); err != nil { // also when it is cut short
			return check, fmt.Errorf("clean the scratch token up: %w", err)
		}
		if ctx.Err() != nil {
			return check, context.Cause(ctx)
		}
	}
	return check, nil
}

// scratchToken runs parts of the conformance suite in a token that is empty before each.
type scratchToken struct {
	cfg   p11.Config
	trust p11.TrustConfig
	oaep  uint8
}

func (s scratchToken) run(ctx context.Context, part hsmtest.Part) HSMCheckPart {
	ctx, cancel := context.WithCancel(ctx)
	r := &checkRun{ctx: ctx}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer r.clean()
		defer cancel()
		part.Run(r, s.env(r))
	}()
	<-done
	return HSMCheckPart{Name: part.Name, Passed: len(r.failures) == 0, Failures: r.failures}
}

func (s scratchToken) open(t hsmtest.T) hsm.Partition {
	p, err := p11.Open(context.WithoutCancel(t.Context()), s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// reopened is a partition that is opened again in between: the Security Officer cannot log in
// where the user has, and in one process that is the user of all its sessions.
type reopened struct{ hsm.Partition }

func (s scratchToken) env(t hsmtest.T) hsmtest.Env {
	token := &reopened{s.open(t)}
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	reopen := func(t hsmtest.T, between func() error) {
		if err := token.Close(); err != nil {
			t.Fatal(err)
		}
		if err := between(); err != nil {
			t.Error(err)
		}
		token.Partition = s.open(t)
	}
	embedded := func(t hsmtest.T) hsm.Partition {
		p, err := soft.Open(soft.Config{OAEPHash: s.oaep})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	return hsmtest.Env{
		Partition: token,
		Reopen: func(t hsmtest.T) hsm.Partition {
			reopen(t, func() error { return nil })
			return token
		},
		Second: embedded,
		Asking: func(_ hsmtest.T, hash uint8) hsm.Partition {
			if hash != s.oaep {
				return nil
			}
			return token
		},
		Trust: func(t hsmtest.T, p hsm.Partition, spki []byte) {
			if p, ok := p.(*soft.Partition); ok {
				if err := p.Trust(spki); err != nil {
					t.Fatal(err)
				}
				return
			}
			reopen(t, func() error { return p11.Trust(t.Context(), s.trust, bytes.Clone(spki)) })
		},
	}
}

// checkRun is hsmtest.T outside of a test.
type checkRun struct {
	ctx context.Context //nolint:containedctx // as testing.T has one

	mu       sync.Mutex
	failures []string
	cleanups []func()
}

// Helper implements hsmtest.T.
func (*checkRun) Helper() {}

// Context implements hsmtest.T.
func (r *checkRun) Context() context.Context { return r.ctx }

// Cleanup implements hsmtest.T.
func (r *checkRun) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

// clean runs what was put off, the newest first.
func (r *checkRun) clean() {
	for {
		r.mu.Lock()
		n := len(r.cleanups)
		if n == 0 {
			r.mu.Unlock()
			return
		}
		f := r.cleanups[n-1]
		r.cleanups = r.cleanups[:n-1]
		r.mu.Unlock()
		f()
	}
}

// maxFailures bounds what is told of one part.
const maxFailures = 20

func (r *checkRun) failed(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.failures) < maxFailures {
		r.failures = append(r.failures, strings.TrimSuffix(text, "\n"))
	}
}

// Error implements hsmtest.T.
func (r *checkRun) Error(args ...any) { r.failed(fmt.Sprintln(args...)) }

// Errorf implements hsmtest.T.
func (r *checkRun) Errorf(format string, args ...any) { r.failed(fmt.Sprintf(format, args...)) }

// Fatal implements hsmtest.T.
func (r *checkRun) Fatal(args ...any) {
	r.Error(args...)
	runtime.Goexit()
}

// Fatalf implements hsmtest.T.
func (r *checkRun) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}
