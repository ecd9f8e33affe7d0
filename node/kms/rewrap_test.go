package kms

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// twin installs the twin of generation 1 in the partition.
func (e *env) twin() {
	e.t.Helper()
	st := e.log.State()
	id, ctx := hsm.ID(st.Cluster().ID), e.t.Context()
	transfer, err := e.hsm.NewTransfer(ctx)
	e.ok(err)
	message, err := e.hsm.Export(ctx, hsm.ExportRequest{
		Cluster: id, Generation: 1, Donor: "n1-1", Recipient: "n1-1", Transfer: transfer, RecipientIdentity: e.hsm.Identity(),
	})
	e.ok(err)
	all, err := e.hsm.Generations(ctx, id)
	e.ok(err)
	e.ok(e.hsm.InstallTwin(ctx, message, hsm.ImportExpectation{Cluster: id, Donor: "n1-1", Recipient: "n1-1", DonorIdentity: e.hsm.Identity(), Generation: all[0]}))
}

func (e *env) wrapped(generation uint32) int { return e.log.State().CountTokens()[generation] }

// rewrapping has three keys, one with two versions, under generation 1, and generation 2
// active.
func rewrapping(t *testing.T) (e *env, keys []string) {
	e = newEnv(t)
	for range 3 {
		keys = append(keys, e.key("default"))
	}
	_, _, err := e.RotateKeyOnDemand(t.Context(), as(ada), keys[0], 0)
	e.ok(err)
	e.rotateDomain()
	return e, keys
}

// TestRewrapAll moves everything, ends the ceremony and leaves records; keys are usable
// before and afterwards.
func TestRewrapAll(t *testing.T) {
	e, keys := rewrapping(t)
	blob := e.sealed(as(uma), keys[0])
	opened := func() {
		t.Helper()
		e.ok(e.opens(as(uma), blob))
	}
	opened()
	asked := e.ceremony()
	if err := e.rewrapAll(t.Context(), asked); err == nil || !errors.Is(err, hsm.ErrNotFound) || !strings.Contains(err.Error(), "4 key versions") {
		t.Errorf("without a twin: %v", err)
	}
	e.twin()
	e.hsm.unopened = errUnopenedHere
	if err := e.rewrapAll(t.Context(), asked); !errors.Is(err, errUnopenedHere) || e.wrapped(1) != 4 {
		t.Errorf("while no majority opens them: %v, %d left", err, e.wrapped(1))
	}
	e.hsm.unopened = nil
	broken := e.log.State()
	e.ok(e.rewrapAll(t.Context(), asked))
	if _, on := e.log.State().Rewrapping(); on || e.wrapped(1) != 0 || e.wrapped(2) != 4 {
		t.Errorf("%d and %d key versions, still going on: %v", e.wrapped(1), e.wrapped(2), on)
	}
	opened()
	for _, id := range keys {
		before, _ := broken.Key(uuid.MustParse(id))
		if after := e.stored(id); after.Revision != before.Revision {
			t.Errorf("the revision of %s went from %d to %d", id, before.Revision, after.Revision)
		}
	}
	moved := 0
	for _, x := range e.audit.events {
		if x.Name == "RewrapKeyVersion" && x.Result == audit.Success {
			moved++
		}
	}
	if moved != 4 {
		t.Errorf("%d records of moved key versions, want 4", moved)
	}
}

var errUnopenedHere = errors.New("no majority")

// TestRewrapEveryKind: keys of every kind are moved, imported and resident ones too.
func TestRewrapEveryKind(t *testing.T) {
	x := newImports(t)
	x.ok(x.bring(x.wrap(x.material)))
	x.key = x.resident()
	x.of(fsm.SpecHMAC256, fsm.UsageMac)
	x.of(fsm.SpecP256, fsm.UsageSignVerify)
	x.of(fsm.SpecRSA2048, fsm.UsageEncryptDecrypt)
	blob := x.sealed(as(uma), x.key)
	x.rotateDomain()
	x.twin()
	x.ok(x.rewrapAll(t.Context(), x.ceremony()))
	if x.wrapped(1) != 0 || x.wrapped(2) != 5 {
		t.Errorf("%d and %d key versions", x.wrapped(1), x.wrapped(2))
	}
	x.ok(x.opens(as(uma), blob))
}

// TestRewrapStopped: a node that is not the one any more moves nothing.
func TestRewrapStopped(t *testing.T) {
	e, _ := rewrapping(t)
	e.twin()
	asked := e.ceremony()
	e.hsm.asked = fsm.Rewrap{}
	e.ok(e.rewrapAll(t.Context(), asked))
	e.hsm.asked = asked
	e.hsm.asked.Since++ // another ceremony
	e.ok(e.rewrapAll(t.Context(), asked))
	if e.wrapped(1) != 4 {
		t.Error("key versions were moved without a ceremony")
	}
}

// ceremony has this node move what is under generation 1.
func (e *env) ceremony() fsm.Rewrap {
	e.t.Helper()
	e.do(&fsm.BeginRewrap{Generation: 1, Node: "n1-1"})
	e.hsm.asked, _ = e.log.State().Rewrapping()
	return e.hsm.asked
}

func (e *env) recorded(name string, result audit.Result) (n int) {
	for _, x := range e.audit.events {
		if x.Name == name && x.Result == result {
			n++
		}
	}
	return n
}

// TestRewrapEndsByItself: where nothing is left under the old generation the ceremony ends,
// though the twin was never made.
func TestRewrapEndsByItself(t *testing.T) {
	e, keys := rewrapping(t)
	asked := e.ceremony()
	e.hsm.noTwin = true
	e.ok(e.rewrap(t.Context(), asked, false))
	if _, on := e.log.State().Rewrapping(); !on || e.wrapped(1) != 4 {
		t.Fatalf("%d key versions are left, still going on: %v", e.wrapped(1), on)
	}
	e.twin()
	var items []RewrapItem
	for _, id := range keys {
		k := e.stored(id)
		for i := range k.Versions {
			v := &k.Versions[i]
			made, err := e.hsm.Rewrap(t.Context(), hsmRef(e.log.State(), k, v), 2)
			e.ok(err)
			old := sha256.Sum256(v.Token)
			items = append(items, RewrapItem{Key: k.ID, Version: v.Version, Old: old[:], Token: made})
		}
	}
	_, err := e.ApplyRewraps(t.Context(), items, func(_ context.Context, c fsm.Command) (fsm.Result, error) {
		return e.log.Propose(t.Context(), fsm.Proposal{Command: c, Principal: who(olga)})
	})
	e.ok(err)
	e.ok(e.rewrap(t.Context(), asked, false))
	if _, on := e.log.State().Rewrapping(); on || e.recorded("EndRewrap", audit.Success) != 1 {
		t.Errorf("%d key versions are left, still going on: %v, %d records of the end", e.wrapped(1), on, e.recorded("EndRewrap", audit.Success))
	}
	e.ok(e.rewrap(t.Context(), asked, false)) // as seen from an older state
}

// TestRewrapTroubles: a version that does not open keeps no other from being moved, is in the
// trail once a ceremony, is tried again more and more rarely, and is moved when it opens.
func TestRewrapTroubles(t *testing.T) {
	e, keys := rewrapping(t)
	bad := uuid.MustParse(keys[1])
	e.hsm.broken = map[fsm.ID]error{bad: hsm.ErrCorrupt}
	e.twin()
	asked := e.ceremony()
	pass := func(what string, tried, records int) {
		t.Helper()
		before := e.hsm.rewrapped
		err := e.rewrapAll(t.Context(), e.hsm.asked)
		if !errors.Is(err, hsm.ErrCorrupt) || !strings.Contains(err.Error(), "1 key versions were not moved, and are tried again; the first, version 1 of key "+keys[1]) {
			t.Errorf("%s: %v", what, err)
		}
		if got := e.hsm.rewrapped - before; got != tried || e.recorded("RewrapKeyVersion", audit.Failed) != records {
			t.Errorf("%s: %d tokens were tried, %d failures are recorded; want %d and %d", what, got, e.recorded("RewrapKeyVersion", audit.Failed), tried, records)
		}
	}
	pass("at first", 4, 1)
	if e.wrapped(1) != 1 || e.wrapped(2) != 3 {
		t.Errorf("%d and %d key versions", e.wrapped(1), e.wrapped(2))
	}
	pass("at once", 0, 1)
	for wait := rewrapRetry; wait < rewrapRetryMax; wait *= 2 {
		e.clock.advance(wait - 1)
		pass("before "+wait.String(), 0, 1)
		e.clock.advance(1)
		pass("after "+wait.String(), 1, 1)
	}
	e.clock.advance(rewrapRetryMax - 1)
	pass("before the longest pause", 0, 1)
	e.clock.advance(1)
	pass("after the longest pause", 1, 1)

	e.do(&fsm.EndRewrap{Generation: 1})
	e.clock.advance(time.Second)
	if again := e.ceremony(); again == asked {
		t.Fatal("the ceremonies are the same")
	}
	pass("in another ceremony", 1, 2)
	e.hsm.broken = nil
	pass("while it rests", 0, 2)
	e.clock.advance(rewrapRetry)
	e.ok(e.rewrapAll(t.Context(), e.hsm.asked))
	if _, on := e.log.State().Rewrapping(); on || e.wrapped(1) != 0 {
		t.Errorf("%d key versions are left, still going on: %v", e.wrapped(1), on)
	}
}

// TestRewrapTroublesOfAll: what no key version is to blame for is tried again at once, and
// recorded once a version; one that is gone is no trouble any more.
func TestRewrapTroublesOfAll(t *testing.T) {
	e, keys := rewrapping(t)
	asked := e.ceremony()
	e.twin()
	e.hsm.unopened = errUnopenedHere
	for range 3 {
		if err := e.rewrapAll(t.Context(), asked); !errors.Is(err, errUnopenedHere) || !strings.Contains(err.Error(), "4 key versions were not moved") {
			t.Errorf("while no majority opens them: %v", err)
		}
	}
	if e.hsm.rewrapped != 12 || e.recorded("RewrapKeyVersion", audit.Failed) != 4 {
		t.Errorf("%d tokens were tried, %d failures are recorded; want 12 and 4", e.hsm.rewrapped, e.recorded("RewrapKeyVersion", audit.Failed))
	}
	e.hsm.unopened = nil
	bad := uuid.MustParse(keys[2])
	e.hsm.broken = map[fsm.ID]error{bad: hsm.ErrCorrupt}
	if err := e.rewrapAll(t.Context(), asked); !errors.Is(err, hsm.ErrCorrupt) || e.recorded("RewrapKeyVersion", audit.Failed) != 5 {
		t.Errorf("a version's own failure behind a common one: %v, %d failures are recorded, want 5", err, e.recorded("RewrapKeyVersion", audit.Failed))
	}
	k := e.stored(keys[2])
	_, _, err := e.ScheduleKeyDeletion(t.Context(), as(ada), keys[2], 7, 0)
	e.ok(err)
	at := e.stored(keys[2]).Deletion
	e.clock.advance(8 * 24 * time.Hour)
	e.do(&fsm.DeleteKey{KeyRef: fsm.KeyRef{ID: k.ID, Tenant: k.Tenant}, At: at})
	e.ok(e.rewrap(t.Context(), asked, true))
	if _, on := e.log.State().Rewrapping(); on {
		t.Error("the ceremony waits for a key that was deleted")
	}
}

// TestApplyRewraps brings good and false tokens.
func TestApplyRewraps(t *testing.T) {
	e, keys := rewrapping(t)
	e.twin()
	ctx := t.Context()
	token := func(id string) RewrapItem {
		k := e.stored(id)
		v := k.Version(1)
		made, err := e.hsm.Rewrap(ctx, hsmRef(e.log.State(), k, v), 2)
		e.ok(err)
		old := sha256.Sum256(v.Token)
		return RewrapItem{Key: k.ID, Version: 1, Old: old[:], Token: made}
	}
	good, second, third := token(keys[0]), token(keys[1]), token(keys[2])
	header, err := hsm.ParseToken(good.Token)
	e.ok(err)
	h := header.Header
	other, err := e.hsm.GenerateKey(ctx, hsm.KeySpec{Cluster: h.Cluster, Generation: 2, Class: h.Class, Key: h.Key, Version: 1, Created: h.Created})
	e.ok(err)
	with := func(item RewrapItem, edit func(*RewrapItem)) RewrapItem {
		item.Token = slices.Clone(item.Token)
		edit(&item)
		return item
	}
	propose := func(_ context.Context, c fsm.Command) (fsm.Result, error) {
		return e.log.Propose(ctx, fsm.Proposal{Command: c, Principal: who(olga)})
	}
	for what, row := range map[string]struct {
		item RewrapItem
		want RewrapOutcome
		text string
	}{
		"another key's token":     {with(good, func(i *RewrapItem) { i.Token = second.Token }), RewrapRefused, "another key"},
		"other material":          {with(good, func(i *RewrapItem) { i.Token = other.Token }), RewrapRefused, "other material"},
		"a false MAC":             {with(good, func(i *RewrapItem) { i.Token[len(i.Token)-1] ^= 1 }), RewrapRefused, "mac"},
		"another wrapped key":     {with(good, func(i *RewrapItem) { i.Token[80] ^= 1 }), RewrapRefused, "mac"},
		"no token":                {with(good, func(i *RewrapItem) { i.Token = []byte("x") }), RewrapRefused, "token"},
		"the old token":           {with(good, func(i *RewrapItem) { i.Token = e.stored(keys[0]).Version(1).Token }), RewrapAlready, ""},
		"a stale hash":            {with(good, func(i *RewrapItem) { i.Old = make([]byte, 32) }), RewrapChanged, ""},
		"a key that is not there": {with(good, func(i *RewrapItem) { i.Key = uuid.New() }), RewrapGone, ""},
		"a version that isn't":    {with(good, func(i *RewrapItem) { i.Version = 9 }), RewrapGone, ""},
	} {
		tried, err := e.TryRewraps(ctx, []RewrapItem{row.item})
		e.ok(err)
		results, err := e.ApplyRewraps(ctx, []RewrapItem{row.item}, propose)
		e.ok(err)
		if fmt.Sprint(tried) != fmt.Sprint(results) {
			t.Errorf("%s: tried %v, applied %v", what, tried, results)
		}
		problem := ""
		if results[0].Problem != nil {
			problem = results[0].Problem.Error()
		}
		if results[0].Outcome != row.want || !strings.Contains(problem, row.text) || (problem != "") != (row.want == RewrapRefused) {
			t.Errorf("%s: %+v, want %d and a text with %q", what, results[0], row.want, row.text)
		}
	}
	if e.wrapped(1) != 4 {
		t.Fatal("a false token took a place")
	}
	if tried, err := e.TryRewraps(ctx, []RewrapItem{good, second}); err != nil || tried[0].Outcome != RewrapApplied || tried[1].Outcome != RewrapApplied || e.wrapped(2) != 0 {
		t.Errorf("tried: %+v, %v; %d moved", tried, err, e.wrapped(2))
	}
	results, err := e.ApplyRewraps(ctx, []RewrapItem{with(second, func(i *RewrapItem) { i.Old = make([]byte, 32) }), good}, propose)
	e.ok(err)
	if results[0].Outcome != RewrapChanged || results[1].Outcome != RewrapApplied || e.wrapped(2) != 1 {
		t.Errorf("%+v, %d moved", results, e.wrapped(2))
	}
	if results, err = e.ApplyRewraps(ctx, []RewrapItem{good}, propose); err != nil || results[0].Outcome != RewrapAlready {
		t.Errorf("applied again: %+v, %v", results, err)
	}
	if results, err = e.RepeatRewraps([]RewrapItem{good, second}); err != nil || results[0].Outcome != RewrapAlready || results[1].Outcome != RewrapRefused || !errors.Is(results[1].Problem, errNotApplied) {
		t.Errorf("what became of a request: %+v, %v", results, err)
	}
	e.hsm.unopened = errUnopenedHere
	if tried, err := e.TryRewraps(ctx, []RewrapItem{second}); err != nil || tried[0].Outcome != RewrapRefused || !errors.Is(tried[0].Problem, errUnopenedHere) {
		t.Errorf("tried without a majority: %+v, %v", tried, err)
	}
	if results, err = e.ApplyRewraps(ctx, []RewrapItem{second}, propose); err != nil || results[0].Outcome != RewrapRefused || e.wrapped(2) != 1 {
		t.Errorf("without a majority: %+v, %v", results, err)
	}
	e.hsm.unopened = nil
	e.rotateDomain()
	if results, err = e.ApplyRewraps(ctx, []RewrapItem{third}, propose); err != nil || results[0].Outcome != RewrapRefused || !strings.Contains(results[0].Problem.Error(), "3 is active") {
		t.Errorf("a token of a generation that was succeeded: %+v, %v", results, err)
	}
}
