package node

import (
	"fmt"
	"testing"
	"time"
)

// TestWarner: the same thing is said now and then only, another thing at once.
func TestWarner(t *testing.T) {
	var w warner
	now := time.Unix(1e9, 0)
	for i, step := range []struct {
		what string
		at   time.Duration
		want bool
	}{
		{"a", 0, true},
		{"a", time.Second, false},
		{"b", time.Second, true},
		{"a", warnEvery - 1, false},
		{"a", warnEvery, true},
		{"a", warnEvery + 1, false},
	} {
		if got := w.due(step.what, warnEvery, now.Add(step.at)); got != step.want {
			t.Errorf("step %d: due %v, want %v", i, got, step.want)
		}
	}
	for i := range 10 * maxWarned {
		w.due(fmt.Sprint(i), warnEvery, now)
	}
	if len(w.said) > maxWarned+1 {
		t.Errorf("%d certificates are remembered", len(w.said))
	}
}
