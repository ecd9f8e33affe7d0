package hsmtest

import (
	"bytes"
	"slices"

	"github.com/quorumkms/quorumkms/hsm"
)

// testRewrap moves a key of every kind to another generation.
func testRewrap(t T, env Env) {
	p, ctx := env.Partition, t.Context()
	createDomain(t, p, cluster, 1)
	refs := []hsm.Ref{{Token: generate(t, p, spec(1)), Want: header(spec(1)), Kind: hsm.Kind{Class: hsm.ClassAES}}}
	for i, k := range kinds() {
		refs = append(refs, secret(t, p, byte(i+2), k))
	}
	resident := residentSpec(byte(len(refs) + 1))
	refs = append(refs, residentRef(generate(t, p, resident), resident))
	before := openKey(t, p, refs[0].Token, refs[0].Want)
	block := encrypt(t, before, pattern(hsm.BlockSize))
	before.Close()
	createDomain(t, p, cluster, 2)
	c := &ceremony{donor: p, recipient: p, trust: env.Trust}
	c.renew(t)
	message := c.export(t, p, 1)
	want := c.expectation(t, p, 1)

	_, err := p.Rewrap(ctx, refs[0], 2)
	wantErr(t, "rewrap without a twin", err, hsm.ErrNotFound)
	wantErr(t, "destroying a twin that is not there", p.DestroyTwin(ctx, cluster, 1), hsm.ErrNotFound)
	foreign := want
	foreign.DonorIdentity = env.Second(t).Identity()
	wantErr(t, "a twin of another donor", p.InstallTwin(ctx, message, foreign), hsm.ErrRefused)
	foreign = want
	foreign.Generation.Checks = slices.Clone(want.Generation.Checks)
	foreign.Generation.Checks[0].Value[0] ^= 1
	wantErr(t, "a twin of another generation", p.InstallTwin(ctx, message, foreign), hsm.ErrRefused)
	if err := p.InstallTwin(ctx, message, want); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a message twice", p.InstallTwin(ctx, message, want), hsm.ErrRefused)
	c.renew(t)
	wantErr(t, "a twin twice", p.InstallTwin(ctx, c.export(t, p, 1), want), hsm.ErrExists)
	twins, err := p.Twins(ctx, cluster)
	if must(t, twins, err); !slices.Equal(twins, []uint32{1}) {
		t.Errorf("twins %v, want 1", twins)
	}
	if all, err := p.Generations(ctx, cluster); err != nil || len(all) != 2 {
		t.Errorf("generations %v, error %v with a twin", all, err)
	}

	_, err = p.Rewrap(ctx, refs[0], 3)
	wantErr(t, "rewrap to what is not held", err, hsm.ErrNotFound)
	wrong := refs[0]
	wrong.Want.Version++
	_, err = p.Rewrap(ctx, wrong, 2)
	wantErr(t, "rewrap of another version", err, hsm.ErrCorrupt)
	wrong = refs[0]
	wrong.Token = bytes.Clone(wrong.Token)
	wrong.Token[80] ^= 1
	_, err = p.Rewrap(ctx, wrong, 2)
	wantErr(t, "rewrap of an altered token", err, hsm.ErrCorrupt)

	moved := make([]hsm.Ref, len(refs))
	for i, old := range refs {
		token, err := p.Rewrap(ctx, old, 2)
		if err != nil {
			t.Fatalf("%v: %v", old.Kind, err)
		}
		h, err := hsm.Rewrapped(old.Token, token)
		if must(t, h, err); h.Generation != 2 {
			t.Errorf("%v: rewrapped under generation %d", old.Kind, h.Generation)
		}
		moved[i] = old
		moved[i].Token, moved[i].Want.Generation = token, 2
		_, err = hsm.Rewrapped(refs[(i+1)%len(refs)].Token, token)
		wantErr(t, "another key's token", err, hsm.ErrRefused)
		_, err = p.Rewrap(ctx, moved[i], 1)
		wantErr(t, "rewrap of what has no twin", err, hsm.ErrNotFound)
	}

	if err := p.DestroyTwin(ctx, cluster, 1); err != nil {
		t.Fatal(err)
	}
	_, err = p.Rewrap(ctx, refs[0], 2)
	wantErr(t, "rewrap after the ceremony", err, hsm.ErrNotFound)
	if err := p.DestroyDomain(ctx, cluster, held(t, p, 1)); err != nil {
		t.Fatal(err)
	}
	after := openKey(t, p, moved[0].Token, moved[0].Want)
	defer after.Close()
	if !bytes.Equal(encrypt(t, after, pattern(hsm.BlockSize)), block) {
		t.Error("the rewrapped token holds another key")
	}
	last := len(moved) - 1
	if err := hsm.TryOpen(ctx, p, moved[last]); err != nil { // its check value says which key it is
		t.Errorf("a resident key does not open: %v", err)
	}
	for _, ref := range moved[1:last] { // the check value, or the public half, says which key it is
		useSecret(t, p, ref)
	}
}
