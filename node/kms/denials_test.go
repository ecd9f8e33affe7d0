package kms

import (
	"fmt"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// TestRepeatedDenials: who is denied often enough is told of with the last call, also when the
// refusals have no records of their own any more; what is no denial does not count.
func TestRepeatedDenials(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	key := e.key("default")
	e.limited(limit.Config{RefusedPerPrincipal: 2})
	began := e.clock.Now()
	for i := range RepeatedDenials - 1 {
		if _, _, err := e.DisableKey(ctx, as(uma), key, 0); err == nil {
			t.Fatal("a user disables a key")
		}
		e.clock.advance(100 * time.Millisecond)
		e.ok(e.encrypts(as(uma), key))
		_, err := e.GenerateRandom(ctx, as(uma), 0)
		if err == nil {
			t.Fatal("no bytes are some")
		}
		if got := e.Denied(); len(got) != 0 {
			t.Fatalf("after %d denials: %+v", i+1, got)
		}
	}
	e.limited(limit.Config{})
	e.refused(e.encrypts(as(ada), key), ErrDenied)
	_, _, err := e.DisableKey(ctx, as(uma), key, 0)
	e.refused(err, ErrDenied)
	got := e.Denied()
	if len(got) != 1 || got[0].Principal != as(uma).Caller.Principal || got[0].Calls != RepeatedDenials || !got[0].Since.Equal(began) || got[0].Last.Operation != "DisableKey" || got[0].Tenant != "default" {
		t.Fatalf("%+v", got)
	}
	e.clock.advance(DenialWindow)
	if got := e.Denied(); len(got) != 0 {
		t.Errorf("after a calm time: %+v", got)
	}
}

// denier counts with a clock of its own.
type denier struct {
	denials
	now time.Time
}

func newDenier() *denier { return &denier{denials: *newDenials(), now: time.Unix(1e9, 0)} } //nolint:govet // nobody has locked it yet

func (d *denier) deny(principal string, times int, apart time.Duration) {
	for range times {
		d.note(&audit.Event{Principal: principal, Name: "Decrypt", KeyID: "k"}, d.now)
		d.now = d.now.Add(apart)
	}
}

// TestDenialsApart: it is how many there were within the window that counts, and the alarm is
// one until there were fewer for as long.
func TestDenialsApart(t *testing.T) {
	d := newDenier()
	apart := DenialWindow / (RepeatedDenials - 1)
	d.deny("slow", 10*RepeatedDenials, apart+time.Second)
	if got := d.denials.now(d.now); len(got) != 0 {
		t.Fatalf("slow: %+v", got)
	}
	d.deny("steady", 10*RepeatedDenials, apart)
	got := d.denials.now(d.now)
	if len(got) != 1 || got[0].Calls != 10*RepeatedDenials {
		t.Fatalf("steady: %+v", got)
	}
	since := got[0].Since
	d.deny("steady", RepeatedDenials, apart+time.Second) // it gets calm
	if got := d.denials.now(d.now); len(got) != 0 {
		t.Fatalf("calm: %+v", got)
	}
	d.deny("steady", RepeatedDenials, time.Second)
	if got := d.denials.now(d.now); len(got) != 1 || got[0].Calls >= 2*RepeatedDenials || !got[0].Since.After(since) {
		t.Errorf("again: %+v", got)
	}
}

// TestDenialsAreBounded: a flood of principals takes no more room than there is, does not have
// one that is counted forgotten, and is an alarm itself, beside which none goes unnoticed.
func TestDenialsAreBounded(t *testing.T) {
	d := newDenier()
	d.deny("old", RepeatedDenials-1, time.Second)
	flood := func(n int) {
		for i := range n {
			d.deny(fmt.Sprintf("invented %d of %s", i, d.now), 1, 0)
		}
	}
	flood(maxDenied - 1)
	if got := d.denials.now(d.now); len(got) != 0 {
		t.Fatalf("before it is full: %+v", got)
	}
	d.deny("new", RepeatedDenials-1, 0) // counted with others
	d.deny("old", 1, 0)
	if got := d.denials.now(d.now); len(got) != 1 || got[0].Principal != "old" {
		t.Fatalf("who was counted before the flood: %+v", got)
	}
	d.deny("newer", 1, 0)
	if got := d.denials.now(d.now); len(got) != 2 || got[1].Principal != "" {
		t.Fatalf("who came in the flood: %+v", got)
	}
	flood(100 * maxDenied)
	if n := len(d.known); n != maxDenied || d.order.Len() != n {
		t.Errorf("%d principals are known, %d in order", n, d.order.Len())
	}
	d.now = d.now.Add(DenialWindow)
	d.deny("after", RepeatedDenials, 0)
	if got := d.denials.now(d.now); len(got) != 1 || got[0].Principal != "after" || len(d.known) != maxDenied {
		t.Errorf("after the flood: %+v", got)
	}
}
