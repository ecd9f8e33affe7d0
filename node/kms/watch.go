package kms

import (
	"context"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// WatchRestrictions is the call that caches of data keys learn by what to forget. No policy
// decides about it: it tells nothing but that something may be allowed no longer.
const WatchRestrictions = "WatchRestrictions"

// Restricted is what a watch tells.
type Restricted struct {
	Everything bool     // whatever the caller keeps
	KeyIDs     []string // what it keeps of these keys
	// IndexToken is of the state that was looked at: whatever restricts behind it is told later.
	IndexToken []byte
}

// Watch follows what restricts the use of a tenant's keys. It is for one goroutine.
type Watch struct {
	s      *Service
	caller Caller
	Tenant string // whose keys are watched
	seen   uint64 // index that was told of
}

// WatchRestrictions lets a caller that may use keys follow what restricts their use in the
// acting tenant, from now on, and records that.
func (s *Service) WatchRestrictions(ctx context.Context, c Call) (*Watch, Restricted, error) {
	e := begin(WatchRestrictions, c)
	e.Tenant, e.DecidedBy = c.acting(), "role"
	err := s.admit(ctx, c, mayUse, limit.Control, &e)
	var st *fsm.State
	if err == nil {
		st, err = s.fresher(ctx, c)
	}
	if err != nil {
		return nil, Restricted{}, s.refuse(e, err)
	}
	if err := s.succeed(e, st); err != nil {
		return nil, Restricted{}, err
	}
	return &Watch{s: s, caller: c.Caller, Tenant: c.acting(), seen: st.Index()}, Restricted{IndexToken: IndexToken(st)}, nil
}

// Changed is closed when Next may have something to tell: take it first.
func (w *Watch) Changed() <-chan struct{} { return w.s.log.Restricted() }

// Next tells what has been restricted since the last time. It fails when the caller may not
// go on, and while this node cannot know: without a lease.
func (w *Watch) Next() (Restricted, error) {
	st, err := w.s.present()
	if err == nil {
		err = enabled(st, w.caller)
	}
	if err != nil {
		return Restricted{}, err
	}
	list, known := st.RestrictedSince(w.seen)
	w.seen = st.Index()
	out := Restricted{Everything: !known, IndexToken: IndexToken(st)}
	for _, r := range list {
		switch {
		case r.Tenant != "" && r.Tenant != w.Tenant:
		case r.Key == fsm.ID{}, w.caller.foreign(w.Tenant): // which keys there are is the tenant's affair
			out.Everything = true
		default:
			out.KeyIDs = append(out.KeyIDs, r.Key.String())
		}
	}
	if out.Everything {
		out.KeyIDs = nil
	}
	return out, nil
}
