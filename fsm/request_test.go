package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

func digestOf(s string) []byte { return sha256Of([]byte(s)) }

// request is an entry that asks for the words under an id.
func (w *world) request(id, words string) Entry {
	e := w.entry()
	e.Request, e.Digest = id, digestOf(words)
	return e
}

// ask applies a command under a request id; it must succeed.
func (w *world) ask(id, words string, c Command) Result {
	w.t.Helper()
	result, err := w.apply(w.request(id, words), c)
	if err != nil {
		w.t.Fatalf("%s under request %s: %v", NameOf(c), id, err)
	}
	return result
}

func TestRequestIsRemembered(t *testing.T) {
	w := initialized(t)
	first := w.ask("r1", "create", createKey(1))
	got, ok := w.s.Request(admin, "r1")
	if !ok || got.Principal != admin || got.ID != "r1" || !bytes.Equal(got.Digest, digestOf("create")) ||
		got.Index != 2 || got.Time != startTime || got.Result != first {
		t.Fatalf("remembered %+v of %+v", got, first)
	}
	result, done, err := w.s.Replay(admin, "r1", digestOf("create"))
	if result != first || !done || err != nil {
		t.Errorf("replay answers %+v, %v, %v", result, done, err)
	}
	if _, done, err := w.s.Replay(admin, "r1", digestOf("other")); done || !errors.Is(err, ErrRequestReused) {
		t.Errorf("replay with another digest: %v, %v", done, err)
	}
	for _, unknown := range [][2]string{{admin, "r2"}, {"spiffe://kms.example/operator/olga", "r1"}, {admin, ""}, {"", "r1"}} {
		if result, done, err := w.s.Replay(unknown[0], unknown[1], digestOf("create")); result != (Result{}) || done || err != nil {
			t.Errorf("replay of %v: %+v, %v, %v", unknown, result, done, err)
		}
	}
}

// TestRequestRepeated: the answer is the first one, under the index of the entry
// that asked again, since a restriction is waited for by its own entry.
func TestRequestRepeated(t *testing.T) {
	w := initialized(t)
	first := w.ask("r1", "create", createKey(1))
	repeat := func(id, words string, c Command, want Result) {
		t.Helper()
		before := records(t, w.s)
		want.Index = w.s.Index() + 1
		if got := w.ask(id, words, c); got != want {
			t.Errorf("repeated request answers %+v, want %+v", got, want)
		}
		if records(t, w.s) != before {
			t.Error("a repeated request changed records")
		}
	}
	repeat("r1", "create", createKey(1), first)
	repeat("r1", "create", createKey(2), first) // the repeating node minted another id

	w.do(rotateKey(1, 2))
	disabled := w.ask("r2", "disable", &DisableKey{ref(1)})
	if disabled.Version != 2 {
		t.Errorf("result %+v", disabled)
	}
	w.do(&EnableKey{ref(1)})
	repeat("r2", "disable", &DisableKey{ref(1)}, disabled)
	if w.key(1).State != KeyEnabled {
		t.Error("a repeated request disabled the key again")
	}
	w.do(&ScheduleKeyDeletion{KeyRef: ref(1), Days: 7})
	repeat("r1", "create", createKey(3), first)
	repeat("r2", "disable", &DisableKey{ref(1)}, disabled)
	repeat("r1", "create", &CancelKeyDeletion{ref(1)}, first) // the digest says what was asked for

	restored := reread(t, w.s)
	w.s = restored
	repeat("r2", "disable", &DisableKey{ref(1)}, disabled)
}

// TestRepeat: what is remembered is answered whatever the command was, to whom it
// was answered and for the words it was asked with; all else is not found.
func TestRepeat(t *testing.T) {
	w := initialized(t)
	token := edited(createKey(1), func(c *CreateKey) { c.Description = "first" })
	answers := map[string]Result{
		"create":  w.ask("create", "words of create", token),
		"rotate":  w.ask("rotate", "words of rotate", rotateKey(1, 2)),
		"alias":   w.ask("alias", "words of alias", &CreateAlias{alias("alias/db", 1)}),
		"delete":  w.ask("delete", "words of delete", deleteAlias("alias/db")),
		"disable": w.ask("disable", "words of disable", &DisableKey{ref(1)}),
	}
	before := records(t, w.s)
	for id, want := range answers {
		want.Index = w.s.Index() + 1
		if got := w.ask(id, "words of "+id, &Repeat{}); got != want {
			t.Errorf("%s is answered %+v again, want %+v", id, got, want)
		}
	}
	if records(t, w.s) != before {
		t.Error("a repeat changed records")
	}
	w.refuse(&Repeat{}, ErrNotFound, "the request is not remembered")
	_, err := w.apply(w.request("never", "words"), &Repeat{})
	wantError(t, err, ErrNotFound, "the request is not remembered")
	if _, ok := w.s.Request(admin, "never"); ok {
		t.Error("a repeat of nothing is remembered")
	}
	w.ask("never", "words", createKey(2))
	_, err = w.apply(w.request("create", "other words"), &Repeat{})
	wantError(t, err, ErrRequestReused, "create")
	other := w.request("create", "words of create")
	other.Principal = "spiffe://kms.example/tenant/default/admin/bob"
	_, err = w.apply(other, &Repeat{})
	wantError(t, err, ErrNotFound, "the request is not remembered")
}

func TestRequestReused(t *testing.T) {
	w := initialized(t)
	w.ask("r1", "create", createKey(1))
	for _, c := range []Command{createKey(1), createKey(2), &DisableKey{ref(1)}, &Tick{Hash: make([]byte, 32)}} {
		_, err := w.apply(w.request("r1", "something else"), c)
		wantError(t, err, ErrRequestReused, "r1")
	}
	other := w.request("r1", "something else")
	other.Principal = "spiffe://kms.example/tenant/default/admin/bob"
	if _, err := w.apply(other, createKey(2)); err != nil {
		t.Errorf("another principal's request of the same id: %v", err)
	}
}

// TestRefusedRequestIsNotRemembered: it may succeed when it is repeated.
func TestRefusedRequestIsNotRemembered(t *testing.T) {
	w := oneKey(t)
	_, err := w.apply(w.request("r1", "cancel"), &CancelKeyDeletion{ref(1)})
	wantError(t, err, ErrNotPendingDeletion, "")
	if _, ok := w.s.Request(admin, "r1"); ok {
		t.Fatal("a refused request is remembered")
	}
	w.do(&ScheduleKeyDeletion{KeyRef: ref(1), Days: 7})
	w.ask("r1", "cancel", &CancelKeyDeletion{ref(1)})
	w.ask("r2", "nothing done", &ActivateNode{firstNode})
	if _, ok := w.s.Request(admin, "r2"); !ok {
		t.Error("a request that found everything as it wanted is not remembered")
	}
}

// remembering is a state that has answered n requests; the i-th (from 1) at index
// 1+i, at the time that time gives for it.
func remembering(t failer, n int, time func(i int) int64) *world {
	w := initialized(t)
	digest := digestOf("old")
	w.edit(func(t *tx) {
		t.s.index += uint64(n)
		requests, order := t.s.requests.edit(t), t.s.requestOrder.edit(t)
		for i := 1; i <= n; i++ {
			r := &Request{Principal: admin, ID: fmt.Sprintf("old%d", i), Digest: digest, Index: 1 + uint64(i), Time: time(i)}
			requests.Set(r)
			order.Set(r)
		}
	})
	return w
}

// remembered tells how many requests are remembered, and whether the i-th old one is.
func (w *world) remembered(i int) (int, bool) {
	_, ok := w.s.Request(admin, fmt.Sprintf("old%d", i))
	return w.s.requests.len(), ok
}

// applyRequest applies without looking at every record: the states are large.
func (w *world) applyRequest(id string) {
	w.t.Helper()
	raw := seal(w.t, w.request(id, id), &Tick{Hash: make([]byte, 32)})
	next, _, err := w.s.Apply(w.s.Index()+1, 1, raw)
	if err != nil {
		w.t.Fatalf("request %s: %v", id, err)
	}
	w.s = next
}

func TestRequestWindow(t *testing.T) {
	const day = 24 * 60 * 60 * second
	w := remembering(t, 100_000, func(i int) int64 { return startTime + int64(i) })
	for _, step := range []struct {
		name  string
		clock int64
		count int // remembered afterwards
		first int // the oldest that is remembered afterwards
	}{
		{"young requests stay, however many", startTime + day, 100_001, 1},
		{"a nanosecond before the first is a day old", startTime + day, 100_002, 1},
		{"the first is a day old", startTime + day + 1, 100_002, 2},
		{"three days on, four go at a time", startTime + 3*day, 100_000, 5},
		{"the last 100,000 stay, however old", startTime + 9*day, 100_000, 6},
	} {
		w.clock = step.clock
		w.applyRequest(step.name)
		count, there := w.remembered(step.first)
		_, before := w.remembered(step.first - 1)
		if count != step.count || !there || before {
			t.Errorf("%s: %d remembered, want %d; request %d: %v, the one before: %v", step.name, count, step.count, step.first, there, before)
		}
	}
	if err := w.s.Check(); err != nil {
		t.Error(err)
	}
	// What is forgotten may be asked again: it is another request then.
	if _, err := w.apply(w.request("old1", "new words"), createKey(1)); err != nil {
		t.Error(err)
	}
}

// TestRequestWindowShrinks: at most four records go with one entry.
func TestRequestWindowShrinks(t *testing.T) {
	w := remembering(t, 100_010, func(int) int64 { return startTime })
	w.clock += 48 * 60 * 60 * second
	for i, want := range []int{100_007, 100_004, 100_001, 100_000, 100_000} {
		w.applyRequest(fmt.Sprintf("new%d", i))
		if count, _ := w.remembered(1); count != want {
			t.Errorf("after %d requests %d are remembered, want %d", i+1, count, want)
		}
	}
}

// TestRequestLimit: beyond the most that is remembered the oldest go, however young.
func TestRequestLimit(t *testing.T) {
	if minRequests != 100_000 || maxRequests != 1_000_000 || requestAge != 24*60*60*second {
		t.Errorf("window of %d ns, %d to %d requests", requestAge, minRequests, maxRequests)
	}
	for _, row := range []struct{ least, most, left int }{
		{5, 20, 20}, // young ones stay up to the most
		{5, 19, 19},
		{5, 17, 17},
		{5, 15, 16}, // four at a time
		{18, 10, 18},
		{20, 10, 20},
	} {
		w := remembering(t, 20, func(int) int64 { return startTime })
		w.edit(func(t *tx) { t.forget(row.least, row.most) })
		if count, last := w.remembered(20); count != row.left || !last {
			t.Errorf("of 20 requests %d are left between %d and %d, want %d; the last: %v", count, row.least, row.most, row.left, last)
		}
		if err := w.s.Check(); err != nil {
			t.Error(err)
		}
		kept := remembering(t, 20, func(int) int64 { return startTime })
		kept.edit(func(*tx) {})
		if bytes.Equal(w.s.Hash(), kept.s.Hash()) != (row.left == 20) {
			t.Errorf("between %d and %d: what was forgotten is not in the hash", row.least, row.most)
		}
	}
}
