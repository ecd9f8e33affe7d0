package kms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

const (
	dutyEvery = time.Second
	// dutyBatch is how many things that are due are done between two looks at the
	// leadership.
	dutyBatch = 64
	// dutyTimeout bounds one of them.
	dutyTimeout = 30 * time.Second
	// dutyPause is how long something that failed is left alone.
	dutyPause = time.Minute
	// maxPaused bounds what is left alone; beyond it everything is tried again.
	maxPaused = 10_000
	// settleAtMost is how long an act whose outcome is not known is looked for, and
	// maxUnsettled how many of them are.
	settleAtMost = time.Hour
	maxUnsettled = 10_000
)

// errNoToken means: the HSM makes no keys.
var errNoToken = errors.New("the HSM makes no key")

// RunDuties does what is due until ctx ends: on the leader rotations, deletions,
// destructions and the ends of imported material and of grants, on every node the telling of keys' last uses. Each
// act names what it is for, so that done by two leaders it is done once, and has a request
// id, by which the state tells later whether it was done where the log did not.
func (s *Service) RunDuties(ctx context.Context) {
	tick := time.NewTicker(dutyEvery)
	defer tick.Stop()
	paused := map[fsm.Due]time.Time{}
	told := s.now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s.settle()
		if now := s.now(); now.Sub(told) >= useEvery {
			told = now
			s.tellUses(ctx)
		}
		for s.doDue(ctx, paused) && ctx.Err() == nil {
		}
	}
}

// doDue does some of what is due and tells whether there may be more at once.
func (s *Service) doDue(ctx context.Context, paused map[fsm.Due]time.Time) (more bool) {
	if !s.leader.Leads() || s.audit.Healthy() != nil {
		return false
	}
	if s.log.State().Permits(&fsm.DeleteKey{}) != nil { // a cluster of an earlier release leaves it for later
		return false
	}
	at, ok := s.leader.MajorityTime()
	if !ok {
		return false
	}
	maps.DeleteFunc(paused, func(_ fsm.Due, until time.Time) bool { return !s.now().Before(until) })
	if len(paused) > maxPaused {
		clear(paused)
	}
	st := s.log.State()
	due := st.Due(at.Unix(), dutyBatch+len(paused))
	did, failed := 0, 0
	var noToken error // of this look: what needs no key does not wait for an HSM that makes none
	for _, d := range due {
		if _, waits := paused[d]; waits {
			continue
		}
		if did++; did > dutyBatch {
			return failed == 0
		}
		err := s.doOne(ctx, st, d, at, noToken)
		if err == nil {
			continue
		}
		failed++
		paused[d] = s.now().Add(dutyPause)
		if noToken == nil || !errors.Is(err, errNoToken) {
			s.logger.Warn("what is due was not done, trying again later", "due", time.Unix(d.At, 0).UTC(), "id", d.ID, "grant", d.Grant, "error", err)
		}
		if errors.Is(err, errNoToken) {
			noToken = err
		}
		if ctx.Err() != nil || !s.leader.Leads() {
			return false
		}
	}
	return failed == 0 && did == dutyBatch && did == len(due)
}

// doOne does one thing that is due. What was changed meanwhile is no failure.
func (s *Service) doOne(ctx context.Context, st *fsm.State, d fsm.Due, at time.Time, noToken error) error {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	name, command, err := s.dueCommand(ctx, st, d, at, noToken)
	if command == nil || err != nil {
		return err
	}
	e := audit.Event{Name: name, Principal: s.self, Class: string(ClassNode), DecidedBy: "schedule", Target: d.ID.String(), Result: audit.Success, Durable: true}
	if k := keyOfDue(st, d); k != nil {
		e.Tenant, e.KeyID = k.Tenant, k.ID.String()
	}
	if d.Grant {
		e.Grant = d.ID.String()
	}
	p := fsm.Proposal{Command: command, Principal: s.self, Request: uuid.NewString()}
	if p.Digest, err = requestDigest(name, e.Tenant, command); err != nil {
		return err
	}
	result, err := s.log.Propose(ctx, p)
	e.StateIndex = s.log.State().Index()
	switch {
	case err == nil:
		e.KeyVersion = result.Version
	case errors.Is(err, fsm.ErrConflict), errors.Is(err, fsm.ErrNotFound), errors.Is(err, fsm.ErrNotPendingDeletion):
		return nil
	case fsm.Code(err) == "", errors.Is(err, fsm.ErrHalted): // the log has not answered
		if len(s.unsettled) < maxUnsettled {
			s.unsettled = append(s.unsettled, openAct{p, e, s.now().Add(settleAtMost)})
		}
		e.Result, e.Reason = audit.Unknown, err.Error()
	default:
		e.Result, e.Reason = audit.Failed, err.Error()
	}
	return errors.Join(err, s.audit.Record(e))
}

// openAct is an act of the cluster's own whose outcome is not known yet.
type openAct struct {
	proposal fsm.Proposal
	event    audit.Event // of its success
	until    time.Time   // it is looked for
}

// settle records those acts as done that the state has the request of: they were committed
// after all.
func (s *Service) settle() {
	st, now := s.log.State(), s.now()
	s.unsettled = slices.DeleteFunc(s.unsettled, func(a openAct) bool {
		result, done, err := st.Replay(a.proposal.Principal, a.proposal.Request, a.proposal.Digest)
		if err != nil || !done {
			return !now.Before(a.until)
		}
		a.event.KeyVersion, a.event.StateIndex = result.Version, result.Index
		return s.audit.Record(a.event) == nil
	})
}

func keyOfDue(st *fsm.State, d fsm.Due) *fsm.Key {
	id := d.ID
	if g, ok := st.Grant(d.ID); ok && d.Grant {
		id = g.Key
	}
	k, _ := st.Key(id)
	return k
}

// dueCommand is what is to be done: no command if it is not due any more. noToken is why
// the HSM makes no keys, if that is known.
func (s *Service) dueCommand(ctx context.Context, st *fsm.State, d fsm.Due, at time.Time, noToken error) (name string, c fsm.Command, err error) {
	now := at.Unix()
	if d.Grant {
		g, ok := st.Grant(d.ID)
		if !ok {
			return "", nil, nil
		}
		return "ExpireGrant", &fsm.ExpireGrant{GrantRef: fsm.GrantRef{Grant: g.ID, Key: g.Key, Tenant: g.Tenant}, At: now}, nil
	}
	k, ok := st.Key(d.ID)
	if !ok {
		return "", nil, nil
	}
	ref := fsm.KeyRef{ID: k.ID, Tenant: k.Tenant, Expect: k.Revision}
	switch {
	case k.State == fsm.KeyPendingDeletion && k.Deletion <= now:
		return "DeleteKey", &fsm.DeleteKey{KeyRef: ref, At: now}, nil
	case k.DestructionDue(now):
		return "DestroyKeyVersions", &fsm.DestroyKeyVersions{KeyRef: ref, At: now}, nil
	case k.LimitDue():
		if noToken != nil {
			return "", nil, noToken
		}
		command := &fsm.RotateKeyAtLimit{KeyRef: ref, Version: st.NextVersion(k)}
		if err := s.makeToken(ctx, st, Call{}, command, k.ID, command.Version); err != nil {
			return "", nil, fmt.Errorf("%w: rotating key %s, which has encrypted nearly as many messages as it may: %w", errNoToken, k.ID, err)
		}
		return "RotateKey", command, nil
	case k.ExpiryDue(now):
		return "ExpireKeyMaterial", &fsm.ExpireKeyMaterial{KeyRef: ref, At: now}, nil
	case k.RotationDue() && k.Rotation.Next <= now:
		if noToken != nil {
			return "", nil, noToken
		}
		command := &fsm.RotateKeyOnSchedule{KeyRef: ref, Due: k.Rotation.Next, At: now, Version: st.NextVersion(k)}
		if err := s.makeToken(ctx, st, Call{}, command, k.ID, command.Version); err != nil {
			return "", nil, fmt.Errorf("%w: rotating key %s: %w", errNoToken, k.ID, err)
		}
		return "RotateKey", command, nil
	}
	return "", nil, nil
}
