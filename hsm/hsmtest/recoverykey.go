package hsmtest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/quorumkms/quorumkms/hsm"
)

// testRecoveryKey keeps a recovery key in the partition, which opens copies of a donor's
// generations with it, again and again, and stores none of them.
func testRecoveryKey(t T, env Env) {
	ctx, p, donor := t.Context(), env.Partition, env.Second(t)
	if all, err := p.RecoveryKeys(ctx); len(must(t, all, err)) != 0 {
		t.Fatalf("a new partition has recovery keys %v", all)
	}
	for _, bad := range []string{"", "Vault", "a/b", "-vault", "vault-", string(bytes.Repeat([]byte("a"), hsm.MaxRecoveryName+1))} {
		_, _, err := p.EnsureRecoveryKey(ctx, bad)
		wantErr(t, "a recovery key named "+bad, err, hsm.ErrRefused)
	}
	key, made, err := p.EnsureRecoveryKey(ctx, "vault")
	if errors.Is(err, hsm.ErrUnsupported) { // no node needs it
		return
	}
	if must(t, key, err); !made || key.Name != "vault" || hsm.OAEPName(key.OAEPHash) == "" {
		t.Errorf("made %v: %+v", made, key)
	}
	if _, err := hsm.RecoveryPublicKey(key.SPKI); err != nil {
		t.Fatal(err)
	}
	sameKey := func(p hsm.Partition) {
		t.Helper()
		again, made, err := p.EnsureRecoveryKey(ctx, "vault")
		if must(t, again, err); made || !bytes.Equal(again.SPKI, key.SPKI) {
			t.Errorf("the same name again: made %v, %s, before %s", made, hsm.Fingerprint(again.SPKI), hsm.Fingerprint(key.SPKI))
		}
		all, err := p.RecoveryKeys(ctx)
		if must(t, all, err); len(all) != 1 || all[0].Name != "vault" || !bytes.Equal(all[0].SPKI, key.SPKI) {
			t.Errorf("recovery keys %v", all)
		}
	}
	sameKey(p)

	v := &vault{donor: donor, key: key, trust: env.Trust}
	first, second := createDomain(t, donor, cluster, 1), createDomain(t, donor, cluster, 2)
	older, newer := v.copy(t, 1), v.copy(t, 2)
	v.refused(t, p, older, v.expectation(first))
	// Its Security Officer says first to whom it may give what it opens: some partitions are
	// opened again for that.
	c := &ceremony{donor: p, recipient: env.Second(t), trust: env.Trust}
	c.renew(t)
	c.trust(t, p, c.transfer.SPKI)
	v.takes(t, p, older, first)
	_, err = p.ImportRecovery(ctx, older, v.expectation(first))
	wantErr(t, "the same copy again", err, hsm.ErrExists)
	v.takes(t, p, newer, second) // with the same key
	sameDomain(t, donor, p)
	stranger := env.Second(t)
	alien := &vault{donor: stranger, key: key, trust: env.Trust}
	third := createDomain(t, stranger, cluster, 3)
	_, err = p.ImportRecovery(ctx, alien.copy(t, 3), alien.expectation(third))
	wantErr(t, "a copy with another log key", err, hsm.ErrRefused)

	// It gives them to a node, as any donor does.
	untrusted := &ceremony{donor: p, recipient: stranger}
	untrusted.renew(t)
	_, err = p.Export(ctx, untrusted.request(1))
	wantErr(t, "export to a transfer key that nobody trusts", err, hsm.ErrNotTrusted)
	for _, g := range []hsm.Generation{first, second} {
		message, err := p.Export(ctx, c.request(g.Number))
		must(t, message, err)
		want := c.expectation(t, p, g.Number)
		want.More = g.Number == 1
		c.importing(t, message, want)
	}
	sameDomain(t, donor, c.recipient)

	if env.Reopen == nil {
		return
	}
	reopen := func() {
		t.Helper()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		p = env.Reopen(t)
	}
	reopen()
	sameKey(p)
	if all, err := p.Generations(ctx, cluster); len(must(t, all, err)) != 0 {
		t.Errorf("a copy left generations %v", all)
	}
	_, err = p.LogKey(ctx, cluster)
	wantErr(t, "log key of a copy after opening again", err, hsm.ErrNotFound)
	v.takes(t, p, older, first)

	// What is stored stays as it is, and the copy is opened all the same.
	reopen()
	stored := createDomain(t, p, cluster, 1)
	v.takes(t, p, older, first)
	reopen()
	all, err := p.Generations(ctx, cluster)
	if must(t, all, err); len(all) != 1 || !equalGenerations(all[0], stored) {
		t.Errorf("after the copy of another generation 1 the partition holds %v", all)
	}
}

// vault is a recovery recipient whose key is in a partition.
type vault struct {
	donor hsm.Partition
	key   hsm.RecoveryKey
	trust func(t T, p hsm.Partition, spki []byte)
}

func (v *vault) copy(t T, generation uint32) []byte {
	t.Helper()
	v.trust(t, v.donor, v.key.SPKI)
	message, err := v.donor.ExportRecovery(t.Context(), hsm.RecoveryRequest{
		Cluster: cluster, Epoch: 4, Generation: generation, Donor: "donor", Recipient: "recovery/vault", SPKI: v.key.SPKI, OAEPHash: v.key.OAEPHash,
	})
	must(t, message, err)
	m, err := hsm.ParseTransfer(message)
	if must(t, m, err); m.OAEPHash != v.key.OAEPHash || m.SPKIHash != sha256.Sum256(v.key.SPKI) {
		t.Errorf("a copy with hash %d for another key than was asked for", m.OAEPHash)
	}
	return message
}

func (v *vault) expectation(g hsm.Generation) hsm.ImportExpectation {
	return hsm.ImportExpectation{Cluster: cluster, Epoch: 4, Donor: "donor", Recipient: "recovery/vault", DonorIdentity: v.donor.Identity(), Generation: g}
}

func (v *vault) takes(t T, p hsm.Partition, message []byte, g hsm.Generation) {
	t.Helper()
	got, err := p.ImportRecovery(t.Context(), message, v.expectation(g))
	if must(t, got, err); !equalGenerations(got, g) {
		t.Errorf("a copy opens to %v, want %v", got, g)
	}
	all, err := p.Generations(t.Context(), cluster)
	if must(t, all, err); !slices.ContainsFunc(all, func(x hsm.Generation) bool { return equalGenerations(x, g) }) {
		t.Errorf("generations %v without %v", all, g)
	}
}

// refused tries copies and expectations that are wrong; nothing of them is left.
func (v *vault) refused(t T, p hsm.Partition, message []byte, want hsm.ImportExpectation) {
	t.Helper()
	ctx := t.Context()
	refused := func(what string, message []byte, want hsm.ImportExpectation) {
		t.Helper()
		_, err := p.ImportRecovery(ctx, message, want)
		wantErr(t, "recovery copy: "+what, err, hsm.ErrRefused)
	}
	for what, change := range map[string]func(w *hsm.ImportExpectation){
		"cluster":        func(w *hsm.ImportExpectation) { w.Cluster = other },
		"epoch":          func(w *hsm.ImportExpectation) { w.Epoch++ },
		"donor":          func(w *hsm.ImportExpectation) { w.Donor = "recipient" },
		"recipient":      func(w *hsm.ImportExpectation) { w.Recipient = "recovery/safe" },
		"donor identity": func(w *hsm.ImportExpectation) { w.DonorIdentity = p.Identity() },
		"generation":     func(w *hsm.ImportExpectation) { w.Generation.Number++ },
		"check value": func(w *hsm.ImportExpectation) {
			w.Generation.Checks = slices.Clone(w.Generation.Checks)
			w.Generation.Checks[0].Value[3] ^= 1
		},
	} {
		w := want
		change(&w)
		refused("another "+what, message, w)
	}
	for i := range message {
		if !sampled(i, len(message)) {
			continue
		}
		b := bytes.Clone(message)
		b[i] ^= 0x10
		refused(fmt.Sprintf("byte %d flipped", i), b, want)
	}
	signed := func(by hsm.Partition, change func(m *hsm.TransferMessage)) []byte {
		m, err := hsm.ParseTransfer(message)
		must(t, m, err)
		change(&m)
		m.Signature, err = by.SignIdentity(ctx, m.Signed())
		must(t, m.Signature, err)
		b, err := m.Encode()
		return must(t, b, err)
	}
	refused("signed by the recipient", signed(p, func(*hsm.TransferMessage) {}), want)
	refused("a damaged ciphertext", signed(v.donor, func(m *hsm.TransferMessage) { m.Keys[2].Ciphertext[100] ^= 1 }), want)
	refused("two ciphertexts exchanged", signed(v.donor, func(m *hsm.TransferMessage) {
		m.Keys[0].Ciphertext, m.Keys[1].Ciphertext = m.Keys[1].Ciphertext, m.Keys[0].Ciphertext
	}), want)
	refused("for another key", signed(v.donor, func(m *hsm.TransferMessage) { m.SPKIHash[0] ^= 1 }), want)

	// Neither kind of key opens what is for the other.
	_, err := p.Import(ctx, message, want)
	wantErr(t, "a recovery copy as a transfer, without a transfer key", err, hsm.ErrRefused)
	c := &ceremony{donor: v.donor, recipient: p, trust: v.trust}
	c.renew(t)
	_, err = p.Import(ctx, message, want)
	wantErr(t, "a recovery copy as a transfer", err, hsm.ErrRefused)
	refused("a transfer as a recovery copy", c.export(t, v.donor, 1), c.expectation(t, v.donor, 1))
	if all, err := p.Generations(ctx, cluster); len(must(t, all, err)) != 0 {
		t.Errorf("refused copies left %v", all)
	}
}
