package kms

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// Rewrapper is this node's HSM, and its place in the cluster, as moving key versions to
// another generation of the domain key needs them.
type Rewrapper interface {
	// Rewrapping is the ceremony in which this node is to move key versions, if there is
	// one; ready tells that its partition has the generation's twin.
	Rewrapping() (asked fsm.Rewrap, ready, ok bool)
	// Rewrap makes the token of a key version under another generation.
	Rewrap(ctx context.Context, ref hsm.Ref, to uint32) ([]byte, error)
	// OpenHere opens a token with this node's HSM.
	OpenHere(ctx context.Context, key fsm.ID, version uint32, kind hsm.Kind, made hsm.NewKey) error
	// RewrapProblem says, for operators, why this node does not get on; nil: it does.
	RewrapProblem(err error)
}

const (
	// rewrapAtOnce is how many tokens are made and opened side by side: calls go on
	// meanwhile, and have the other sessions of the HSM.
	rewrapAtOnce = 4
	// rewrapScan is how many keys one look goes through.
	rewrapScan = 10_000
	// rewrapPause is how long a node waits behind a pass over all keys that left some.
	rewrapPause = 5 * time.Second
	// rewrapRetry is how long a key version is left alone that does not open; each time
	// twice as long, up to rewrapRetryMax.
	rewrapRetry    = 10 * time.Second
	rewrapRetryMax = 10 * time.Minute
	// maxTroubles is how many key versions that were not moved are remembered.
	maxTroubles = 100_000
)

// RewrapItem is one key version's new token, as an operator brings it.
type RewrapItem struct {
	Key     fsm.ID
	Version uint32
	Old     []byte // SHA-256 of the token that it replaces
	Token   []byte
}

// RewrapOutcome is what became of an item.
type RewrapOutcome int

// The outcomes of an item.
const (
	RewrapApplied RewrapOutcome = iota + 1 // the new token is in its place
	RewrapAlready                          // it was already
	RewrapGone                             // the key or its version is deleted or destroyed
	RewrapChanged                          // another token has taken the old one's place
	RewrapRefused                          // it is not the same key under the active generation, or was not opened
)

// RewrapResult is an outcome and, of one that was refused, why.
type RewrapResult struct {
	Outcome RewrapOutcome
	Problem error
}

// MaxRewraps is how many items one call takes.
const MaxRewraps = fsm.MaxRewraps

// move is a key version on its way to another generation.
type move struct {
	key     *fsm.Key
	version *fsm.KeyVersion
	token   []byte
	err     error
}

func (m *move) item() fsm.RewrapItem {
	old := sha256.Sum256(m.version.Token)
	return fsm.RewrapItem{Key: m.key.ID, Version: m.version.Version, Old: old[:], Token: m.token}
}

func (m *move) made() hsm.NewKey { return hsm.NewKey{Token: m.token, SPKI: m.version.Public} }

// troubles are the key versions that a ceremony could not move. Each is in the audit trail
// once, and one that does not open is tried again more and more rarely, while the others go
// on. They are this process's: after a restart each is tried, and recorded, anew.
type troubles struct {
	ceremony fsm.Rewrap
	of       map[versionID]*trouble
	logged   string // what was said last
}

type versionID struct {
	key     fsm.ID
	version uint32
}

type trouble struct {
	tries int
	again time.Time // not before
	err   error
}

func (m *move) id() versionID { return versionID{m.key.ID, m.version.Version} }

// begin forgets what another ceremony has met.
func (t *troubles) begin(ceremony fsm.Rewrap) {
	if t.of == nil || t.ceremony != ceremony {
		*t = troubles{ceremony: ceremony, of: map[versionID]*trouble{}}
	}
}

// rests tells whether a key version is left alone at a moment.
func (t *troubles) rests(m *move, now time.Time) bool {
	x, ok := t.of[m.id()]
	return ok && now.Before(x.again)
}

// note takes what came of a move; fresh tells that it is the key version's first failure in
// this ceremony, or the first that is its own.
func (t *troubles) note(m *move, now time.Time) (fresh bool) {
	if m.err == nil {
		delete(t.of, m.id())
		return false
	}
	x, known := t.of[m.id()]
	if !known {
		x = &trouble{}
		t.of[m.id()] = x
	}
	fresh = !known
	if x.err = m.err; unopenable(m.err) {
		fresh = fresh || x.tries == 0
		x.again = now.Add(min(rewrapRetry<<min(x.tries, 10), rewrapRetryMax))
		x.tries++
	}
	return fresh
}

// keep forgets the key versions that a whole pass has not met: they are moved, or gone.
func (t *troubles) keep(met map[versionID]bool) {
	maps.DeleteFunc(t.of, func(id versionID, _ *trouble) bool { return !met[id] })
}

// left says what is not moved; nil: all is.
func (t *troubles) left() error {
	if len(t.of) == 0 {
		return nil
	}
	first := slices.MinFunc(slices.Collect(maps.Keys(t.of)), func(a, b versionID) int {
		return cmp.Or(bytes.Compare(a.key[:], b.key[:]), cmp.Compare(a.version, b.version))
	})
	return fmt.Errorf("%d key versions were not moved, and are tried again; the first, version %d of key %s: %w", len(t.of), first.version, first.key, t.of[first].err)
}

// unopenable tells whether it is the key version that cannot be moved, rather than that
// the HSM or the cluster did not do it.
func unopenable(err error) bool {
	return errors.Is(err, hsm.ErrCorrupt) || errors.Is(err, hsm.ErrRefused) || errors.Is(err, hsm.ErrUnsupported)
}

// RunRewraps moves key versions to the active generation as long as this node is the one
// that is to, until ctx ends. Where it stands it sees from the state: a version is moved as
// soon as its record names the active generation.
func (s *Service) RunRewraps(ctx context.Context) {
	tick := time.NewTicker(dutyEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		asked, ready, ok := s.rewrapper.Rewrapping()
		if !ok || s.audit.Healthy() != nil {
			continue
		}
		err := s.rewrap(ctx, asked, ready)
		if ctx.Err() != nil {
			return
		}
		if s.rewrapper.RewrapProblem(err); err == nil {
			continue
		}
		if text := err.Error(); text != s.troubles.logged { // each pass would say it again
			s.troubles.logged = text
			s.logger.Warn("not all key versions were moved, trying again", "generation", asked.Generation, "error", err)
		}
		select {
		case <-time.After(rewrapPause):
		case <-ctx.Done():
			return
		}
	}
}

// rewrap goes on with a ceremony. One whose generation wraps nothing ends, whether or not
// the twin was ever made: the versions may have been moved by others, or destroyed.
func (s *Service) rewrap(ctx context.Context, asked fsm.Rewrap, ready bool) error {
	if !s.log.State().Wraps(asked.Generation) {
		return s.endRewrap(ctx, asked.Generation)
	}
	if !ready {
		return nil
	}
	return s.rewrapAll(ctx, asked)
}

// rewrapAll goes over all keys once. When nothing is left it ends the ceremony.
func (s *Service) rewrapAll(ctx context.Context, asked fsm.Rewrap) error {
	s.troubles.begin(asked)
	var after fsm.ID
	met := map[versionID]bool{}
	for done := false; !done; {
		if now, ready, ok := s.rewrapper.Rewrapping(); !ok || !ready || now != asked {
			return nil // it was stopped, or another node is to do it
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		var keys []*fsm.Key
		st := s.log.State()
		keys, after, done = st.WrappedUnder(asked.Generation, after, MaxRewraps, rewrapScan)
		for batch := range slices.Chunk(s.movesOf(keys, asked.Generation, met), MaxRewraps) {
			bad := s.rewrapBatch(ctx, st, batch)
			for _, m := range bad {
				met[m.id()] = true
			}
			if len(s.troubles.of) > maxTroubles || len(bad) == len(batch) && slices.ContainsFunc(bad, func(m *move) bool { return !unopenable(m.err) }) {
				return fmt.Errorf("%w; the rest was not tried", s.troubles.left()) // it would hardly fare better
			}
		}
	}
	s.troubles.keep(met)
	if err := s.troubles.left(); err != nil {
		return err
	}
	if s.log.State().Wraps(asked.Generation) {
		return nil // what was made before the generation was succeeded, and committed since: the next pass
	}
	return s.endRewrap(ctx, asked.Generation)
}

// movesOf are the moves of keys away from a generation, but for those that rest. met notes the
// key versions that have failed before.
func (s *Service) movesOf(keys []*fsm.Key, generation uint32, met map[versionID]bool) (moves []*move) {
	for _, k := range keys {
		for i := range k.Versions {
			v := &k.Versions[i]
			if v.Token == nil || v.Generation != generation {
				continue
			}
			m := &move{key: k, version: v}
			if s.troubles.of[m.id()] != nil {
				met[m.id()] = true
			}
			if !s.troubles.rests(m, s.now()) {
				moves = append(moves, m)
			}
		}
	}
	return moves
}

// endRewrap ends a ceremony in which nothing is left to be moved.
func (s *Service) endRewrap(ctx context.Context, generation uint32) error {
	err := s.act(ctx, "EndRewrap", &fsm.EndRewrap{Generation: generation})
	if errors.Is(err, fsm.ErrNotFound) {
		return nil
	}
	if err == nil {
		s.logger.Info("no key version is under an older generation of the domain key any more", "generation", generation)
		err = s.Event("EndRewrap", s.self, "", generationTarget(generation), nil)
	}
	return err
}

// act commits a command in this node's own name.
func (s *Service) act(ctx context.Context, name string, command fsm.Command) error {
	p := fsm.Proposal{Command: command, Principal: s.self, Request: uuid.NewString()}
	var err error
	if p.Digest, err = requestDigest(name, "", command); err != nil {
		return err
	}
	_, err = s.log.Propose(ctx, p)
	return err
}

func generationTarget(generation uint32) string { return fmt.Sprintf("generation %d", generation) }

// rewrapBatch makes new tokens, has them opened and puts them in their places. It returns
// those moves that failed.
func (s *Service) rewrapBatch(ctx context.Context, st *fsm.State, batch []*move) (failed []*move) {
	to, err := st.ActiveGeneration()
	each(batch, func(m *move) {
		if m.err = err; err != nil {
			return
		}
		if m.token, m.err = s.rewrapper.Rewrap(ctx, hsmRef(st, m.key, m.version), to.Number); m.err == nil {
			m.err = s.opener.Opened(ctx, m.key.ID, m.version.Version, kindOfKey(m.key), m.made())
		}
	})
	s.replaceTokens(ctx, to.Number, batch, func(ctx context.Context, c fsm.Command) error { return s.act(ctx, "RewrapKeyVersions", c) })
	for _, m := range batch {
		fresh := s.troubles.note(m, s.now())
		if m.err != nil {
			failed = append(failed, m)
			if !fresh { // it is recorded
				continue
			}
		}
		e := audit.Event{
			Name: "RewrapKeyVersion", Principal: s.self, Class: string(ClassNode), DecidedBy: "operator", Target: generationTarget(to.Number),
			Tenant: m.key.Tenant, KeyID: m.key.ID.String(), KeyVersion: m.version.Version, Result: audit.Success, StateIndex: s.log.State().Index(),
		}
		if m.err != nil {
			e.Result, e.Reason = audit.Failed, m.err.Error()
		}
		if err := s.audit.Record(e); err != nil {
			s.logger.Warn("the record of a moved key version was not written", "key", m.key.ID, "error", err)
		}
	}
	return failed
}

// each calls f for every move, some at once.
func each(all []*move, f func(*move)) {
	room := make(chan struct{}, rewrapAtOnce)
	var running sync.WaitGroup
	for _, m := range all {
		room <- struct{}{}
		running.Go(func() {
			defer func() { <-room }()
			f(m)
		})
	}
	running.Wait()
}

// replaceTokens commits those moves that have not failed yet.
func (s *Service) replaceTokens(ctx context.Context, to uint32, batch []*move, propose func(context.Context, fsm.Command) error) {
	command := &fsm.RewrapKeyVersions{Generation: to}
	for _, m := range batch {
		if m.err == nil {
			command.Items = append(command.Items, m.item())
		}
	}
	if len(command.Items) == 0 {
		return
	}
	err := propose(ctx, command)
	for _, m := range batch {
		if m.err == nil {
			m.err = err
		}
	}
}

// ApplyRewraps puts new tokens in their places that were made elsewhere, on a machine that
// has the older generation's twin. Each must hold the same key as the old one, and opens in
// a majority of HSMs before it takes its place. propose commits a command in the operator's
// name. An item that cannot be applied does not stop the others; an error means that the
// outcome of none is known.
func (s *Service) ApplyRewraps(ctx context.Context, items []RewrapItem, propose Propose) ([]RewrapResult, error) {
	a, err := s.applicable(ctx, items)
	if err != nil {
		return nil, err
	}
	var failed error
	s.replaceTokens(ctx, a.to, a.moves, func(ctx context.Context, c fsm.Command) error {
		_, failed = propose(ctx, c)
		return failed
	})
	if failed != nil {
		return nil, failed
	}
	after := s.log.State()
	for m, i := range a.places {
		if m.err == nil {
			_, a.results[i] = s.look(after, a.to, items[i])
			if a.results[i].Outcome == RewrapAlready {
				a.results[i].Outcome = RewrapApplied
			}
		}
	}
	return a.results, nil
}

// TryRewraps tells what ApplyRewraps would do with items, and changes nothing. The new
// tokens are opened as they would be then.
func (s *Service) TryRewraps(ctx context.Context, items []RewrapItem) ([]RewrapResult, error) {
	a, err := s.applicable(ctx, items)
	if err != nil {
		return nil, err
	}
	for m, i := range a.places {
		if m.err == nil {
			a.results[i].Outcome = RewrapApplied
		}
	}
	return a.results, nil
}

// errNotApplied is what became of an item that the request of an id has left out.
var errNotApplied = errors.New("the request of this id did not apply it: ask with another id")

// RepeatRewraps tells what became of the items of a request that was made before.
func (s *Service) RepeatRewraps(items []RewrapItem) ([]RewrapResult, error) {
	st := s.log.State()
	to, err := st.ActiveGeneration()
	if err != nil {
		return nil, err
	}
	results := make([]RewrapResult, len(items))
	for i, item := range items {
		var m *move
		if m, results[i] = s.look(st, to.Number, item); m != nil {
			results[i] = RewrapResult{RewrapRefused, errNotApplied}
		}
	}
	return results, nil
}

// applicable are the moves that items ask for, opened by a majority of HSMs or failed.
type applicable struct {
	to      uint32
	results []RewrapResult // of the items; not yet of those whose move has not failed
	moves   []*move
	places  map[*move]int // in results
}

func (s *Service) applicable(ctx context.Context, items []RewrapItem) (*applicable, error) {
	st := s.log.State()
	to, err := st.ActiveGeneration()
	if err != nil {
		return nil, err
	}
	a := &applicable{to: to.Number, results: make([]RewrapResult, len(items)), places: map[*move]int{}}
	for i, item := range items {
		m, result := s.look(st, to.Number, item)
		if a.results[i] = result; m != nil {
			a.moves = append(a.moves, m)
			a.places[m] = i
		}
	}
	each(a.moves, func(m *move) {
		kind := kindOfKey(m.key)
		if m.err = s.rewrapper.OpenHere(ctx, m.key.ID, m.version.Version, kind, m.made()); m.err == nil {
			m.err = s.opener.Opened(ctx, m.key.ID, m.version.Version, kind, m.made())
		}
		if m.err != nil {
			a.results[a.places[m]] = RewrapResult{RewrapRefused, m.err}
		}
	})
	return a, nil
}

// look finds what an item is about: the move that it asks for, or why there is none.
func (s *Service) look(st *fsm.State, to uint32, item RewrapItem) (*move, RewrapResult) {
	k, ok := st.Key(item.Key)
	if !ok {
		return nil, RewrapResult{Outcome: RewrapGone}
	}
	v := k.Version(item.Version)
	switch {
	case v == nil || v.Token == nil:
		return nil, RewrapResult{Outcome: RewrapGone}
	case bytes.Equal(v.Token, item.Token):
		return nil, RewrapResult{Outcome: RewrapAlready}
	case !v.Holds(item.Old):
		return nil, RewrapResult{Outcome: RewrapChanged}
	}
	h, err := hsm.Rewrapped(v.Token, item.Token)
	if err == nil && h.Generation != to {
		err = fmt.Errorf("%w: the new token is of generation %d of the domain key, %d is active", fsm.ErrConflict, h.Generation, to)
	}
	if err != nil {
		return nil, RewrapResult{RewrapRefused, err}
	}
	return &move{key: k, version: v, token: item.Token}, RewrapResult{}
}
