package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/p11"
	"github.com/quorumkms/quorumkms/node/archive"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (p *process) backups() []archive.File {
	p.c.t.Helper()
	files, err := archive.Backups(uuid.MustParse(p.c.clusterID()), p.path(backupDir))
	must(p.c.t, err)
	return files
}

// testSchedule: nodes write backups by themselves while something changes, and keep
// no more than they are told.
func testSchedule(ctx context.Context, c *testCluster) {
	load, stop := context.WithCancel(ctx)
	var made atomic.Int64
	var worker sync.WaitGroup
	worker.Go(func() {
		for load.Err() == nil {
			if _, err := c.dial(adminID).Keys().CreateKey(load, &pb.CreateKeyRequest{}); err == nil {
				made.Add(1)
			}
		}
	})
	first := map[string]archive.File{}
	for _, p := range c.nodes {
		c.eventually(p.name+" has written a backup", func() bool { return len(p.backups()) > 0 }, p)
		first[p.name] = p.backups()[0]
	}
	for _, p := range c.nodes {
		c.eventually(p.name+" has let its first backup go", func() bool { _, err := os.Stat(first[p.name].Path); return err != nil }, p)
	}
	stop()
	worker.Wait()
	s, err := c.status(c.nodes[0])
	must(c.t, err)
	for _, p := range c.nodes {
		c.until(p.name+" has backed everything up", func(now *pb.StatusResponse) bool {
			b := now.GetBackup()
			return b.GetLastIndex() >= s.GetAppliedIndex() && b.GetBackupProblem() == "" && b.GetJournalProblem() == "" && b.GetDirectory() == p.path(backupDir)
		}, p)
		files := p.backups()
		newest := files[len(files)-1]
		if len(files) > testKeep+1 || !strings.HasPrefix(newest.Node, p.name+".") { // one more while the oldest is being removed
			c.t.Errorf("%s keeps %d backups: %+v", p.name, len(files), files)
		}
		f, err := os.Open(newest.Path)
		must(c.t, err)
		found, err := c.dial(operatorID, c.nodes[0]).VerifyBackup(ctx, func() (io.ReadCloser, error) { return f, nil })
		must(c.t, err)
		if found.GetSignerName() != p.name || int64(found.GetKeyCount()) < made.Load() || found.GetSignerState() != pb.MemberState_MEMBER_STATE_ACTIVE {
			c.t.Errorf("the newest backup of %s: %v, %d keys were made", p.name, found, made.Load())
		}
	}
}

// logKey reads the cluster's log key from a node's token.
func (c *testCluster) logKey(p *process) fsm.LogKey {
	c.t.Helper()
	for _, e := range p.env {
		name, value, _ := strings.Cut(e, "=")
		c.t.Setenv(name, value)
	}
	partition, err := p11.Open(c.t.Context(), p11.Config{Token: p.name, PIN: []byte(testPIN)})
	must(c.t, err)
	defer func() { must(c.t, partition.Close()) }()
	key, err := partition.LogKey(c.t.Context(), hsm.ID(uuid.MustParse(c.clusterID())))
	must(c.t, err)
	return key
}

// restrictions are what some nodes' journals say together after an index.
func (c *testCluster) restrictions(key fsm.LogKey, index uint64, of ...*process) archive.Restrictions {
	c.t.Helper()
	var dirs []string
	for _, p := range of {
		dirs = append(dirs, p.path(backupDir))
	}
	h, err := archive.ReadHistory(uuid.MustParse(c.clusterID()), key, dirs...)
	must(c.t, err)
	must(c.t, errors.Join(h.Problems...))
	r, err := h.After(fsm.History{}, index)
	must(c.t, err)
	return r
}

// disabled are the keys that journal entries disable, in order.
func disabled(t *testing.T, key fsm.LogKey, r archive.Restrictions) (out []string) {
	t.Helper()
	for _, e := range r.Entries {
		_, command, err := key.OpenEntry(e.Raw)
		must(t, err)
		if d, ok := command.(*fsm.DisableKey); ok {
			out = append(out, d.ID.String())
		}
	}
	return out
}

// testJournal disables keys, with a crash of a node in between, and finds all of it in
// that node's journal alone.
func testJournal(ctx context.Context, c *testCluster) {
	_, followers := c.split()
	p := followers[0]
	every := func(old, with string) {
		p.terminate()
		p.edit("every: "+old, "every: "+with)
		p.start()
		c.waitVoters(3)
	}
	every("2s", "1h") // the next backups would let go what the journal has of this test, if the test is slow
	key := c.logKey(p)
	s, err := c.status(p)
	must(c.t, err)
	start := s.GetAppliedIndex()
	admin := c.dial(adminID, c.leader(followers[1])).Keys()
	var want []string
	disable := func(n int) {
		for range n {
			r, err := admin.CreateKey(ctx, &pb.CreateKeyRequest{})
			must(c.t, err)
			must(c.t, second(admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: r.GetKey().GetKeyId()})))
			want = append(want, r.GetKey().GetKeyId())
		}
	}
	complete := func(what string) {
		c.t.Helper()
		c.eventually(what, func() bool {
			return len(disabled(c.t, key, c.restrictions(key, start, p))) == len(want)
		}, p)
		r := c.restrictions(key, start, p)
		if got := disabled(c.t, key, r); fmt.Sprint(got) != fmt.Sprint(want) || len(r.Gaps) > 0 || r.Covered.Index <= start {
			c.t.Fatalf("%s: %q, want %q; gaps %v, covered %+v", what, got, want, r.Gaps, r.Covered)
		}
	}
	disable(5)
	complete("the journal has what was disabled")
	disable(1)
	p.kill() // with what it has not written yet
	disable(2)
	p.start()
	c.waitVoters(3)
	complete("the journal has what was disabled while its node was away")
	disable(2)
	p.terminate()
	complete("a node that stops leaves a complete journal")
	p.start()
	c.waitVoters(3)
	before := c.restrictions(key, start, p).Covered
	disable(1)
	complete("the journal goes on")
	c.eventually("the coverage goes on", func() bool {
		now := c.restrictions(key, start, p).Covered
		return now.Index > before.Index && now.Time.After(before.Time)
	}, p)
	every("1h", "2s")
}

// testJournalDiskFull fills the disk of a node's backups: the node serves on, says so, and has lost nothing afterwards.
func testJournalDiskFull(ctx context.Context, c *testCluster) {
	p := c.nodes[1]
	key := c.logKey(p)
	s := c.until("all is well", func(s *pb.StatusResponse) bool {
		return s.GetBackup().GetBackupProblem() == "" && s.GetBackup().GetJournalProblem() == ""
	}, p)
	start := s.GetAppliedIndex()
	free := p.fill(backupDir)
	user, admin := c.dial(userID, p), c.dial(adminID, p).Keys()
	var want []string
	work := func() {
		r, err := admin.CreateKey(ctx, &pb.CreateKeyRequest{})
		must(c.t, err)
		must(c.t, second(user.Encrypt(ctx, r.GetKey().GetKeyId(), []byte("x"), nil)))
		must(c.t, second(admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: r.GetKey().GetKeyId()})))
		want = append(want, r.GetKey().GetKeyId())
	}
	c.until("the full disk is reported", func(s *pb.StatusResponse) bool {
		work()
		b := s.GetBackup()
		return strings.Contains(b.GetBackupProblem(), "no space left") && strings.Contains(b.GetJournalProblem(), "no space left") && s.GetServing()
	}, p)
	if !strings.Contains(p.output(), "cannot be written; the node serves on") {
		c.t.Errorf("its log says nothing of it:\n%s", p.output())
	}
	if files := p.backups(); len(files) == 0 {
		c.t.Error("the newest good backup is gone")
	}
	free()
	c.until("the disk is written to again", func(s *pb.StatusResponse) bool {
		b := s.GetBackup()
		return b.GetBackupProblem() == "" && b.GetJournalProblem() == "" && b.GetLastIndex() > start && b.GetJournalIndex() > start
	}, p)
	work()
	c.eventually("nothing is missing", func() bool {
		return len(disabled(c.t, key, c.restrictions(key, start, p))) == len(want)
	}, p)
	if r := c.restrictions(key, start, p); fmt.Sprint(disabled(c.t, key, r)) != fmt.Sprint(want) || len(r.Gaps) > 0 {
		c.t.Errorf("%d entries, %d restrictions were made; gaps %v", len(r.Entries), len(want), r.Gaps)
	}
}
