package client

import (
	"bytes"
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	// doubtPause is the least time between two looks at the nodes.
	doubtPause = time.Second
	// healthCrypto is the name of the nodes' health check: it answers cryptographic calls.
	healthCrypto = "crypto"
	// clusterIDSize is how much of an index token names the cluster, in bytes. What
	// follows grows, also as bytes compare.
	clusterIDSize = 16
)

// order returns the endpoints in the order in which a call tries them, or nil after
// Close: the one in use, the others as they were configured and learned, and last
// those that have failed, longest ago first.
func (c *Client) order() []*endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	nodes := slices.Clone(c.endpoints)
	first := func(e *endpoint) int {
		if e == c.inUse {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(nodes, func(a, b *endpoint) int {
		return cmp.Or(a.failed.Compare(b.failed), first(a)-first(b), c.nearer(a, b))
	})
	return nodes
}

// answered notes that e is alive, and what it had seen. The node in use stays in use
// until it fails.
func (c *Client) answered(e *endpoint, token []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.failed = time.Time{}
	if c.inUse == nil || !c.inUse.failed.IsZero() {
		c.inUse = e
	}
	if newer(token, c.token) {
		c.token = token
	}
	since := time.Since(c.refreshed)
	if c.closed || c.looking || since < c.config.Refresh && (!c.doubt || since < doubtPause) {
		return
	}
	c.looking, c.doubt, c.refreshed = true, false, time.Now()
	c.wait.Go(func() { c.look(e) })
}

// failed notes that e did not answer as it should.
func (c *Client) failed(e *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.failed, c.doubt = time.Now(), true
}

// newer tells whether index token a is to be kept rather than b.
func newer(a, b []byte) bool {
	sameCluster := len(a) == len(b) && len(a) > clusterIDSize && bytes.Equal(a[:clusterIDSize], b[:clusterIDSize])
	return len(a) > 0 && (!sameCluster || bytes.Compare(a, b) > 0)
}

// saw remembers an index token if it is newer.
func (c *Client) saw(token []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if newer(token, c.token) {
		c.token = token
	}
}

func (c *Client) indexToken() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token
}

// learn takes addresses from a node's answer. They are hints: a server there is
// accepted on the same terms as any other.
func (c *Client) learn(addresses []string) {
	if c.config.Fixed {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Clients that learn the same nodes should not all prefer the same one.
	for _, i := range rand.Perm(len(addresses)) { //nolint:gosec // an order is no secret
		a := addresses[i]
		if c.closed || len(c.endpoints) >= len(c.config.Addresses)+MaxAddresses {
			return
		}
		if checkAddress(a) != nil || slices.ContainsFunc(c.endpoints, func(e *endpoint) bool { return e.address == a }) {
			continue
		}
		if e, err := newEndpoint(a, c.tls, c.files); err == nil { // a hint that cannot be used is none
			c.endpoints = append(c.endpoints, e)
		}
	}
}

// forget drops what was learned of nodes that are no members any more.
func (c *Client) forget(members []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endpoints = slices.DeleteFunc(c.endpoints, func(e *endpoint) bool {
		if e.configured || slices.Contains(members, e.address) {
			return false
		}
		_ = e.close() // calls that are under way there go on elsewhere
		if c.inUse == e {
			c.inUse = nil
		}
		return true
	})
}

// look asks a node that has just answered for the members, and returns to an earlier
// node if one is healthy again.
func (c *Client) look(at *endpoint) {
	ctx, cancel := context.WithTimeout(c.ctx, c.config.Timeout)
	defer cancel()
	if !c.config.Fixed {
		c.askMembers(ctx, at)
	}
	if c.config.Nearest {
		c.findNearest(ctx)
	} else {
		c.findEarlier(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looking = false
}

func (c *Client) askMembers(ctx context.Context, at *endpoint) {
	r := new(quorumkmsv1.StatusResponse)
	l := at.take()
	defer at.give(l)
	err := l.Invoke(ctx, quorumkmsv1.ClusterService_Status_FullMethodName, &quorumkmsv1.StatusRequest{Tenant: c.config.Tenant}, r)
	if err != nil || !r.GetServing() { // what it knows may be old
		return
	}
	var members []string
	for _, m := range r.GetMembers() {
		if m.GetState() == quorumkmsv1.MemberState_MEMBER_STATE_ACTIVE {
			members = append(members, m.GetClientAddress())
		}
	}
	if len(members) > 0 {
		c.forget(members)
		c.learn(members)
	}
}

func (c *Client) findEarlier(ctx context.Context) {
	for _, e := range c.earlier() {
		if _, healthy := e.probe(ctx); healthy {
			c.use(e)
			return
		}
	}
}

// earlier are the nodes before the one in use that have not failed lately.
func (c *Client) earlier() []*endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*endpoint
	for _, e := range c.endpoints {
		if e == c.inUse {
			break
		}
		if time.Since(e.failed) >= c.config.Refresh {
			out = append(out, e)
		}
	}
	return out
}

// use makes e the node in use.
func (c *Client) use(e *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.endpoints, e) {
		c.inUse, e.failed = e, time.Time{}
	}
}

// probe asks a node whether it answers cryptographic calls, and how long it takes to say so
// over a connection that stands.
func (e *endpoint) probe(ctx context.Context) (roundTrip time.Duration, healthy bool) {
	l := e.take()
	defer e.give(l)
	if !l.reach(ctx) {
		return 0, false
	}
	began := time.Now()
	r, err := grpc_health_v1.NewHealthClient(l).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: healthCrypto})
	return time.Since(began), err == nil && r.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
}
