package fsm

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestInitCluster(t *testing.T) {
	w := newWorld(t)
	if w.s.Initialized() || w.s.Index() != 0 || w.s.Now() != 0 {
		t.Errorf("the state before the first entry: initialized %v, index %d, time %d", w.s.Initialized(), w.s.Index(), w.s.Now())
	}
	if got := w.do(initCluster()); got != (Result{Index: 1, ID: keyID(1 << 32).String()}) {
		t.Errorf("result %+v", got)
	}
	created := startTime / second
	generation := Generation{Number: 1, State: "ACTIVE", Created: created, Checks: initCluster().Checks, NoRecovery: true}
	cluster := Cluster{
		ID: keyID(1 << 32), TrustDomain: "kms.example", Release: NewestRelease, Created: created,
		Operator: "spiffe://kms.example/operator/olga", LeaseMillis: 9_000, Generations: []Generation{generation}, Revision: 1,
	}
	if got := w.s.Cluster(); !reflect.DeepEqual(got, cluster) || !w.s.Initialized() {
		t.Errorf("cluster is\n%+v\nwant\n%+v", got, cluster)
	}
	if got, err := w.s.ActiveGeneration(); err != nil || !reflect.DeepEqual(got, generation) {
		t.Errorf("active generation %+v, %v", got, err)
	}
	tenant := Tenant{Name: "default", Created: created, Administrator: admin, Revision: 1}
	if got, ok := w.s.Tenant("default"); !ok || *got != tenant {
		t.Errorf("tenant is %+v, want %+v", got, tenant)
	}
	member := Member{
		ID: firstNode, Name: "n1", PeerAddress: "n1:7000", ClientAddress: "n1:7001", Identity: []byte("identity of n1"),
		State: "ACTIVE", Voter: true, Since: created, Revision: 1,
	}
	if got := w.s.Members(); len(got) != 1 || !reflect.DeepEqual(*got[0], member) || w.s.MemberByName("n1") != got[0] {
		t.Errorf("members are %+v, want %+v", got, member)
	}
	w.refuse(initCluster(), ErrExists, "the cluster is initialized")
}

func TestInitClusterLimits(t *testing.T) {
	first := func(f func(*InitCluster)) *InitCluster { return edited(initCluster(), f) }
	check := DomainCheck{Kind: 255, Value: make([]byte, 16)}
	uninitialized := func(t failer) *world { return newWorld(t) }
	testAccepted(t, uninitialized, []accepted{
		{"longest names", first(func(c *InitCluster) {
			c.TrustDomain, c.Operator, c.Administrator = strings.Repeat("d", 255), strings.Repeat("o", 512), strings.Repeat("a", 512)
		})},
		{"shortest lease", first(func(c *InitCluster) { c.LeaseMillis = 1_000 })},
		{"longest lease", first(func(c *InitCluster) { c.LeaseMillis = 60_000 })},
		{"16 check values", first(func(c *InitCluster) { c.Checks = make16(check) })},
		{"a later generation", first(func(c *InitCluster) { c.Generation = 1<<32 - 1 })},
	})
	testRefusals(t, uninitialized, []refusal{
		{"no cluster id", first(func(c *InitCluster) { c.Cluster = ID{} }), ErrInvalid, "cluster id is missing"},
		{"no trust domain", first(func(c *InitCluster) { c.TrustDomain = "" }), ErrInvalid, "trust domain has 0 bytes"},
		{"long trust domain", first(func(c *InitCluster) { c.TrustDomain = strings.Repeat("d", 256) }), ErrInvalid, "trust domain has 256 bytes: must be 1 to 255"},
		{"no operator", first(func(c *InitCluster) { c.Operator = "" }), ErrInvalid, "must be named"},
		{"no administrator", first(func(c *InitCluster) { c.Administrator = "" }), ErrInvalid, "must be named"},
		{"long operator", first(func(c *InitCluster) { c.Operator = strings.Repeat("o", 513) }), ErrInvalid, "more than 512 bytes"},
		{"long administrator", first(func(c *InitCluster) { c.Administrator = strings.Repeat("a", 513) }), ErrInvalid, "more than 512 bytes"},
		{"no lease", first(func(c *InitCluster) { c.LeaseMillis = 0 }), ErrInvalid, "lease of 0 ms: must be 1000 to 60000"},
		{"lease of -9000 ms", first(func(c *InitCluster) { c.LeaseMillis = -9_000 }), ErrInvalid, "lease of -9000 ms"},
		{"lease of 999 ms", first(func(c *InitCluster) { c.LeaseMillis = 999 }), ErrInvalid, "lease of 999 ms: must be 1000 to 60000"},
		{"lease of 60001 ms", first(func(c *InitCluster) { c.LeaseMillis = 60_001 }), ErrInvalid, "lease of 60001 ms: must be 1000 to 60000"},
		{"no generation", first(func(c *InitCluster) { c.Generation = 0 }), ErrInvalid, "generation is missing"},
		{"no check value", first(func(c *InitCluster) { c.Checks = nil }), ErrInvalid, "generation is missing"},
		{"17 check values", first(func(c *InitCluster) { c.Checks = append(make16(check), check) }), ErrInvalid, "17 check values given, at most 16"},
		{"short check value", first(func(c *InitCluster) { c.Checks[1].Value = make([]byte, 15) }), ErrInvalid, "kind 2 has 15 bytes, must be 16"},
		{"long check value", first(func(c *InitCluster) { c.Checks[0].Value = make([]byte, 17) }), ErrInvalid, "kind 1 has 17 bytes, must be 16"},
		{"no raft id", first(func(c *InitCluster) { c.Node = "" }), ErrInvalid, "raft id"},
		{"bad name", first(func(c *InitCluster) { c.Name = "a/b" }), ErrInvalid, `node name "a/b"`},
		{"no identity", first(func(c *InitCluster) { c.Identity = nil }), ErrInvalid, "identity key of 0 bytes"},
		{"no address", first(func(c *InitCluster) { c.ClientAddress = "" }), ErrInvalid, "must have 1 to 256 bytes"},
	})
}

func make16(c DomainCheck) []DomainCheck {
	var out []DomainCheck
	for range 16 {
		out = append(out, c)
	}
	return out
}

func TestTick(t *testing.T) {
	w := oneKey(t)
	before := records(t, w.s)
	w.clock += 5
	if got := w.do(&Tick{HashIndex: w.s.Index(), Hash: w.s.Hash()}); got != (Result{Index: 3}) {
		t.Errorf("result %+v", got)
	}
	if records(t, w.s) != before || w.s.Now() != startTime+5 {
		t.Errorf("a tick changed records, or the time is %d", w.s.Now())
	}
	w.refuse(&Tick{Hash: make([]byte, 31)}, ErrInvalid, "tick hash has 31 bytes, must be 32")
	w.refuse(&Tick{Hash: make([]byte, 33)}, ErrInvalid, "tick hash has 33 bytes, must be 32")
	w.refuse(&Tick{}, ErrInvalid, "tick hash has 0 bytes, must be 32")
}

// TestTimeNeverGoesBack: a leader whose clock is behind stamps earlier times.
func TestTimeNeverGoesBack(t *testing.T) {
	w := oneKey(t)
	for _, stamp := range []int64{startTime - 5*second, 0, -1, startTime} {
		w.clock = stamp
		w.do(&Tick{Hash: make([]byte, 32)})
		w.do(createKey(100 + w.s.Index()))
		if w.s.Now() != startTime {
			t.Errorf("time is %d after an entry of %d, want %d", w.s.Now(), stamp, startTime)
		}
		if got := w.key(99 + w.s.Index()).Created; got != startTime/second {
			t.Errorf("key was created at %d", got)
		}
	}
}

// TestHash: what differs in any way has another hash.
func TestHash(t *testing.T) {
	base := func() *world { w := oneKey(t); return w }
	hashes := map[string]string{}
	add := func(name string, w *world) {
		hash := string(w.s.Hash())
		if len(hash) != 32 {
			t.Errorf("%s: hash of %d bytes", name, len(hash))
		}
		if other, seen := hashes[hash]; seen {
			t.Errorf("%s and %s have the same hash", name, other)
		}
		hashes[hash] = name
	}
	add("nothing", newWorld(t))
	add("base", base())
	w := base()
	w.do(&DisableKey{ref(1)})
	add("disabled", w)
	w.do(&EnableKey{ref(1)})
	add("enabled again", w)
	w = base()
	w.do(&EnableKey{ref(1)})
	add("enabled", w)
	w = base()
	w.clock++
	w.do(&EnableKey{ref(1)})
	add("enabled a nanosecond later", w)
	w = base()
	w.refuse(&CancelKeyDeletion{ref(1)}, ErrNotPendingDeletion, "")
	add("refused", w)
	w = base()
	if _, err := w.append(4, 1, seal(t, w.entry(), &EnableKey{ref(1)})); err != nil {
		t.Fatal(err)
	}
	add("enabled at another index", w)
	// The same entry on a state that differs in one record by a fault.
	w = base()
	w.s.keys.tree.Set(keyItem{keyID(1), edited(w.key(1), func(k *Key) { k.Description = "flipped" })})
	w.do(&EnableKey{ref(1)})
	add("enabled on a faulty state", w)

	got := w.s.Hash()
	got[0] ^= 1
	if bytes.Equal(got, w.s.Hash()) {
		t.Error("the hash that was handed out is the state's own")
	}
}
