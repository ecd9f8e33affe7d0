package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// token is a node's token behind the shim of testdata/p11shim.c.
type token struct {
	*process
	file string
}

// is says what the token is like from now on.
func (k token) is(c byte) { must(k.c.t, os.WriteFile(k.file, []byte{c}, 0o600)) }

// softHSM is the library behind the shim.
func softHSM(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("SOFTHSM2_MODULE"); path != "" {
		return path
	}
	for _, pattern := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm.so"} {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	t.Fatal("SoftHSM2 is not installed: scripts/softhsm.sh does that")
	return ""
}

// shimmed puts every node's token behind a shim.
func (c *testCluster) shimmed() (tokens []token) {
	c.t.Helper()
	shim := filepath.Join(c.dir, "p11shim.so")
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-O2", "-pthread", "-o", shim, "testdata/p11shim.c").CombinedOutput(); err != nil {
		c.t.Fatalf("building the shim: %v: %s", err, out)
	}
	for _, p := range c.nodes {
		k := token{p, p.path("condition")}
		k.is('w')
		p.hsm += ", module: " + shim
		p.env = append(p.env, "KMSD_TEST_MODULE="+softHSM(c.t), "KMSD_TEST_TOKEN="+k.file)
		tokens = append(tokens, k)
	}
	return tokens
}

// TestTokenFaults breaks the tokens of a cluster's nodes, one after the other. Whatever
// happens, what was acknowledged opens at every node afterwards.
func TestTokenFaults(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	tokens := c.shimmed()
	c.begin()
	for _, s := range []struct {
		name string
		f    func(context.Context, *testCluster, []token)
	}{
		{"Status", testHSMStatus},
		{"LostAndReturning", testTokenLost},
		{"Slow", testTokenSlow},
		{"NoSessions", testTokenSessions},
		{"WrongAnswers", testWrongAnswers},
		{"Destroyed", testTokenDestroyed},
		{"SameState", func(ctx context.Context, c *testCluster, _ []token) { testSameState(ctx, c) }},
	} {
		if !c.run(s.name, func(_ context.Context, c *testCluster) {
			ctx, cancel := context.WithTimeout(c.t.Context(), 4*patience) // some of them wait for many conditions
			defer cancel()
			s.f(ctx, c, tokens)
		}) {
			break // the next one builds on it
		}
	}
}

// hsm is what a node says of its HSM.
func (c *testCluster) hsm(ctx context.Context, p *process) *pb.DescribeHsmResponse {
	c.t.Helper()
	r, err := c.dial(operatorID, p).Hsm().DescribeHsm(ctx, &pb.DescribeHsmRequest{})
	must(c.t, err)
	return r
}

// countedCalls are the token's calls of a kind.
func countedCalls(r *pb.DescribeHsmResponse, kind string) *pb.HsmCalls {
	for _, x := range r.GetCalls() {
		if x.GetKind() == kind {
			return x
		}
	}
	return nil
}

// testHSMStatus compares what hsm status tells with what was done.
func testHSMStatus(ctx context.Context, c *testCluster, _ []token) {
	p := c.nodes[0]
	before := c.hsm(ctx, p)
	if h := before.GetHsm(); h.GetKind() != "pkcs11" || h.GetLabel() != p.name || !h.GetHealthy() || len(h.GetProbes()) < 10 || h.GetModel() == "" {
		c.t.Errorf("the token is %v", h)
	}
	if got := before.GetKeyWrapMechanism(); got != 0x210a && got != 0x210b {
		c.t.Errorf("RFC 5649 is mechanism %#x", got)
	}
	if !slices.Contains(before.GetAlgorithms(), "ECDSA_SHA_256") || slices.Contains(before.GetAlgorithms(), "RSAES_OAEP_SHA_256") || len(before.GetOaepHashes()) == 0 {
		c.t.Errorf("it can %v, OAEP with %v", before.GetAlgorithms(), before.GetOaepHashes())
	}
	key := c.createKey(ctx, p)
	const messages = 20
	for range messages {
		must(c.t, second(c.dial(userID, p).Encrypt(ctx, key, []byte("x"), nil)))
	}
	after := c.hsm(ctx, p)
	cache, was := after.GetCache(), before.GetCache()
	if n := cache.GetMessages() - was.GetMessages(); n < messages {
		c.t.Errorf("%d messages", n)
	}
	if cache.GetMisses() == was.GetMisses() || cache.GetHits()-was.GetHits() < messages-1 || cache.GetLoaded() == 0 || cache.GetLimit() == 0 {
		c.t.Errorf("the cache was %v, is %v", was, cache)
	}
	for _, kind := range []string{"encrypt", "sign", "generate", "wrap", "unwrap", "object"} {
		x := countedCalls(after, kind)
		if x.GetCount() <= countedCalls(before, kind).GetCount() || x.GetErrors() != 0 || x.GetTime().AsDuration() <= 0 {
			c.t.Errorf("calls to %s: before %v, after %v", kind, countedCalls(before, kind), x)
		}
	}
	if after.GetSessions().GetLimit() != 8 || after.GetLosses() != 0 || after.GetLastError() != nil {
		c.t.Errorf("sessions %v, lost %d times, last error %v", after.GetSessions(), after.GetLosses(), after.GetLastError())
	}
	ctl := c.buildKmsctl()
	out := ctl.must(c.nodes, "hsm", "status")
	for _, text := range []string{"kms-1", "kms-2", "kms-3", "serial " + before.GetHsm().GetSerial(), "RFC 5649 is mechanism", "ECDSA_SHA_256", "of 8 busy", "Self-test", "unwrap"} {
		if !strings.Contains(out, text) {
			c.t.Errorf("hsm status lacks %q:\n%s", text, out)
		}
	}
	var report struct {
		Nodes []struct {
			Name string          `json:"node_name"`
			HSM  json.RawMessage `json:"hsm"`
		} `json:"nodes"`
	}
	must(c.t, json.Unmarshal([]byte(ctl.must(c.nodes, "hsm", "status", "--node", "kms-2", "--output", "json")), &report))
	if len(report.Nodes) != 1 || report.Nodes[0].Name != "kms-2" || !bytes.Contains(report.Nodes[0].HSM, []byte(`"label"`)) {
		c.t.Errorf("as JSON: %v", report)
	}
}

// stopsServing waits until a node says that its token cannot be used, and checks that it
// answers nothing with it and that the others go on.
func (c *testCluster) stopsServing(ctx context.Context, p *process, o object, texts ...string) {
	c.t.Helper()
	crypto := c.crypto(p)
	c.until(p.name+" says why it does not serve", func(s *pb.StatusResponse) bool {
		_, _ = crypto.Encrypt(ctx, &pb.EncryptRequest{KeyId: o.key, Plaintext: []byte("x")}) // some faults show only when the token works
		reason := s.GetNotServingReason()
		return !s.GetServing() && !s.GetHsm().GetHealthy() && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(reason, text) })
	}, p)
	refused(codes.Unavailable, client.ErrHSMUnavailable).check(c.t, "Encrypt at "+p.name, fromStatus(second(crypto.Encrypt(ctx, &pb.EncryptRequest{KeyId: o.key, Plaintext: []byte("x")}))))
	known := []*process{p}
	for _, other := range c.nodes {
		if other != p {
			must(c.t, second(c.dial(userID, other).Decrypt(ctx, o.blob, nil)))
			known = append(known, other)
		}
	}
	must(c.t, second(c.dial(userID, known...).Decrypt(ctx, o.blob, nil))) // a client that knows others does not notice
	c.seal(ctx, 1)
}

// servesAgain waits until a node serves again, with everything that was acknowledged.
func (c *testCluster) servesAgain(ctx context.Context, p *process, all []sealed) {
	c.t.Helper()
	c.until(p.name+" serves again", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	for _, p := range c.nodes {
		c.intact(ctx, p, all)
	}
}

// testTokenLost takes a token away and brings it back.
func testTokenLost(ctx context.Context, c *testCluster, tokens []token) {
	k := tokens[1]
	all, o := c.seal(ctx, 2), c.object(ctx, "alias/lost")
	c.level(ctx)
	before, ctl := c.hsm(ctx, k.process), c.buildKmsctl()
	for _, condition := range []byte("ge") {
		k.is(condition)
		c.stopsServing(ctx, k.process, o, "token", "lost")
		r := c.hsm(ctx, k.process) // it answers without the token
		if r.GetLosses() <= before.GetLosses() || r.GetLost() == nil || r.GetHsm().GetHealthy() || r.GetLastError().GetText() == "" {
			c.t.Errorf("while the token is %q: %v", condition, r)
		}
		if out := ctl.must(c.nodes[:1], "hsm", "status", "--node", k.name); !strings.Contains(out, "FAILED: ") {
			c.t.Errorf("hsm status of a node without a token:\n%s", out)
		}
		k.is('w')
		c.servesAgain(ctx, k.process, all)
		if r := c.hsm(ctx, k.process); r.GetReturns() <= before.GetReturns() || r.GetReturned() == nil || !r.GetHsm().GetHealthy() {
			c.t.Errorf("after the token was %q: %v", condition, r)
		}
		before = c.hsm(ctx, k.process)
	}
	for _, text := range []string{"hsm token lost", "hsm token open again"} {
		if !strings.Contains(k.output(), text) {
			c.t.Errorf("%q is not in the log:\n%s", text, k.output())
		}
	}
}

// testTokenSlow has each call of a token take two seconds: calls end with their deadlines
// or are refused, and other nodes are as quick as ever.
func testTokenSlow(ctx context.Context, c *testCluster, tokens []token) {
	const callers, deadline = 64, 3 * time.Second
	k := tokens[2]
	all, o := c.seal(ctx, 2), c.object(ctx, "alias/slow")
	c.level(ctx)
	k.is('S')
	slow := c.dial(userID, k.process)
	failed := 0
	var mu sync.Mutex
	must(c.t, concurrently(callers, 2*callers, func(i int) error {
		key := all[i%2].key
		if i%3 == 0 {
			key = o.key
		}
		limited, cancel := context.WithTimeout(ctx, deadline)
		defer cancel()
		began := time.Now()
		blob, err := slow.Encrypt(limited, key, []byte("x"), nil)
		if took := time.Since(began); took > deadline+patience/2 {
			return fmt.Errorf("a call with a deadline of %s took %s", deadline, took)
		}
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, sealed{key: key, dek: []byte("x"), blob: blob})
			return nil
		}
		mu.Lock()
		failed++
		mu.Unlock()
		if !slices.ContainsFunc([]error{client.ErrHSMUnavailable, client.ErrBusy, context.DeadlineExceeded}, func(want error) bool { return errors.Is(err, want) }) {
			return fmt.Errorf("at a slow token: %w", err)
		}
		return nil
	}))
	c.t.Logf("%d of %d calls ended without an answer", failed, 2*callers)
	for _, p := range c.nodes[:2] {
		must(c.t, second(c.dial(userID, p).Decrypt(ctx, o.blob, nil)))
	}
	c.seal(ctx, 1, c.nodes[:2]...)
	k.is('w')
	c.eventually(k.name+" is as before", func() bool { return second(slow.Decrypt(ctx, o.blob, nil)) == nil }, k.process)
	for _, s := range all {
		for _, p := range c.nodes {
			opened, err := c.dial(userID, p).Decrypt(ctx, s.blob, nil)
			must(c.t, err)
			if !bytes.Equal(opened, s.dek) {
				c.t.Fatalf("%s opens another plaintext", p.name)
			}
		}
	}
}

// testTokenSessions lets a token run out of sessions, while its node runs and when it
// starts.
func testTokenSessions(ctx context.Context, c *testCluster, tokens []token) {
	k := tokens[1]
	all, o := c.seal(ctx, 1), c.object(ctx, "alias/sessions")
	c.level(ctx)
	k.is('e') // its sessions are closed then
	c.stopsServing(ctx, k.process, o, "lost")
	k.is('n')
	c.stopsServing(ctx, k.process, o, "no session left", "hsm.sessions", "CKR_SESSION_COUNT")
	k.is('w')
	c.servesAgain(ctx, k.process, all)
	k.terminate()
	k.is('n')
	c.failsToStart("without sessions", k.process, exitHSM, "no session left", "hsm.sessions")
	k.is('w')
	k.start()
	c.waitVoters(3)
	c.servesAgain(ctx, k.process, all)
}

// acknowledged is what a client was given while a token erred.
type acknowledged struct {
	sealed     []sealed
	signatures [][]byte
	wrong      []error // refusals that blame somebody else than the HSM
	refused    int
}

// useEverything makes one call of every kind that needs the token.
func (c *testCluster) useEverything(ctx context.Context, p *process, o object, a *acknowledged) {
	crypto, keys := c.crypto(p), pb.NewKeyServiceClient(c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), "alice")))) // which try once
	note := func(err error) bool {
		if err == nil {
			return true
		}
		err = fromStatus(err)
		a.refused++
		if !slices.ContainsFunc([]error{client.ErrHSMUnavailable, client.ErrKeyNotOpened, client.ErrNoLease}, func(want error) bool { return errors.Is(err, want) }) {
			a.wrong = append(a.wrong, err)
		}
		return false
	}
	dek, err := crypto.GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: o.key, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256})
	if note(err) {
		a.sealed = append(a.sealed, sealed{key: o.key, dek: dek.GetPlaintext(), blob: dek.GetCiphertext()})
	}
	opened, err := crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: o.blob})
	if note(err) && string(opened.GetPlaintext()) != "x" {
		a.wrong = append(a.wrong, fmt.Errorf("opened as %q", opened.GetPlaintext()))
	}
	signed, err := crypto.Sign(ctx, &pb.SignRequest{KeyId: o.pair, Message: []byte(proven), SigningAlgorithm: ecdsaP256})
	if note(err) {
		a.signatures = append(a.signatures, signed.GetSignature())
	}
	made, err := keys.CreateKey(ctx, &pb.CreateKeyRequest{})
	if !note(err) {
		return
	}
	of := made.GetKey().GetKeyId()
	dek, err = crypto.GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: of, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256, IndexToken: made.GetIndexToken()})
	if note(err) {
		a.sealed = append(a.sealed, sealed{key: of, dek: dek.GetPlaintext(), blob: dek.GetCiphertext()})
	} else if dek, err = c.dial(userID, c.nodes[0]).Crypto().GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: of, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256, IndexToken: made.GetIndexToken()}); err != nil {
		a.wrong = append(a.wrong, fmt.Errorf("an acknowledged key does not work: %w", err))
	} else {
		a.sealed = append(a.sealed, sealed{key: of, dek: dek.GetPlaintext(), blob: dek.GetCiphertext()})
	}
}

// testWrongAnswers has a token answer wrongly, in one kind of call after the other: nothing
// wrong leaves the node, and what leaves opens everywhere.
func testWrongAnswers(ctx context.Context, c *testCluster, tokens []token) {
	k := tokens[2]
	o := c.object(ctx, "alias/wrong")
	o.pair = c.keyOfSpec(ctx, pb.KeySpec_KEY_SPEC_ECC_NIST_P256, 0)
	c.level(ctx)
	for _, fault := range []struct {
		condition byte
		reason    string // why the node does not serve; empty: it cannot be told from outside whether it errs
	}{
		{'b', "wrong answer"}, {'m', "wrong answer"}, {'p', "wrong answer"}, {'r', ""}, {'t', ""}, {'u', ""},
	} {
		var a acknowledged
		k.is(fault.condition)
		for range 6 {
			c.useEverything(ctx, k.process, o, &a)
		}
		if fault.reason != "" {
			c.stopsServing(ctx, k.process, o, fault.reason)
		}
		if a.refused == 0 && fault.condition != 'r' { // what the node draws beside hides it until its pool is empty
			c.t.Errorf("token %q: nothing was refused", fault.condition)
		}
		for _, err := range a.wrong {
			c.t.Errorf("token %q: %v", fault.condition, err)
		}
		k.is('w')
		c.servesAgain(ctx, k.process, a.sealed)
		for _, signature := range a.signatures {
			must(c.t, c.dial(userID, c.nodes[0]).Verify(ctx, o.pair, []byte(proven), signature, ecdsaP256))
		}
		c.t.Logf("token %q: %d acknowledged, %d refused", fault.condition, len(a.sealed)+len(a.signatures), a.refused)
	}
	if r := c.hsm(ctx, k.process); r.GetCache().GetWrongAnswers() == 0 {
		c.t.Errorf("no wrong answer is counted: %v", r)
	}
}

// testTokenDestroyed destroys the token of one node, and repairs the node as README says.
func testTokenDestroyed(ctx context.Context, c *testCluster, tokens []token) {
	k := tokens[2]
	all, o := c.seal(ctx, 3), c.object(ctx, "alias/destroyed")
	c.level(ctx)
	id := c.member(c.nodes[0], k.name).GetRaftId()
	entries, err := os.ReadDir(k.path("tokens"))
	must(c.t, err)
	for _, e := range entries {
		must(c.t, os.RemoveAll(filepath.Join(k.path("tokens"), e.Name())))
	}
	c.stopsServing(ctx, k.process, o, "not back yet", "remove this node from the cluster")
	all = append(all, c.seal(ctx, 2, c.nodes[:2]...)...)
	k.terminate()
	c.failsToStart("without a token", k.process, exitHSM, "has no token", k.name)

	// The steps of README, "Repair a node whose token is destroyed".
	ctl := c.buildKmsctl()
	ctl.must(c.nodes[:2], "cluster", "remove", k.name, "--yes")
	if out, code := kmsd(c.t, k.env, "hsm", "init-token", "--token", k.name, "--pin-file", k.path("pin"), "--so-pin-file", k.path("so-pin")); code != 0 {
		c.t.Fatalf("init-token: %s", out)
	}
	c.failsToStart("a new token and the old directory", k.process, exitHSM, "does not hold the domain key", "join anew", "empty data directory")
	must(c.t, os.Rename(k.path("data"), k.path("data.old")))
	c.join(k.process)
	c.waitVoters(3)
	c.servesAgain(ctx, k.process, all)
	if m := c.member(c.nodes[0], k.name); m.GetRaftId() == id || !m.GetVoter() {
		c.t.Errorf("after the repair the member is %v", m)
	}
	all = c.seal(ctx, 1, k.process)
	c.servesAgain(ctx, k.process, all)
}
