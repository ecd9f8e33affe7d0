package cluster

import (
	"testing"
	"time"
)

// TestTickWatch: a leader whose ticks fail is stuck after its patience; one that stood
// still as a whole is given its time anew.
func TestTickWatch(t *testing.T) {
	const usual = time.Second
	now := time.Hour
	var w tickWatch
	look := func(want bool, what string) {
		t.Helper()
		if w.stuck(now, usual) != want {
			t.Errorf("%s: stuck is %v", what, !want)
		}
	}
	look(false, "no tick")
	w.begin(now)
	for range int(tickPatience / usual) {
		now += usual
		look(false, "within its patience")
	}
	now += usual
	look(true, "beyond its patience")
	w.end()
	look(false, "the tick came through")

	w.begin(now)
	now += time.Hour // frozen
	look(false, "at once after it stood still")
	for range int(tickPatience / usual) {
		now += usual
		look(false, "within its patience after it stood still")
	}
	now += usual
	look(true, "beyond its patience after it stood still")
}
