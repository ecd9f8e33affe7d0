package history

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

const key = "k"

// op is an operation from begin to end, in seconds.
func op(kind Kind, begin, end float64, outcome Outcome, change ...func(*Operation)) Operation {
	o := Operation{Client: 1, Node: "a", Kind: kind, Key: key, Begin: seconds(begin), End: seconds(end), Outcome: outcome}
	if outcome == Unknown {
		o.End = Never
	}
	for _, f := range change {
		f(&o)
	}
	return o
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func saw(v Value) func(*Operation)           { return func(o *Operation) { o.Value = v } }
func at(index uint64) func(*Operation)       { return func(o *Operation) { o.Index = index } }
func carrying(index uint64) func(*Operation) { return func(o *Operation) { o.After = index } }
func client(n int) func(*Operation)          { return func(o *Operation) { o.Client = n } }
func node(n string) func(*Operation)         { return func(o *Operation) { o.Node = n } }
func named(k string) func(*Operation)        { return func(o *Operation) { o.Key = k } }
func authorised(t float64) func(*Operation) {
	return func(o *Operation) { o.Authorised = seconds(t) }
}

func handed(t float64) func(*Operation) {
	return func(o *Operation) { o.HandedOver = seconds(t) }
}

const grant = "grant g"

// under makes a use need the grant, right an operation be about it.
func under(o *Operation) { o.Under = []string{"tenant t", grant} }
func right(o *Operation) { o.Key = grant }
func lacks(o *Operation) { o.Under, o.Lacks = []string{grant}, grant }

var granted = op(Grant, 2, 4, OK, right)

func history(ops ...Operation) History {
	for i := range ops {
		ops[i].ID = i
	}
	return History{Operations: ops}
}

var created = op(Create, 0, 1, OK)

// TestHonest: what an honest cluster may show breaks no rule.
func TestHonest(t *testing.T) {
	for name, h := range map[string]History{
		"nothing":                     {},
		"use before":                  history(created, op(Disable, 2, 4, OK), op(Use, 1, 3, OK)),
		"handed over just after":      history(created, op(Disable, 2, 4, OK), op(Use, 3, 5, OK, authorised(3.9), handed(4.1))),
		"use refused":                 history(created, op(Disable, 2, 4, OK), op(Use, 5, 6, Refused)),
		"enabled again":               history(created, op(Disable, 2, 4, OK), op(Enable, 5, 6, OK), op(Use, 5.5, 7, OK)),
		"enable may have happened":    history(created, op(Disable, 2, 4, OK), op(Enable, 5, 6, Unknown), op(Use, 9, 10, OK)),
		"enable beside the disable":   history(created, op(Disable, 2, 4, OK), op(Enable, 1.5, 3, OK), op(Use, 5, 6, OK)),
		"restriction unknown":         history(created, op(Disable, 2, 4, Unknown), op(Use, 5, 6, OK)),
		"disable seen, or not":        history(created, op(Disable, 2, 4, Unknown), op(QuorumRead, 5, 6, OK, saw(Enabled)), op(QuorumRead, 7, 8, OK, saw(Disabled))),
		"write that failed":           history(created, op(Schedule, 2, 4, Failed), op(QuorumRead, 5, 6, OK, saw(Enabled))),
		"refusals":                    history(created, op(Schedule, 2, 3, OK), op(Enable, 4, 5, Refused), op(Cancel, 6, 7, OK), op(Rotate, 8, 9, Refused), op(Touch, 8, 9, OK)),
		"read behind, another client": history(created, op(Read, 1, 2, OK, at(9), saw(Enabled)), op(Read, 3, 4, OK, at(5), saw(Enabled), client(2))),
		"reads at once":               history(created, op(Read, 1, 4, OK, at(9), saw(Enabled)), op(Read, 2, 3, OK, at(5), saw(Enabled))),
		"repetition's index":          history(created, op(Disable, 2, 9, OK, at(20)), op(Read, 3, 4, OK, at(10), saw(Disabled))),
		"final":                       history(created, op(Final, 8, 9, OK, saw(Enabled))),
		"removed while it answered":   history(op(Use, 1, 5, OK), op(Remove, 2, 4, OK, named("a"))),
		"used before it returned":     history(created, granted, op(Use, 3, 3.5, OK, under)),
		"lacking before it returned":  history(created, granted, op(Use, 3, 5, Refused, lacks)),
		"lacking what nobody granted": history(created, op(Grant, 2, 4, Unknown, right), op(Use, 5, 6, Refused, lacks)),
		"lacking another":             history(created, granted, op(Use, 5, 6, Refused, under, func(o *Operation) { o.Lacks = "tenant t" })),
		"granted, no lease":           history(created, granted, op(Use, 5, 6, Failed, under)),
		"granted, key disabled":       history(created, granted, op(Disable, 3, 4, OK), op(Use, 5, 6, Refused, under)),
		"revoked while it was used":   history(created, granted, op(Forbid, 5.5, 8, OK, right), op(Use, 5, 6, Refused, lacks), op(Use, 5, 6, OK, under)),
		"revocation unknown":          history(created, granted, op(Forbid, 5, 6, Unknown, right), op(Use, 7, 8, OK, under), op(Use, 9, 10, Refused, lacks)),
		"revoked":                     history(created, granted, op(Forbid, 5, 6, OK, right), op(Use, 7, 8, Refused, lacks), op(Use, 7, 8, OK)),
		"granted again":               history(created, granted, op(Forbid, 5, 6, OK, right), op(Grant, 7, 8, OK, right), op(Use, 9, 10, OK, under)),
		"permitted, not heard of":     history(created, op(Permit, 2, 4, OK, right), op(Use, 5, 6, Refused, lacks)),
		"permitted again":             history(created, op(Forbid, 2, 4, OK, right), op(Permit, 5, 6, Unknown, right), op(Use, 7, 8, OK, under)),
		"equal hashes":                {Digests: []Digest{{"a", 3, "x"}, {"b", 3, "x"}, {"a", 4, "y"}}},
	} {
		if v := Check(h, Rules{}); len(v) != 0 {
			t.Errorf("%s: %v", name, v)
		}
	}
}

// TestViolations: each rule finds what breaks it.
func TestViolations(t *testing.T) {
	for name, c := range map[string]struct {
		rule string
		h    History
	}{
		"use after disable":          {"restriction", history(created, op(Disable, 2, 4, OK), op(Use, 5, 6, OK))},
		"use after schedule":         {"restriction", history(created, op(Schedule, 2, 4, OK), op(Use, 5, 6, OK))},
		"cancel enables nothing":     {"restriction", history(created, op(Schedule, 2, 4, OK), op(Cancel, 5, 6, OK), op(Use, 7, 8, OK))},
		"enabled before only":        {"restriction", history(created, op(Enable, 1, 1.5, OK), op(Disable, 2, 4, OK), op(Use, 5, 6, OK))},
		"enable refused":             {"restriction", history(created, op(Schedule, 2, 4, OK), op(Enable, 5, 6, Refused), op(Use, 7, 8, OK))},
		"enabled too late for it":    {"restriction", history(created, op(Disable, 2, 4, OK), op(Use, 5, 6, OK), op(Enable, 7, 8, OK))},
		"authorised after":           {"restriction", history(created, op(Disable, 2, 4, OK), op(Use, 3, 5, OK, authorised(4.01), handed(4.02)))},
		"handed over late":           {"restriction", history(created, op(Disable, 2, 4, OK), op(Use, 3, 5, OK, authorised(3.9), handed(4.2)))},
		"received late":              {"restriction", history(created, op(Disable, 2, 4, OK), op(Use, 3, 4.2, OK))},
		"served after removal":       {"restriction", history(op(Remove, 2, 4, OK, named("a")), op(Use, 5, 6, OK))},
		"stale quorum read":          {"linearizability", history(created, op(Disable, 2, 4, OK), op(QuorumRead, 5, 6, OK, saw(Enabled)))},
		"enabled while pending":      {"linearizability", history(created, op(Schedule, 2, 4, OK), op(Enable, 5, 6, OK))},
		"created twice":              {"linearizability", history(created, op(Create, 2, 3, OK))},
		"refused for nothing":        {"linearizability", history(created, op(Touch, 2, 3, Refused))},
		"forgotten at the end":       {"linearizability", history(created, op(Disable, 2, 4, OK), op(Final, 8, 9, OK, saw(Enabled)))},
		"read below its token":       {"session", history(created, op(Read, 2, 3, OK, at(5), carrying(6), saw(Enabled)))},
		"read older than the last":   {"session", history(created, op(Read, 2, 3, OK, at(9), saw(Enabled)), op(Read, 4, 5, OK, at(5), saw(Enabled), node("b")))},
		"state not of its index":     {"state", history(created, op(Disable, 2, 4, OK, at(9)), op(Read, 5, 6, OK, at(10), saw(Enabled)))},
		"two states at one index":    {"state", history(created, op(Disable, 2, 4, Unknown), op(Read, 5, 6, OK, at(10), saw(Enabled)), op(Read, 5, 6, OK, at(10), saw(Disabled)), op(Read, 5, 6, OK, at(11), saw(Enabled)))},
		"lost":                       {"lost key", history(created, op(Final, 8, 9, Refused))},
		"use of a revoked grant":     {"restriction", history(created, granted, op(Forbid, 5, 6, OK, right), op(Use, 7, 8, OK, under))},
		"released after revoking":    {"restriction", history(created, granted, op(Forbid, 5, 6, OK, right), op(Use, 5, 8, OK, under, authorised(5.9), handed(6.2)))},
		"granted before only":        {"restriction", history(created, granted, op(Forbid, 5, 6, OK, right), op(Use, 7, 8, OK, under), op(Grant, 9, 10, OK, right))},
		"use of a disabled key":      {"restriction", history(created, granted, op(Disable, 5, 6, OK), op(Use, 7, 8, OK, under))},
		"lacking what was granted":   {"right", history(created, granted, op(Use, 4.1, 6, Refused, lacks))},
		"lacking before it is taken": {"right", history(created, granted, op(Use, 5, 6, Refused, lacks), op(Forbid, 7, 8, OK, right))},
		"lacking, revocation failed": {"right", history(created, granted, op(Forbid, 5, 6, Failed, right), op(Use, 7, 8, Refused, lacks))},
		"lacking what came back":     {"right", history(created, op(Forbid, 1, 1.5, OK, right), granted, op(Use, 5, 6, Refused, lacks))},
		"different hashes":           {"divergence", History{Digests: []Digest{{"a", 3, "x"}, {"b", 3, "y"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			violations := Check(c.h, Rules{})
			if len(violations) == 0 || violations[0].Rule != c.rule {
				t.Fatalf("want rule %q: %v", c.rule, violations)
			}
		})
	}
}

// TestSlack: what a test sees late is not held against the cluster.
func TestSlack(t *testing.T) {
	h := history(created, op(Disable, 2, 4, OK), op(Use, 3, 5, OK))
	if v := Check(h, Rules{Slack: time.Second}); len(v) != 0 {
		t.Error(v)
	}
	h = history(created, op(Disable, 2, 4, OK), op(Use, 4.5, 5, OK))
	if v := Check(h, Rules{Slack: time.Second}); len(v) == 0 {
		t.Error("a use begun after the restriction's return passed because of the slack")
	}
}

func TestRecorder(t *testing.T) {
	var mu sync.Mutex
	now := time.Duration(0)
	rec := NewRecorder(func() time.Duration {
		mu.Lock()
		defer mu.Unlock()
		now++
		return now
	})
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for range 50 {
				call := rec.Begin(Operation{Client: n, Node: "a", Kind: Use, Key: key})
				call.Authorised()
				call.HandedOver()
				call.End(OK, Answer{Index: 7})
				rec.Observe("a", 7, "x")
			}
		})
	}
	all.Wait()
	rec.Begin(Operation{Client: 9, Node: "a", Kind: Disable, Key: key}) // never ends
	h := rec.History()
	if len(h.Operations) != 401 || len(h.Digests) != 1 {
		t.Fatalf("%d operations, %d digests", len(h.Operations), len(h.Digests))
	}
	for i, o := range h.Operations[:400] {
		if o.ID != i || o.Begin >= o.Authorised || o.Authorised >= o.HandedOver || o.HandedOver >= o.End || o.Index != 7 {
			t.Fatal(o)
		}
	}
	if last := h.Operations[400]; last.Outcome != Unknown || last.End != Never {
		t.Fatal(last)
	}
	var file bytes.Buffer
	if err := h.Save(&file); err != nil {
		t.Fatal(err)
	}
	again, err := Load(&file)
	if err != nil || !reflect.DeepEqual(again, h) {
		t.Fatalf("read back differently: %v", err)
	}
}

func TestSummary(t *testing.T) {
	s := Summarize(history(
		created, op(Use, 1, 2, OK), op(Use, 1, 2, Failed), op(Disable, 2, 4, OK), op(Disable, 5, 5.5, OK),
		op(Enable, 6, 7, Unknown), op(Read, 8, 9, OK), op(Schedule, 9, 10, Refused),
		granted, op(Use, 5, 6, OK, under), op(Use, 5, 6, Refused, lacks),
	))
	if s.Rights != 1 || s.Lacking != 1 || len(s.Grants) != 1 {
		t.Fatalf("%+v", s)
	}
	if s.Released != 2 || s.Withheld != 2 || s.Writes != 4 || s.Reads != 1 || s.Unknown != 1 || s.Waited(time.Second) != 1 {
		t.Fatalf("%+v", s)
	}
	if s.Add(s); s.Released != 4 || len(s.Grants) != 2 || len(s.Restrictions) != 4 || s.Waited(time.Second) != 2 || Quantile(s.Restrictions, 1) != 2*time.Second {
		t.Fatalf("%+v", s)
	}
	if text := s.String(); !strings.Contains(text, "released 4") || !strings.Contains(text, "p100 2s") {
		t.Fatal(text)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON": "x", "nothing": "{}", "both": `{"operation":{},"digest":{}}`, "cut off": `{"operation":{"id":1`,
		"too long": `{"digest":{"node":"` + strings.Repeat("x", maxLine) + `"}}`,
	} {
		if _, err := Load(strings.NewReader(text)); !errors.Is(err, ErrFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"operation":{"id":1,"client":1,"node":"a","kind":"use","key":"k","begin":1,"end":2,"outcome":"ok"}}`))
	f.Add([]byte(`{"digest":{"node":"a","index":3,"hash":"x"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Load(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrFile) {
				t.Fatal(err)
			}
			return
		}
		var file bytes.Buffer
		if err := h.Save(&file); err != nil {
			t.Fatal(err)
		}
		if again, err := Load(&file); err != nil || !reflect.DeepEqual(again, h) {
			t.Fatalf("what was read does not read again: %v", err)
		}
	})
}

// TestStandstill: a node that is cut off tells the same again and again; that makes a
// history no harder to judge.
func TestStandstill(t *testing.T) {
	ops := []Operation{
		op(Create, 0, 1, OK, at(1)), op(Enable, 1.1, 90, OK, at(100)), // it was repeated
		op(Read, 1.2, 1.3, OK, saw(Enabled), at(2)), op(Disable, 2, 3, OK, at(4)), op(Read, 3, 4, OK, saw(Enabled), at(4)),
	}
	for i := range 60 {
		ops = append(ops, op(Read, 3+float64(i), 4+float64(i), OK, saw(Disabled), at(3), client(2)))
	}
	if v := Check(history(ops...), Rules{Undecided: 5 * time.Second}); len(v) != 0 {
		t.Error(v)
	}
}
