package nodetest

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

var dutyHours = flag.Duration("sim.duties", 75*time.Minute, "virtual time of TestDutiesOnceAcrossLeaders: three minutes take about a second")

// dutyFaults are what changes of leader are made of.
var dutyFaults = []chance{
	{crashLead, 6, 5, 40},
	{alone, 6, 10, 40},
	{aloneHung, 2, 10, 30},
	{withHung, 3, 10, 30},
	{transfer, 6, 0, 5},
	{split, 2, 5, 30},
	{mute, 2, 5, 30},
	{deaf, 2, 5, 30},
	{late, 2, 10, 30},
	{restart, 2, 2, 10},
	{crashAll, 1, 1, 5},
}

// rotating is a key with a schedule.
type rotating struct {
	id     fsm.ID
	period int64 // seconds
	first  int64 // unix seconds: the first date
}

// TestDutiesOnceAcrossLeaders: while leaders are killed, cut off and deposed for hours,
// with HSMs so slow that two of them are at it at the same time, each date of each schedule
// gives exactly one version, and each grant ends once.
func TestDutiesOnceAcrossLeaders(t *testing.T) {
	dir := t.TempDir()
	var h history.History
	synctest.Test(t, func(t *testing.T) {
		o := Defaults(23, 3)
		o.Lease, o.Renewal.Renew = 30*time.Second, 5*time.Second // slower than in production: the hours go by faster
		o.Raft.Heartbeat, o.Raft.Election = 5*time.Second, 5*time.Second
		o.Making = 8 * time.Second // so that leaders change while a key is made
		c, err := New(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		keys, grants := prepareDuties(t, c, *dutyHours)
		depose(c, *dutyHours)
		time.Sleep(3 * time.Minute) // what is overdue is done
		states := settled(t, c)
		if err := c.Broken(); err != nil {
			t.Error(err)
		}
		versions := 0
		for _, k := range keys {
			n, err := k.check(c, states)
			if err != nil {
				t.Errorf("key %s, each %d s: %v", k.id, k.period, err)
			}
			versions += n
		}
		for id, expires := range grants {
			if g, ok := states[0].Grant(id); ok == (expires < time.Now().Add(-2*time.Minute).Unix()) {
				t.Errorf("grant %s that ends at %d is there: %v (%+v)", id, expires, ok, g)
			}
		}
		checkDutyRecords(t, c)
		counts := c.Trace.Counts()
		fmt.Printf("%d versions of %d proposals under %d leaders, %d snapshots sent\n", versions, c.Duties.Tries(), counts["leader"], counts["snapshot"])
		if c.Duties.Tries() == versions || counts["leader"] < 20 {
			t.Errorf("the run proves nothing: %d proposals for %d versions, %d leaders", c.Duties.Tries(), versions, counts["leader"])
		}
		h = c.History.History()
	})
	for _, v := range history.Check(h, history.Rules{Slack: driftSlack}) {
		t.Error(v)
	}
}

// prepareDuties makes keys with schedules, and grants that end one after the other.
func prepareDuties(t *testing.T, c *Cluster, within time.Duration) (keys []rotating, grants map[fsm.ID]int64) {
	t.Helper()
	do := func(command fsm.Command) {
		t.Helper()
		if err := c.Propose(t.Context(), command); err != nil {
			t.Fatal(err)
		}
	}
	grants = map[fsm.ID]int64{}
	for i, period := range []int64{60, 60, 60, 90, 120, 120, 150, 180, 180, 240, 300, 300} {
		id := uuid.New()
		do(command(history.Create, id))
		do(&fsm.EnableKeyRotation{KeyRef: fsm.KeyRef{ID: id, Tenant: fsm.DefaultTenant}, Period: period})
		k, ok := c.Leader().Member().State().Key(id)
		if !ok {
			t.Fatal("the leader does not know the key")
		}
		keys = append(keys, rotating{id, period, k.Rotation.Next})
		for j := range 10 {
			g := uuid.New()
			grants[g] = time.Now().Add(within * time.Duration(1+i+12*j) / 125).Unix()
			do(&fsm.CreateGrant{
				Grant: g, Key: id, Tenant: fsm.DefaultTenant, Grantee: "spiffe://sim.test/tenant/default/user/u", Operations: []fsm.GrantOperation{fsm.GrantDecrypt},
				Expires: grants[g],
			})
		}
	}
	return keys, grants
}

// depose takes the leader away again and again.
func depose(c *Cluster, within time.Duration) {
	n := &nemesis{cluster: c}
	random := rand.New(rand.NewPCG(23, 0xd0))
	total := 0
	for _, x := range dutyFaults {
		total += x.weight
	}
	for end := time.Now().Add(within); time.Now().Before(end); {
		i, w := 0, random.IntN(total)
		for ; w >= dutyFaults[i].weight; i++ {
			w -= dutyFaults[i].weight
		}
		x := dutyFaults[i]
		undo := n.begin(fault{kind: x.kind, a: random.IntN(len(c.Nodes)), b: random.IntN(len(c.Nodes)), part: 0.3, delay: 5 * time.Second})
		time.Sleep(time.Duration((x.least + random.Float64()*(x.most-x.least)) * float64(time.Second)))
		undo()
		time.Sleep(time.Duration(5+random.IntN(50)) * time.Second)
	}
	n.mend()
}

// settled waits until every node has applied the same, and returns their states.
func settled(t *testing.T, c *Cluster) []*fsm.State {
	t.Helper()
	var states []*fsm.State
	err := c.Await(2*time.Minute, func() error {
		if err := c.Healthy(); err != nil {
			return err
		}
		states = nil
		for _, n := range c.Nodes {
			m := n.Member()
			if m == nil {
				return errDown
			}
			states = append(states, m.State())
		}
		for _, s := range states[1:] {
			if s.Index() != states[0].Index() {
				return errors.New("the nodes have not applied the same")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range states {
		if string(s.Hash()) != string(states[0].Hash()) {
			t.Errorf("%s has another hash at %d", c.Nodes[i].Name, s.Index())
		}
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", c.Nodes[i].Name, err)
		}
	}
	return states
}

// check follows a key's schedule date by date: each gave the version that has the next
// number, made when it was due, and the chain ends at the date that is next.
func (r rotating) check(c *Cluster, states []*fsm.State) (versions int, err error) {
	k, ok := states[0].Key(r.id)
	if !ok {
		return 0, errors.New("it is gone")
	}
	for _, s := range states[1:] {
		if other, ok := s.Key(r.id); !ok || !reflect.DeepEqual(k, other) {
			return 0, fmt.Errorf("the nodes do not agree: %+v, %+v", k, other)
		}
	}
	due, second := r.first, int64(1) // clocks are compared less the way between nodes
	for i, v := range k.Versions[1:] {
		p, known := c.Duties.Proposed(v.Token)
		switch {
		case v.Version != uint32(i+2) || v.Cause != fsm.CauseSchedule: // a small count
			return 0, fmt.Errorf("version %d (%s) in the place of %d", v.Version, v.Cause, i+2)
		case !known || p.ID != r.id || p.Version != v.Version:
			return 0, fmt.Errorf("version %d was not proposed as such: %+v", v.Version, p)
		case p.Due != due:
			return 0, fmt.Errorf("version %d is for %d, the schedule says %d", v.Version, p.Due, due)
		case p.At < due || v.Created < due-second:
			return 0, fmt.Errorf("version %d is of %d, proposed at %d, due at %d", v.Version, v.Created, p.At, due)
		}
		if due += r.period; due <= p.At { // overdue by more than a period
			due = p.At + r.period
		}
	}
	if k.Rotation == nil || k.Rotation.Next != due || k.Rotation.Period != r.period {
		return 0, fmt.Errorf("next is %+v, the schedule says %d", k.Rotation, due)
	}
	if late := time.Since(time.Unix(due, 0)); late > 90*time.Second {
		return 0, fmt.Errorf("what is due is overdue by %s", late)
	}
	return len(k.Versions) - 1, nil
}

// checkDutyRecords: no act is recorded as done twice.
func checkDutyRecords(t *testing.T, c *Cluster) {
	t.Helper()
	done := map[string]audit.Event{}
	for _, e := range c.Duties.Records() {
		if e.Result != audit.Success {
			continue
		}
		act := fmt.Sprintf("%s %s %d", e.Name, e.Target, e.KeyVersion)
		if first, twice := done[act]; twice {
			t.Errorf("%s was done twice: %+v, %+v", act, first, e)
		}
		done[act] = e
	}
}
