//go:build linux && chaos

package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

// report prints what was done and what was seen.
func (l *trial) report(windows []window) {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	row := func(cells ...any) {
		for _, c := range cells {
			fmt.Fprintf(out, "%v\t", c)
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintln(out)
	l.reportFaults(windows, row)
	row()
	l.reportRestrictions(windows, row)
	row()
	l.reportCalls(row)
	row()
	summary := history.Summarize(l.record.History())
	fmt.Fprintln(out, summary)
	fmt.Fprintf(out, "packets lost on purpose %d, delayed %d; nodes that ended by themselves or were killed, by exit code: %v\n", l.wire.lost.Load(), l.wire.late.Load(), l.exits)
	_ = out.Flush()
}

// substantial fails the test if too little happened.
func (l *trial) substantial(windows []window) {
	kinds := map[string]bool{}
	for _, w := range windows {
		kinds[w.name] = true
	}
	summary := history.Summarize(l.record.History())
	l.needs([]need{
		{"kinds of faults", len(kinds), 3},
		{"data keys generated", l.counted("GenerateDataKey", "ok"), 200},
		{"data keys opened", l.counted("Decrypt", "ok"), 200},
		{"uses of disabled keys refused", l.counted("", "key disabled"), 50},
		{"keys created", l.counted("CreateKey", "ok"), 30},
		{"aliases moved", l.counted("UpdateAlias", "ok"), 5},
		{"restrictions", len(summary.Restrictions), 50},
		{"grants made", len(summary.Grants), 50},
		{"uses of grants", summary.Rights, 50},
		{"uses refused for want of a grant", summary.Lacking, 50},
		{"calls refused for want of a lease", l.counted("", "no lease"), 1},
	})
	felt := map[string]need{
		"partition":             {"packets lost", int(l.wire.lost.Load()), 1},
		"slow, reordering link": {"packets delayed", int(l.wire.late.Load()), 1},
		"token gone":            {"calls that found no token", l.counted("", "hsm unavailable"), 1},
		"disk full":             {"calls that found no room", l.counted("", "audit unavailable") + l.exits[exitStorage], 1},
	}
	for kind, n := range felt {
		if kinds[kind] {
			l.needs([]need{n})
		}
	}
}

// reportFaults tells how long no client that knows all nodes was answered: the
// longest time between two answers to one client, while a fault lasted or until the
// next one.
func (l *trial) reportFaults(windows []window, row func(...any)) {
	type total struct {
		times          int
		lasted         time.Duration
		crypto, writes time.Duration
	}
	totals := map[string]*total{}
	for _, w := range windows {
		t := totals[w.name]
		if t == nil {
			t = &total{}
			totals[w.name] = t
		}
		t.times++
		t.lasted += w.healed - w.begin
		for probe, answers := range l.probes {
			longest := interruption(answers, w)
			if probe == "writes" {
				t.writes = max(t.writes, longest)
			} else {
				t.crypto = max(t.crypto, longest)
			}
		}
	}
	row("WHAT WAS WRONG", "TIMES", "SECONDS", "LONGEST WITHOUT CRYPTOGRAPHY", "WITHOUT WRITES")
	for _, name := range slices.SortedFunc(maps.Keys(totals), func(a, b string) int {
		return cmp.Or(cmp.Compare(totals[b].writes, totals[a].writes), cmp.Compare(a, b))
	}) {
		t := totals[name]
		row(name, t.times, seconds(t.lasted), seconds(t.crypto), seconds(t.writes))
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// interruption is the longest time between two answers of which the middle lies in a
// window.
func interruption(answers []time.Duration, w window) (longest time.Duration) {
	for i := range len(answers) - 1 {
		if middle := (answers[i] + answers[i+1]) / 2; middle >= w.begin && middle < w.end {
			longest = max(longest, answers[i+1]-answers[i])
		}
	}
	return longest
}

func (l *trial) reportRestrictions(windows []window, row func(...any)) {
	row("RESTRICTIONS (DisableKey, ScheduleKeyDeletion, RevokeGrant, DisablePrincipal)", "NUMBER", "P50", "P99", "MAX")
	all := l.record.History().Operations
	took := func(in func(o history.Operation) bool) (out []time.Duration) {
		for _, o := range all {
			if o.Kind.Restricts() && o.Outcome == history.OK && in(o) {
				out = append(out, o.End-o.Begin)
			}
		}
		slices.Sort(out)
		return out
	}
	healthy, gone := windows[0], windows[1]
	for _, s := range []struct {
		name string
		in   func(o history.Operation) bool
	}{
		{"nothing wrong", func(o history.Operation) bool { return o.Begin >= healthy.begin && o.End < gone.begin }},
		{"one node gone", func(o history.Operation) bool { return o.End >= gone.begin && o.Begin < gone.healed }},
		{"one node gone, its lease over", func(o history.Operation) bool {
			return o.Begin >= gone.begin+2*testLease && o.Begin < gone.healed
		}},
		{"other faults", func(o history.Operation) bool { return o.Begin >= gone.end }},
	} {
		d := took(s.in)
		row(s.name, len(d), seconds(history.Quantile(d, 0.5)), seconds(history.Quantile(d, 0.99)), seconds(history.Quantile(d, 1)))
	}
}

func (l *trial) reportCalls(row func(...any)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	row("CALLS", "OK", "REFUSED OR FAILED")
	for _, name := range slices.Sorted(maps.Keys(l.counts)) {
		endings := l.counts[name]
		var other []string
		for _, e := range slices.Sorted(maps.Keys(endings)) {
			if e != "ok" {
				other = append(other, fmt.Sprintf("%s %d", e, endings[e]))
			}
		}
		row(name, endings["ok"], strings.Join(other, ", "))
	}
}
