package hsmtest

import (
	"bytes"
	"errors"

	"github.com/quorumkms/quorumkms/hsm"
)

// testCloned: in the transfer profile cloned a partition makes and uses domain keys as in
// generic, and neither gives nor takes any.
func testCloned(t T, env Env) {
	if env.Cloned == nil {
		return
	}
	ctx, p := t.Context(), env.Cloned(t)
	createDomain(t, p, cluster, 1)
	createDomain(t, p, cluster, 2)
	all, err := p.Generations(ctx, cluster)
	if must(t, all, err); len(all) != 2 {
		t.Fatalf("generations %v", all)
	}
	key, err := p.LogKey(ctx, cluster)
	must(t, key, err)
	s := spec(1)
	openKey(t, p, generate(t, p, s), header(s)).Close()
	possession := hsm.Possession{
		Cluster: cluster, Generation: 2, Verifier: "node-a.1", Prover: "node-b.1",
		Exporter: bytes.Repeat([]byte{1}, 32), Nonce: bytes.Repeat([]byte{2}, 32),
	}
	proof, err := p.Possess(ctx, possession)
	must(t, proof, err)

	cloned := func(what string, err error) {
		t.Helper()
		wantErr(t, what, err, hsm.ErrRefused)
		if !errors.Is(err, hsm.ErrCloned) {
			t.Errorf("%s: %v, want %v", what, err, hsm.ErrCloned)
		}
	}
	_, err = p.NewTransfer(ctx)
	cloned("a transfer key", err)

	// What a partition of the profile generic asks for, trusted; and what it would give.
	generic := env.Second(t)
	transfer, err := generic.NewTransfer(ctx)
	must(t, transfer.SPKI, err)
	env.Trust(t, p, transfer.SPKI)
	message, err := p.Export(ctx, hsm.ExportRequest{
		Cluster: cluster, Generation: 1, Donor: "node-a.1", Recipient: "node-b.1", Transfer: transfer, RecipientIdentity: generic.Identity(),
	})
	cloned("export", err)
	if message != nil {
		t.Errorf("export gives %d bytes all the same", len(message))
	}
	c := newCeremony(t, env)
	_, err = p.Import(ctx, c.export(t, c.donor, 1), c.expectation(t, c.donor, 1))
	cloned("import", err)

	if err := p.DestroyDomain(ctx, cluster, held(t, p, 1)); err != nil {
		t.Error(err)
	}
}
