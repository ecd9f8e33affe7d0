package nodetest

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

// forge changes a key that is created, in messages to one node, as who has the log key
// could: with a MAC that verifies.
func forge(t *testing.T, key fsm.LogKey) func(message any) any {
	return func(message any) any {
		a, ok := message.(*raft.AppendEntriesRequest)
		if !ok {
			return message
		}
		forged := *a
		forged.Entries = slices.Clone(a.Entries)
		for i, l := range a.Entries {
			var e fsm.Entry
			if l.Type != raft.LogCommand || json.Unmarshal(l.Data, &e) != nil || e.Command != "CreateKey" {
				continue
			}
			c, err := fsm.DecodeCommand(e.Command, e.Body)
			if err != nil {
				t.Error(err)
				continue
			}
			c.(*fsm.CreateKey).Description = "forged"
			data, err := fsm.EncodeEntry(e, c, key)
			if err != nil {
				t.Error(err)
				continue
			}
			other := *l
			other.Data = data
			forged.Entries[i] = &other
		}
		return &forged
	}
}

// TestStatesThatDiffer: a node whose log holds another entry than the others' stops,
// stays stopped and serves nothing more; the others go on. If it is the leader whose
// entry is not the others', the leader stops.
func TestStatesThatDiffer(t *testing.T) {
	for name, to := range map[string]func(s *stage) (victims []*Node, wrong *Node){
		"a follower": func(s *stage) ([]*Node, *Node) { return []*Node{s.victim}, s.victim },
		"the leader": func(s *stage) ([]*Node, *Node) { return []*Node{s.victim, s.other}, s.leader },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				c, err := New(dir, Defaults(7, 3))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				s := &stage{Cluster: c, client: c.NewClient(), leader: c.Leader(), victim: c.Follower(0), other: c.Follower(1)}
				victims, wrong := to(s)
				for _, v := range victims {
					defer c.Network.Set(s.leader.Name, v.Name, Link{Alter: forge(t, c.logKey)})()
				}
				s.key = uuid.New()
				if err := s.client.Write(history.Create, s.key, s.through(s.leader)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				broken := c.Broken()
				if !errors.Is(broken, cluster.ErrDiverged) || !strings.Contains(broken.Error(), wrong.Name+" halted") || !strings.Contains(broken.Error(), "as it found before") {
					t.Fatalf("%s did not stop for good: %v", wrong.Name, broken)
				}
				if name == "a follower" { // its leader tells of it while it is a member, though it has stopped
					if got := s.leader.Member().Differences(); len(got) != 1 || got[0].Name != wrong.Name || got[0].Index == 0 {
						t.Errorf("the leader tells of %+v", got)
					}
					if got := s.other.Member().Differences(); got != nil {
						t.Errorf("a follower that is right tells of %+v", got)
					}
				}
				for _, n := range c.Nodes {
					err := c.NewClient().Use(n, s.key, Pauses{})
					if (err == nil) != (n != wrong) {
						t.Errorf("%s: %v", n.Name, err)
					}
					if n != wrong && strings.Contains(broken.Error(), n.Name+" halted") {
						t.Errorf("%s stopped too: %v", n.Name, broken)
					}
				}
			})
		})
	}
}
