package kms

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// Propose commits a command in a caller's name.
type Propose func(ctx context.Context, c fsm.Command) (fsm.Result, error)

// Operate runs one call of a cluster operator: it checks the class, hands f the
// way to the log, and records how it ended. name and target go into the record;
// params identify the request for its id. A dry run stops before f.
func Operate[T any](ctx context.Context, s *Service, name, target string, c Call, params any, f func(ctx context.Context, propose Propose) (T, error)) (T, error) {
	var none T
	e := begin(name, c)
	e.Target = target
	tenant, rule, err := c.allow(mayOperate)
	e.Tenant, e.DecidedBy = tenant, rule
	if err == nil && c.DryRun {
		err = ErrDryRun
	}
	if err != nil {
		return none, s.refuse(e, err)
	}
	digest, err := requestDigest(name, tenant, params)
	if err != nil {
		return none, s.refuse(e, err)
	}
	request := c.RequestID
	if request == "" {
		request = uuid.NewString()
	}
	answer, err := f(ctx, func(ctx context.Context, command fsm.Command) (fsm.Result, error) {
		return s.log.Propose(ctx, fsm.Proposal{Command: command, Request: request, Digest: digest, Principal: c.Caller.Principal})
	})
	if err != nil {
		return none, s.refuse(e, err)
	}
	return answer, s.succeed(e, s.log.State())
}

// Observe records a call that anyone with a certificate may make.
func (s *Service) Observe(name string, c Call) error {
	e := begin(name, c)
	e.DecidedBy = "anyone"
	return s.succeed(e, s.log.State())
}

// Event records what the node did or refused outside a client's call, such as a
// node joining.
func (s *Service) Event(name, principal, target string, err error) error {
	e := audit.Event{Name: name, Principal: principal, Class: string(ClassNode), Target: target, Result: audit.Success}
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
