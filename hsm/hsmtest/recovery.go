package hsmtest

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"

	"github.com/quorumkms/quorumkms/hsm"
)

// testRecovery wraps a generation for a recovery key, which is opened here.
func testRecovery(t T, env Env) {
	ctx, p := t.Context(), env.Partition
	g := createDomain(t, p, cluster, 1)
	key, err := rsa.GenerateKey(rand.Reader, hsm.RecoveryKeyBits)
	must(t, key, err)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, spki, err)
	r := hsm.RecoveryRequest{Cluster: cluster, Epoch: 4, Generation: 1, Donor: "donor", Recipient: "recovery/vault", SPKI: spki}

	wantErr(t, "a key that nobody trusts", p.Trusted(ctx, spki), hsm.ErrNotTrusted)
	_, err = p.ExportRecovery(ctx, r)
	wantErr(t, "a copy before the security officer's trust", err, hsm.ErrNotTrusted)
	env.Trust(t, p, spki)
	if err := p.Trusted(ctx, spki); err != nil {
		t.Errorf("a key that is trusted: %v", err)
	}
	message, err := p.ExportRecovery(ctx, r)
	must(t, message, err)
	m, err := hsm.ParseTransfer(message)
	must(t, m, err)
	want := hsm.ImportExpectation{Cluster: cluster, Epoch: 4, Donor: "donor", Recipient: "recovery/vault", DonorIdentity: p.Identity(), Generation: g}
	if err := m.Verify(want, hsm.Transfer{SPKI: spki, OAEPHash: m.OAEPHash}); err != nil {
		t.Fatal(err)
	}
	log := opened(t, m, key, hsm.KindLog)
	mac := hmac.New(sha256.New, log)
	mac.Write(hsm.LogKeyMessage(cluster))
	logKey, err := p.LogKey(ctx, cluster)
	if must(t, logKey, err); !bytes.Equal(mac.Sum(nil), logKey) {
		t.Error("another log key was wrapped")
	}
	for _, kind := range hsm.DomainKinds() {
		if n := len(opened(t, m, key, kind)); n != hsm.DomainKeySize {
			t.Errorf("the key of kind %d has %d bytes", kind, n)
		}
	}

	for what, edit := range map[string]func(r *hsm.RecoveryRequest){
		"no donor":      func(r *hsm.RecoveryRequest) { r.Donor = "" },
		"no recipient":  func(r *hsm.RecoveryRequest) { r.Recipient = "" },
		"no key":        func(r *hsm.RecoveryRequest) { r.SPKI = nil },
		"trailing byte": func(r *hsm.RecoveryRequest) { r.SPKI = append(bytes.Clone(r.SPKI), 0) },
		"a transfer key": func(r *hsm.RecoveryRequest) {
			transfer, err := p.NewTransfer(ctx)
			must(t, transfer, err)
			r.SPKI = transfer.SPKI
		},
	} {
		bad := r
		edit(&bad)
		_, err := p.ExportRecovery(ctx, bad)
		wantErr(t, "a copy for "+what, err, hsm.ErrRefused)
	}
	bad := r
	bad.Generation = 9
	_, err = p.ExportRecovery(ctx, bad)
	wantErr(t, "a generation that is not here", err, hsm.ErrNotFound)

	// A recovery key is no transfer key: nothing is handed to it as to a node.
	_, err = p.Export(ctx, hsm.ExportRequest{
		Cluster: cluster, Epoch: 4, Generation: 1, Donor: "donor", Recipient: "recipient", RecipientIdentity: p.Identity(),
		Transfer: hsm.Transfer{SPKI: spki, OAEPHash: m.OAEPHash, Signature: []byte{1}},
	})
	wantErr(t, "a transfer to a recovery key", err, hsm.ErrRefused)
}

// opened is a key of a message that was wrapped for key.
func opened(t T, m hsm.TransferMessage, key *rsa.PrivateKey, kind hsm.KeyKind) []byte {
	t.Helper()
	for _, entry := range m.Keys {
		if entry.Kind != kind {
			continue
		}
		oaep, err := hsm.NewOAEPHash(m.OAEPHash)
		must(t, oaep, err)
		plain, err := rsa.DecryptOAEP(oaep, nil, key, entry.Ciphertext, nil)
		return must(t, plain, err)
	}
	t.Fatalf("no key of kind %d", kind)
	return nil
}
