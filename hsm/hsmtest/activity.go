package hsmtest

import (
	"slices"

	"github.com/quorumkms/quorumkms/hsm"
)

// testActivity: what was done is counted, what the partition can do is told, and a token
// that is well stands up to doubt.
func testActivity(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	count := func(k hsm.CallKind) hsm.CallCount {
		all := p.Activity().Calls
		i := slices.IndexFunc(all, func(c hsm.CallCount) bool { return c.Kind == k })
		if i < 0 {
			t.Fatalf("calls to %s are not counted", k)
		}
		return all[i]
	}
	before := map[hsm.CallKind]uint64{}
	done := []hsm.CallKind{hsm.CallEncrypt, hsm.CallGenerate, hsm.CallUnwrap, hsm.CallRandom, hsm.CallSign}
	for _, k := range done {
		before[k] = count(k).Count
	}
	s := spec(1)
	key := openKey(t, p, generate(t, p, s), header(s))
	encrypt(t, key, pattern(2*hsm.BlockSize))
	if err := p.Random(ctx, make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.SignIdentity(ctx, []byte("counted")); err != nil {
		t.Fatal(err)
	}
	if err := p.Doubt(ctx); err != nil {
		t.Errorf("doubt: %v", err)
	}
	encrypt(t, key, pattern(2*hsm.BlockSize)) // it is as it was
	for _, k := range done {
		if c := count(k); c.Count <= before[k] || c.Errors != 0 || c.Time < 0 {
			t.Errorf("calls to %s: %d before, %+v after", k, before[k], c)
		}
	}
	a := p.Activity()
	for _, algorithm := range hsm.Algorithms() {
		if p.Supports(algorithm) != slices.Contains(a.Algorithms, algorithm) {
			t.Errorf("%s is in one list only", algorithm)
		}
	}
	if len(a.OAEPHashes) == 0 || a.Losses != 0 || a.Returns != 0 || a.LastError != "" {
		t.Errorf("it tells %+v", a)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "doubt in a closed partition", p.Doubt(ctx), hsm.ErrUnavailable)
}
