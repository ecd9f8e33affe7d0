package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/audit/sink"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/rpc"
)

const (
	// alarmsEvery is how often it is looked which alarms hold.
	alarmsEvery = 5 * time.Second
	// materialEnds is how long before its end imported material is told of: time for people to
	// import it again, with a weekend between.
	materialEnds = 7 * 24 * time.Hour
	// maxEnding bounds the key versions that are told of at a time.
	maxEnding = 10_000
	// maxSubjects are shown of what one alarm is about.
	maxSubjects = 10
	// maxTellPause is the longest time until it is tried again to record what stays: each time the
	// trail may be read.
	maxTellPause = 10 * time.Minute
	// haltRecord is how long a node that must stop waits for its record of why.
	haltRecord = time.Second
)

// alarms finds out which alarms hold at this node, and records those that nobody else does.
//
// What ends and may come back is recorded each time that it begins, and its end where nothing
// else tells it. What stays until people have done something is recorded once in a trail, however
// often its node starts: by each node if it is about a node, by the leader if it is about the
// cluster. So a new leader may tell again what an earlier one has told in its own trail.
type alarms struct {
	config  alarmsConfig
	holding atomic.Pointer[holding]
	since   map[identity]time.Time // when it was first found; of look alone
	begun   map[identity]found     // of tellEach alone
	told    map[identity]bool      // in this node's trail; nil: not looked for yet; of tellOnce alone
	pause   time.Duration          // after an attempt to tell that failed; of tell alone
}

// alarmsConfig is what alarms are found from.
type alarmsConfig struct {
	Self        string // SPIFFE URI that they are recorded under
	Now         func() time.Time
	State       func() *fsm.State
	Leads       func() bool
	Differences func() []cluster.Difference
	Denied      func() []kms.Denied
	Sinks       func() []sink.Stats
	Stale       func(now time.Time) (since time.Time, why string)
	Trail       alarmTrail
	Log         *slog.Logger
}

// alarmTrail is what alarms need of the audit trail.
type alarmTrail interface {
	Record(e audit.Event) error
	SearchReadable(ctx context.Context, q audit.Query, from uint64, found func(audit.Found) error) (unread bool, err error)
	Unsealed() (u audit.Unsealed, ok bool)
}

// teller is who records an alarm, and how often.
type teller int

const (
	others      teller = iota // it is recorded where it arises
	eachTime                  // each time that it begins
	once                      // each node, once in its trail
	onceLeading               // the leader, once in its trail
)

// found is an alarm that holds.
type found struct {
	name    audit.Alarm
	text    string // for anybody; alarms of one name and text are shown as one
	subject string // what it is about, for whoever may know; may be empty
	since   time.Time
	teller  teller
	event   audit.Event // Name, Target, Tenant, KeyID and KeyVersion of its record
	over    string      // eventName of the record of its end; empty: there is none
}

// identity tells records of alarms apart: one is about one state of affairs.
type identity struct {
	name    audit.Alarm
	key     string
	version uint32
	target  string
}

func identityOf(e audit.Event) identity { return identity{e.Alarm, e.KeyID, e.KeyVersion, e.Target} }

func (f found) identity() identity {
	return identity{f.name, f.event.KeyID, f.event.KeyVersion, f.event.Target}
}

func (f found) reason() string {
	if f.subject == "" {
		return f.text
	}
	return f.text + ": " + f.subject
}

// holding is what a look has found.
type holding struct {
	all   []found
	shown []rpc.Alarm
	count map[audit.Alarm]int
}

func newAlarms(c alarmsConfig) *alarms {
	a := &alarms{config: c, since: map[identity]time.Time{}, begun: map[identity]found{}}
	a.holding.Store(&holding{})
	return a
}

// watch looks which alarms hold, and records those that come and go, until ctx ends.
func (a *alarms) watch(ctx context.Context) {
	a.each(ctx, func() time.Duration {
		a.look()
		a.tellEach()
		return alarmsEvery
	})
}

// tell records those that stay, until ctx ends. The first may read the whole trail.
func (a *alarms) tell(ctx context.Context) {
	a.each(ctx, func() time.Duration {
		if a.tellOnce(ctx) == nil {
			a.pause = 0
			return alarmsEvery
		}
		a.pause = min(max(2*a.pause, alarmsEvery), maxTellPause)
		return a.pause
	})
}

// each calls f, which says when it wants to be called next, until ctx ends.
func (a *alarms) each(ctx context.Context, f func() (next time.Duration)) {
	timer := time.NewTimer(alarmsEvery)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			timer.Reset(f())
		case <-ctx.Done():
			return
		}
	}
}

// now are the alarms that hold, as they are shown.
func (a *alarms) now() []rpc.Alarm { return a.holding.Load().shown }

// counts are how many alarms hold, by their names.
func (a *alarms) counts() map[audit.Alarm]int { return a.holding.Load().count }

// look finds out which alarms hold.
func (a *alarms) look() {
	s, now := a.config.State(), a.config.Now()
	h := &holding{all: slices.Concat(a.denials(), a.ending(s, now), a.differences(), a.drills(s, now), a.sinks(), a.stale(now), a.notSealed(), a.conflicts(s)), count: map[audit.Alarm]int{}}
	since := map[identity]time.Time{}
	for i := range h.all {
		f := &h.all[i]
		id := f.identity()
		if first, ok := a.since[id]; ok && f.since.IsZero() {
			f.since = first
		} else if f.since.IsZero() {
			f.since = now
		}
		since[id] = f.since
		h.count[f.name]++
		h.show(*f)
	}
	a.since = since
	a.holding.Store(h)
}

// show adds an alarm to those that are shown.
func (h *holding) show(f found) {
	i := slices.IndexFunc(h.shown, func(x rpc.Alarm) bool { return x.Name == f.name && x.Text == f.text })
	if i < 0 {
		h.shown = append(h.shown, rpc.Alarm{Name: f.name, Text: f.text, Since: f.since})
		i = len(h.shown) - 1
	}
	x := &h.shown[i]
	x.Count++
	if f.since.Before(x.Since) {
		x.Since = f.since
	}
	if f.subject != "" && len(x.Subjects) < maxSubjects {
		x.Subjects = append(x.Subjects, f.subject)
	}
}

func (a *alarms) denials() (out []found) {
	for _, d := range a.config.Denied() {
		who := d.Principal
		if who == "" {
			who = "principals beyond those that are counted alone"
		}
		last := d.Last.Operation
		if d.Last.Key != "" {
			last += " of key " + d.Last.Key
		}
		if d.Last.From != "" {
			last += " from " + d.Last.From
		}
		out = append(out, found{
			name: audit.RepeatedDenials, teller: eachTime, since: d.Since, over: "RepeatedDenialsOver",
			text:    fmt.Sprintf("a principal was denied %d calls or more within %s", kms.RepeatedDenials, kms.DenialWindow),
			subject: fmt.Sprintf("%s, %d calls since %s, the last one %s", who, d.Calls, date(d.Since.Unix()), last),
			event:   audit.Event{Name: "RepeatedDenials", Target: who, Tenant: d.Tenant},
		})
	}
	return out
}

func (a *alarms) ending(s *fsm.State, now time.Time) (out []found) {
	for _, m := range s.EndingMaterial(now.Add(materialEnds).Unix(), maxEnding) {
		out = append(out, found{
			name: audit.MaterialExpiring, teller: onceLeading, text: "imported key material ends within 7 days",
			subject: fmt.Sprintf("version %d of key %s of tenant %s at %s", m.Version, m.Key.ID, m.Key.Tenant, date(m.At)),
			event: audit.Event{
				Name: "KeyMaterialExpiring", Tenant: m.Key.Tenant, KeyID: m.Key.ID.String(), KeyVersion: m.Version, Target: "until " + date(m.At),
			},
		})
	}
	return out
}

func (a *alarms) differences() (out []found) {
	for _, d := range a.config.Differences() {
		out = append(out, found{
			name: audit.StateDiverged, teller: eachTime,
			text:  fmt.Sprintf("the state of %s (%s) is not the leader's: their running hashes are others at index %d", d.Name, d.ID, d.Index),
			event: audit.Event{Name: "StateDiverged", Target: d.ID},
		})
	}
	return out
}

func (a *alarms) drills(s *fsm.State, now time.Time) (out []found) {
	for _, d := range s.OldDrills(now.Unix()) {
		out = append(out, found{
			name: audit.DrillOld, teller: onceLeading, text: d.Text,
			event: audit.Event{Name: "RecoveryDrillOld", Target: d.Recipient + ", since " + date(d.Since)},
		})
	}
	return out
}

func (a *alarms) sinks() (out []found) {
	for _, s := range a.config.Sinks() {
		if s.Failing {
			out = append(out, found{
				name: audit.SinkFailing, teller: others, text: fmt.Sprintf("the audit sink %s takes nothing, it is %d records behind", s.Name, s.Records),
				subject: s.LastError, event: audit.Event{Target: s.Name},
			})
		}
	}
	return out
}

func (a *alarms) stale(now time.Time) []found {
	since, why := a.config.Stale(now)
	if since.IsZero() {
		return nil
	}
	return []found{{
		name: audit.HeadStale, teller: eachTime, since: since, over: "AuditHeadCurrent",
		text:    fmt.Sprintf("the audit trail is not signed, or its signature not remembered by the cluster, since %s", date(since.Unix())),
		subject: why, event: audit.Event{Name: "AuditHeadStale"},
	}}
}

func (a *alarms) notSealed() []found {
	u, ok := a.config.Trail.Unsealed()
	if !ok {
		return nil
	}
	return []found{{
		name: audit.NotSealed, teller: eachTime, over: "AuditSegmentsSealed",
		text:    fmt.Sprintf("the audit records %d to %d should be sealed and are not", u.First, u.Last),
		subject: u.Reason, event: audit.Event{Name: "AuditSegmentsNotSealed"},
	}}
}

func (a *alarms) conflicts(s *fsm.State) (out []found) {
	for _, h := range s.AuditHeads() {
		if h.Conflict != nil {
			out = append(out, found{
				name: audit.TrailRewritten, teller: once, text: rpc.TrailAlarm(s, h), event: audit.Event{Name: "AuditTrailConflict", Target: h.Node},
			})
		}
	}
	return out
}

// tellEach records the alarms that have begun since the last look, and those that are over.
func (a *alarms) tellEach() {
	holds := map[identity]bool{}
	for _, f := range a.holding.Load().all {
		if f.teller != eachTime {
			continue
		}
		id := f.identity()
		holds[id] = true
		if _, ok := a.begun[id]; ok || a.record(f) == nil {
			a.begun[id] = f // as it is now, for its end
		}
	}
	for id, f := range a.begun {
		if !holds[id] && (f.over == "" || a.recordEnd(f) == nil) {
			delete(a.begun, id)
		}
	}
}

// tellOnce records the alarms that this node has not told of in its trail.
func (a *alarms) tellOnce(ctx context.Context) error {
	for _, f := range a.holding.Load().all {
		id := f.identity()
		tells := f.teller == once || f.teller == onceLeading && a.config.Leads()
		if !tells || a.told[id] || ctx.Err() != nil {
			continue
		}
		var err error
		if a.told == nil {
			a.told, err = a.before(ctx)
		}
		if err == nil && !a.told[id] {
			err = a.record(f)
			a.told[id] = err == nil
		}
		if err != nil {
			if ctx.Err() == nil {
				a.config.Log.Warn("an alarm is not recorded, trying again", "alarm", f.name, "error", err)
			}
			return err
		}
	}
	return nil
}

// before are the alarms that this node's trail tells of already. What is sealed or damaged and
// cannot be read is left out: rather twice than never.
func (a *alarms) before(ctx context.Context) (map[identity]bool, error) {
	told := map[identity]bool{}
	_, err := a.config.Trail.SearchReadable(ctx, audit.Query{Alarm: audit.AnyAlarm}, 1, func(f audit.Found) error {
		var e audit.Event
		err := json.Unmarshal(f.Line, &e)
		if e.Alarm != audit.UseOfDoomedKey { // calls of clients, which may be many
			told[identityOf(e)] = true
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return told, nil
}

func (a *alarms) record(f found) error {
	e := f.event
	e.Alarm, e.Reason = f.name, f.reason()
	a.config.Log.Error("ALARM: "+e.Reason, "alarm", f.name)
	return a.write(e)
}

func (a *alarms) recordEnd(f found) error {
	e := f.event
	e.Name, e.Reason = f.over, "it is over: "+f.reason()
	a.config.Log.Info("an alarm is over", "alarm", f.name, "target", e.Target)
	return a.write(e)
}

func (a *alarms) write(e audit.Event) error {
	e.Principal, e.Class, e.Result, e.StateIndex, e.Durable = a.config.Self, string(kms.ClassNode), audit.Success, a.config.State().Index(), true
	return a.config.Trail.Record(e)
}

// date is a moment as records and alarms name it.
func date(unix int64) string { return time.Unix(unix, 0).UTC().Format(time.RFC3339) }

// halt ends the process. That this node's state is not the cluster's it records first, if its
// disk lets it: nobody else may be there to do so.
func (n *Node) halt(err error) {
	if errors.Is(err, cluster.ErrDiverged) {
		recorded := make(chan struct{})
		go func() { // the process ends with it or without
			defer close(recorded)
			_ = n.audit.Record(audit.Event{ // nothing more can be done
				Name: "StateDiverged", Principal: n.creds.Identity().String(), Class: string(kms.ClassNode), Target: n.raftID(), Alarm: audit.StateDiverged,
				Result: audit.Success, Reason: err.Error(), Durable: true,
			})
		}()
		select {
		case <-recorded:
		case <-time.After(haltRecord):
		}
	}
	n.options.Halt(err)
}

// raftID is this node's, once it has one.
func (n *Node) raftID() string {
	if m := n.opened.Load(); m != nil {
		return m.ID()
	}
	return n.config.Name
}
