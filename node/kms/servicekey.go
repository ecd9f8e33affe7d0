package kms

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// serviceKey is the key that a service manages for the acting tenant. It is made when the
// service first asks for it: exactly one, however many nodes ask at once, because the log
// puts them in order and refuses all but the first.
func (s *Service) serviceKey(ctx context.Context, st *fsm.State, c Call, pairs []Pair, e *audit.Event) (reference, *fsm.State, error) {
	ref := reference{tenant: c.acting(), alias: fsm.ServiceAlias(c.Caller.Name)}
	q := question{caller: c.Caller, tenant: ref.tenant, needs: mayUse, operation: e.Name, context: pairs, ofKey: true}
	if c.Tenant == "" {
		return ref, st, invalid("a service that names no key must name the tenant that it acts for")
	}
	if _, ok := st.ServiceKey(ref.tenant, c.Caller.Name); ok {
		return ref, st, nil
	}
	if err := errors.Join(enabled(st, c.Caller), q.heldToContext()); err != nil {
		return ref, st, err
	}
	tenant, ok := st.Tenant(ref.tenant)
	if !ok {
		return ref, st, s.absent(q, nil)
	}
	if err := tenant.Thawed(); err != nil {
		return ref, st, err
	}
	command := &fsm.CreateServiceKey{ID: uuid.New(), Tenant: ref.tenant, Service: c.Caller.Name}
	if err := s.mayHave(st, q, command, e); err != nil {
		return ref, st, err
	}
	if err := s.makeToken(ctx, st, c, command, command.ID, 1); err != nil {
		return ref, st, err
	}
	if c.DryRun {
		return ref, st, ErrDryRun
	}
	record := begin("CreateServiceKey", c)
	record.Tenant, record.KeyID, record.KeyVersion, record.DecidedBy = ref.tenant, command.ID.String(), 1, "service key"
	if err := s.audit.Healthy(); err != nil {
		return ref, st, err
	}
	_, err := s.log.Propose(ctx, fsm.Proposal{Command: command, Principal: c.Caller.Principal})
	if errors.Is(err, fsm.ErrExists) { // another call was first, and this node knows its key now
		return ref, s.log.State(), nil
	}
	if now := s.log.State(); errors.Is(err, fsm.ErrConflict) && overtaken(st, now) {
		return s.serviceKey(ctx, now, c, pairs, e)
	}
	if err != nil {
		return ref, st, s.refuse(record, err)
	}
	st = s.log.State()
	return ref, st, s.succeed(record, st)
}

// mayHave asks whether the service could use the key that it would get: for one that the
// tenant's policy forbids it, none is made.
func (s *Service) mayHave(st *fsm.State, q question, would *fsm.CreateServiceKey, e *audit.Event) error {
	g, err := st.ActiveGeneration()
	if err != nil {
		return err
	}
	trial := *would
	trial.Generation, trial.Token = g.Number, []byte{0}
	after, err := st.After(&trial)
	if err != nil {
		return err
	}
	k, _ := after.Key(would.ID)
	e.DecidedBy, err = s.decide(after, q, k)
	return err
}
