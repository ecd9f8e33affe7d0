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
	// maxUses bounds what a node remembers; beyond it, it forgets what it has told, which
	// is told again at most.
	maxUses = 200_000
	// maxTold bounds the entries that it tells at a time: all that it remembers.
	maxTold = maxUses/fsm.MaxUses + 1
)

// uses is what this node has seen of keys' uses.
type uses struct {
	mu     sync.Mutex
	untold map[useOf]useNote
	told   map[useOf]int64 // unix seconds: what is earlier is no news
}

type useOf struct {
	key     fsm.ID
	version uint32 // 0: an attempt while the key was pending deletion
}

type useNote struct {
	at   int64 // unix seconds: seen, and to be told
	next int64 // unix seconds: what is earlier is no news
}

func newUses() *uses { return &uses{untold: map[useOf]useNote{}, told: map[useOf]int64{}} }

// note takes a use in, if it is an hour newer than what the cluster knows.
func (u *uses) note(st *fsm.State, key fsm.ID, version uint32, now time.Time) {
	const grain = int64(useGrain / time.Second)
	of, at := useOf{key, version}, now.Unix()
	u.mu.Lock()
	defer u.mu.Unlock()
	waits, untold := u.untold[of]
	if untold && at < waits.next || at < u.told[of] {
		return
	}
	if len(u.untold)+len(u.told) >= maxUses {
		u.forget()
	}
	if stored := storedUse(st, of); !untold && at < stored+grain {
		u.told[of] = stored + grain
		return
	}
	delete(u.told, of)
	u.untold[of] = useNote{at: at, next: at + grain}
}

// forget makes room for one: what was told goes first.
func (u *uses) forget() {
	for of := range u.told {
		delete(u.told, of)
		return
	}
	for of := range u.untold {
		delete(u.untold, of)
		return
	}
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
	for of, n := range u.untold {
		if len(out) == fsm.MaxUses {
			break
		}
		out = append(out, fsm.Use{Key: of.key, Version: of.version, At: n.at})
		delete(u.untold, of)
		u.told[of] = n.next
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
		if _, newer := u.untold[of]; !newer {
			delete(u.told, of)
			u.untold[of] = useNote{at: x.At, next: x.At + int64(useGrain/time.Second)}
		}
	}
}

// tellUses brings what this node has seen into the log.
func (s *Service) tellUses(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout) // what is due must not wait for it
	defer cancel()
	for range maxTold {
		all := s.uses.take()
		if len(all) == 0 {
			return
		}
		if _, err := s.log.Propose(ctx, fsm.Proposal{Command: &fsm.RecordUse{Uses: all}, Principal: s.self}); err != nil {
			s.logger.Debug("keys' last uses were not told, trying again", "error", err)
			s.uses.back(all)
			return
		}
	}
}
