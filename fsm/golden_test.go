package fsm

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// update writes the golden files of the newest release anew. Never use it when that
// release is out: clusters hold logs and snapshots like these.
var update = flag.Bool("update", false, "write the golden log, hashes and snapshot of the newest release")

// goldenScripts give the golden files of each release: the first is that of release 1.
var goldenScripts = []func(t failer) *world{goldenScript, goldenUpgrade}

func goldenFile(release, what string) string {
	return filepath.Join("testdata", "golden", release+"."+what)
}

// goldenScript is the fixed log of release 1: every command, right, refused and
// repeated, with texts, sizes and numbers at their edges.
func goldenScript(t failer) *world {
	w := newWorld(t)
	w.refuse(createKey(1), ErrNotInitialized, "")
	w.do(firstInit())
	w.refuse(firstInit(), ErrExists, "")
	w.do(&Tick{HashIndex: w.s.Index(), Hash: w.s.Hash()})
	w.refuse(&Tick{HashIndex: 1<<64 - 1}, ErrInvalid, "")
	goldenKeys(w)
	goldenNames(w)
	goldenMembers(w)
	w.clock -= 3600 * second // a leader whose clock is behind
	w.do(&Tick{HashIndex: w.s.Index(), Hash: w.s.Hash()})
	return w
}

// firstInit is initCluster as release 1 knew it.
func firstInit() *InitCluster { return edited(initCluster(), func(c *InitCluster) { c.Release = 0 }) }

// goldenUpgrade is the fixed log of release 2: a cluster of release 1 that is raised,
// and then every command that is new.
func goldenUpgrade(t failer) *world {
	w := newWorld(t)
	w.do(firstInit())
	w.refuse(initCluster(), ErrExists, "")
	w.join("n2", true, MemberActive)
	w.join("n3", true, MemberGone)
	w.refuse(&RaiseRelease{Release: 1}, ErrInvalid, "")
	w.refuse(&RaiseRelease{Release: 2}, ErrRelease, "")
	w.refuse(&RaiseRelease{2, []string{firstNode, nodeID("n3")}}, ErrRelease, "n2")
	w.ask("raise", "2", &RaiseRelease{2, []string{nodeID("n2"), firstNode}})
	w.ask("raise", "2", &RaiseRelease{2, []string{}})
	w.do(&RaiseRelease{Release: 2})
	goldenVotes(w)
	goldenRecoveries(w)
	return w
}

func goldenVotes(w *world) {
	w.join("n4", false, MemberActive)
	w.join("n5", true, MemberAdmitted)
	w.do(&SetVoter{nodeID("n4"), false})
	w.ask("promote", "n4", &SetVoter{nodeID("n4"), true})
	w.ask("promote", "n4", &SetVoter{nodeID("n4"), true})
	w.do(&SetVoter{firstNode, false})
	w.do(&SetVoter{nodeID("n2"), false})
	w.refuse(&SetVoter{nodeID("n4"), false}, ErrMember, "")
	w.refuse(&SetVoter{nodeID("n5"), false}, ErrMember, "")
	w.refuse(&SetVoter{nodeID("n9"), true}, ErrNotFound, "")
	w.do(&RemoveNode{nodeID("n2")})
	w.refuse(&SetVoter{nodeID("n2"), true}, ErrMember, "")
}

func goldenKeys(w *world) {
	w.clock += 1_234_567_890
	w.ask("create-1", "a", edited(createKey(1), func(c *CreateKey) {
		c.Description = "volumes <of> & \"the\" \\ archive\u2028 \u00e4\u65e5\U0001F600\x00\b\t\n\v\f\r\x1f\x7f\ufffd"
		c.Tags = []Tag{{"zone", "b"}, {"app", ""}, {"Zone", "<a&b>"}}
		c.Token = bytes.Repeat([]byte{0xfb, 0xff}, 100)
	}))
	w.ask("create-1", "a", createKey(2))
	w.ask("create-1", "a", &Repeat{})
	w.refuse(&Repeat{}, ErrNotFound, "")
	w.do(edited(createKey(2), func(c *CreateKey) { c.ID = ID(bytes.Repeat([]byte{0xab}, 16)) }))
	for n := uint64(2); n <= 5; n++ {
		w.clock += second / 2
		w.do(createKey(n))
	}
	_, err := w.apply(w.request("create-1", "b"), createKey(9))
	wantError(w.t, err, ErrRequestReused, "")
	w.refuse(createKey(1), ErrExists, "")
	w.do(&UpdateKeyDescription{ref(2), "second"})
	w.do(&UpdateKeyDescription{KeyRef{keyID(2), DefaultTenant, w.s.Index()}, ""})
	w.refuse(&UpdateKeyDescription{KeyRef{keyID(2), DefaultTenant, 1}, "x"}, ErrConflict, "")
	w.do(&DisableKey{ref(3)})
	w.do(&EnableKey{ref(2)})
	w.do(&DisableKey{ref(2)})
	w.do(&EnableKey{ref(2)})
	w.refuse(rotateKey(3, 2), ErrDisabled, "")
	w.ask("rotate", "1", rotateKey(1, 2))
	w.do(rotateKey(1, 3))
	w.refuse(rotateKey(1, 3), ErrConflict, "")
	w.do(&ScheduleKeyDeletion{ref(4), 7})
	w.ask("schedule", "30 days", &ScheduleKeyDeletion{ref(3), 30})
	w.refuse(&EnableKey{ref(3)}, ErrPendingDeletion, "")
	w.do(&CancelKeyDeletion{ref(3)})
	w.refuse(&CancelKeyDeletion{ref(3)}, ErrNotPendingDeletion, "")
}

func goldenNames(w *world) {
	w.do(&TagKey{ref(2), tags(0, 50)})
	w.refuse(&TagKey{ref(2), tags(50, 1)}, ErrLimit, "")
	w.do(&TagKey{ref(1), []Tag{{"zone", "c"}, {"\u00e4", "<"}}})
	w.do(&UntagKey{ref(1), []string{"app", "never there"}})
	w.do(&UntagKey{ref(1), []string{"Zone", "zone", "\u00e4"}})
	for _, name := range []string{"alias/db", "alias/a-z_A-Z/0:9", "alias/gone"} {
		w.do(&CreateAlias{alias(name, 1)})
	}
	w.refuse(&CreateAlias{alias("alias/db", 2)}, ErrExists, "")
	w.refuse(&CreateAlias{alias("alias/service/obs", 2)}, ErrInvalid, "")
	w.clock += second
	w.do(&UpdateAlias{alias("alias/db", 5)})
	w.do(&UpdateAlias{alias("alias/db", 5)})
	w.refuse(&DeleteAlias{DefaultTenant, "alias/gone", w.key(1).Revision - 1}, ErrConflict, "")
	w.ask("delete-alias", "", &DeleteAlias{DefaultTenant, "alias/gone", w.key(1).Revision})
	w.refuse(deleteAlias("alias/gone"), ErrNotFound, "")
	w.do(deleteAlias("alias/a-z_A-Z/0:9"))
	w.refuse(&DisableKey{KeyRef{ID: keyID(1), Tenant: "acme"}}, ErrNotFound, "")
}

func goldenMembers(w *world) {
	w.refuse(&RemoveNode{firstNode}, ErrMember, "")
	w.do(edited(ticketFor("late"), func(c *CreateTicket) { c.Seconds = 1 }))
	w.clock += second
	w.refuse(admit("late"), ErrTicket, "")
	w.join("n2", true, MemberActive)
	w.join("n3", false, MemberGone)
	w.join("n4", true, MemberLeaving)
	w.join("n5", true, MemberAdmitted)
	w.do(admit("n5"))
	w.do(edited(admit("n2"), func(c *AdmitNode) { c.ClientAddress = "n2b:7001" }))
	w.refuse(edited(admit("n2"), func(c *AdmitNode) { c.Identity = []byte("identity of n3") }), ErrMember, "")
	w.do(ticketFor("n6"))
	w.refuse(edited(admit("n3"), func(c *AdmitNode) { c.Ticket = "ticket-n6" }), ErrMember, "")
	w.refuse(&RetireNode{nodeID("n2")}, ErrMember, "")
	w.refuse(&UpdateMember{ID: nodeID("n2"), PeerAddress: "n2b:7000", ClientAddress: "x"}, ErrMember, "")
	w.proposer = nodeID("n2")
	w.ask("update", "n2", &UpdateMember{ID: nodeID("n2"), PeerAddress: "[2001:db8::2]:7000", ClientAddress: "n2.example:7001"})
	w.refuse(&UpdateMember{ID: nodeID("n2"), PeerAddress: "n1:7000", ClientAddress: "x"}, ErrMember, "")
	w.proposer = firstNode
	w.refuse(&ActivateNode{"n9"}, ErrNotFound, "")
	w.do(&RemoveNode{firstNode})
}

// replay applies a golden log, an entry a line, and gives a line for each entry:
// index, running hash, and the answer or the code of the refusal.
func replay(t *testing.T, log []byte) (*State, string) {
	t.Helper()
	w := newWorld(t)
	var lines strings.Builder
	for raw := range bytes.Lines(log) {
		raw = bytes.TrimSuffix(raw, []byte("\n"))
		if err := logKey().VerifyEntry(raw); err != nil {
			t.Fatal(err)
		}
		result, err := w.append(w.s.Index()+1, 1, raw)
		answer := Code(err)
		if err == nil {
			b, err := json.Marshal(result)
			if err != nil {
				t.Fatal(err)
			}
			answer = string(b)
		}
		fmt.Fprintf(&lines, "%d %s %s\n", w.s.Index(), hex.EncodeToString(w.s.Hash()), answer)
	}
	return w.s, lines.String()
}

func golden(t *testing.T, release, what string) []byte {
	t.Helper()
	b, err := os.ReadFile(goldenFile(release, what))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGoldenEncoding: the script of each release still gives the log, the hashes and
// the snapshot that were written when it came out.
func TestGoldenEncoding(t *testing.T) {
	if len(goldenScripts) != NewestRelease {
		t.Fatalf("%d golden scripts for %d releases", len(goldenScripts), NewestRelease)
	}
	for i, script := range goldenScripts {
		release := fmt.Sprintf("v%d", FirstRelease+i)
		w := script(t)
		var log []byte
		for _, l := range w.log {
			if bytes.ContainsRune(l.Data, '\n') {
				t.Fatalf("%s: entry %d has a line end", release, l.Index)
			}
			log = append(append(log, l.Data...), '\n')
		}
		s, hashes := replay(t, log)
		files := map[string][]byte{"log": log, "hashes": []byte(hashes), "snapshot": snapshotOf(t, s)}
		for what, b := range files {
			if *update && i == len(goldenScripts)-1 {
				if err := os.WriteFile(goldenFile(release, what), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			wantSame(t, goldenFile(release, what), b, golden(t, release, what))
		}
	}
}

func wantSame(t *testing.T, name string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	t.Errorf("%s differs from byte %d on:\n%q\nwant\n%q", name, i, got[i:min(len(got), i+200)], want[i:min(len(want), i+200)])
}

// TestGoldenLogs: this release reads the log of every release, comes to the same
// hash after every entry and to the same snapshot, and goes on from it.
func TestGoldenLogs(t *testing.T) {
	logs, err := filepath.Glob(goldenFile("*", "log"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("golden logs %v: %v", logs, err)
	}
	used := map[string]bool{}
	for _, path := range logs {
		release := strings.TrimSuffix(filepath.Base(path), ".log")
		log := golden(t, release, "log")
		s, hashes := replay(t, log)
		wantSame(t, release+".hashes", []byte(hashes), golden(t, release, "hashes"))
		snapshot := golden(t, release, "snapshot")
		wantSame(t, release+".snapshot", snapshotOf(t, s), snapshot)
		restored, err := ReadSnapshot(bytes.NewReader(snapshot), logKey())
		if err != nil {
			t.Fatalf("%s: %v", release, err)
		}
		wantTwins(t, s, restored)
		for raw := range bytes.Lines(log) {
			var entry struct{ Command string }
			if err := json.Unmarshal(raw, &entry); err != nil {
				t.Fatal(err)
			}
			used[entry.Command] = true
		}
	}
	for _, s := range commands {
		if !used[s.name] {
			t.Errorf("no golden log has the command %s", strconv.Quote(s.name))
		}
	}
}

// wantTwins: two states that are the same go on alike.
func wantTwins(t *testing.T, a, b *State) {
	t.Helper()
	x, y := &world{t: t, s: a, clock: a.Now()}, &world{t: t, s: b, clock: b.Now()}
	for _, w := range []*world{x, y} {
		w.do(createKey(1 << 40))
		w.do(&CreateAlias{alias("alias/twin", 1<<40)})
		w.do(rotateKey(1<<40, w.s.NextVersion(w.key(1<<40))))
		w.ask("twin", "", &DisableKey{ref(1 << 40)})
	}
	if !bytes.Equal(x.s.Hash(), y.s.Hash()) {
		t.Error("the two states go on with different hashes")
	}
	wantSame(t, "snapshot", snapshotOf(t, x.s), snapshotOf(t, y.s))
}
