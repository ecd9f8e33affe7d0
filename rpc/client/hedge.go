package client

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	// hedgeFloor is the least time after which a call is sent to a second node.
	hedgeFloor = 5 * time.Millisecond
	// hedgeWindow is of how many latest calls of a method the time is the 99th percentile, and
	// hedgeLeast how many there must be. It is computed anew every hedgeEvery calls.
	hedgeWindow = 256
	hedgeLeast  = 64
	hedgeEvery  = 32
	// hedgeShare is how many of the calls are hedged at most, hedgeBurst how many at once.
	hedgeShare = 0.05
	hedgeBurst = 5
)

// hedges tells when a call is late, and whether one more may be sent twice. When all calls
// become slow, the percentile grows and the share is used up: hedging adds no load to nodes
// that have too much.
type hedges struct {
	mu      sync.Mutex
	methods map[string]*latencies
	credit  float64
}

// latencies are those of a method's latest calls.
type latencies struct {
	latest [hedgeWindow]time.Duration
	n      int
	late   time.Duration // zero: too few calls yet
}

// begin counts a call and tells after what time it is late; zero: never.
func (h *hedges) begin(method string) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.credit = min(h.credit+hedgeShare, hedgeBurst)
	if l := h.methods[method]; l != nil {
		return l.late
	}
	return 0
}

// may tells whether a call may be sent twice, which counts.
func (h *hedges) may() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.credit < 1 {
		return false
	}
	h.credit--
	return true
}

// end notes how long a call took.
func (h *hedges) end(method string, d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.methods[method]
	if l == nil {
		l = new(latencies)
		if h.methods == nil {
			h.methods = map[string]*latencies{}
		}
		h.methods[method] = l
	}
	l.latest[l.n%hedgeWindow] = d
	l.n++
	if l.n < hedgeLeast || l.n%hedgeEvery != 0 {
		return
	}
	sorted := slices.Sorted(slices.Values(l.latest[:min(l.n, hedgeWindow)]))
	l.late = max(sorted[len(sorted)*99/100], hedgeFloor)
}

// hedgeable tells whether a call may be sent to two nodes: it is cryptography, or reads what
// all nodes know, and both answers have places of their own.
func (a *call) hedgeable() bool {
	_, ok := a.reply.(proto.Message)
	return a.client.config.Hedge && ok && !a.mutation && !slow(a.request) &&
		(strings.HasPrefix(a.method, "/"+quorumkmsv1.CryptoService_ServiceDesc.ServiceName+"/") ||
			strings.HasPrefix(a.method, "/"+quorumkmsv1.KeyService_ServiceDesc.ServiceName+"/")) &&
		!slices.ContainsFunc(a.options, func(o grpc.CallOption) bool {
			_, harmless := o.(grpc.StaticMethodCallOption) // what generated code gives
			return !harmless
		})
}

// outcome is how one of two attempts ended.
type outcome struct {
	call  *call
	e     *endpoint
	error *Error
}

// final tells whether no other node's answer is waited for.
func (o outcome) final() bool { return o.error == nil || !o.error.transient() }

// begin is the first attempt of a call, which may be made at two nodes: at the first in order
// and, if that has not answered when the call is late, at the second. It returns the node whose
// answer, or whose failure, it is.
func (a *call) begin(ctx context.Context, nodes []*endpoint) (*endpoint, *Error) {
	if len(nodes) < 2 || !a.hedgeable() {
		return nodes[0], a.attempt(ctx, nodes[0], len(nodes))
	}
	h := &a.client.hedges
	late, began := h.begin(a.method), time.Now()
	if late == 0 {
		err := a.attempt(ctx, nodes[0], len(nodes))
		if err == nil {
			h.end(a.method, time.Since(began))
		}
		return nodes[0], err
	}
	won := a.race(ctx, nodes, late)
	if won.error == nil {
		h.end(a.method, time.Since(began))
		a.adopt(won.call.reply.(proto.Message)) //nolint:forcetypeassert // hedgeable
		a.hedgeWon = a.hedged && won.e == nodes[1]
	}
	a.last, a.attempts = won.call.last, a.attempts+1
	if a.hedged {
		a.attempts++
	}
	return won.e, won.error
}

// race makes one attempt or two and returns when both have ended: the first final answer ends
// the other.
func (a *call) race(ctx context.Context, nodes []*endpoint, late time.Duration) outcome {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan outcome, 2)
	send := func(e *endpoint) {
		own := *a
		own.reply = a.reply.(proto.Message).ProtoReflect().New().Interface() //nolint:forcetypeassert // hedgeable
		go func() { ended <- outcome{&own, e, own.attempt(ctx, e, len(nodes))} }()
	}
	timer := time.NewTimer(late)
	defer timer.Stop()
	send(nodes[0])
	for under := 1; ; {
		select {
		case <-timer.C:
			if a.client.hedges.may() {
				send(nodes[1])
				under++
				a.hedged = true
			}
		case first := <-ended:
			if under--; under == 0 {
				return first
			}
			if first.error == nil || first.e == nodes[0] && first.final() { // what the second lacks the first may have
				cancel()
				other := <-ended
				wipe(other.call.reply.(proto.Message).ProtoReflect()) //nolint:forcetypeassert // hedgeable
				return first
			}
			if ctx.Err() == nil && !first.final() {
				a.client.failed(first.e)
				a.client.learn(first.error.Nodes)
			}
			return <-ended
		}
	}
}

// adopt takes an answer over, without a copy of what it holds.
func (a *call) adopt(from proto.Message) {
	to := a.reply.(proto.Message).ProtoReflect() //nolint:forcetypeassert // hedgeable
	proto.Reset(to.Interface())
	from.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		to.Set(field, v)
		return true
	})
	to.SetUnknown(from.ProtoReflect().GetUnknown())
}

// wipe overwrites the bytes in a message that nobody gets.
func wipe(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		each := func(v protoreflect.Value) {
			switch field.Kind() {
			case protoreflect.BytesKind:
				clear(v.Bytes())
			case protoreflect.MessageKind:
				wipe(v.Message())
			default:
			}
		}
		switch {
		case field.IsMap():
		case field.IsList():
			for i := range v.List().Len() {
				each(v.List().Get(i))
			}
		default:
			each(v)
		}
		return true
	})
}
