package kms

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

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

// rewrapping has keys of every kind, three of them symmetric and one of those with two
// versions, under generation 1, and generation 2 active. It returns the symmetric ones and how
// many key versions there are.
func rewrapping(t *testing.T) (e *env, keys []string, versions int) {
	x := newImports(t)
	x.ok(x.bring(x.wrap(x.material)))
	e = x.env
	for range 3 {
		keys = append(keys, e.key("default"))
	}
	_, _, err := e.RotateKeyOnDemand(t.Context(), as(ada), keys[0], 0)
	e.ok(err)
	e.resident()
	e.of(fsm.SpecHMAC256, fsm.UsageMac)
	e.of(fsm.SpecP256, fsm.UsageSignVerify)
	e.of(fsm.SpecRSA2048, fsm.UsageEncryptDecrypt)
	e.rotateDomain()
	return e, keys, e.wrapped(1)
}

// TestRewrapAll moves everything, ends the ceremony and leaves records; keys are usable
// before and afterwards.
func TestRewrapAll(t *testing.T) {
	e, keys, versions := rewrapping(t)
	blob := e.sealed(as(uma), keys[0])
	opened := func() {
		t.Helper()
		e.ok(e.opens(as(uma), blob))
	}
	opened()
	e.do(&fsm.BeginRewrap{Generation: 1, Node: "n1-1"})
	e.hsm.moving = 1
	if err := e.rewrapAll(t.Context(), 1); err == nil || !errors.Is(err, hsm.ErrNotFound) || !strings.Contains(err.Error(), fmt.Sprintf("%d key versions", versions)) {
		t.Errorf("without a twin: %v", err)
	}
	e.twin()
	e.hsm.unopened = errUnopenedHere
	if err := e.rewrapAll(t.Context(), 1); !errors.Is(err, errUnopenedHere) || e.wrapped(1) != versions {
		t.Errorf("while no majority opens them: %v, %d left", err, e.wrapped(1))
	}
	e.hsm.unopened = nil
	broken := e.log.State()
	e.ok(e.rewrapAll(t.Context(), 1))
	if _, on := e.log.State().Rewrapping(); on || e.wrapped(1) != 0 || e.wrapped(2) != versions {
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
	if moved != versions {
		t.Errorf("%d records of moved key versions, want %d", moved, versions)
	}
}

var errUnopenedHere = errors.New("no majority")

// TestRewrapStopped: a node that is not the one any more moves nothing.
func TestRewrapStopped(t *testing.T) {
	e, _, versions := rewrapping(t)
	e.twin()
	e.ok(e.rewrapAll(t.Context(), 1))
	if e.wrapped(1) != versions {
		t.Error("key versions were moved without a ceremony")
	}
}

// TestApplyRewraps brings good and false tokens.
func TestApplyRewraps(t *testing.T) {
	e, keys, versions := rewrapping(t)
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
		results, err := e.ApplyRewraps(ctx, []RewrapItem{row.item}, propose)
		e.ok(err)
		problem := ""
		if results[0].Problem != nil {
			problem = results[0].Problem.Error()
		}
		if results[0].Outcome != row.want || !strings.Contains(problem, row.text) || (problem != "") != (row.want == RewrapRefused) {
			t.Errorf("%s: %+v, want %d and a text with %q", what, results[0], row.want, row.text)
		}
	}
	if e.wrapped(1) != versions {
		t.Fatal("a false token took a place")
	}
	results, err := e.ApplyRewraps(ctx, []RewrapItem{with(second, func(i *RewrapItem) { i.Old = make([]byte, 32) }), good}, propose)
	e.ok(err)
	if results[0].Outcome != RewrapChanged || results[1].Outcome != RewrapApplied || e.wrapped(2) != 1 {
		t.Errorf("%+v, %d moved", results, e.wrapped(2))
	}
	if results, err = e.ApplyRewraps(ctx, []RewrapItem{good}, propose); err != nil || results[0].Outcome != RewrapAlready {
		t.Errorf("applied again: %+v, %v", results, err)
	}
	e.hsm.unopened = errUnopenedHere
	if results, err = e.ApplyRewraps(ctx, []RewrapItem{second}, propose); err != nil || results[0].Outcome != RewrapRefused || e.wrapped(2) != 1 {
		t.Errorf("without a majority: %+v, %v", results, err)
	}
	e.hsm.unopened = nil
	e.rotateDomain()
	if results, err = e.ApplyRewraps(ctx, []RewrapItem{third}, propose); err != nil || results[0].Outcome != RewrapRefused || !strings.Contains(results[0].Problem.Error(), "3 is active") {
		t.Errorf("a token of a generation that was succeeded: %+v, %v", results, err)
	}
}
