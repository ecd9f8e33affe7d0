package nodetest

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

// TestLeaderWithHungDisk: a leader that can commit nothing falls silent, and others
// elect another before their leases are over. If it goes on, its process ends.
func TestLeaderWithHungDisk(t *testing.T) {
	for seed := range uint64(5) {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			c, err := New(dir, Defaults(100+seed, 3))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			old, key, admin := c.Leader(), uuid.New(), c.NewClient()
			followers := []*Node{c.Follower(0), c.Follower(1)}
			if err := admin.Write(history.Create, key, func() *Node { return old }); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			process := old.running()
			old.Disk().Stall()
			defer old.Disk().Resume()
			user := c.NewClient()
			for began := time.Now(); time.Since(began) < 9*time.Second; time.Sleep(20 * time.Millisecond) {
				for _, n := range followers {
					if err := user.Use(n, key, Pauses{}); err != nil {
						t.Fatalf("seed %d: %s after the disk began to hang, %s: %v", seed, time.Since(began), n.Name, err)
					}
				}
			}
			if now := c.Leader(); now == old {
				t.Errorf("seed %d: the leader whose disk hangs still leads", seed)
			}
			time.Sleep(4 * time.Second)
			if old.running() == process {
				t.Errorf("seed %d: a leader that committed nothing for 13 s still runs", seed)
			}
		})
	}
}
