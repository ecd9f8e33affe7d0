// Package hsmtest is the conformance suite of hsm.Partition: whatever provides a
// partition passes it. Tests run it, and "kmsd hsm check --scratch" on an operator's token:
// so it knows package testing only by what it needs of it.
package hsmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

// Env is an empty partition and what the suite needs around it. Whoever makes it
// also closes its partitions when the test ends.
type Env struct {
	Partition hsm.Partition
	// Reopen closes Partition and opens the same token again. Nil: the partition
	// is in memory only.
	Reopen func(t T) hsm.Partition
	// Second returns another empty partition, a new one at each call.
	Second func(t T) hsm.Partition
	// Asking returns another empty partition whose transfer keys ask for this OAEP
	// hash, or nil if there can be none.
	Asking func(t T, oaepHash uint8) hsm.Partition
	// Cloned returns another empty partition, of the transfer profile cloned. Nil: whoever
	// runs the suite has no second token for that.
	Cloned func(t T) hsm.Partition
	// Trust is the step of p's Security Officer: it trusts a transfer key.
	Trust func(t T, p hsm.Partition, spki []byte)
}

// T is what the suite needs of *testing.T. Fatal and Fatalf do not return.
type T interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Part is a part of the suite. It wants an Env of its own.
type Part struct {
	Name string
	Run  func(t T, env Env)
}

// Parts is the suite.
func Parts() []Part {
	return []Part{
		{"identity", testIdentity},
		{"random", testRandom},
		{"domain", testDomain},
		{"possession", testPossession},
		{"keys", testKeys},
		{"keys refused", testKeysRefused},
		{"blocks", testBlocks},
		{"tampered tokens", testTamperedTokens},
		{"wrong expectations", testWrongExpectations},
		{"foreign tokens", testForeignTokens},
		{"transfer", testTransfer},
		{"transfer out", testTransferOut},
		{"generations", testGenerations},
		{"rewrap", testRewrap},
		{"transfer refused", testTransferRefused},
		{"transfer hashes", testTransferHashes},
		{"cloned", testCloned},
		{"recovery", testRecovery},
		{"recovery key", testRecoveryKey},
		{"concurrency", testConcurrency},
		{"keyring", testKeyring},
		{"secrets", testSecrets},
		{"secrets refused", testSecretsRefused},
		{"secret expectations", testSecretExpectations},
		{"secret keyring", testSecretKeyring},
		{"resident", testResident},
		{"resident refused", testResidentRefused},
		{"resident keyring", testResidentKeyring},
		{"import", testImport},
		{"import refused", testImportRefused},
		{"activity", testActivity},
		{"closed", testClosed},
	}
}

// Run runs the suite in a test. open makes a new Env for every part of it.
func Run[R interface {
	T
	Run(name string, f func(R)) bool
}](t R, open func(t R) Env) {
	for _, part := range Parts() {
		t.Run(part.Name, func(t R) { part.Run(t, open(t)) })
	}
}

var (
	cluster = hsm.ID([]byte("conformance-suit"))
	other   = hsm.ID([]byte("another-cluster."))
)

// must returns v, or ends the test.
func must[V any](t T, v V, err error) V {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// wantErr checks that err wraps one of the sentinels.
func wantErr(t T, what string, err error, sentinels ...error) {
	t.Helper()
	if !slices.ContainsFunc(sentinels, func(s error) bool { return errors.Is(err, s) }) {
		t.Errorf("%s: error %v, want %v", what, err, sentinels)
	}
}

// createDomain makes a generation of the cluster, which the partition lacks.
func createDomain(t T, p hsm.Partition, cluster hsm.ID, number uint32) hsm.Generation {
	t.Helper()
	g, err := p.CreateDomain(t.Context(), cluster, number)
	return must(t, g, err)
}

func equalGenerations(a, b hsm.Generation) bool {
	return a.Number == b.Number && slices.Equal(a.Checks, b.Checks)
}

func testIdentity(t T, env Env) {
	p := env.Partition
	if p.Info().Kind == "" {
		t.Error("info without a kind")
	}
	if err := p.Healthy(); err != nil {
		t.Errorf("healthy: %v", err)
	}
	spki := p.Identity()
	message := []byte("a message to sign")
	sig, err := p.SignIdentity(t.Context(), message)
	must(t, sig, err)
	if err := hsm.VerifyIdentitySignature(spki, message, sig); err != nil {
		t.Error(err)
	}
	wantErr(t, "another message", hsm.VerifyIdentitySignature(spki, message[1:], sig), hsm.ErrRefused)
	wantErr(t, "another partition", hsm.VerifyIdentitySignature(env.Second(t).Identity(), message, sig), hsm.ErrRefused)

	clear(p.Identity())
	if !bytes.Equal(p.Identity(), spki) {
		t.Error("the identity changes with the caller's copy of it")
	}
	if env.Reopen == nil {
		return
	}
	p = env.Reopen(t)
	if !bytes.Equal(p.Identity(), spki) {
		t.Error("another identity after opening again")
	}
	sig, err = p.SignIdentity(t.Context(), message)
	must(t, sig, err)
	if err := hsm.VerifyIdentitySignature(spki, message, sig); err != nil {
		t.Errorf("after opening again: %v", err)
	}
}

func testRandom(t T, env Env) {
	for _, n := range []int{1, 16, 33, hsm.MaxRandom} {
		a, b := make([]byte, n), make([]byte, n)
		for _, buffer := range [][]byte{a, b} {
			if err := env.Partition.Random(t.Context(), buffer); err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
		}
		if n >= 16 && (bytes.Equal(a, b) || bytes.Equal(a, make([]byte, n)) || bytes.Equal(a[n-8:], make([]byte, 8))) {
			t.Errorf("%d bytes: %x then %x", n, a, b)
		}
	}
	for _, n := range []int{0, hsm.MaxRandom + 1} {
		wantErr(t, fmt.Sprintf("%d bytes", n), env.Partition.Random(t.Context(), make([]byte, n)), hsm.ErrRefused)
	}
}

func testDomain(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	if all, err := p.Generations(ctx, cluster); len(must(t, all, err)) != 0 {
		t.Fatalf("a new partition holds %v", all)
	}
	_, err := p.LogKey(ctx, cluster)
	wantErr(t, "log key of no domain", err, hsm.ErrNotFound)

	second := createDomain(t, p, cluster, 2)
	logKey, err := p.LogKey(ctx, cluster)
	if len(must(t, logKey, err)) != 32 {
		t.Errorf("log key of %d bytes", len(logKey))
	}
	first := createDomain(t, p, cluster, 1)
	for _, g := range []hsm.Generation{first, second} {
		checkGeneration(t, g)
	}
	for i, kind := range hsm.DomainKinds() {
		if same := first.Checks[i] == second.Checks[i]; same != (kind == hsm.KindLog) {
			t.Errorf("kind %d: same key in two generations: %v", kind, same)
		}
	}
	_, err = p.CreateDomain(ctx, cluster, 1)
	wantErr(t, "generation 1 again", err, hsm.ErrExists)
	if all, err := p.Generations(ctx, other); len(must(t, all, err)) != 0 {
		t.Errorf("another cluster has %v", all)
	}
	otherFirst := createDomain(t, p, other, 1)
	for i, check := range otherFirst.Checks {
		if check == first.Checks[i] {
			t.Errorf("kind %d: same key in two clusters", check.Kind)
		}
	}

	same := func(when string) {
		t.Helper()
		all, err := p.Generations(ctx, cluster)
		must(t, all, err)
		if len(all) != 2 || !equalGenerations(all[0], first) || !equalGenerations(all[1], second) {
			t.Errorf("%s: generations %v", when, all)
		}
		again, err := p.LogKey(ctx, cluster)
		if !bytes.Equal(must(t, again, err), logKey) {
			t.Errorf("%s: another log key", when)
		}
		of, err := p.LogKey(ctx, other)
		if bytes.Equal(must(t, of, err), logKey) {
			t.Errorf("%s: two clusters have one log key", when)
		}
	}
	same("at first")
	if env.Reopen != nil {
		p = env.Reopen(t)
		same("after opening again")
		_, err = p.CreateDomain(ctx, cluster, 2)
		wantErr(t, "generation 2 after opening again", err, hsm.ErrExists)
	}
}

// checkGeneration checks that a generation has the keys it must have, all
// different.
func checkGeneration(t T, g hsm.Generation) {
	t.Helper()
	seen := map[[16]byte]bool{{}: true}
	var kinds []hsm.KeyKind
	for _, c := range g.Checks {
		if seen[c.Value] {
			t.Errorf("generation %d, kind %d: check value %x is zero or seen before", g.Number, c.Kind, c.Value)
		}
		seen[c.Value] = true
		kinds = append(kinds, c.Kind)
	}
	if !slices.Equal(kinds, hsm.DomainKinds()) {
		t.Errorf("generation %d has the kinds %v", g.Number, kinds)
	}
}

// possession is a well-formed request for a proof.
func possession() hsm.Possession {
	return hsm.Possession{
		Cluster: cluster, Generation: 1, Verifier: "verifier", Prover: "prover",
		Exporter: bytes.Repeat([]byte{1}, 32), Nonce: bytes.Repeat([]byte{2}, 32),
	}
}

func testPossession(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	createDomain(t, p, cluster, 2)
	createDomain(t, p, other, 1)
	proof, err := p.Possess(ctx, possession())
	if len(must(t, proof, err)) != 32 {
		t.Errorf("proof of %d bytes", len(proof))
	}
	again, err := p.Possess(ctx, possession())
	if !bytes.Equal(must(t, again, err), proof) {
		t.Error("another proof of the same")
	}
	for field, change := range map[string]func(q *hsm.Possession){
		"cluster":    func(q *hsm.Possession) { q.Cluster = other },
		"generation": func(q *hsm.Possession) { q.Generation = 2 },
		"verifier":   func(q *hsm.Possession) { q.Verifier = "verifies" },
		"prover":     func(q *hsm.Possession) { q.Prover = "provers" },
		"both names": func(q *hsm.Possession) { q.Verifier, q.Prover = "verifierprov", "er" },
		"swapped":    func(q *hsm.Possession) { q.Verifier, q.Prover = q.Prover, q.Verifier },
		"exporter":   func(q *hsm.Possession) { q.Exporter[31]++ },
		"nonce":      func(q *hsm.Possession) { q.Nonce[0]++ },
	} {
		q := possession()
		change(&q)
		b, err := p.Possess(ctx, q)
		if bytes.Equal(must(t, b, err), proof) {
			t.Errorf("the proof does not depend on: %s", field)
		}
	}
	for name, change := range map[string]func(q *hsm.Possession){
		"no verifier":    func(q *hsm.Possession) { q.Verifier = "" },
		"no prover":      func(q *hsm.Possession) { q.Prover = "" },
		"short exporter": func(q *hsm.Possession) { q.Exporter = q.Exporter[1:] },
		"no nonce":       func(q *hsm.Possession) { q.Nonce = nil },
	} {
		q := possession()
		change(&q)
		_, err := p.Possess(ctx, q)
		wantErr(t, name, err, hsm.ErrRefused)
	}
	q := possession()
	q.Generation = 3
	_, err = p.Possess(ctx, q)
	wantErr(t, "a generation that is not there", err, hsm.ErrNotFound)
}

func testClosed(t T, env Env) {
	p, ctx := env.Partition, context.Background()
	createDomain(t, p, cluster, 1)
	token := generate(t, p, spec(1))
	key, err := p.Open(ctx, token, header(spec(1)))
	must(t, key, err)
	inside, err := p.OpenResident(ctx, generate(t, p, residentSpec(2)), header(residentSpec(2)))
	must(t, inside, err)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	var block [hsm.BlockSize]byte
	wantErr(t, "open key", key.EncryptBlocks(ctx, block[:], make([]byte, hsm.BlockSize)), hsm.ErrUnavailable, hsm.ErrStale)
	key.Close()
	_, err = inside.Seal(ctx, []byte("message"), bound(nil, "context"))
	wantErr(t, "open resident key", err, hsm.ErrUnavailable, hsm.ErrStale)
	inside.Close()
	for name, call := range map[string]func() error{
		"Healthy":      p.Healthy,
		"SignIdentity": func() error { _, err := p.SignIdentity(ctx, nil); return err },
		"Random":       func() error { return p.Random(ctx, block[:]) },
		"CreateDomain": func() error { _, err := p.CreateDomain(ctx, cluster, 2); return err },
		"Generations":  func() error { _, err := p.Generations(ctx, cluster); return err },
		"LogKey":       func() error { _, err := p.LogKey(ctx, cluster); return err },
		"NewTransfer":  func() error { _, err := p.NewTransfer(ctx); return err },
		"RecoveryKeys": func() error { _, err := p.RecoveryKeys(ctx); return err },
		"Possess":      func() error { _, err := p.Possess(ctx, possession()); return err },
		"GenerateKey":  func() error { _, err := p.GenerateKey(ctx, spec(2)); return err },
		"Open":         func() error { _, err := p.Open(ctx, token, header(spec(1))); return err },
		"OpenResident": func() error { _, err := p.OpenResident(ctx, token, header(spec(1))); return err },
	} {
		wantErr(t, name, call(), hsm.ErrUnavailable)
	}
}

// spec asks for the n-th key of the suite.
func spec(n byte) hsm.KeySpec {
	return hsm.KeySpec{
		Cluster: cluster, Generation: 1, Class: hsm.ClassAES, Key: hsm.ID{'k', 'e', 'y', n}, Version: uint32(n),
		Created: time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC),
	}
}

// header is the record of a key made from s.
func header(s hsm.KeySpec) hsm.TokenHeader {
	return hsm.TokenHeader{
		Class: s.Class, Attributes: s.Attributes | s.Class.Attributes(), Generation: s.Generation,
		Cluster: s.Cluster, Key: s.Key, Version: s.Version, Created: s.Created.Truncate(time.Second),
	}
}

func generate(t T, p hsm.Partition, s hsm.KeySpec) []byte {
	t.Helper()
	made, err := p.GenerateKey(t.Context(), s)
	return must(t, made, err).Token
}
