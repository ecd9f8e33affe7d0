package kms

import (
	"container/list"
	"strings"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
)

// A program that asks for what it may not have asks again, and so does who tries keys with a
// stolen certificate: once is a mistake of people, twenty times in five minutes is neither.
const (
	// RepeatedDenials of one principal within DenialWindow are an alarm. It is over when there
	// were fewer within any such time for as long.
	RepeatedDenials = 20
	DenialWindow    = 5 * time.Minute
	// maxDenied bounds the principals that are counted alone, at less than 2 KiB each. While
	// all of them were denied within the window, further ones are counted together, as one: so
	// however many there are, none that is counted is forgotten, and none goes unnoticed.
	maxDenied = 1024
	// maxDeniedText bounds what is kept of a call, in bytes.
	maxDeniedText = 256
)

// Denied is a principal that was denied again and again.
type Denied struct {
	Principal string    // empty: several, beyond those that are counted alone
	Tenant    string    // the principal's own, whichever its calls named; may be empty
	Since     time.Time // the first of the calls that made it an alarm
	Calls     uint64    // that were denied since
	Last      Denial
}

// Denial is a call that was denied.
type Denial struct {
	Time                 time.Time
	Operation, Key, From string
}

// denials counts the calls that principals were denied. It is used by calls that are refused
// alone.
type denials struct {
	mu     sync.Mutex
	known  map[string]*list.Element // of *denied
	order  *list.List               // who was denied longest ago first
	others denied
}

// denied is what is known of one principal.
type denied struct {
	principal string
	at        [RepeatedDenials]time.Time // of the last ones, a ring
	next      int                        // in at: the oldest
	hot       time.Time                  // when there were last so many within the window
	since     time.Time                  // of the alarm
	calls     uint64                     // since then
	last      Denial
}

func newDenials() *denials { return &denials{known: map[string]*list.Element{}, order: list.New()} }

// note counts a call that was denied.
func (d *denials) note(e *audit.Event, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.of(e.Principal, now).note(Denial{
		Time: now, Operation: e.Name, Key: clipped(e.KeyID), From: clipped(e.Source),
	})
}

// of is where a principal is counted.
func (d *denials) of(principal string, now time.Time) *denied {
	if x, ok := d.known[principal]; ok {
		d.order.MoveToBack(x)
		return x.Value.(*denied)
	}
	if len(d.known) >= maxDenied {
		oldest := d.order.Front()
		was := oldest.Value.(*denied)
		if now.Sub(was.last.Time) < DenialWindow {
			return &d.others
		}
		d.order.Remove(oldest)
		delete(d.known, was.principal)
	}
	x := &denied{principal: principal}
	d.known[principal] = d.order.PushBack(x)
	return x
}

func (x *denied) note(c Denial) {
	x.at[x.next] = c.Time
	x.next = (x.next + 1) % RepeatedDenials
	x.last = c
	x.calls++
	first := x.at[x.next]
	if first.IsZero() || c.Time.Sub(first) > DenialWindow {
		return
	}
	if !x.holds(c.Time) {
		x.since, x.calls = first, RepeatedDenials
	}
	x.hot = c.Time
}

func (x *denied) holds(now time.Time) bool { return !x.hot.IsZero() && now.Sub(x.hot) < DenialWindow }

// now are those that are an alarm.
func (d *denials) now(now time.Time) (out []Denied) {
	d.mu.Lock()
	defer d.mu.Unlock()
	add := func(x *denied) {
		if x.holds(now) {
			out = append(out, Denied{Principal: x.principal, Since: x.since, Calls: x.calls, Last: x.last})
		}
	}
	for x := d.order.Front(); x != nil; x = x.Next() {
		add(x.Value.(*denied))
	}
	add(&d.others)
	return out
}

func clipped(s string) string {
	if len(s) <= maxDeniedText {
		return s
	}
	return strings.ToValidUTF8(s[:maxDeniedText], "")
}

// Denied are the principals that were denied again and again, and still are or were just now.
func (s *Service) Denied() []Denied {
	all := s.denials.now(s.now())
	for i := range all {
		if who, err := s.principal(all[i].Principal); err == nil {
			all[i].Tenant = who.Tenant
		}
	}
	return all
}
