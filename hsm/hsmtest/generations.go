package hsmtest

import (
	"github.com/quorumkms/quorumkms/hsm"
)

// testGenerations moves two generations with one transfer key, and destroys the older one.
func testGenerations(t T, env Env) {
	c := newCeremony(t, env)
	ctx := t.Context()
	createDomain(t, c.donor, cluster, 2)
	s := spec(1)
	old := generate(t, c.donor, s)
	s2 := s
	s2.Generation = 2
	young := generate(t, c.donor, s2)

	want := c.expectation(t, c.donor, 2)
	want.More = true
	c.importing(t, c.export(t, c.donor, 2), want)
	_, err := c.recipient.Open(ctx, old, header(s))
	wantErr(t, "a token of a generation that has not come yet", err, hsm.ErrNotFound)
	last := c.export(t, c.donor, 1)
	c.importing(t, last, c.expectation(t, c.donor, 1))
	sameDomain(t, c.donor, c.recipient)
	_, err = c.recipient.Import(ctx, last, c.expectation(t, c.donor, 1))
	wantErr(t, "import after the last one", err, hsm.ErrRefused)

	p := c.recipient
	g1, g2 := held(t, p, 1), held(t, p, 2)
	wantErr(t, "destroying what is not there", p.DestroyDomain(ctx, cluster, hsm.Generation{Number: 3, Checks: g1.Checks}), hsm.ErrNotFound)
	wantErr(t, "destroying another cluster's", p.DestroyDomain(ctx, other, g1), hsm.ErrNotFound)
	wantErr(t, "destroying another of the number", p.DestroyDomain(ctx, cluster, hsm.Generation{Number: 1, Checks: g2.Checks}), hsm.ErrRefused)
	wantErr(t, "destroying by the number", p.DestroyDomain(ctx, cluster, hsm.Generation{Number: 1}), hsm.ErrRefused)
	openKey(t, p, old, header(s)).Close()
	if err := p.DestroyDomain(ctx, cluster, g1); err != nil {
		t.Fatal(err)
	}
	afterwards := func(p hsm.Partition) {
		t.Helper()
		all, err := p.Generations(ctx, cluster)
		if must(t, all, err); len(all) != 1 || all[0].Number != 2 {
			t.Errorf("generations %v are left", all)
		}
		_, err = p.Open(ctx, old, header(s))
		wantErr(t, "a token of a destroyed generation", err, hsm.ErrNotFound)
		openKey(t, p, young, header(s2)).Close()
		key, err := p.LogKey(ctx, cluster)
		must(t, key, err)
		wantErr(t, "destroying it twice", p.DestroyDomain(ctx, cluster, g1), hsm.ErrNotFound)
		wantErr(t, "destroying the last one", p.DestroyDomain(ctx, cluster, g2), hsm.ErrRefused)
	}
	afterwards(p)
	if env.Reopen != nil {
		afterwards(env.Reopen(t))
	}
}

// held is a generation as the partition lists it.
func held(t T, p hsm.Partition, number uint32) hsm.Generation {
	t.Helper()
	all, err := p.Generations(t.Context(), cluster)
	must(t, all, err)
	for _, g := range all {
		if g.Number == number {
			return g
		}
	}
	t.Fatalf("generation %d is not there", number)
	return hsm.Generation{}
}
