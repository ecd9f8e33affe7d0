package hsmtest

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/quorumkms/quorumkms/hsm"
)

// Transfer moves a generation from donor, which has none of the suite's cluster, to
// recipient, which is empty, and checks that both are then in one domain. trust is the
// step of the donor's Security Officer.
func Transfer(t T, donor, recipient hsm.Partition, trust func(t T, p hsm.Partition, spki []byte)) {
	t.Helper()
	begin(t, donor, recipient, trust).finish(t)
}

// ceremony is a transfer between two partitions.
type ceremony struct {
	donor, recipient hsm.Partition
	trust            func(t T, p hsm.Partition, spki []byte)
	transfer         hsm.Transfer
}

// begin makes generation 1 at the donor and a transfer key at the recipient.
func begin(t T, donor, recipient hsm.Partition, trust func(t T, p hsm.Partition, spki []byte)) *ceremony {
	t.Helper()
	c := &ceremony{donor: donor, recipient: recipient, trust: trust}
	createDomain(t, c.donor, cluster, 1)
	c.renew(t)
	return c
}

func newCeremony(t T, env Env) *ceremony {
	t.Helper()
	return begin(t, env.Second(t), env.Partition, env.Trust)
}

// finish transfers generation 1, with the hash that was asked for.
func (c *ceremony) finish(t T) {
	t.Helper()
	message := c.export(t, c.donor, 1)
	m, err := hsm.ParseTransfer(message)
	if must(t, m, err); m.OAEPHash != c.transfer.OAEPHash {
		t.Errorf("the donor wraps with hash %d, the recipient asks for %d", m.OAEPHash, c.transfer.OAEPHash)
	}
	c.importing(t, message, c.expectation(t, c.donor, 1))
	sameDomain(t, c.donor, c.recipient)
}

// renew makes another transfer key.
func (c *ceremony) renew(t T) {
	t.Helper()
	transfer, err := c.recipient.NewTransfer(t.Context())
	c.transfer = must(t, transfer, err)
}

// request asks for a generation as the donor's node would.
func (c *ceremony) request(generation uint32) hsm.ExportRequest {
	return hsm.ExportRequest{
		Cluster: cluster, Epoch: 4, Generation: generation, Donor: "donor", Recipient: "recipient",
		Transfer: c.transfer, RecipientIdentity: c.recipient.Identity(),
	}
}

// expectation is what the recipient's node knows of that request.
func (c *ceremony) expectation(t T, donor hsm.Partition, generation uint32) hsm.ImportExpectation {
	t.Helper()
	all, err := donor.Generations(t.Context(), cluster)
	must(t, all, err)
	i := slices.IndexFunc(all, func(g hsm.Generation) bool { return g.Number == generation })
	if i < 0 {
		t.Fatalf("the donor has no generation %d", generation)
	}
	return hsm.ImportExpectation{
		Cluster: cluster, Epoch: 4, Donor: "donor", Recipient: "recipient",
		DonorIdentity: donor.Identity(), Generation: all[i],
	}
}

// export trusts the transfer key and exports to it.
func (c *ceremony) export(t T, donor hsm.Partition, generation uint32) []byte {
	t.Helper()
	c.trust(t, donor, c.transfer.SPKI)
	message, err := donor.Export(t.Context(), c.request(generation))
	return must(t, message, err)
}

func (c *ceremony) importing(t T, message []byte, want hsm.ImportExpectation) hsm.Generation {
	t.Helper()
	g, err := c.recipient.Import(t.Context(), message, want)
	if must(t, g, err); !equalGenerations(g, want.Generation) {
		t.Errorf("imported %v, want %v", g, want.Generation)
	}
	return g
}

func testTransfer(t T, env Env) {
	c := newCeremony(t, env)
	ctx := t.Context()
	pub, err := c.transfer.Verify(c.recipient.Identity())
	must(t, pub, err)
	_, err = c.donor.Export(ctx, c.request(1))
	wantErr(t, "export before the security officer's trust", err, hsm.ErrNotTrusted)
	first := c.export(t, c.donor, 1)
	c.importing(t, first, c.expectation(t, c.donor, 1))
	sameDomain(t, c.donor, c.recipient)
	_, err = c.recipient.Import(ctx, first, c.expectation(t, c.donor, 1))
	wantErr(t, "import again", err, hsm.ErrRefused)

	replaced := c.transfer
	c.renew(t)
	if bytes.Equal(replaced.SPKI, c.transfer.SPKI) {
		t.Error("a transfer key was used twice")
	}
	createDomain(t, c.donor, cluster, 2)
	_, err = c.recipient.Import(ctx, first, c.expectation(t, c.donor, 1))
	wantErr(t, "replay to another transfer key", err, hsm.ErrRefused)
	_, err = c.donor.Export(ctx, c.request(2))
	wantErr(t, "export to a transfer key that is not trusted", err, hsm.ErrNotTrusted)
	c.importing(t, c.export(t, c.donor, 2), c.expectation(t, c.donor, 2))
	sameDomain(t, c.donor, c.recipient)

	c.renew(t)
	stranger := env.Second(t)
	createDomain(t, stranger, cluster, 3)
	_, err = c.recipient.Import(ctx, c.export(t, stranger, 3), c.expectation(t, stranger, 3))
	wantErr(t, "a generation with another log key", err, hsm.ErrRefused)
	_, err = c.recipient.Import(ctx, c.export(t, c.donor, 2), c.expectation(t, c.donor, 2))
	wantErr(t, "a generation that is here", err, hsm.ErrExists)
	sameDomain(t, c.donor, c.recipient)
	if env.Reopen != nil {
		sameDomain(t, c.donor, env.Reopen(t))
	}
}

// testTransferOut is testTransfer with the partition as the donor.
func testTransferOut(t T, env Env) {
	c := begin(t, env.Partition, env.Second(t), env.Trust)
	_, err := c.donor.Export(t.Context(), c.request(1))
	wantErr(t, "export before the security officer's trust", err, hsm.ErrNotTrusted)
	c.finish(t)
}

// sameDomain checks that two partitions hold the same domain of the cluster and
// open each other's tokens.
func sameDomain(t T, a, b hsm.Partition) {
	t.Helper()
	ctx := t.Context()
	gensA, errA := a.Generations(ctx, cluster)
	gensB, errB := b.Generations(ctx, cluster)
	if !slices.EqualFunc(must(t, gensA, errA), must(t, gensB, errB), equalGenerations) {
		t.Fatalf("generations differ: %v and %v", gensA, gensB)
	}
	logA, errA := a.LogKey(ctx, cluster)
	logB, errB := b.LogKey(ctx, cluster)
	if !bytes.Equal(must(t, logA, errA), must(t, logB, errB)) {
		t.Error("log keys differ")
	}
	for _, g := range gensA {
		proof := possession()
		proof.Generation = g.Number
		proofA, errA := a.Possess(ctx, proof)
		proofB, errB := b.Possess(ctx, proof)
		if !bytes.Equal(must(t, proofA, errA), must(t, proofB, errB)) {
			t.Errorf("generation %d: proofs differ", g.Number)
		}
		s := spec(1)
		s.Generation = g.Number
		for _, maker := range []hsm.Partition{a, b} {
			token := generate(t, maker, s)
			blocksA := encrypt(t, openKey(t, a, token, header(s)), pattern(2))
			blocksB := encrypt(t, openKey(t, b, token, header(s)), pattern(2))
			if !bytes.Equal(blocksA, blocksB) {
				t.Errorf("generation %d: a token opens to two keys", g.Number)
			}
		}
		if g.Number == 1 {
			sameSecrets(t, a, b)
		}
	}
}

func testTransferRefused(t T, env Env) {
	c := newCeremony(t, env)
	ctx := t.Context()
	message := c.export(t, c.donor, 1)
	want := c.expectation(t, c.donor, 1)

	for name, change := range map[string]func(r *hsm.ExportRequest){
		"donor":              func(r *hsm.ExportRequest) { r.Donor = "" },
		"recipient":          func(r *hsm.ExportRequest) { r.Recipient = string(make([]byte, 256)) },
		"recipient identity": func(r *hsm.ExportRequest) { r.RecipientIdentity = c.donor.Identity() },
		"transfer signature": func(r *hsm.ExportRequest) { r.Transfer.Signature = nil },
		"oaep hash":          func(r *hsm.ExportRequest) { r.Transfer.OAEPHash = otherHash(r.Transfer.OAEPHash) },
		"no oaep hash":       func(r *hsm.ExportRequest) { r.Transfer.OAEPHash = 0 },
		"transfer key":       func(r *hsm.ExportRequest) { r.Transfer.SPKI = c.recipient.Identity() },
	} {
		r := c.request(1)
		change(&r)
		_, err := c.donor.Export(ctx, r)
		wantErr(t, "export with a wrong "+name, err, hsm.ErrRefused)
	}
	_, err := c.donor.Export(ctx, c.request(2))
	wantErr(t, "export of a generation that is not there", err, hsm.ErrNotFound)

	refused := func(what string, message []byte, want hsm.ImportExpectation) {
		t.Helper()
		_, err := c.recipient.Import(ctx, message, want)
		wantErr(t, "import: "+what, err, hsm.ErrRefused)
	}
	c.refuseExpectations(t, message, want, refused)
	for i := range message {
		if !sampled(i, len(message)) {
			continue
		}
		b := bytes.Clone(message)
		b[i] ^= 0x10
		refused(fmt.Sprintf("byte %d flipped", i), b, want)
		refused(fmt.Sprintf("cut to %d bytes", i), message[:i], want)
	}
	refused("a byte more", append(bytes.Clone(message), 0), want)
	c.refuseSigned(t, message, want, refused)

	if all, err := c.recipient.Generations(ctx, cluster); len(must(t, all, err)) != 0 {
		t.Errorf("a refused message left %v", all)
	}
	_, err = c.recipient.LogKey(ctx, cluster)
	wantErr(t, "log key after refused messages", err, hsm.ErrNotFound)
	c.importing(t, message, want) // they did not cost the transfer key either
	sameDomain(t, c.donor, c.recipient)
}

// sampled selects the positions of a message to change: the header, the first key
// up to its ciphertext, the signature, and some between.
func sampled(i, size int) bool {
	const header, signature = 140, 80
	return i < header || i >= size-signature || i%97 == 0
}

func (c *ceremony) refuseExpectations(t T, message []byte, want hsm.ImportExpectation, refused func(string, []byte, hsm.ImportExpectation)) {
	t.Helper()
	for name, change := range map[string]func(w *hsm.ImportExpectation){
		"cluster":        func(w *hsm.ImportExpectation) { w.Cluster = other },
		"epoch":          func(w *hsm.ImportExpectation) { w.Epoch++ },
		"donor":          func(w *hsm.ImportExpectation) { w.Donor = "recipient" },
		"recipient":      func(w *hsm.ImportExpectation) { w.Recipient = "donor" },
		"donor identity": func(w *hsm.ImportExpectation) { w.DonorIdentity = c.recipient.Identity() },
		"generation":     func(w *hsm.ImportExpectation) { w.Generation.Number = 2 },
		"no checks":      func(w *hsm.ImportExpectation) { w.Generation.Checks = nil },
		"a check less":   func(w *hsm.ImportExpectation) { w.Generation.Checks = w.Generation.Checks[1:] },
	} {
		w := want
		change(&w)
		refused("another "+name, message, w)
	}
	for i := range want.Generation.Checks {
		w := want
		w.Generation.Checks = slices.Clone(want.Generation.Checks)
		w.Generation.Checks[i].Value[15] ^= 1
		refused(fmt.Sprintf("another check value of kind %d", w.Generation.Checks[i].Kind), message, w)
	}
}

// refuseSigned tries messages with a good signature: of somebody else, or of a
// donor that lies about the keys inside.
func (c *ceremony) refuseSigned(t T, message []byte, want hsm.ImportExpectation, refused func(string, []byte, hsm.ImportExpectation)) {
	t.Helper()
	signed := func(by hsm.Partition, change func(m *hsm.TransferMessage)) []byte {
		m, err := hsm.ParseTransfer(message)
		must(t, m, err)
		change(&m)
		m.Signature, err = by.SignIdentity(t.Context(), m.Signed())
		must(t, m.Signature, err)
		b, err := m.Encode()
		return must(t, b, err)
	}
	refused("signed by the recipient", signed(c.recipient, func(*hsm.TransferMessage) {}), want)
	refused("two ciphertexts exchanged", signed(c.donor, func(m *hsm.TransferMessage) {
		m.Keys[0].Ciphertext, m.Keys[1].Ciphertext = m.Keys[1].Ciphertext, m.Keys[0].Ciphertext
	}), want)
	refused("mac key in the place of the log key", signed(c.donor, func(m *hsm.TransferMessage) {
		m.Keys[6].Ciphertext = m.Keys[5].Ciphertext
	}), want)
	for i := range want.Generation.Checks {
		refused(fmt.Sprintf("ciphertext %d damaged", i), signed(c.donor, func(m *hsm.TransferMessage) {
			m.Keys[i].Ciphertext[100] ^= 1
		}), want)
	}
	refused("ciphertext of the wrong length", signed(c.donor, func(m *hsm.TransferMessage) {
		m.Keys[2].Ciphertext = m.Keys[2].Ciphertext[:383]
	}), want)
	refused("another oaep hash", signed(c.donor, func(m *hsm.TransferMessage) {
		m.OAEPHash = otherHash(m.OAEPHash)
	}), want)
}

func otherHash(hash uint8) uint8 {
	if hash == hsm.OAEPSHA1 {
		return hsm.OAEPSHA256
	}
	return hsm.OAEPSHA1
}

// testTransferHashes transfers with every hash that a recipient can ask for.
func testTransferHashes(t T, env Env) {
	tried := 0
	for _, hash := range []uint8{hsm.OAEPSHA1, hsm.OAEPSHA256} {
		recipient := env.Asking(t, hash)
		if recipient == nil {
			continue
		}
		tried++
		c := begin(t, env.Second(t), recipient, env.Trust)
		if c.transfer.OAEPHash != hash {
			t.Fatalf("asks for hash %d, not %d", c.transfer.OAEPHash, hash)
		}
		c.refuseHashes(t)
		c.finish(t)
	}
	if tried == 0 {
		t.Error("there is no hash to ask for")
	}
}

// refuseHashes asks the donor for other hashes than the recipient announced, all of
// them well signed.
func (c *ceremony) refuseHashes(t T) {
	t.Helper()
	ctx := t.Context()
	c.trust(t, c.donor, c.transfer.SPKI)
	for _, hash := range []uint8{0, 3, otherHash(c.transfer.OAEPHash)} {
		r := c.request(1)
		r.Transfer.OAEPHash = hash
		sig, err := c.recipient.SignIdentity(ctx, hsm.TransferKeyMessage(r.Transfer))
		r.Transfer.Signature = must(t, sig, err)
		message, err := c.donor.Export(ctx, r)
		if err == nil && hsm.OAEPName(hash) != "" { // a donor that has both
			_, err = c.recipient.Import(ctx, message, c.expectation(t, c.donor, 1))
		}
		wantErr(t, fmt.Sprintf("hash %d instead of %d", hash, c.transfer.OAEPHash), err, hsm.ErrRefused)
	}
}

// sameSecrets: keys of every class that either makes are used by both.
func sameSecrets(t T, a, b hsm.Partition) {
	t.Helper()
	for _, maker := range []hsm.Partition{a, b} {
		both := supported(t, b, supported(t, a, []hsm.Kind{kinds()[0], kinds()[3], kinds()[4], kinds()[5], kinds()[6]}))
		for i, k := range both {
			ref := secret(t, maker, byte(i), k)
			useSecret(t, a, ref)
			useSecret(t, b, ref)
		}
	}
}
