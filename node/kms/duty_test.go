package kms

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

const day = 24 * time.Hour

// look does what is due, as RunDuties does each second.
func (e *env) look(paused map[fsm.Due]time.Time) {
	for n := 0; e.doDue(context.Background(), paused); n++ {
		if n > 1000 {
			e.t.Fatal("the duties do not come to an end")
		}
	}
}

// run has the duties done each step until some time has passed.
func (e *env) run(d, step time.Duration) {
	paused := map[fsm.Due]time.Time{}
	for ; d > 0; d -= step {
		e.clock.advance(step)
		e.look(paused)
	}
}

// schedule has a key rotated.
func (e *env) schedule(key string, period time.Duration) {
	e.t.Helper()
	_, _, err := e.EnableKeyRotation(e.t.Context(), as(ada), key, period, 0)
	e.ok(err)
}

// made are when versions were made by the schedule, since the start.
func (e *env) made(key string) (out []time.Duration) {
	for _, v := range e.stored(key).Versions {
		if v.Cause == fsm.CauseSchedule {
			out = append(out, time.Unix(v.Created, 0).Sub(start))
		}
	}
	return out
}

func TestRotationDueOnce(t *testing.T) {
	e := newEnv(t)
	key, other := e.key("default"), e.key("default")
	e.schedule(key, time.Hour)
	blob := e.sealed(as(uma), key)
	e.clock.advance(time.Hour - time.Second)
	e.look(map[fsm.Due]time.Time{})
	if len(e.made(key)) != 0 {
		t.Fatal("rotated before its date")
	}
	e.clock.advance(time.Second)
	for range 10 {
		e.look(map[fsm.Due]time.Time{})
	}
	k := e.stored(key)
	if got := e.made(key); len(got) != 1 || got[0] != time.Hour || k.Rotation.Next != start.Add(2*time.Hour).Unix() || len(e.stored(other).Versions) != 1 {
		t.Fatalf("%v, next %d", got, k.Rotation.Next)
	}
	records := e.audit.of("RotateKey")
	if len(records) != 1 {
		t.Fatalf("%+v", records)
	}
	if r := records[0]; r.KeyID != key || r.KeyVersion != 2 || r.Tenant != "default" || r.Principal != who(node) || r.DecidedBy != "schedule" || r.Result != audit.Success || r.StateIndex == 0 {
		t.Errorf("%+v", r)
	}
	e.ok(e.opens(as(uma), blob))
	e.ok(e.opens(as(uma), e.sealed(as(uma), key)))
	e.run(5*time.Hour, time.Minute)
	if got := e.made(key); len(got) != 6 || got[5] != 6*time.Hour {
		t.Errorf("%v", got)
	}
	if e.hsm.made != 2+6 {
		t.Errorf("%d keys were made in the HSM", e.hsm.made)
	}
}

// TestRotationOverdue: what is due while a key is disabled is done when it is enabled, and
// what is due while the cluster is down is done once.
func TestRotationOverdue(t *testing.T) {
	e := newEnv(t)
	key, ctx := e.key("default"), t.Context()
	e.schedule(key, time.Hour)
	_, _, err := e.DisableKey(ctx, as(ada), key, 0)
	e.ok(err)
	e.run(90*time.Minute, time.Minute)
	if len(e.made(key)) != 0 {
		t.Fatal("a disabled key was rotated")
	}
	_, _, err = e.EnableKey(ctx, as(ada), key, 0)
	e.ok(err)
	e.run(time.Minute, time.Minute)
	if got := e.made(key); len(got) != 1 || got[0] != 91*time.Minute || e.stored(key).Rotation.Next != start.Add(2*time.Hour).Unix() {
		t.Errorf("%v, next %d", got, e.stored(key).Rotation.Next)
	}
	for name, off := range map[string]func() error{
		"decrypt only":     func() error { _, _, err := e.SetKeyDecryptOnly(ctx, as(ada), key, 0); return err },
		"pending deletion": func() error { _, _, err := e.ScheduleKeyDeletion(ctx, as(ada), key, 30, 0); return err },
	} {
		before := len(e.made(key))
		e.ok(off())
		e.run(3*time.Hour, time.Minute)
		if len(e.made(key)) != before {
			t.Errorf("%s: rotated", name)
		}
		if name == "pending deletion" {
			_, _, err = e.CancelKeyDeletion(ctx, as(ada), key, 0)
			e.ok(err)
		}
		_, _, err = e.EnableKey(ctx, as(ada), key, 0)
		e.ok(err)
		e.look(map[fsm.Due]time.Time{})
		if len(e.made(key)) != before+1 {
			t.Errorf("%s: not rotated afterwards", name)
		}
	}
	before := len(e.made(key))
	e.clock.advance(10*time.Hour + time.Minute) // nobody was there
	e.look(map[fsm.Due]time.Time{})
	if got := e.made(key); len(got) != before+1 {
		t.Errorf("%d versions for the time that was missed", len(got)-before)
	}
	if next := e.stored(key).Rotation.Next; next != e.clock.Now().Add(time.Hour).Unix() {
		t.Errorf("next at %d", next)
	}
}

// TestNothingByOneClock: what is due is due when a majority's clocks say so.
func TestNothingByOneClock(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key, rotated, versions := e.key("default"), e.key("default"), e.key("default")
	_, _, err := e.ScheduleKeyDeletion(ctx, as(ada), key, 7, 0)
	e.ok(err)
	e.schedule(rotated, time.Hour)
	_, _, err = e.RotateKeyOnDemand(ctx, as(ada), versions, 0)
	e.ok(err)
	_, _, err = e.ScheduleKeyVersionDestruction(ctx, as(ada), versions, 1, 7, 0)
	e.ok(err)
	e.give(rotated, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt), Expires: start.Add(time.Hour)})
	before := e.log.State().Index()
	at := start
	e.leader.majority = func() (time.Time, bool) { return at, true }
	e.clock.advance(1000 * day) // this leader's clock alone, and the log's with it
	e.look(map[fsm.Due]time.Time{})
	if i := e.log.State().Index(); i != before {
		t.Fatalf("something was done: %d entries", i-before)
	}
	at = start.Add(7*day - time.Second)
	e.look(map[fsm.Due]time.Time{})
	if _, ok := e.log.State().Key(uuid.MustParse(key)); !ok || e.stored(versions).Version(1).Token == nil {
		t.Fatal("destroyed before its time")
	}
	if len(e.stored(rotated).Versions) != 2 || e.log.State().CountGrants(uuid.MustParse(rotated)) != 0 {
		t.Error("what was due was not done")
	}
	at = start.Add(7 * day)
	e.leader.majority = func() (time.Time, bool) { return at, false }
	e.look(map[fsm.Due]time.Time{})
	if _, ok := e.log.State().Key(uuid.MustParse(key)); !ok {
		t.Fatal("destroyed by clocks that nobody has heard of")
	}
	e.leader.majority = func() (time.Time, bool) { return at, true }
	e.look(map[fsm.Due]time.Time{})
	if _, ok := e.log.State().Key(uuid.MustParse(key)); ok || e.stored(versions).Version(1).Token != nil {
		t.Error("what was due was not done")
	}
	if e.stored(versions).Version(2).Token == nil || e.stored(versions).Version(2).State != fsm.VersionEnabled {
		t.Error("the other version is gone too")
	}
}

func TestDeletion(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key, cancelled := e.key("default"), e.key("default")
	blob := e.sealed(as(uma), key)
	_, _, err := e.CreateAlias(ctx, as(ada), "alias/gone", key, 0)
	e.ok(err)
	grant := e.give(key, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt), Expires: start.Add(100 * day)})
	e.put(key, everybody)
	e.schedule(key, day)
	e.tellUses(ctx)
	for _, k := range []string{key, cancelled} {
		_, _, err = e.ScheduleKeyDeletion(ctx, as(ada), k, 7, 0)
		e.ok(err)
	}
	e.run(6*day, time.Hour)
	_, _, err = e.CancelKeyDeletion(ctx, as(ada), cancelled, 0)
	e.ok(err)
	e.run(3*day, time.Hour)
	st := e.log.State()
	if _, ok := st.Key(uuid.MustParse(key)); ok {
		t.Fatal("it is there")
	}
	if _, ok := st.Alias("default", "alias/gone"); ok {
		t.Error("its alias is there")
	}
	if _, ok := st.Grant(uuid.MustParse(grant)); ok {
		t.Error("its grant is there")
	}
	if _, ok := st.LastUse(uuid.MustParse(key)); ok || len(st.Policies("default", uuid.MustParse(key))) != 0 {
		t.Error("something of it is there")
	}
	e.refused(e.opens(as(uma), blob), fsm.ErrNotFound)
	if k := e.stored(cancelled); k.State != fsm.KeyDisabled {
		t.Errorf("the other is %s", k.State)
	}
	if due := st.Due(1<<40, 10); len(due) != 0 {
		t.Errorf("due: %+v", due)
	}
	records := e.audit.of("DeleteKey")
	if len(records) != 1 || records[0].KeyID != key || records[0].Tenant != "default" || records[0].Result != audit.Success {
		t.Errorf("%+v", records)
	}
}

func TestGrantsEnd(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	at := start.Add(time.Hour)
	top := e.give(key, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt, fsm.GrantCreateGrant), Expires: at})
	child, _, err := e.CreateGrant(t.Context(), as(uma), key, GrantParams{Grantee: who(uri), Operations: ops(fsm.GrantEncrypt), Parent: top, Expires: at})
	e.ok(err)
	forever := e.give(key, GrantParams{Grantee: who(uri), Operations: ops(fsm.GrantEncrypt)})
	e.run(59*time.Minute, time.Minute)
	if n := e.log.State().CountGrants(uuid.MustParse(key)); n != 3 {
		t.Fatalf("%d grants", n)
	}
	e.run(2*time.Minute, time.Minute)
	for id, want := range map[string]bool{top: false, child: false, forever: true} {
		if _, ok := e.log.State().Grant(uuid.MustParse(id)); ok != want {
			t.Errorf("%s is there: %v", id, ok)
		}
	}
	for _, r := range e.audit.of("ExpireGrant") {
		if r.Result != audit.Success || r.Grant != top && r.Grant != child || r.KeyID != key {
			t.Errorf("%+v", r)
		}
	}
}

// TestHSMFails: keys are not made, and the others' turn comes all the same.
func TestHSMFails(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	var rotated []string
	for range dutyBatch + 10 {
		key := e.key("default")
		e.schedule(key, time.Minute)
		rotated = append(rotated, key)
	}
	doomed := e.key("default")
	_, _, err := e.ScheduleKeyDeletion(ctx, as(ada), doomed, 7, 0)
	e.ok(err)
	made := e.hsm.made
	e.hsm.fail = func() error { return fmt.Errorf("%w: gone", hsm.ErrUnavailable) }
	e.clock.advance(7 * day)
	paused := map[fsm.Due]time.Time{}
	for range 2 { // seconds
		e.look(paused)
		e.clock.advance(time.Second)
	}
	if _, ok := e.log.State().Key(uuid.MustParse(doomed)); ok {
		t.Error("the deletion waits for an HSM that it does not need")
	}
	if n := e.hsm.made - made; n != 2 {
		t.Errorf("the HSM was asked %d times in two looks", n)
	}
	if len(paused) != len(rotated) {
		t.Errorf("%d are left alone, of %d", len(paused), len(rotated))
	}
	for range 50 {
		e.look(paused)
		e.clock.advance(time.Second)
	}
	if n := e.hsm.made - made; n != 2 {
		t.Errorf("the HSM was asked %d times: it is left alone for a minute", n)
	}
	e.clock.advance(10 * time.Second)
	e.hsm.fail = nil
	for range 3 {
		e.look(paused)
		e.clock.advance(time.Second)
	}
	for _, key := range rotated {
		if len(e.stored(key).Versions) != 2 {
			t.Fatalf("%s has %d versions", key, len(e.stored(key).Versions))
		}
	}
	if len(paused) != 0 {
		t.Errorf("%d are still left alone", len(paused))
	}
}

// TestHSMHangs: an HSM that does not answer holds nothing up for longer than its limit.
func TestHSMHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnvAt(t, time.Now)
		key, granted := e.key("default"), e.key("default")
		e.schedule(key, time.Minute)
		e.give(granted, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt), Expires: time.Now().Add(time.Minute)})
		hanging := &hangingMaker{KeyMaker: e.hsm}
		e.keys = hanging
		ctx, cancel := context.WithCancel(t.Context())
		var duties sync.WaitGroup
		duties.Go(func() { e.RunDuties(ctx) })
		time.Sleep(2 * time.Minute)
		if n := e.log.State().CountGrants(uuid.MustParse(granted)); n != 0 || hanging.asked() == 0 {
			t.Errorf("%d grants, asked %d times", n, hanging.asked())
		}
		cancel()
		duties.Wait()
	})
}

// hangingMaker makes no key before its caller gives up.
type hangingMaker struct {
	KeyMaker
	mu sync.Mutex
	n  int
}

func (h *hangingMaker) GenerateKey(ctx context.Context, _ hsm.KeySpec) (hsm.NewKey, error) {
	h.mu.Lock()
	h.n++
	h.mu.Unlock()
	<-ctx.Done()
	return hsm.NewKey{}, ctx.Err()
}

func (h *hangingMaker) asked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.n
}

// TestMoreFailuresThanRemembered: however much fails, a look comes to an end.
func TestMoreFailuresThanRemembered(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	for range 3*dutyBatch + 5 {
		e.give(key, GrantParams{Grantee: who(uma), Operations: ops(fsm.GrantEncrypt), Expires: start.Add(time.Minute)})
	}
	tried := 0
	e.log.refuse = func(c fsm.Command) error {
		if _, ok := c.(*fsm.ExpireGrant); ok {
			tried++
			return errors.New("no leader")
		}
		return nil
	}
	e.clock.advance(time.Hour)
	paused := map[fsm.Due]time.Time{}
	for range 4 {
		before := tried
		e.look(paused)
		if tried-before > dutyBatch {
			t.Errorf("%d were tried in a look", tried-before)
		}
		e.clock.advance(time.Second)
	}
	if tried != 3*dutyBatch+5 || len(paused) != tried {
		t.Errorf("%d tried, %d left alone", tried, len(paused))
	}
	if n := len(e.audit.of("ExpireGrant")); n != tried || e.audit.last().Result != audit.Unknown {
		t.Errorf("%d records, the last %s", n, e.audit.last().Result)
	}
	e.log.refuse = nil
	e.clock.advance(time.Minute)
	e.look(paused)
	if n := e.log.State().CountGrants(uuid.MustParse(key)); n != 0 {
		t.Errorf("%d grants are left", n)
	}
}

// TestChangedMeanwhile: what another leader has done, or a caller has changed, is no
// failure.
func TestChangedMeanwhile(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	e.schedule(key, time.Hour)
	e.clock.advance(time.Hour)
	e.hsm.fail = func() error { // while the HSM works, another leader is faster
		e.hsm.fail = nil
		_, _, err := e.RotateKeyOnDemand(context.Background(), as(ada), key, 0)
		return err
	}
	paused := map[fsm.Due]time.Time{}
	e.doDue(t.Context(), paused)
	if len(paused) != 0 || len(e.audit.of("RotateKey")) != 0 || len(e.made(key)) != 0 {
		t.Errorf("%d left alone, recorded %+v", len(paused), e.audit.of("RotateKey"))
	}
	e.look(paused)
	k := e.stored(key)
	if len(k.Versions) != 3 || len(e.made(key)) != 1 || k.Rotation.Next != start.Add(2*time.Hour).Unix() {
		t.Errorf("%+v", k)
	}
}

// TestNothingIsDone: not by who does not lead, nor without a trail, nor while the
// cluster's release does not know the commands.
func TestNothingIsDone(t *testing.T) {
	for name, set := range map[string]func(e *env){
		"no leader":     func(e *env) { e.leader.leads = false },
		"broken audit":  func(e *env) { e.audit.broken = errors.New("full") },
		"no majority":   func(e *env) { e.leader.majority = func() (time.Time, bool) { return start.Add(1000 * day), false } },
		"first release": func(e *env) { e.log.state = olderRelease(e) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			key := e.key("default")
			_, _, err := e.ScheduleKeyDeletion(t.Context(), as(ada), key, 7, 0)
			e.ok(err)
			set(e)
			before, made, records := e.log.State().Index(), e.hsm.made, len(e.audit.events)
			e.run(8*day, time.Hour)
			if e.log.State().Index() != before || e.hsm.made != made || len(e.audit.events) != records {
				t.Error("something was done")
			}
		})
	}
}

// olderRelease is a state of a cluster of the first release, with a key to be deleted.
func olderRelease(e *env) *fsm.State {
	c := e.log.state.Cluster()
	l := &testLog{now: e.now, state: fsm.NewState()}
	old := &env{Service: e.Service, t: e.t, log: l}
	id := uuid.New()
	old.do(&fsm.InitCluster{
		Cluster: c.ID, TrustDomain: "kms.example", Operator: who(olga), Administrator: who(ada), LeaseMillis: 6000, Generation: 1, Checks: c.Generations[0].Checks,
		Node: "n1-1", Name: "n1", PeerAddress: "n1:1", ClientAddress: "n1:2", Identity: []byte("identity"),
	})
	old.do(&fsm.CreateKey{ID: id, Tenant: "default", Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric, Version: 1, Generation: 1, Token: []byte("token")})
	old.do(&fsm.ScheduleKeyDeletion{KeyRef: fsm.KeyRef{ID: id, Tenant: "default"}, Days: 7})
	return l.state
}

// TestRunDuties: each second what is due, each minute the uses, until it is told to end.
func TestRunDuties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnvAt(t, time.Now)
		key := e.key("default")
		e.schedule(key, time.Minute)
		e.ok(e.encrypts(as(uma), key))
		ctx, cancel := context.WithCancel(t.Context())
		var duties sync.WaitGroup
		duties.Go(func() { e.RunDuties(ctx) })
		time.Sleep(59 * time.Second)
		if e.log.count(&fsm.RecordUse{}) != 0 || len(e.stored(key).Versions) != 1 {
			t.Error("too early")
		}
		time.Sleep(9*time.Minute + 2*time.Second)
		if n := e.log.count(&fsm.RecordUse{}); n != 1 {
			t.Errorf("uses were told %d times", n)
		}
		k := e.stored(key)
		if len(k.Versions) != 11 {
			t.Errorf("%d versions", len(k.Versions))
		}
		for i, v := range k.Versions[1:] {
			due := k.Created + int64(i+1)*60
			if v.Cause != fsm.CauseSchedule || v.Created < due || v.Created > due+1 {
				t.Errorf("version %d: %s at %d, due at %d", v.Version, v.Cause, v.Created, due)
			}
		}
		cancel()
		duties.Wait()
		before := e.log.State().Index()
		time.Sleep(time.Hour)
		if e.log.State().Index() != before {
			t.Error("it goes on")
		}
	})
}

// TestUsesAreToldByAll: nodes that do not lead tell what they have seen.
func TestUsesAreToldByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnvAt(t, time.Now)
		key := e.key("default")
		e.ok(e.encrypts(as(uma), key))
		e.leader.leads = false
		ctx, cancel := context.WithCancel(t.Context())
		var duties sync.WaitGroup
		duties.Go(func() { e.RunDuties(ctx) })
		time.Sleep(2 * time.Minute)
		if u := e.used(key); u.Version(1) == 0 {
			t.Error("the use was not told")
		}
		cancel()
		duties.Wait()
	})
}

var manyKeys = flag.Int("kms.keys", 100_000, "keys of BenchmarkDuties; a million take minutes to make")

// BenchmarkDuties is a look at many keys of which none is due.
func BenchmarkDuties(b *testing.B) {
	for _, keys := range []int{1000, *manyKeys} {
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			e := newEnv(b)
			var id uuid.UUID
			for i := range keys {
				id[0], id[1], id[2], id[3] = byte(i>>24), byte(i>>16), byte(i>>8), byte(i)
				id[15] = 1
				e.do(&fsm.CreateKey{ID: id, Tenant: "default", Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric, Version: 1, Generation: 1, Token: []byte("token")})
				e.do(&fsm.EnableKeyRotation{KeyRef: fsm.KeyRef{ID: id, Tenant: "default"}, Period: 3600})
				e.log.told = nil
			}
			paused := map[fsm.Due]time.Time{}
			b.ReportAllocs()
			for b.Loop() {
				if e.doDue(context.Background(), paused) {
					b.Fatal("something is due")
				}
			}
		})
	}
}

// TestUnknownOutcome: an act that the log has not answered for is recorded as that, and as
// done when the state shows that it was.
func TestUnknownOutcome(t *testing.T) {
	for _, commits := range []bool{true, false} {
		e := newEnv(t)
		key := e.key("default")
		_, _, err := e.ScheduleKeyDeletion(t.Context(), as(ada), key, 7, 0)
		e.ok(err)
		e.clock.advance(8 * day)
		var late func() // commits what was on its way
		e.log.lose(func(p fsm.Proposal) error {
			e.log.lose(nil)
			late = func() { _, err := e.log.Propose(t.Context(), p); e.ok(err) }
			return errors.New("outcome unknown")
		})
		paused := map[fsm.Due]time.Time{}
		e.look(paused)
		if r := e.audit.of("DeleteKey"); len(r) != 1 || r[0].Result != audit.Unknown || r[0].KeyID != key || r[0].Reason == "" {
			t.Fatalf("recorded as %+v", r)
		}
		e.settle()
		if n := len(e.audit.of("DeleteKey")); n != 1 {
			t.Fatalf("%d records while nothing is known", n)
		}
		if commits {
			late()
			e.settle()
		} else {
			e.clock.advance(dutyPause)
			e.look(paused)
		}
		e.settle()
		r := e.audit.of("DeleteKey")
		if len(r) != 2 || r[1].Result != audit.Success || r[1].KeyID != key || r[1].Reason != "" || r[1].StateIndex != e.log.State().Index() {
			t.Errorf("recorded as %+v", r)
		}
		e.clock.advance(settleAtMost)
		e.settle()
		if len(e.unsettled) != 0 {
			t.Errorf("%d acts are looked for still", len(e.unsettled))
		}
	}
}
