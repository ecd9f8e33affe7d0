package nodetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/node/cluster"
)

// Link is what happens to messages from one node to another.
type Link struct {
	// Match, optional, says which messages the rule is for. It is given a request of
	// Raft, or the request or answer of a call between nodes.
	Match func(message any) bool
	// Alter, optional, changes what arrives.
	Alter func(message any) any
	Cut   bool
	Loss  float64 // part of the messages that are lost
	// Late is the part of the messages that take up to Delay more than usual, Least
	// what all take more.
	Late         float64
	Delay, Least time.Duration
}

// Network carries messages between nodes. A message is lost or not when it is sent:
// what is on its way arrives, however late, if its receiver still lives.
type Network struct {
	latency time.Duration // usual, at most; at least a quarter of it

	mu     sync.Mutex
	random *rand.Rand
	ends   map[string]*end // by address
	links  map[[2]string][]*Link
}

// end is one process on the network.
type end struct {
	network *Network
	node    string // the machine's name: links belong to it
	address string
	ctx     context.Context //nolint:containedctx // the process's life
	raft    chan raft.RPC
	member  func() *cluster.Member // nil while it opens
}

func newNetwork(latency time.Duration, seed uint64) *Network {
	return &Network{
		latency: latency, random: rand.New(rand.NewPCG(seed, 2)),
		ends: map[string]*end{}, links: map[[2]string][]*Link{},
	}
}

// Set puts a rule on messages between two machines, in one direction, and returns
// what takes it off again. Rules add up.
func (n *Network) Set(from, to string, l Link) (undo func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	pair, rule := [2]string{from, to}, &l
	n.links[pair] = append(n.links[pair], rule)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.links[pair] = slices.DeleteFunc(n.links[pair], func(x *Link) bool { return x == rule })
	}
}

// attach puts a process on the network, in the place of the last one at its address.
func (n *Network) attach(e *end) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ends[e.address] = e
}

// at is the living process at an address, or nil.
func (n *Network) at(address string) *end {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.ends[address]; e != nil && e.ctx.Err() == nil {
		return e
	}
	return nil
}

// fate decides what becomes of a message.
func (n *Network) fate(from, to string, message any) (arrives any, delay time.Duration, lost bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delay = n.latency/4 + time.Duration(n.random.Int64N(int64(n.latency)*3/4+1))
	for _, l := range n.links[[2]string{from, to}] {
		if l.Match != nil && !l.Match(message) {
			continue
		}
		if l.Alter != nil {
			message = l.Alter(message)
		}
		if l.Cut || l.Loss > 0 && n.random.Float64() < l.Loss {
			return nil, 0, true
		}
		delay += l.Least
		if l.Late > 0 && n.random.Float64() < l.Late {
			delay += time.Duration(n.random.Int64N(int64(l.Delay) + 1))
		}
	}
	return message, delay, false
}

// send has f run, after a while, with what arrives of a message, unless the message is
// lost or its sender is dead. o, unless nil, keeps messages of one stream in order.
func (n *Network) send(from *end, to string, o *order, message any, f func(message any)) {
	if from.ctx.Err() != nil {
		return
	}
	message, delay, lost := n.fate(from.node, to, message)
	if lost {
		return
	}
	time.AfterFunc(o.behind(delay), func() { f(message) })
}

// order is one stream of messages.
type order struct {
	mu   sync.Mutex
	last time.Time
}

// behind is the delay that makes a message arrive after its predecessor.
func (o *order) behind(delay time.Duration) time.Duration {
	if o == nil {
		return delay
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	at := time.Now().Add(delay)
	if !at.After(o.last) {
		at = o.last.Add(1)
	}
	o.last = at
	return time.Until(at)
}

var (
	// errRefused means: nobody listens there; nothing was done.
	errRefused = errors.New("nodetest: connection refused")
	// errLost means: no answer came; nothing is known.
	errLost = errors.New("nodetest: no answer")
)

// machineOf is the name of the machine that an address is on.
func machineOf(address string) string {
	name, _, _ := strings.Cut(address, ":")
	return name
}

// answer is what a call brings back.
type answer[T any] struct {
	value T
	err   error
}

// call has serve run, with a request, by the process at an address and brings its
// answer back, as far as the network lets it. The server learns it late, or never, when
// ctx ends.
func call[T any](ctx context.Context, from *end, address string, o *order, request any, serve func(ctx context.Context, to *end, request any) (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	n, machine := from.network, machineOf(address)
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if deadline, ok := ctx.Deadline(); ok {
		serving, cancel = context.WithDeadline(serving, deadline)
	}
	back := make(chan answer[T], 1)
	n.send(from, machine, o, request, func(request any) {
		defer cancel()
		to := n.at(address)
		if to == nil {
			if _, delay, lost := n.fate(machine, from.node, nil); !lost {
				time.AfterFunc(delay, func() { back <- answer[T]{err: fmt.Errorf("%w: %s", errRefused, address)} })
			}
			return
		}
		stop := context.AfterFunc(to.ctx, cancel)
		defer stop()
		value, err := serve(serving, to, request)
		n.send(to, from.node, nil, value, func(any) { back <- answer[T]{value, err} })
	})
	select {
	case a := <-back:
		return a.value, a.err
	case <-ctx.Done():
		n.send(from, machine, o, nil, func(any) { cancel() })
		return none, fmt.Errorf("%w from %s: %w", errLost, address, ctx.Err())
	case <-from.ctx.Done():
		return none, fmt.Errorf("%w from %s: %w", errLost, address, from.ctx.Err())
	}
}
