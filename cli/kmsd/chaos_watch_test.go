//go:build linux && chaos

package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/quorumkms/quorumkms/node/nodetest/history"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// namer moves an alias from key to key and looks, after each acknowledged change,
// whether any node still uses what the alias named before.
type namer struct {
	l     *trial
	admin *caller
	nodes []*caller // users, one a node
	names int
}

func (l *trial) newNamer() *namer {
	n := &namer{l: l, admin: l.caller(adminID, l.rotated(0)...)}
	for _, p := range l.nodes {
		n.nodes = append(n.nodes, l.caller(userID, p))
	}
	return n
}

// rename walks through the life of one alias. It ends early where an outcome is not
// known.
func (n *namer) rename(ctx context.Context) {
	l := n.l
	l.mu.Lock()
	a, b := l.steady[n.admin.dice.IntN(len(l.steady))].key, l.steady[n.admin.dice.IntN(len(l.steady))].key
	l.mu.Unlock()
	n.names++
	name := fmt.Sprintf("alias/chaos-%d", n.names)
	keys := n.admin.Keys()
	for _, step := range []struct {
		call, now string
		f         func(ctx context.Context) (interface{ GetIndexToken() []byte }, error)
	}{
		{"CreateAlias", a, func(ctx context.Context) (interface{ GetIndexToken() []byte }, error) {
			return keys.CreateAlias(ctx, &pb.CreateAliasRequest{AliasName: name, KeyId: a})
		}},
		{"UpdateAlias", b, func(ctx context.Context) (interface{ GetIndexToken() []byte }, error) {
			return keys.UpdateAlias(ctx, &pb.UpdateAliasRequest{AliasName: name, KeyId: b})
		}},
		{"DeleteAlias", "", func(ctx context.Context) (interface{ GetIndexToken() []byte }, error) {
			return keys.DeleteAlias(ctx, &pb.DeleteAliasRequest{AliasName: name})
		}},
	} {
		err := n.admin.call(ctx, step.call, "", "", writeLimit, func(ctx context.Context) (answer, error) {
			_, err := step.f(ctx)
			return answer{}, err
		})
		if err != nil {
			return
		}
		for _, c := range n.nodes {
			n.look(ctx, c, step.call, name, step.now)
		}
	}
}

// look uses the alias at one node: it names key, or nothing if that is empty.
func (n *namer) look(ctx context.Context, c *caller, after, name, key string) {
	_ = c.call(ctx, "Encrypt by alias", "", "", useLimit, func(ctx context.Context) (answer, error) {
		r, err := c.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: name, Plaintext: []byte("chaos")})
		if err == nil && (key == "" || !strings.HasSuffix(r.GetKeyId(), "/"+key)) {
			n.l.mistake("%s used %s as %s after %s had returned, which made it %q", c.node, name, r.GetKeyId(), after, key)
		}
		return answer{}, err
	})
}

// probe makes one call that must never be refused, and notes when it was answered.
func (l *trial) probe(ctx context.Context, name string, c *caller) {
	l.mu.Lock()
	s := l.steady[0]
	l.mu.Unlock()
	if l.open(ctx, c, s, callLimit) == nil {
		l.answered(name)
	}
}

func (l *trial) probeWrites(ctx context.Context, c *caller) {
	l.mu.Lock()
	s := l.steady[0]
	l.mu.Unlock()
	if l.change(ctx, c, s.key, history.Enable) == nil {
		l.answered("writes")
	}
}

func (l *trial) answered(probe string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.probes[probe] = append(l.probes[probe], time.Since(l.began))
}

// view is what a node said of itself last.
type view struct {
	at time.Time
	*pb.StatusResponse
}

// watch asks every node for its status and notes the running hashes.
func (l *trial) watch(ctx context.Context) {
	for _, m := range l.hosts {
		c := l.caller(operatorID, m.process)
		l.wait.Go(func() {
			for ctx.Err() == nil {
				asked, cancel := context.WithTimeout(ctx, useLimit)
				s, err := c.Cluster().Status(asked, &pb.StatusRequest{})
				cancel()
				if err == nil {
					l.record.Observe(m.name, s.GetAppliedIndex(), hex.EncodeToString(s.GetRunningHash()))
					m.seen.Store(&view{time.Now(), s})
				}
				sleep(ctx, 100*time.Millisecond)
			}
		})
	}
}

// leads is the machine whose node leads, as far as the nodes have told lately; nil
// if none does.
func (r *rig) leads() *machine {
	var found *machine
	var term uint64
	for _, m := range r.hosts {
		v := m.seen.Load()
		if v != nil && v.GetLeaderId() == v.GetRaftId() && v.GetLeaderId() != "" && v.GetTerm() > term && time.Since(v.at) < 5*useLimit {
			found, term = m, v.GetTerm()
		}
	}
	return found
}

// condition is every node in a word: serving, why not, or unheard.
func (r *rig) conditions() string {
	var out []string
	leader := r.leads()
	for _, m := range r.hosts {
		word := "silent"
		if v := m.seen.Load(); v != nil && time.Since(v.at) < 2*useLimit {
			word = "serves"
			if !v.GetServing() {
				word = "refuses"
			}
		}
		if m == leader {
			word += " and leads"
		}
		out = append(out, m.name+" "+word)
	}
	return strings.Join(out, ", ")
}
