package fsm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// history is a random log, right and wrong commands mixed, with the state after
// every entry and what was answered.
type history struct {
	log       []*raft.Log
	states    []*State // states[0] is before the first entry
	snapshots [][]byte // of the states, written when they were made
	outcomes  []any    // of raft.FSM.Apply
}

// drawHistory draws a log over few keys, names, nodes and request ids, so that the
// commands meet; indexes and terms have gaps, clocks go back.
func drawHistory(t *rapid.T) history {
	w := newWorld(t)
	h := history{states: []*State{w.s}, snapshots: [][]byte{snapshotOf(t, w.s)}}
	add := func(index, term uint64, e Entry, c Command) {
		result, err := w.append(index, term, seal(t, e, c))
		h.states, h.snapshots = append(h.states, w.s), append(h.snapshots, snapshotOf(t, w.s))
		h.outcomes = append(h.outcomes, Outcome{Result: result, Term: term, Err: err})
	}
	d := drawer{t, w}
	for _, c := range []Command{
		d.init(), createKey(1), createKey(2), ticketFor("n2"), admit("n2"),
		rotateKey(1, 2), &EnableKeyRotation{ref(1), 60}, bind(2, "r"), &RecordUse{[]Use{{keyID(1), 1, start}}},
		edited(createGrant(1, 1), func(c *CreateGrant) {
			c.Grantee, c.Name, c.Operations = admin, "n", append(c.Operations, GrantCreateGrant)
		}),
	} {
		add(w.s.Index()+1, 1, w.entry(), c) // a cluster of release 1 refuses some
	}
	for range rapid.IntRange(20, 80).Draw(t, "entries") {
		w.clock += int64(d.upTo(1000)-50) * second
		e := w.entry()
		if d.oneIn(3) {
			e = w.request(fmt.Sprintf("r%d", d.upTo(5)), fmt.Sprintf("words %d", d.upTo(1)))
		}
		c := d.command()
		if u, ok := c.(*UpdateMember); ok {
			e.Proposer = d.or(u.ID, firstNode, "n9")
		}
		add(w.s.Index()+1+uint64(d.oneOf(0, 0, 0, 1, 5)), w.s.Term()+uint64(d.oneOf(0, 0, 0, 1)), e, c)
	}
	h.log = w.log
	return h
}

// drawer draws the parts of commands.
type drawer struct {
	t *rapid.T
	w *world
}

func (d drawer) upTo(n int) int          { return rapid.IntRange(0, n).Draw(d.t, "n") }
func (d drawer) oneIn(n int) bool        { return d.upTo(n-1) == n-1 }
func (d drawer) oneOf(ns ...int) int     { return rapid.SampledFrom(ns).Draw(d.t, "one of") }
func (d drawer) word(s ...string) string { return rapid.SampledFrom(s).Draw(d.t, "word") }
func (d drawer) key() uint64             { return rapid.Uint64Range(1, 3).Draw(d.t, "key") }
func (d drawer) node() string            { return d.word("n2", "n3", "n1", "n4") }

// or gives the right word, and now and then a wrong one.
func (d drawer) or(right string, wrong ...string) string {
	if d.oneIn(8) {
		return d.word(wrong...)
	}
	return right
}

func (d drawer) tenant() string { return d.or(DefaultTenant, "acme", "") }

func (d drawer) expect() uint64 {
	if d.oneIn(8) {
		return rapid.Uint64Range(1, d.w.s.Index()).Draw(d.t, "expect")
	}
	return 0
}

func (d drawer) ref() KeyRef { return KeyRef{keyID(d.key()), d.tenant(), d.expect()} }

func (d drawer) alias() string {
	return d.or(d.word("alias/a", "alias/b", "alias/c"), "alias/service/d", "e")
}

func (d drawer) target() AliasTarget {
	return AliasTarget{d.tenant(), d.alias(), keyID(d.key()), d.expect()}
}

func (d drawer) tags() []Tag {
	var out []Tag
	for _, key := range [][]string{{"a"}, {"a", "b"}, {"b", "c", "a"}}[d.upTo(2)] {
		out = append(out, Tag{d.or(key, "", "kms:x", "c"), d.word("", "1", "<2>", "\u2028")})
	}
	return out
}

func (d drawer) text() string {
	return d.or(d.word("plain", "", "<&>\"\\", "\u2028\u00e4\U0001F600", "\x00"),
		strings.Repeat("x", MaxDescription), strings.Repeat("x", MaxDescription+1))
}

// command draws one command of the table.
func (d drawer) command() Command {
	from := commands
	if d.oneIn(2) {
		from = slices.DeleteFunc(slices.Clone(commands), func(s spec) bool { return s.since == FirstRelease })
	}
	name := rapid.SampledFrom(from).Draw(d.t, "command").name
	switch name {
	case "InitCluster":
		return d.init()
	case "RaiseRelease":
		return d.raise()
	case "Tick":
		return &Tick{HashIndex: d.w.s.Index(), Hash: d.w.s.Hash()[d.oneOf(0, 0, 0, 0, 0, 0, 1):]}
	case "Repeat":
		return &Repeat{}
	case "CreateKey":
		return edited(createKey(d.key()), func(c *CreateKey) {
			c.Tenant, c.Description, c.Tags = d.tenant(), d.text(), d.tags()
			c.Generation = d.generation()
		})
	case "CreateTicket", "AdmitNode", "ActivateNode", "UpdateMember", "RemoveNode", "RetireNode", "SetVoter", "InviteNode", "RequestJoin", "ApproveJoin", "RejectJoin":
		return d.membership(name)
	case "RecoverCluster", "RestoreCluster":
		return d.recovery(name)
	case "CreateAlias":
		return &CreateAlias{d.target()}
	case "UpdateAlias":
		return &UpdateAlias{d.target()}
	case "MoveAlias":
		return &MoveAlias{d.target(), d.ref()}
	case "DeleteAlias":
		return &DeleteAlias{d.tenant(), d.alias(), d.expect()}
	case "CreateGrant", "RetireGrant", "RevokeGrant", "ExpireGrant":
		return d.grantCommand(name)
	case "CreateTenant", "SetTenantQuota", "FreezeTenant", "ThawTenant", "DisablePrincipal", "EnablePrincipal", "PutPolicy":
		return d.tenantCommand(name)
	case "DisableKeyVersion", "EnableKeyVersion", "ScheduleKeyVersionDestruction", "CancelKeyVersionDestruction":
		return d.versionCommand(name)
	case "CreateServiceKey":
		return &CreateServiceKey{
			ID: keyID(3 + d.key()), Tenant: d.tenant(), Service: d.or(d.word("obs", "ebs"), "", "a.b"), Generation: d.generation(), Token: []byte("t"),
		}
	case "CreateKeyOfSpec":
		spec := KeySpec(d.word(string(SpecHMAC256), string(SpecRSA2048), string(SpecP384), "x"))
		c := keyOfSpec(d.key(), spec, KeyUsage(d.word(string(UsageSignVerify), string(UsageMac), string(UsageEncryptDecrypt))))
		c.Tenant, c.Description, c.Tags, c.Generation = d.tenant(), d.text(), d.tags(), uint32(d.oneOf(1, 1, 1, 2))
		return c
	case "CreateResidentKey":
		return edited(residentKey(d.key()), func(c *CreateResidentKey) {
			c.Tenant, c.Description, c.Tags, c.Generation = d.tenant(), d.text(), d.tags(), d.generation()
		})
	case "ReserveMessages":
		return &ReserveMessages{VersionRef{d.ref(), uint32(1 + d.upTo(2))}, uint64(d.oneOf(MaxReservation, MaxReservation, 1, 0))}
	case "RecordUse":
		return d.uses()
	case "RecordAuditHeads":
		return d.heads()
	case "AddRecoveryCopy", "ProposeRecipientChange", "ApproveRecipientChange", "CancelRecipientChange", "ProposeRecoverySettings", "RecordDrill":
		return d.recoveryCommand(name)
	case "ProposeGeneration", "InstallGeneration", "ActivateGeneration", "RetireGeneration":
		return d.generationCommand(name)
	case "BeginRewrap", "EndRewrap", "RewrapKeyVersions":
		return d.rewrapCommand(name)
	}
	return d.keyCommand(name)
}

// generation is the active one, as a rule.
func (d drawer) generation() uint32 {
	if g, err := d.w.s.ActiveGeneration(); err == nil && !d.oneIn(6) {
		return g.Number
	}
	return uint32(d.oneOf(1, 2))
}

// generationCommand goes on with the generation that is proposed, as a rule.
func (d drawer) generationCommand(name string) Command {
	all := d.w.s.Cluster().Generations
	number := uint32(d.upTo(4))
	if len(all) > 0 && !d.oneIn(4) {
		number = all[len(all)-1].Number
	}
	node := d.or(firstNode, nodeID("n2"), nodeID("n9"))
	switch name {
	case "ProposeGeneration":
		return edited(proposeGeneration(number+1), func(c *ProposeGeneration) {
			c.Node, c.NoRecovery = node, !d.oneIn(4)
			if !d.oneIn(3) {
				c.Checks = residentChecks(byte(c.Number))
			}
		})
	case "InstallGeneration":
		return &InstallGeneration{number, d.word(firstNode, nodeID("n2"), node)}
	case "ActivateGeneration":
		return &ActivateGeneration{number}
	}
	return &RetireGeneration{uint32(d.upTo(int(number)))}
}

// rewrapCommand moves versions from whatever generation they are under, as a rule.
func (d drawer) rewrapCommand(name string) Command {
	number := uint32(d.upTo(3))
	switch name {
	case "BeginRewrap":
		return &BeginRewrap{number, d.or(firstNode, nodeID("n2"), nodeID("n9"))}
	case "EndRewrap":
		return &EndRewrap{number}
	}
	c := &RewrapKeyVersions{Generation: d.generation()}
	for range 1 + d.upTo(2) {
		item := RewrapItem{Key: keyID(d.key()), Version: 1, Old: make([]byte, 32), Token: []byte("moved")}
		if k, ok := d.w.s.Key(item.Key); ok && !d.oneIn(6) {
			sum := sha256.Sum256(k.Current().Token)
			item.Version, item.Old = k.Current().Version, sum[:]
		}
		c.Items = append(c.Items, item)
	}
	return c
}

// recoveryCommand goes on with the change that waits, as a rule.
func (d drawer) recoveryCommand(name string) Command {
	recipient := d.or(d.word("safe", "vault"), "nobody", "A")
	generation := uint32(1 + d.upTo(2))
	change := uint64(d.upTo(9))
	if c := d.w.s.Recovery().Change; c != nil && !d.oneIn(6) {
		change = c.ID
	}
	switch name {
	case "AddRecoveryCopy":
		return edited(copyFor(generation, recipient), func(c *AddRecoveryCopy) { c.Node = d.or(firstNode, nodeID("n9")) })
	case "ProposeRecipientChange":
		if d.oneIn(3) {
			return &ProposeRecipientChange{Remove: recipient}
		}
		return adding(recipient)
	case "ProposeRecoverySettings":
		return &ProposeRecoverySettings{RecoverySettings{d.upTo(3), d.upTo(2), d.upTo(2)}}
	case "ApproveRecipientChange":
		return &ApproveRecipientChange{change}
	case "CancelRecipientChange":
		return &CancelRecipientChange{change}
	}
	return drillOf(d.w, recipient, generation)
}

func (d drawer) principal() string { return d.or(d.word(user, other, storage), "uma", "") }

// held gives a grant that is there, if one is, or a made up one.
func (d drawer) held() *Grant {
	if all := d.w.s.grants.all(); len(all) > 0 && !d.oneIn(8) {
		return rapid.SampledFrom(all).Draw(d.t, "grant")
	}
	return &Grant{ID: grantID(uint64(1 + d.upTo(4))), Key: keyID(d.key()), Tenant: d.tenant(), Expires: d.w.s.Now() / second}
}

func (d drawer) grantCommand(name string) Command {
	g := d.held()
	r := GrantRef{g.ID, g.Key, d.or(g.Tenant, "acme")}
	switch name {
	case "RetireGrant":
		return &RetireGrant{r}
	case "RevokeGrant":
		return &RevokeGrant{r}
	case "ExpireGrant":
		return &ExpireGrant{r, d.at(g.Expires)}
	}
	return d.grant()
}

// grant draws one that follows from another now and then. Those that may be granted on
// are admin's as a rule: it asks for everything here.
func (d drawer) grant() *CreateGrant {
	c := &CreateGrant{
		Grant: grantID(uint64(1 + d.upTo(9))), Key: keyID(d.key()), Tenant: d.tenant(), Name: d.word("", "", "n", "m"),
		Grantee: d.or(admin, d.principal()), Retiring: d.word("", user, other),
		Operations:  [][]GrantOperation{{GrantCreateGrant, GrantDecrypt}, {GrantDecrypt}, {GrantDecrypt, GrantEncrypt}, {"x"}}[d.oneOf(0, 0, 0, 0, 1, 2, 3)],
		Constraints: []Constraints{{}, {Subset: pairs("a")}, {Equals: pairs("b", "a")}, {pairs("a"), pairs("a")}}[d.oneOf(0, 0, 1, 1, 2, 3)],
		Expires:     int64(d.oneOf(0, 0, 500, 50_000)), Service: d.oneIn(8), Expect: d.expect(),
	}
	if c.Expires != 0 {
		c.Expires += d.w.s.Now() / second
	}
	if c.Service {
		c.Constraints = Constraints{Subset: []Tag{{ContextTenant, c.Tenant}, {ContextResource, "r"}}}
	}
	if !d.oneIn(3) {
		parent := d.held()
		c.Parent, c.Key, c.Tenant = parent.ID, parent.Key, parent.Tenant
		if !d.oneIn(4) {
			c.Service, c.Expires, c.Constraints = false, parent.Expires, parent.Constraints
		}
	}
	return c
}

func (d drawer) tenantCommand(name string) Command {
	tenant := d.or(d.word(DefaultTenant, "acme"), "", "A")
	switch name {
	case "CreateTenant":
		return &CreateTenant{d.or("acme", tenant), d.or(acmeAdmin, d.principal()), d.oneOf(0, 0, 2, -1)}
	case "SetTenantQuota":
		return &SetTenantQuota{tenant, d.oneOf(0, 2, 4, -1)}
	case "FreezeTenant":
		return &FreezeTenant{tenant, d.oneIn(2)}
	case "ThawTenant":
		return &ThawTenant{tenant, d.oneIn(2)}
	case "DisablePrincipal":
		return &DisablePrincipal{d.principal(), d.word("", tenant)}
	case "EnablePrincipal":
		return &EnablePrincipal{d.principal(), d.word("", tenant)}
	}
	c := &PutPolicy{Tenant: tenant, Text: d.or(d.text(), strings.Repeat("p", MaxPolicyText+1))}
	if d.oneIn(2) {
		c.Key = keyID(uint64(d.upTo(3)))
	}
	if d.oneIn(4) {
		expecting(c, uint32(d.upTo(2)))
	}
	return c
}

func (d drawer) versionCommand(name string) Command {
	r := VersionRef{d.ref(), uint32(d.upTo(3))}
	if k, ok := d.w.s.Key(r.ID); ok && !d.oneIn(8) {
		r.Version = rapid.SampledFrom(k.Versions).Draw(d.t, "version").Version
	}
	switch name {
	case "DisableKeyVersion":
		return &DisableKeyVersion{r}
	case "EnableKeyVersion":
		return &EnableKeyVersion{r}
	case "ScheduleKeyVersionDestruction":
		return &ScheduleKeyVersionDestruction{r, uint32(d.oneOf(7, 7, 30, 6))}
	}
	return &CancelKeyVersionDestruction{r}
}

func (d drawer) uses() *RecordUse {
	var uses []Use
	for range d.oneOf(0, 1, 1, 3, 5) {
		uses = append(uses, Use{keyID(d.key()), uint32(d.upTo(3)), d.at(d.w.s.Now() / second)})
	}
	return &RecordUse{uses}
}

// at is a time (unix seconds) by which something is due, or nearly.
func (d drawer) at(due int64) int64 { return due + int64(d.oneOf(0, 0, 0, 1, -1, int(100*day))) }

// coming gives a key that has something to do by itself, or the one given.
func (d drawer) coming(id ID) ID {
	all := slices.DeleteFunc(d.w.s.Due(1<<62, 100), func(due Due) bool { return due.Grant })
	if len(all) > 0 && !d.oneIn(8) {
		return rapid.SampledFrom(all).Draw(d.t, "coming").ID
	}
	return id
}

// dueOf is when a key has something to do next; now if it has nothing.
func (d drawer) dueOf(id ID) int64 {
	if k, ok := d.w.s.Key(id); ok {
		if due, has := k.due(); has {
			return due.At
		}
	}
	return d.w.s.Now() / second
}

func (d drawer) init() *InitCluster {
	switch d.oneOf(0, 0, 1, 2) {
	case 1:
		return firstInit()
	case 2: // one operator's word is enough
		return edited(recoverable("safe", "vault"), func(c *InitCluster) { c.Recovery.Approvals = 1 })
	}
	return initCluster()
}

// raise names the living members, and now and then not all of them.
func (d drawer) raise() *RaiseRelease {
	c := &RaiseRelease{Release: d.oneOf(NewestRelease, NewestRelease, FirstRelease), Members: []string{}}
	for _, m := range d.w.s.Members() {
		if m.Alive() && !d.oneIn(8) {
			c.Members = append(c.Members, m.ID)
		}
	}
	return c
}

func (d drawer) keyCommand(name string) Command {
	r := d.ref()
	switch name {
	case "UpdateKeyDescription":
		return &UpdateKeyDescription{r, d.text()}
	case "EnableKey":
		return &EnableKey{r}
	case "DisableKey":
		return &DisableKey{r}
	case "ScheduleKeyDeletion":
		return &ScheduleKeyDeletion{r, uint32(d.oneOf(7, 7, 30, 30, 6, 31))}
	case "CancelKeyDeletion":
		return &CancelKeyDeletion{r}
	case "RotateKey":
		c := &RotateKey{KeyRef: r, Version: uint32(2 + d.upTo(2)), Generation: d.generation(), Cause: CauseOnDemand, Token: []byte("token")}
		if k, ok := d.w.s.Key(r.ID); ok && !d.oneIn(4) {
			c.Version = d.w.s.NextVersion(k)
		}
		return c
	case "TagKey":
		return &TagKey{r, d.tags()}
	case "UntagKey":
		return &UntagKey{r, []string{d.word("a", "b", "c", "d"), d.or("b", "")}}
	}
	return d.newKeyCommand(name, r)
}

func (d drawer) newKeyCommand(name string, r KeyRef) Command {
	switch name {
	case "CreateExternalKey":
		return &CreateExternalKey{ID: r.ID, Tenant: r.Tenant, Usage: UsageEncryptDecrypt, Spec: KeySpec(d.or(string(SpecSymmetric), string(SpecHMAC256))), Tags: d.tags()}
	case "ImportKeyMaterial":
		return d.material(r)
	case "RotateToImported":
		return &RotateToImported{r, d.waiting(r)}
	case "DeleteKeyMaterial":
		return &DeleteKeyMaterial{VersionRef{r, d.waiting(r)}}
	case "ExpireKeyMaterial":
		r.ID = d.coming(r.ID)
		return &ExpireKeyMaterial{r, d.at(d.dueOf(r.ID))}
	case "DisableAwaitedKey":
		return &DisableAwaitedKey{r}
	case "SetKeyDecryptOnly":
		return &SetKeyDecryptOnly{r}
	case "SetRequiredContext":
		return &SetRequiredContext{r, [][]string{nil, {"b", "a"}, {"a"}, {"a", "a"}}[d.upTo(3)]}
	case "SetDeletionProtection":
		return &SetDeletionProtection{r, d.oneIn(3)}
	case "EnableKeyRotation":
		return &EnableKeyRotation{r, int64(d.oneOf(60, 60, 600, 59))}
	case "DisableKeyRotation":
		return &DisableKeyRotation{r}
	case "RotateKeyOnSchedule":
		r.ID = d.coming(r.ID)
		c := &RotateKeyOnSchedule{KeyRef: r, Due: d.dueOf(r.ID), Version: 2, Generation: d.generation(), Token: []byte("token")}
		c.At = d.at(c.Due)
		if k, ok := d.w.s.Key(r.ID); ok {
			c.Version = d.w.s.NextVersion(k)
		}
		return c
	case "RotateKeyAtLimit":
		c := &RotateKeyAtLimit{KeyRef: r, Version: 2, Generation: d.generation(), Token: []byte("token")}
		if k, ok := d.w.s.Key(r.ID); ok {
			c.Version = d.w.s.NextVersion(k)
		}
		return c
	case "DestroyKeyVersions":
		r.ID = d.coming(r.ID)
		return &DestroyKeyVersions{r, d.at(d.dueOf(r.ID))}
	case "DeleteKey":
		r.ID = d.coming(r.ID)
		return &DeleteKey{r, d.at(d.dueOf(r.ID))}
	case "BindResource":
		return &BindResource{r, d.or(d.word("r", "s"), "")}
	case "ReleaseResource":
		if all := d.w.s.bindings.all(); len(all) > 0 && !d.oneIn(8) {
			r.ID, r.Tenant = rapid.SampledFrom(all).Draw(d.t, "bound").Key, DefaultTenant
		}
		return &ReleaseResource{r, d.word("r", "s"), d.word("", admin, user)}
	}
	d.t.Fatalf("command %s is not drawn", name)
	return nil
}

// waiting is the last version of a key, as a rule.
func (d drawer) waiting(r KeyRef) uint32 {
	if k, ok := d.w.s.Key(r.ID); ok && !d.oneIn(4) {
		return k.Versions[len(k.Versions)-1].Version
	}
	return uint32(d.upTo(2))
}

// material is an import into any version of a key, or the next.
func (d drawer) material(r KeyRef) Command {
	c := &ImportKeyMaterial{KeyRef: r, Version: d.waiting(r), Generation: d.generation(), Token: []byte("token"), Check: bytes.Repeat([]byte{byte(d.oneOf(1, 1, 1, 2))}, 16)}
	if k, ok := d.w.s.Key(r.ID); ok && d.oneIn(3) {
		c.Version = d.w.s.NextVersion(k)
	}
	if d.oneIn(2) {
		c.Expires = d.w.s.Now()/second + int64(d.oneOf(100, 500, 5000, -5))
	}
	return c
}

func (d drawer) recovery(name string) Command {
	epoch := d.w.s.Cluster().RecoveryEpoch + uint32(d.oneOf(1, 1, 1, 1, 0, 2))
	if name == "RecoverCluster" {
		return &RecoverCluster{Epoch: epoch, ID: keyID(uint64(epoch)), Node: d.or(firstNode, nodeID(d.node()))}
	}
	return edited(restoreCluster(epoch), func(c *RestoreCluster) {
		c.DisableKeys, c.Node = d.oneIn(2), d.or(fmt.Sprintf("n9-%d", epoch), firstNode)
	})
}

func (d drawer) membership(name string) Command {
	node := d.node()
	switch name {
	case "CreateTicket":
		return edited(ticketFor(node), func(c *CreateTicket) { c.Seconds, c.Voter = int64(d.oneOf(900, 3600, 1, 3601)), d.oneIn(2) })
	case "AdmitNode":
		return edited(admit(node), func(c *AdmitNode) {
			c.ID = node + d.word("-00000001", "-00000001", "-00000002")
			c.PeerAddress = d.or(node+":7000", "n2:7000", "")
			c.Identity = []byte(d.or(string(c.Identity), "another"))
			c.Ticket = d.or(c.Ticket, "ticket-n2", "")
		})
	case "InviteNode":
		return edited(invite(node, nil), func(c *InviteNode) {
			c.Identity = [][]byte{nil, identityOf(node), IdentityHash([]byte("another")), {1}}[d.oneOf(0, 0, 1, 2, 3)]
		})
	case "RequestJoin":
		return edited(requestOf(node), func(c *RequestJoin) {
			c.ID = node + d.word("-00000001", "-00000001", "-00000002")
			c.Identity = []byte(d.or(string(c.Identity), "another"))
		})
	case "ApproveJoin":
		return &ApproveJoin{node, [][]byte{identityOf(node), IdentityHash([]byte("another"))}[d.oneOf(0, 0, 0, 1)]}
	case "RejectJoin":
		return &RejectJoin{node}
	case "ActivateNode":
		return &ActivateNode{nodeID(node)}
	case "RemoveNode":
		return &RemoveNode{nodeID(node)}
	case "RetireNode":
		return &RetireNode{nodeID(node)}
	case "SetVoter":
		return &SetVoter{nodeID(node), d.oneIn(2)}
	}
	return &UpdateMember{ID: nodeID(node), PeerAddress: d.or(node, "n1") + ":7000", ClientAddress: d.or("x", "", strings.Repeat("x", 257))}
}

// sameOutcomes compares answers; errors by their text and their sentinel.
func sameOutcomes(t *rapid.T, got, want []any) {
	t.Helper()
	for i := range want {
		a, b := got[i].(Outcome), want[i].(Outcome)
		same := a.Result == b.Result && a.Term == b.Term && Code(a.Err) == Code(b.Err) && fmt.Sprint(a.Err) == fmt.Sprint(b.Err)
		if !same {
			t.Fatalf("entry %d was answered %+v, then %+v", i+1, b, a)
		}
	}
}

// run applies a log to a state, one entry after the other.
func run(t *rapid.T, s *State, log []*raft.Log) (*State, []any) {
	t.Helper()
	var out []any
	for _, l := range log {
		next, result, err := s.Apply(l.Index, l.Term, l.Data)
		if next == nil {
			t.Fatalf("entry %d halted: %v", l.Index, err)
		}
		s = next
		out = append(out, Outcome{Result: result, Term: l.Term, Err: err})
	}
	return s, out
}

func sameState(t *rapid.T, what string, got, want *State) {
	t.Helper()
	if !bytes.Equal(got.Hash(), want.Hash()) {
		t.Fatalf("%s: another hash at %d", what, want.Index())
	}
	if !bytes.Equal(snapshotOf(t, got), snapshotOf(t, want)) {
		t.Fatalf("%s: another snapshot at %d", what, want.Index())
	}
}

// TestPropertyReplay: the same entries give the same hash after every entry, the
// same answers and the same snapshot.
func TestPropertyReplay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		s := NewState()
		for i, l := range h.log {
			next, out := run(t, s, []*raft.Log{l})
			if s = next; !bytes.Equal(s.Hash(), h.states[i+1].Hash()) {
				t.Fatalf("another hash at %d", l.Index)
			}
			sameOutcomes(t, out, h.outcomes[i:i+1])
		}
		sameState(t, "replayed", s, h.states[len(h.log)])
	})
}

// TestPropertySnapshot: writing and reading a state anywhere is the identity, and
// the log goes on from there as if nothing had been.
func TestPropertySnapshot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		at := rapid.IntRange(0, len(h.log)).Draw(t, "snapshot at")
		restored := reread(t, h.states[at])
		if err := restored.Check(); err != nil {
			t.Fatalf("restored: %v", err)
		}
		sameState(t, "restored", restored, h.states[at])
		last := h.states[len(h.log)]
		s, out := run(t, restored, h.log[at:])
		sameState(t, "gone on", s, last)
		sameOutcomes(t, out, h.outcomes[at:])

		m, halts := machine()
		if err := m.Restore(&reader{Reader: bytes.NewReader(snapshotOf(t, h.states[at]))}); err != nil {
			t.Fatalf("restoring: %v", err)
		}
		sameOutcomes(t, m.ApplyBatch(h.log[at:]), h.outcomes[at:])
		sameState(t, "restored machine", m.State(), last)
		if len(*halts) != 0 {
			t.Fatalf("halted: %v", *halts)
		}
	})
}

// TestPropertyBatches: however the entries are batched, every batch ends in the
// state that one entry after the other gives.
func TestPropertyBatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		m, halts := machine()
		var out []any
		for done := 0; done < len(h.log); {
			n := rapid.IntRange(1, len(h.log)-done).Draw(t, "batch")
			if n == 1 {
				out = append(out, m.Apply(h.log[done]))
			} else {
				out = append(out, m.ApplyBatch(h.log[done:done+n])...)
			}
			done += n
			if got, want := m.State(), h.states[done]; got.Index() != want.Index() || !bytes.Equal(got.Hash(), want.Hash()) {
				t.Fatalf("machine is at %d with another hash than at %d", got.Index(), want.Index())
			}
		}
		sameOutcomes(t, out, h.outcomes)
		sameState(t, "batched", m.State(), h.states[len(h.log)])
		if len(*halts) != 0 {
			t.Fatalf("halted: %v", *halts)
		}
	})
}

// TestPropertyOldStatesStay: a state does not change while entries are applied
// behind it, along one line or along several.
func TestPropertyOldStatesStay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		from := rapid.IntRange(1, len(h.log)).Draw(t, "branch at")
		w := &world{t: t, s: h.states[from], clock: h.states[from].Now()}
		for range 5 {
			if _, err := w.s.Try(drawer{t, w}.command()); err != nil && Code(err) == "" {
				t.Fatalf("trying: %v", err)
			}
			if _, err := w.append(w.s.Index()+1, w.s.Term(), seal(t, w.entry(), drawer{t, w}.command())); err != nil && Code(err) == "" {
				t.Fatalf("branch: %v", err)
			}
		}
		for i, s := range h.states {
			if !bytes.Equal(snapshotOf(t, s), h.snapshots[i]) {
				t.Fatalf("the state at %d has changed", s.Index())
			}
			if err := s.Check(); err != nil {
				t.Fatalf("the state at %d: %v", s.Index(), err)
			}
		}
	})
}

// TestPropertyHashTellsStatesApart: entries that differ lead to hashes that differ.
func TestPropertyHashTellsStatesApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		at := rapid.IntRange(1, len(h.log)-1).Draw(t, "edited entry")
		other := *h.log[at]
		w := &world{t: t, s: h.states[at], clock: h.states[at].Now()}
		other.Data = seal(t, w.entry(), drawer{t, w}.command())
		if bytes.Equal(other.Data, h.log[at].Data) {
			return
		}
		log := append([]*raft.Log{&other}, h.log[at+1:]...)
		s := h.states[at]
		for i, l := range log {
			if s, _ = run(t, s, []*raft.Log{l}); bytes.Equal(s.Hash(), h.states[at+1+i].Hash()) {
				t.Fatalf("the log was edited at %d, and has the same hash at %d", other.Index, l.Index)
			}
		}
	})
}
