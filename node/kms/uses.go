package kms

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
)

const (
	// useGrain is how old what is stored of a key's last use may be: an entry an operation
	// would be a log of its own.
	useGrain = time.Hour
	// useEvery is how often a node tells what it has seen.
	useEvery = time.Minute
	// maxUses bounds what a node remembers; beyond it, it forgets and begins anew.
	maxUses = 200_000
)

// uses is what this node has seen of keys' uses.
type uses struct {
	mu   sync.Mutex
	seen map[useOf]useNote
}

type useOf struct {
	key     fsm.ID
	version uint32 // 0: an attempt while the key was pending deletion
}

type useNote struct {
	at   int64 // unix seconds: seen, and to be told; 0: told
	next int64 // unix seconds: what is earlier is no news
}

func newUses() *uses { return &uses{seen: map[useOf]useNote{}} }

// note takes a use in, if it is an hour newer than what the cluster knows.
func (u *uses) note(st *fsm.State, key fsm.ID, version uint32, now time.Time) {
	of, at := useOf{key, version}, now.Unix()
	u.mu.Lock()
	defer u.mu.Unlock()
	n, known := u.seen[of]
	if known && at < n.next {
		return
	}
	known = n.at != 0
	n.at, n.next = at, at+int64(useGrain/time.Second)
	if stored := storedUse(st, of); !known && at < stored+int64(useGrain/time.Second) {
		n = useNote{next: stored + int64(useGrain/time.Second)}
	}
	if len(u.seen) >= maxUses {
		clear(u.seen)
	}
	u.seen[of] = n
}

func storedUse(st *fsm.State, of useOf) int64 {
	stored, ok := st.LastUse(of.key)
	switch {
	case !ok:
		return 0
	case of.version == 0:
		return stored.Refused
	}
	return stored.Version(of.version)
}

// take gives up to fsm.MaxUses uses to tell.
func (u *uses) take() []fsm.Use {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []fsm.Use
	for of, n := range u.seen {
		if n.at == 0 || len(out) == fsm.MaxUses {
			continue
		}
		out = append(out, fsm.Use{Key: of.key, Version: of.version, At: n.at})
		n.at = 0
		u.seen[of] = n
	}
	slices.SortFunc(out, func(a, b fsm.Use) int { return slices.Compare(a.Key[:], b.Key[:]) })
	return out
}

// back takes uses in again that could not be told.
func (u *uses) back(all []fsm.Use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, x := range all {
		of := useOf{x.Key, x.Version}
		if n := u.seen[of]; n.at == 0 {
			n.at = x.At
			u.seen[of] = n
		}
	}
}

// tellUses brings what this node has seen into the log.
func (s *Service) tellUses(ctx context.Context) {
	all := s.uses.take()
	if len(all) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout) // what is due must not wait for it
	defer cancel()
	if _, err := s.log.Propose(ctx, fsm.Proposal{Command: &fsm.RecordUse{Uses: all}, Principal: s.self}); err != nil {
		s.logger.Debug("keys' last uses were not told, trying again", "error", err)
		s.uses.back(all)
	}
}
