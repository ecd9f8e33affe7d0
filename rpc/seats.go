package rpc

import (
	"errors"
	"fmt"
	"sync"
)

// errSeats means: as many streams of a kind are under way at this node as may.
var errSeats = errors.New("too many streams")

// seats bound the streams of one kind at this node.
type seats struct {
	kind           string // that there are too many of
	most, mostEach int    // of all principals, of one

	mu    sync.Mutex
	taken map[string]int // by principal
	all   int
}

func newSeats(kind string, most, mostEach int) *seats {
	return &seats{kind: kind, most: most, mostEach: mostEach, taken: map[string]int{}}
}

// take counts a stream until end is called.
func (s *seats) take(principal string) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= s.most || s.taken[principal] >= s.mostEach {
		return nil, fmt.Errorf("%w: %s: at most %d at a time, and at most %d of one principal; there are %d, and %d of %s: end one, or ask later",
			errSeats, s.kind, s.most, s.mostEach, s.all, s.taken[principal], principal)
	}
	s.all++
	s.taken[principal]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.taken[principal]--; s.taken[principal] == 0 {
			delete(s.taken, principal)
		}
	}, nil
}
