// Package kms is the key service: keys, cryptography, the rules of who may, and
// the ciphertext format. It knows neither Raft nor PKCS#11 nor gRPC.
//
// Reading order: service.go, caller.go (who may), reference.go (how a key is
// named), crypto.go (what is done with keys, through the gate), blob.go and
// context.go (the formats), keys.go and aliases.go (what is done to keys, through
// the log).
package kms

import (
	"context"
	"errors"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/gate"
)

// Log is the replicated log as the key service sees it.
type Log interface {
	// Propose returns when the command has been applied here; an error that wraps
	// a sentinel of fsm is the command's refusal.
	Propose(ctx context.Context, p fsm.Proposal) (fsm.Result, error)
	State() *fsm.State
	Wait(ctx context.Context, index uint64) (*fsm.State, error)
}

// KeyMaker makes keys in the HSM.
type KeyMaker interface {
	GenerateKey(ctx context.Context, s hsm.KeySpec) ([]byte, error)
	Random(ctx context.Context, b []byte) error
}

// Deriver derives the keys of one message in the HSM.
type Deriver interface {
	Derive(ctx context.Context, ref hsm.Ref, in hsm.MessageInput, use hsm.Use) (hsm.MessageKeys, error)
}

// Config is what a Service needs; all of it is required.
type Config struct {
	Log     Log
	Fresh   gate.Freshness
	Keys    KeyMaker
	Deriver Deriver
	Audit   gate.Recorder
	Out     *gate.Releases
	Now     func() time.Time     // wall clock, for the creation date in tokens
	Clock   func() time.Duration // monotonic
	// Quorum makes every call behave as one with ConsistencyQuorum: for hosts whose
	// clock may stand still, such as virtual machines that are paused. The only field
	// that is not required.
	Quorum bool
}

// Service is the key service of one node. Its methods may be called from any
// goroutine.
type Service struct {
	log     Log
	fresh   gate.Freshness
	keys    KeyMaker
	deriver Deriver
	audit   gate.Recorder
	gate    *gate.Gate
	random  *entropy
	now     func() time.Time
	quorum  bool
}

// New makes the key service.
func New(c Config) *Service {
	return &Service{
		log: c.Log, fresh: c.Fresh, keys: c.Keys, deriver: c.Deriver, audit: c.Audit,
		gate:   gate.New(c.Fresh, c.Audit, c.Out, c.Clock),
		random: newEntropy(c.Keys),
		now:    c.Now,
		quorum: c.Quorum,
	}
}

// begin starts a call's audit record.
func begin(name string, c Call) audit.Event {
	return audit.Event{
		Name: name, RequestID: c.RequestID, DryRun: c.DryRun,
		Principal: c.Caller.Principal, Class: string(c.Caller.Class), Tenant: c.Tenant, Source: c.Caller.Source,
	}
}

// confirm waits for a tick of its own if the call or this node wants one.
func (s *Service) confirm(ctx context.Context, c Call) error {
	if c.Consistency != ConsistencyQuorum && !s.quorum {
		return nil
	}
	return s.fresh.Confirm(ctx)
}

// refuse records a call that ends without a result and returns why. A record that
// cannot be written takes the place of the reason: the caller learns nothing.
func (s *Service) refuse(e audit.Event, err error) error {
	e.Reason = err.Error()
	switch {
	case errors.Is(err, ErrDryRun):
		e.Result, e.Reason = audit.Success, ""
	case errors.Is(err, ErrDenied):
		e.Result = audit.Denied
	default:
		e.Result = audit.Failed
	}
	if e.StateIndex == 0 {
		e.StateIndex = s.log.State().Index()
	}
	if failed := s.audit.Record(e); failed != nil {
		return failed
	}
	return err
}

// Refuse records a call that is refused before it reaches the service and returns
// the error to answer with.
func (s *Service) Refuse(name string, c Call, err error) error { return s.refuse(begin(name, c), err) }

// succeed records a call that was answered from metadata.
func (s *Service) succeed(e audit.Event, st *fsm.State) error {
	e.Result, e.StateIndex = audit.Success, st.Index()
	return s.audit.Record(e)
}
