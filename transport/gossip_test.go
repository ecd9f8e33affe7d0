package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

const testProbe = 200 * time.Millisecond

// startGossip is a member on a Mux of its own.
func startGossip(t *testing.T, home *authority, name string, change func(*GossipConfig)) *Gossip {
	t.Helper()
	creds := home.credentials(name)
	m := startMux(t, creds, Limits{}, nil)
	c := GossipConfig{Name: name, Credentials: creds, Mux: m, Advertise: m.Addr().String(), ProbeInterval: testProbe, Logger: testLog(t)}
	if change != nil {
		change(&c)
	}
	g, err := StartGossip(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func joining(addrs ...string) func(*GossipConfig) {
	return func(c *GossipConfig) { c.Join = func() []string { return addrs } }
}

// view prints what a member sees: "a=alive b=dead".
func view(g *Gossip) string {
	var out []string
	for _, m := range g.Members() {
		out = append(out, m.Name+"="+string(m.State))
	}
	return strings.Join(out, " ")
}

func sees(want string, gossips ...*Gossip) func() bool {
	return func() bool {
		return !slices.ContainsFunc(gossips, func(g *Gossip) bool { return view(g) != want })
	}
}

func TestGossipDeathAndReturn(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	var mu sync.Mutex
	var events []string
	a := startGossip(t, home, "a", func(c *GossipConfig) {
		c.Events = func(m GossipMember) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, m.Name+"="+string(m.State))
		}
	})
	b := startGossip(t, home, "b", joining(a.self.String()))
	c := startGossip(t, home, "c", joining(a.self.String(), "127.0.0.1:1"))
	eventually(t, "all see all", sees("a=alive b=alive c=alive", a, b, c))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the others see the death", sees("a=alive b=alive c=dead", a, b))
	back := startGossip(t, home, "c", joining(b.self.String())) // at another port
	eventually(t, "all see the return", sees("a=alive b=alive c=alive", a, b, back))
	for _, m := range a.Members() {
		if m.Name == "c" && (m.Addr != back.self.String() || m.Since.IsZero()) {
			t.Errorf("the returned member is %+v, want address %s", m, back.self)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{"a=alive", "b=alive", "c=alive", "c=dead"} {
		if !slices.Contains(events, want) {
			t.Errorf("no event %s in %v", want, events)
		}
	}
}

func TestGossipLeave(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	a := startGossip(t, home, "a", nil)
	b := startGossip(t, home, "b", joining(a.self.String()))
	eventually(t, "both see both", sees("a=alive b=alive", a, b))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Leave(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("leave without time: %v", err)
	}
	if err := b.Leave(t.Context()); err != nil {
		t.Errorf("leave: %v", err)
	}
	eventually(t, "the other sees it gone", sees("a=alive b=dead", a))
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	if err := b.Leave(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("leave after close: %v", err)
	}
}

// A member that joins nobody is found by the members that are told its address,
// also long after their start, as after a partition.
func TestGossipKeepsJoining(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	var addr atomic.Value
	addr.Store("127.0.0.1:1")
	a := startGossip(t, home, "a", func(c *GossipConfig) {
		c.Join = func() []string { return []string{"not an address", c.Advertise, addr.Load().(string)} }
	})
	b := startGossip(t, home, "b", nil)
	addr.Store(fmt.Sprintf("localhost:%d", b.self.Port()))
	eventually(t, "both see both", sees("a=alive b=alive", a, b))
}

func TestGossipMeta(t *testing.T) {
	noLeaks(t)
	home := newAuthority(t, testDomain)
	var meta atomic.Value
	meta.Store("first")
	a := startGossip(t, home, "a", func(c *GossipConfig) { c.Meta = func() []byte { return []byte(meta.Load().(string)) } })
	b := startGossip(t, home, "b", joining(a.self.String()))
	told := func(want string) func() bool {
		return func() bool {
			return slices.ContainsFunc(b.Members(), func(m GossipMember) bool { return m.Name == "a" && string(m.Meta) == want })
		}
	}
	eventually(t, "the first metadata is told", told("first"))
	largest := strings.Repeat("m", MaxGossipMeta)
	meta.Store(largest)
	eventually(t, "the largest metadata is told", told(largest))
}

func TestGossipKeepsMetaWithinTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Gossip{meta: []byte("kept"), config: GossipConfig{
			ProbeInterval: testProbe,
			Logger:        slog.New(slog.NewTextHandler(t.Output(), nil)),
			Meta:          func() []byte { return make([]byte, MaxGossipMeta+1) },
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 3*testProbe)
		defer cancel()
		g.metaLoop(ctx)
		if string((*gossipDelegate)(g).NodeMeta(0)) != "kept" {
			t.Error("metadata too large replaced the last")
		}
	})
}

func TestGossipRefuses(t *testing.T) {
	noLeaks(t)
	home, foreign := newAuthority(t, testDomain), newAuthority(t, testDomain)
	a := startGossip(t, home, "a", func(c *GossipConfig) {
		c.Allow = func(id Identity) error {
			if id.Name == "removed" {
				return errors.New("no longer a member")
			}
			return nil
		}
	})
	for _, g := range []*Gossip{startGossip(t, foreign, "x", nil), startGossip(t, home, "removed", nil)} {
		if n, err := g.list.Join([]string{a.self.String()}); n != 0 || err == nil {
			t.Errorf("%s joined", g.config.Name)
		}
	}
	if got := view(a); got != "a=alive" {
		t.Errorf("a sees %s", got)
	}
	c := a.config
	for name, change := range map[string]func(*GossipConfig){
		"no name":                 func(c *GossipConfig) { c.Name = "" },
		"a long name":             func(c *GossipConfig) { c.Name = strings.Repeat("n", maxGossipName+1) },
		"no advertised address":   func(c *GossipConfig) { c.Advertise = "" },
		"an address without port": func(c *GossipConfig) { c.Advertise = "127.0.0.1" },
		"port 0":                  func(c *GossipConfig) { c.Advertise = "127.0.0.1:0" },
		"large metadata":          func(c *GossipConfig) { c.Meta = func() []byte { return make([]byte, MaxGossipMeta+1) } },
		"port 65536":              func(c *GossipConfig) { c.Advertise = "127.0.0.1:65536" },
	} {
		bad := c
		change(&bad)
		if _, err := StartGossip(t.Context(), bad); err == nil {
			t.Errorf("started with %s", name)
		}
	}
}

func TestGossipBoundsMembers(t *testing.T) {
	var d gossipDelegate
	d.members = make(map[string]GossipMember)
	add := func(name string) error {
		n := &memberlist.Node{Name: name, Addr: net.IPv4(127, 0, 0, 1), Port: 1}
		if err := d.NotifyAlive(n); err != nil {
			return err
		}
		d.NotifyJoin(n)
		return nil
	}
	for i := range maxGossipMembers {
		if err := add(fmt.Sprint("n", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := add("n0"); err != nil {
		t.Errorf("a known member: %v", err)
	}
	if err := add("more"); err == nil {
		t.Error("more members than the bound")
	}
	d.NotifyLeave(&memberlist.Node{Name: "n5"})
	d.NotifyLeave(&memberlist.Node{Name: "n6"})
	if err := add("more"); err != nil {
		t.Errorf("in place of a dead member: %v", err)
	}
	if _, there := d.members["n5"]; there || len(d.members) != maxGossipMembers {
		t.Errorf("%d members, the one dead for longest still there: %v", len(d.members), there)
	}
	for name, n := range map[string]*memberlist.Node{
		"no name":     {},
		"a long name": {Name: strings.Repeat("n", maxGossipName+1)},
		"large meta":  {Name: "n0", Meta: make([]byte, MaxGossipMeta+1)},
	} {
		if err := d.NotifyAlive(n); err == nil {
			t.Errorf("accepted: %s", name)
		}
	}
}
