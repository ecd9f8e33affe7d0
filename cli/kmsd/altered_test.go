package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestAltered edits what stopped and running nodes have on their disks: they notice,
// end with a code of its own and serve nothing; the others go on, and the way back is
// to be removed and to join anew.
func TestAltered(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster)
	}{
		{"Log", testAlteredLog},
		{"File", testAlteredFile},
		{"Snapshot", testAlteredSnapshot},
		{"WhileRunning", testAlteredWhileRunning},
	} {
		if !c.run(s.name, s.f) {
			break // the next one builds on it
		}
	}
}

const wayBack = "keep the data directory as evidence, remove this node (kmsctl cluster remove) and let it join anew"

// refusesData changes a stopped node's data directory, and puts it back as it was
// after the node has refused to start.
func (c *testCluster) refusesData(what string, p *process, alter func(), texts ...string) {
	c.t.Helper()
	saved := p.path("saved")
	must(c.t, os.RemoveAll(saved))
	must(c.t, os.CopyFS(saved, os.DirFS(p.path("data"))))
	alter()
	c.failsToStart(what, p, exitAltered, append(texts, "the data on the disk was altered, or is damaged", wayBack)...)
	for _, never := range []string{"node is up", "panic", "goroutine "} {
		if strings.Contains(p.output(), never) {
			c.t.Errorf("%s: %q in its log:\n%s", what, never, p.output())
		}
	}
	must(c.t, os.RemoveAll(p.path("data")))
	must(c.t, os.Rename(saved, p.path("data")))
}

// logOf opens a stopped node's log as Raft's own library does.
func (p *process) logOf(f func(db *raftboltdb.BoltStore)) {
	p.c.t.Helper()
	db, err := raftboltdb.NewBoltStore(p.path("data/raft/raft.db"))
	must(p.c.t, err)
	f(db)
	must(p.c.t, db.Close())
}

// find is the last entry of a log for which ok holds.
func (p *process) find(db *raftboltdb.BoltStore, ok func(*raft.Log) bool) *raft.Log {
	p.c.t.Helper()
	first, err := db.FirstIndex()
	must(p.c.t, err)
	last, err := db.LastIndex()
	must(p.c.t, err)
	for i := last; i >= first; i-- {
		var l raft.Log
		must(p.c.t, db.GetLog(i, &l))
		if ok(&l) {
			return &l
		}
	}
	p.c.t.Fatalf("%s has no such entry", p.name)
	return nil
}

func contains(text string) func(*raft.Log) bool {
	return func(l *raft.Log) bool { return bytes.Contains(l.Data, []byte(text)) }
}

// testAlteredLog edits the records of a stopped node's log.
func testAlteredLog(ctx context.Context, c *testCluster) {
	all := c.seal(ctx, 4)
	p, others := c.nodes[2], c.nodes[:2]
	c.intact(ctx, p, all)
	p.terminate()
	older, err := os.ReadFile(p.path("data/raft/raft.db"))
	must(c.t, err)
	p.start()
	c.waitVoters(3)
	all = append(all, c.seal(ctx, 2)...)
	c.intact(ctx, p, all)
	p.kill()
	all = append(all, c.seal(ctx, 3, others...)...)

	store := func(l *raft.Log) {
		p.logOf(func(db *raftboltdb.BoltStore) { must(c.t, db.StoreLog(l)) })
	}
	entry := func(ok func(*raft.Log) bool) (l *raft.Log) {
		p.logOf(func(db *raftboltdb.BoltStore) { l = p.find(db, ok) })
		return l
	}
	first, second, last := contains("sealed 0"), contains("sealed 1"), func(*raft.Log) bool { return true }
	for _, x := range []struct {
		what  string
		alter func()
		text  string
	}{
		{"a byte of an entry", func() { l := entry(first); l.Data[40] ^= 1; store(l) }, "the seal of log entry"},
		{"an entry's term", func() { l := entry(last); l.Term--; store(l) }, "the seal of log entry"},
		{"an entry's kind", func() { l := entry(first); l.Type = raft.LogNoop; store(l) }, "the seal of log entry"},
		{"two entries exchanged", func() {
			a, b := entry(first), entry(second)
			a.Index, b.Index = b.Index, a.Index
			store(a)
			store(b)
		}, "the seal of log entry"},
		{"an old entry repeated at the end", func() {
			l, end := entry(first), entry(last)
			l.Index, l.Term = end.Index, end.Term
			store(l)
		}, "the seal of log entry"},
		{"an old entry repeated behind the end", func() {
			l, end := entry(first), entry(last)
			l.Index, l.Term = end.Index+1, end.Term
			store(l)
		}, "the seal of log entry"},
		{"a configuration without a voter", func() {
			l := entry(func(l *raft.Log) bool { return l.Type == raft.LogConfiguration })
			configuration := raft.DecodeConfiguration(l.Data)
			configuration.Servers = configuration.Servers[1:]
			l.Data = raft.EncodeConfiguration(configuration)
			store(l)
		}, "the seal of log entry"},
		{"an entry of another node's disk", func() {
			others[1].terminate()
			var l *raft.Log
			others[1].logOf(func(db *raftboltdb.BoltStore) { l = p.find(db, second) })
			others[1].start()
			store(l)
		}, "the seal of log entry"},
		{"an entry taken out", func() {
			l := entry(first)
			p.logOf(func(db *raftboltdb.BoltStore) { must(c.t, db.DeleteRange(l.Index, l.Index)) })
		}, "is missing"},
		{"the end cut off", func() {
			l := entry(last)
			p.logOf(func(db *raftboltdb.BoltStore) { must(c.t, db.DeleteRange(l.Index-1, l.Index)) })
		}, "but this node has written up to entry"},
		{"an older log", func() { must(c.t, os.WriteFile(p.path("data/raft/raft.db"), older, 0o600)) }, "but this node has written up to entry"},
		{"the seals stripped", func() {
			p.logOf(func(db *raftboltdb.BoltStore) {
				for i := firstOf(c, db); ; i++ {
					var l raft.Log
					if db.GetLog(i, &l) != nil {
						break
					}
					l.Extensions = nil
					must(c.t, db.StoreLog(&l))
				}
			})
			must(c.t, os.Remove(p.path("data/raft/mark")))
		}, "the mark of the log is missing"},
		{"another vote", func() {
			p.logOf(func(db *raftboltdb.BoltStore) {
				must(c.t, db.Set([]byte("quorumkms/vote"), append(make([]byte, 7), "\x09127.0.0.1:1"...)))
			})
		}, "the seal of raft's quorumkms/vote"},
		{"an earlier term", func() {
			p.logOf(func(db *raftboltdb.BoltStore) { must(c.t, db.SetUint64([]byte("CurrentTerm"), 1)) })
		}, "the seal of raft's CurrentTerm"},
	} {
		c.refusesData(x.what, p, x.alter, x.text)
	}
	c.until("the others serve", func(s *pb.StatusResponse) bool { return s.GetServing() }, others[1])
	all = append(all, c.seal(ctx, 1, others...)...)
	p.start() // as it was left, the directory is good
	c.waitVoters(3)
	c.intact(ctx, p, all)
}

func firstOf(c *testCluster, db *raftboltdb.BoltStore) uint64 {
	first, err := db.FirstIndex()
	must(c.t, err)
	return first
}

// testAlteredFile damages the database file below its records.
func testAlteredFile(ctx context.Context, c *testCluster) {
	p := c.nodes[2]
	p.terminate()
	path := p.path("data/raft/raft.db")
	b, err := os.ReadFile(path)
	must(c.t, err)
	page := os.Getpagesize()
	with := func(f func(b []byte) []byte) func() {
		return func() { must(c.t, os.WriteFile(path, f(bytes.Clone(b)), 0o600)) }
	}
	for _, x := range []struct {
		what  string
		alter func(b []byte) []byte
	}{
		{"the second half cut off", func(b []byte) []byte { return b[:len(b)/2] }},
		{"all but a page cut off", func(b []byte) []byte { return b[:page] }},
		{"both meta pages overwritten", func(b []byte) []byte { clear(b[:2*page]); return b }},
		{"all pages but the meta pages overwritten", func(b []byte) []byte { clear(b[2*page:]); return b }},
		{"every page's header overwritten", func(b []byte) []byte {
			for at := 2 * page; at < len(b); at += page {
				clear(b[at : at+16])
			}
			return b
		}},
		{"every page's elements overwritten", func(b []byte) []byte {
			for at := 2 * page; at < len(b); at += page {
				copy(b[at+16:at+48], bytes.Repeat([]byte{0xff}, 32))
			}
			return b
		}},
		{"something else in its place", func([]byte) []byte { return bytes.Repeat([]byte("no log "), 4096) }},
	} {
		c.refusesData(x.what, p, with(x.alter), "raft.db")
	}
	p.start()
	c.waitVoters(3)
	c.intact(ctx, p, c.seal(ctx, 1))
}

// testAlteredSnapshot edits the snapshots of a stopped node, and then takes the way
// back.
func testAlteredSnapshot(ctx context.Context, c *testCluster) {
	p, other := c.nodes[2], c.nodes[1]
	for _, x := range []*process{p, other} {
		x.terminate()
		x.edit("raft: {", "raft: {snapshot_interval: 1s, snapshot_threshold: 24, trailing_logs: 8, ")
		x.start()
		c.waitVoters(3)
	}
	all := c.seal(ctx, 30)
	status, err := c.status(p)
	must(c.t, err)
	for _, x := range []*process{p, other} {
		c.eventually(x.name+" has made a snapshot", func() bool { return x.newestSnapshot() >= status.GetAppliedIndex() }, x)
	}
	p.terminate()
	other.terminate()
	newest := newestDir(c, p)
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(newest, name))
		must(c.t, err)
		return string(b)
	}
	write := func(name, text string) { must(c.t, os.WriteFile(filepath.Join(newest, name), []byte(text), 0o600)) }
	meta := func(what, pattern, with string) func() {
		return func() {
			old := read("meta.json")
			edited := regexp.MustCompile(pattern).ReplaceAllString(old, with)
			if edited == old {
				c.t.Fatalf("%s: nothing to change in %s", what, old)
			}
			write("meta.json", edited)
		}
	}
	for _, x := range []struct {
		what  string
		alter func()
		text  string
	}{
		{"a byte of the state", func() {
			b := []byte(read("state.bin"))
			b[len(b)/2] ^= 1
			write("state.bin", string(b))
		}, "the checksum of state.bin does not fit"},
		{"the state cut off", func() { write("state.bin", read("state.bin")[:1000]) }, "the checksum of state.bin does not fit"},
		{"more behind the state", func() { write("state.bin", read("state.bin")+"x") }, "the checksum of state.bin does not fit"},
		{"no state", func() { must(c.t, os.Remove(filepath.Join(newest, "state.bin"))) }, "state.bin"},
		{"a voter that is none", meta("suffrage", `"Suffrage":0`, `"Suffrage":1`), "the seal of meta.json does not verify"},
		{"a voter with another name", meta("id", `"ID":"kms-1\.`, `"ID":"kms-9.`), "the seal of meta.json does not verify"},
		{"another index", meta("index", `"Index":(\d+)`, `"Index":1$1`), "the seal of meta.json does not verify"},
		{"another term", meta("term", `"Term":(\d+)`, `"Term":1$1`), "the seal of meta.json does not verify"},
		{"no seal", meta("seal", `"Seal":"[^"]*"`, `"Seal":""`), "it has no seal"},
		{"metadata that is none", func() { write("meta.json", "{") }, "meta.json is damaged"},
		{"no metadata", func() { must(c.t, os.Remove(filepath.Join(newest, "meta.json"))) }, "no such file"},
		{"another name", func() {
			must(c.t, os.Rename(newest, filepath.Join(filepath.Dir(newest), "9-"+filepath.Base(newest))))
		}, "its name is"},
		{"no snapshot", func() { must(c.t, os.RemoveAll(filepath.Dir(newest))) }, "the newest snapshot is of entry 0"},
		{"another node's snapshot", func() {
			theirs := newestDir(c, other)
			must(c.t, os.RemoveAll(filepath.Dir(newest)))
			must(c.t, os.CopyFS(filepath.Join(filepath.Dir(newest), filepath.Base(theirs)), os.DirFS(theirs)))
		}, "the seal of meta.json does not verify"},
	} {
		c.refusesData(x.what, p, x.alter, x.text)
	}
	other.start()
	c.until("the others serve", func(s *pb.StatusResponse) bool { return s.GetServing() }, other)
	c.wayBack(ctx, p)
	c.intact(ctx, p, all)
}

func newestDir(c *testCluster, p *process) string {
	dirs, err := filepath.Glob(p.path("data/raft/snapshots/*-*-*"))
	must(c.t, err)
	slices.SortFunc(dirs, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	if len(dirs) == 0 {
		c.t.Fatalf("%s has no snapshot", p.name)
	}
	return dirs[len(dirs)-1]
}

// wayBack removes a stopped node and lets it join with an empty directory.
func (c *testCluster) wayBack(ctx context.Context, p *process) {
	c.t.Helper()
	must(c.t, second(c.dial(operatorID, c.others(p)...).Cluster().Remove(ctx, &pb.RemoveRequest{Node: p.name})))
	must(c.t, os.RemoveAll(p.path("data")))
	invited, err := c.dial(operatorID, c.others(p)...).Cluster().Invite(ctx, &pb.InviteRequest{NodeName: p.name, Identity: c.nik(p)})
	must(c.t, err)
	p.configure(invited.GetJoinToken())
	p.start()
	c.waitVoters(3)
}

func (c *testCluster) others(p *process) (out []*process) {
	for _, o := range c.nodes {
		if o != p {
			out = append(out, o)
		}
	}
	return out
}

// testAlteredWhileRunning edits an entry on the leader's disk while it runs and
// another node is away: when that node needs the entry, the leader ends, and the entry
// comes from the other one.
func testAlteredWhileRunning(ctx context.Context, c *testCluster) {
	leader, followers := c.split()
	away := followers[1]
	away.kill()
	all := c.seal(ctx, 1, leader, followers[0])
	made, err := c.dial(adminID, leader).Keys().CreateKey(ctx, &pb.CreateKeyRequest{Description: "to be altered on the disk"})
	must(c.t, err)
	path := leader.path("data/raft/raft.db")
	b, err := os.ReadFile(path)
	must(c.t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(c.t, err)
	for at := 0; ; at++ { // freed pages have copies
		next := bytes.Index(b[at:], []byte("to be altered"))
		if next < 0 {
			break
		}
		at += next
		must(c.t, second(f.WriteAt([]byte("X"), int64(at))))
	}
	must(c.t, f.Close())
	away.start()
	if code := leader.waitExit(); code != exitAltered || !strings.Contains(leader.output(), "the seal of log entry") || !strings.Contains(leader.output(), wayBack) {
		c.t.Errorf("the leader ended with %d:\n%s", code, leader.output())
	}
	c.until(away.name+" serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, away)
	k, err := c.dial(adminID, away).Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: made.GetKey().GetKeyId(), IndexToken: made.GetIndexToken()})
	must(c.t, err)
	if k.GetKey().GetDescription() != "to be altered on the disk" {
		c.t.Errorf("%s has %v", away.name, k.GetKey())
	}
	c.intact(ctx, away, all)
	c.failsToStart("started again", leader, exitAltered, "the seal of log entry", wayBack)
	c.wayBack(ctx, leader)
	c.intact(ctx, leader, all)
}
