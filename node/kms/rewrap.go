package kms

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
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
	// Rewrapping tells from which generation this node is to move key versions, with the
	// twin that its partition has of it.
	Rewrapping() (generation uint32, ok bool)
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
		generation, ok := s.rewrapper.Rewrapping()
		if !ok || s.audit.Healthy() != nil {
			continue
		}
		err := s.rewrapAll(ctx, generation)
		if err == nil || ctx.Err() != nil {
			continue
		}
		s.rewrapper.RewrapProblem(err)
		s.logger.Warn("not all key versions were moved, trying again", "generation", generation, "error", err)
		select {
		case <-time.After(rewrapPause):
		case <-ctx.Done():
			return
		}
	}
}

// rewrapAll goes over all keys once. When nothing is left it ends the ceremony.
func (s *Service) rewrapAll(ctx context.Context, generation uint32) error {
	var after fsm.ID
	var first error
	failed := 0
	for done := false; !done; {
		if now, ok := s.rewrapper.Rewrapping(); !ok || now != generation {
			return nil // it was stopped, or another node is to do it
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		var keys []*fsm.Key
		st := s.log.State()
		keys, after, done = st.WrappedUnder(generation, after, MaxRewraps, rewrapScan)
		var moves []*move
		for _, k := range keys {
			for i := range k.Versions {
				if v := &k.Versions[i]; v.Token != nil && v.Generation == generation {
					moves = append(moves, &move{key: k, version: v})
				}
			}
		}
		for batch := range slices.Chunk(moves, MaxRewraps) {
			bad := s.rewrapBatch(ctx, st, batch)
			if failed += len(bad); first == nil && len(bad) > 0 {
				first = bad[0].err
			}
			if len(bad) == len(batch) { // the others would hardly fare better
				return fmt.Errorf("%d key versions were not moved, and the rest was not tried: %w", failed, first)
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d key versions were not moved, the first: %w", failed, first)
	}
	if s.log.State().CountTokens()[generation] > 0 {
		return nil // what was made before the generation was succeeded, and committed since: the next pass
	}
	err := s.act(ctx, "EndRewrap", &fsm.EndRewrap{Generation: generation})
	if errors.Is(err, fsm.ErrNotFound) {
		return nil
	}
	if err == nil {
		s.logger.Info("all key versions are under the active generation of the domain key", "instead_of", generation)
		err = s.Event("EndRewrap", s.self, generationTarget(generation), nil)
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
		e := audit.Event{
			Name: "RewrapKeyVersion", Principal: s.self, Class: string(ClassNode), DecidedBy: "operator", Target: generationTarget(to.Number),
			Tenant: m.key.Tenant, KeyID: m.key.ID.String(), KeyVersion: m.version.Version, Result: audit.Success, StateIndex: s.log.State().Index(),
		}
		if m.err != nil {
			e.Result, e.Reason = audit.Failed, m.err.Error()
			failed = append(failed, m)
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
	st := s.log.State()
	to, err := st.ActiveGeneration()
	if err != nil {
		return nil, err
	}
	results := make([]RewrapResult, len(items))
	var moves []*move
	places := map[*move]int{}
	for i, item := range items {
		m, result := s.look(st, to.Number, item)
		if results[i] = result; m != nil {
			moves = append(moves, m)
			places[m] = i
		}
	}
	each(moves, func(m *move) {
		kind := kindOfKey(m.key)
		if m.err = s.rewrapper.OpenHere(ctx, m.key.ID, m.version.Version, kind, m.made()); m.err == nil {
			m.err = s.opener.Opened(ctx, m.key.ID, m.version.Version, kind, m.made())
		}
		if m.err != nil {
			results[places[m]] = RewrapResult{RewrapRefused, m.err}
		}
	})
	var failed error
	s.replaceTokens(ctx, to.Number, moves, func(ctx context.Context, c fsm.Command) error {
		_, failed = propose(ctx, c)
		return failed
	})
	if failed != nil {
		return nil, failed
	}
	after := s.log.State()
	for m, i := range places {
		if m.err == nil {
			_, results[i] = s.look(after, to.Number, items[i])
			if results[i].Outcome == RewrapAlready {
				results[i].Outcome = RewrapApplied
			}
		}
	}
	return results, nil
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
