//go:build linux && chaos

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"
)

// fault is a way to break a cluster; apply returns what undoes it.
type fault struct {
	name  string
	apply func(r *rig, s stroke) (heal func())
}

func faults() []fault {
	return []fault{
		{"partition", (*rig).partition},
		{"one-way partition", (*rig).oneWay},
		{"bridging partition", (*rig).bridge},
		{"slow, reordering link", (*rig).slow},
		{"lossy link", (*rig).lossy},
		{"freeze", (*rig).freeze},
		{"kill", (*rig).killOne},
		{"kill of all", (*rig).killAll},
		{"disk full", (*rig).diskFull},
		{"disk hangs", (*rig).diskHangs},
		{"power lost", (*rig).powerLost},
		{"token errs", (*rig).tokenErrs},
		{"token gone", (*rig).tokenGone},
	}
}

// stroke is one fault of a plan.
type stroke struct {
	fault
	at, other int // the victim, by number or leading, and one of its others
	choice    int // among variants of the fault
	lasts     time.Duration
	pause     time.Duration // afterwards

	victim *machine // when it is applied
}

const (
	leading = -1 // whoever leads then

	faultMin, faultMax = time.Second, 10 * time.Second
	pauseMin, pauseMax = time.Second, 4 * time.Second
)

// plan draws strokes for a seed: always the same ones, each fault as often as any
// other. A longer plan begins like a shorter one.
func plan(seed uint64, nodes int, length time.Duration) (out []stroke) {
	dice := rand.New(rand.NewPCG(seed, uint64(nodes)))
	between := func(low, high time.Duration) time.Duration { return low + time.Duration(dice.Int64N(int64(high-low))) }
	all := faults()
	for total := time.Duration(0); total < length; {
		n := len(out) % len(all)
		if n == 0 {
			dice.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		}
		s := stroke{
			fault: all[n], at: dice.IntN(2*nodes) - nodes, other: dice.IntN(nodes - 1), choice: dice.IntN(1 << 16),
			lasts: between(faultMin, faultMax), pause: between(pauseMin, pauseMax),
		}
		s.at = max(s.at, leading)
		out = append(out, s)
		total += s.lasts + s.pause
	}
	return out
}

// window is a fault that was applied; it ends when the next one begins.
type window struct {
	name               string
	begin, healed, end time.Duration
}

// torment applies a plan.
func (r *rig) torment(ctx context.Context, strokes []stroke) (applied []window) {
	for i, s := range strokes {
		if s.victim = r.leads(); s.at != leading || s.victim == nil {
			s.victim = r.hosts[max(s.at, 0)]
		}
		if applied = append(applied, r.strike(ctx, fmt.Sprintf("fault %d of %d", i+1, len(strokes)), s)); ctx.Err() != nil {
			break
		}
	}
	return applied
}

// strike applies one fault and heals it.
func (r *rig) strike(ctx context.Context, title string, s stroke) window {
	w := window{name: s.name, begin: time.Since(r.began)}
	say(r.began, "%s, %.1f s: %s, %s (%s)", title, s.lasts.Seconds(), s.name, s.victim.name, r.conditions())
	func() {
		defer s.apply(r, s)()
		sleep(ctx, s.lasts)
	}()
	w.healed = time.Since(r.began)
	sleep(ctx, s.pause)
	w.end = time.Since(r.began)
	return w
}

func (r *rig) nothing(stroke) func() { return func() {} }

// follower is a machine whose node does not lead.
func (r *rig) follower() *machine {
	r.t.Helper()
	r.eventually("a leader is known", func() bool { return r.leads() != nil })
	return r.others(r.leads())[0]
}

// others are all machines but one.
func (r *rig) others(m *machine) []*machine {
	return slices.DeleteFunc(slices.Clone(r.hosts), func(o *machine) bool { return o == m })
}

// partition cuts the victim off the others, or also off the clients.
func (r *rig) partition(s stroke) func() {
	lost := quality{cut: true}
	r.both(s, lost)
	if s.choice%3 == 0 {
		r.wire.set(s.victim.address, clientsAddress, lost)
		r.wire.set(clientsAddress, s.victim.address, lost)
	}
	return r.wire.heal
}

// both sets the links between the victim and each other node, in both directions.
func (r *rig) both(s stroke, q quality) {
	for _, o := range r.others(s.victim) {
		r.wire.set(s.victim.address, o.address, q)
		r.wire.set(o.address, s.victim.address, q)
	}
}

// oneWay loses what the victim sends to the others, or what they send to it.
func (r *rig) oneWay(s stroke) func() {
	for _, o := range r.others(s.victim) {
		from, to := s.victim.address, o.address
		if s.choice%2 == 0 {
			from, to = to, from
		}
		r.wire.set(from, to, quality{cut: true})
	}
	return r.wire.heal
}

// bridge cuts the victim off one node; all others reach both.
func (r *rig) bridge(s stroke) func() {
	o := r.others(s.victim)[s.other]
	r.wire.set(s.victim.address, o.address, quality{cut: true})
	r.wire.set(o.address, s.victim.address, quality{cut: true})
	return r.wire.heal
}

// slow delays every packet between the victim and the others by a time of its own.
func (r *rig) slow(s stroke) func() {
	d := time.Duration(50+s.choice%350) * time.Millisecond
	r.both(s, quality{delay: d, jitter: 2 * d})
	return r.wire.heal
}

// lossy loses a tenth to a third of the packets.
func (r *rig) lossy(s stroke) func() {
	r.both(s, quality{loss: 0.1 + float64(s.choice%24)/100})
	return r.wire.heal
}

// freeze stops the process.
func (r *rig) freeze(s stroke) func() {
	s.victim.send(syscall.SIGSTOP)
	return func() { s.victim.send(syscall.SIGCONT) }
}

// send sends a signal to a process that may have ended.
func (m *machine) send(s syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.cmd.Process.Signal(s)
}

// keepOff kills a node and keeps it from starting.
func (m *machine) keepOff() (release func()) {
	m.mayNotStart()
	m.kill()
	return m.mayStart
}

func (r *rig) killOne(s stroke) func() { return s.victim.keepOff() }

// killAll kills every node at once and lets them start again soon.
func (r *rig) killAll(stroke) func() {
	var release []func()
	for _, m := range r.hosts {
		m.send(syscall.SIGKILL)
	}
	for _, m := range r.hosts {
		release = append(release, m.keepOff())
	}
	for _, f := range release {
		f()
	}
	return func() {}
}

// diskFull takes all the room on a disk. Afterwards the node is started again, as
// its audit trail wants.
func (r *rig) diskFull(s stroke) func() {
	free := s.victim.fill("data")
	return func() {
		free()
		s.victim.keepOff()()
	}
}

// diskHangs lets every write wait.
func (r *rig) diskHangs(s stroke) func() {
	s.victim.disk.freeze()
	return s.victim.disk.thaw
}

// powerLost takes one machine's power away: what had not reached its disk is gone.
func (r *rig) powerLost(s stroke) func() { return losePower(s.victim) }

// tokenErrs makes the token fail always, fail with an error that says nothing, fail
// now and then, or be slow.
func (r *rig) tokenErrs(s stroke) func() {
	s.victim.condition("evfs"[s.choice%4])
	return s.victim.well
}

// tokenGone takes the token out of its slot.
func (r *rig) tokenGone(s stroke) func() {
	s.victim.condition('g')
	return s.victim.well
}
