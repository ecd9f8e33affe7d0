package cluster

import (
	"testing"
	"time"
)

// TestMajorityAhead: what a majority's clocks have reached, whoever is wrong.
func TestMajorityAhead(t *testing.T) {
	voters := []string{"n1", "n2", "n3"}
	for name, c := range map[string]struct {
		ahead map[string]time.Duration // of nodes that were heard of; n1 leads
		want  time.Duration
		ok    bool
	}{
		"all agree":                  {map[string]time.Duration{"n2": 0, "n3": 0}, 0, true},
		"the leader is ahead":        {map[string]time.Duration{"n2": -time.Hour, "n3": -time.Hour}, -time.Hour, true},
		"the leader is behind":       {map[string]time.Duration{"n2": time.Hour, "n3": 2 * time.Hour}, time.Hour, true},
		"one is far ahead":           {map[string]time.Duration{"n2": 0, "n3": 1000 * time.Hour}, 0, true},
		"one is far behind":          {map[string]time.Duration{"n2": 0, "n3": -1000 * time.Hour}, 0, true},
		"one was not heard of":       {map[string]time.Duration{"n2": time.Second}, 0, true},
		"the one heard of is behind": {map[string]time.Duration{"n2": -time.Second}, -time.Second, true},
		"the leader heard of no one": {nil, 0, false},
		"somebody who is no member":  {map[string]time.Duration{"n9": 0}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			clock := &handClock{}
			g := newGrantor(lasting(time.Second), clock)
			for node, ahead := range c.ahead {
				g.ack(node, 1)
				g.compared(node, view{ahead: ahead})
			}
			if got, ok := g.majorityAhead("n1", voters); got != c.want || ok != c.ok {
				t.Errorf("%s, %v; want %s, %v", got, ok, c.want, c.ok)
			}
			clock.advance(time.Second) // a lease later nobody has been heard of
			if _, ok := g.majorityAhead("n1", voters); ok {
				t.Error("old news count")
			}
		})
	}
}
