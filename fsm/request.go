package fsm

import (
	"bytes"
	"fmt"
)

// How long a request id is remembered: at least requestAge and at least the last
// minRequests, but never more than maxRequests.
const (
	requestAge   = 24 * 60 * 60 * int64(1e9) // nanoseconds
	minRequests  = 100_000
	maxRequests  = 1_000_000
	purgeAtATime = 4 // records dropped by one entry at the most, so that Apply stays short
)

// Request remembers what a request id was answered.
type Request struct {
	Principal string `json:"principal"`
	ID        string `json:"id"`
	Digest    []byte `json:"digest"` // of what was asked for
	Index     uint64 `json:"index"`  // of the entry that was applied
	Time      int64  `json:"time"`   // unix nanoseconds
	Result    Result `json:"result"`
}

// Request returns what is remembered of a principal's request id.
func (s *State) Request(principal, id string) (*Request, bool) {
	return s.requests.tree.Get(&Request{Principal: principal, ID: id})
}

// Replay tells whether the request was answered before, and how. ErrRequestReused
// if the id stands for something else.
func (s *State) Replay(principal, id string, digest []byte) (Result, bool, error) {
	r, ok := s.Request(principal, id)
	if id == "" || !ok {
		return Result{}, false, nil
	}
	if !bytes.Equal(r.Digest, digest) {
		return Result{}, false, fmt.Errorf("%w: %s", ErrRequestReused, id)
	}
	return r.Result, true, nil
}

// remembered answers a repeated request as the first was answered.
func (t *tx) remembered() (Result, bool, error) {
	return t.s.Replay(t.entry.Principal, t.entry.Request, t.entry.Digest)
}

func (t *tx) remember(result Result) {
	if t.entry.Request == "" {
		return
	}
	result.Index = t.s.index
	r := &Request{
		Principal: t.entry.Principal, ID: t.entry.Request, Digest: t.entry.Digest,
		Index: t.s.index, Time: t.s.now, Result: result,
	}
	t.s.requests.edit(t).Set(r)
	t.s.requestOrder.edit(t).Set(r)
	t.wrote(kindRequest, false, r)
	t.forget(minRequests, maxRequests)
}

// forget drops the oldest requests: while more than least are remembered those
// past their age, while more than most are remembered any.
func (t *tx) forget(least, most int) {
	for range purgeAtATime {
		oldest, ok := t.s.requestOrder.tree.Min()
		n := t.s.requests.len()
		if !ok || n <= least || n <= most && oldest.Time+requestAge > t.s.now {
			return
		}
		t.s.requests.edit(t).Delete(oldest)
		t.s.requestOrder.edit(t).Delete(oldest)
		t.wrote(kindRequest, true, oldest)
	}
}
