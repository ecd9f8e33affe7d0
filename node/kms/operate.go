package kms

import (
	"cmp"
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// Propose commits a command in a caller's name.
type Propose func(ctx context.Context, c fsm.Command) (fsm.Result, error)

// Operation is one call of a cluster operator.
type Operation[T any] struct {
	Name   string
	Target string // what it is about, for the record
	Call   Call
	Params any // identify the request for its id; new ones are omitempty
	// Check says what is wrong with the request; a dry run ends behind it.
	Check func() error
	// Try, optional, answers a dry run, where more is to be told than that all of it would
	// succeed.
	Try func(ctx context.Context) (T, error)
	// Repeat answers a request id that is remembered.
	Repeat func(first fsm.Result) (T, error)
	// Run does it; p carries the caller's name and request id.
	Run func(ctx context.Context, p fsm.Proposal, propose Propose) (T, error)
}

// Operate runs an operator's call: class, checks, the work, the record.
func Operate[T any](ctx context.Context, s *Service, o Operation[T]) (T, error) {
	e := begin(o.Name, o.Call)
	e.Target, e.Durable = o.Target, true
	answer, err := operate(ctx, s, o, &e)
	if err != nil {
		var none T
		return none, s.refuse(e, err)
	}
	return answer, s.succeed(e, s.log.State())
}

func operate[T any](ctx context.Context, s *Service, o Operation[T], e *audit.Event) (T, error) {
	var none T
	e.Tenant, e.DecidedBy = o.Call.acting(), "role"
	if err := s.admit(ctx, o.Call, mayOperate, limit.Restrict, e); err != nil { // what repairs a cluster is not held up by anything else
		return none, err
	}
	var err error
	p := fsm.Proposal{Principal: o.Call.Caller.Principal, Request: cmp.Or(o.Call.RequestID, uuid.NewString())}
	if p.Digest, err = requestDigest(o.Name, o.Call.acting(), o.Params); err != nil {
		return none, err
	}
	first, known, err := s.log.State().Replay(p.Principal, p.Request, p.Digest)
	if err != nil {
		return none, err
	}
	if known && !o.Call.DryRun {
		return o.Repeat(first)
	}
	if err := o.Check(); err != nil {
		return none, err
	}
	if o.Call.DryRun && o.Try != nil {
		return o.Try(ctx)
	}
	if o.Call.DryRun {
		return none, ErrDryRun
	}
	if err := s.audit.Healthy(); err != nil {
		return none, err // what could not be recorded is not done
	}
	return o.Run(ctx, p, func(ctx context.Context, command fsm.Command) (fsm.Result, error) {
		p.Command = command
		return s.log.Propose(ctx, p)
	})
}

// Observe records a call that anyone with a certificate may make.
func (s *Service) Observe(ctx context.Context, name string, c Call) error {
	e := begin(name, c)
	e.DecidedBy = "anyone"
	err := c.syntax()
	if err != nil {
		err = early{err}
	} else {
		err = s.count(ctx, c, limit.Control, 1, &e)
	}
	if err != nil {
		return s.refuse(e, err)
	}
	return s.succeed(e, s.log.State())
}

// Event records what the node did or refused outside a client's call, such as a
// node joining; source is where it was asked for, if it was.
func (s *Service) Event(name, principal, source, target string, err error) error {
	e := audit.Event{Name: name, Principal: principal, Class: string(ClassNode), Source: source, Target: target, Result: audit.Success, Durable: true}
	if err != nil {
		e.Result, e.Reason = audit.Failed, err.Error()
	}
	e.StateIndex = s.log.State().Index()
	return s.audit.Record(e)
}

// Limits of an invitation.
const (
	DefaultInvitation = 15 * time.Minute
	MaxInvitation     = fsm.MaxTicketSeconds * time.Second
)
