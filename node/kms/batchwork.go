package kms

import (
	"context"

	"github.com/quorumkms/quorumkms/hsm"
)

// What a batch does with keys: as the single calls (crypto.go), with one HSM call for as many items of a
// key version as fit into it.

// sealAll makes the data keys and seals them, or what is to be encrypted.
func (b *batch) sealAll(ctx context.Context, going []*unit) {
	if err := b.makeRandom(ctx, going); err != nil {
		for _, u := range going {
			u.err = err
		}
		return
	}
	for _, of := range byVersion(going) {
		b.sealUnder(ctx, of)
	}
	for _, u := range going {
		if u.hidden {
			wipeUnits([]*unit{u})
		}
	}
}

// makeRandom makes data keys and nonces.
func (b *batch) makeRandom(ctx context.Context, going []*unit) error {
	n := 0
	for _, u := range going {
		n += u.random + blobNonceSize
	}
	random := make([]byte, n)
	if err := b.random.read(ctx, random); err != nil {
		return err
	}
	for _, u := range going {
		random = random[copy(u.nonce[:], random):]
		if u.random > 0 {
			u.secret, random = random[:u.random:u.random], random[u.random:]
			u.plaintext = u.secret
		}
	}
	return nil
}

// byVersion groups units by the key version that they use.
func byVersion(units []*unit) (groups [][]*unit) {
	at := map[useOf]int{}
	for _, u := range units {
		of := useOf{u.t.key.ID, u.t.version}
		i, ok := at[of]
		if !ok {
			i = len(groups)
			at[of], groups = i, append(groups, nil)
		}
		groups[i] = append(groups[i], u)
	}
	return groups
}

// sealUnder seals under one key.
func (b *batch) sealUnder(ctx context.Context, units []*unit) {
	first := units[0].lot
	if first.t.key.Resident() {
		for _, u := range units {
			u.blob, u.err = b.sealInside(ctx, u.st, u.t, u.h, u.plaintext)
		}
		return
	}
	v := first.t.key.Current()
	blobs := make([][]byte, len(units))
	for i, u := range units {
		blobs[i] = newBlob(blobHeader{suite: suite1, key: u.t.key.ID, version: v.Version, nonce: u.nonce}, len(u.plaintext))
	}
	b.withKeys(ctx, hsmRef(first.st, first.t.key, v), hsm.Seal, units, blobs, func(i int, keys *hsm.MessageKeys) {
		u := units[i]
		u.blob, u.err = sealBlob(keys, blobs[i], u.h, u.plaintext)
	})
}

// openAll opens ciphertexts.
func (b *batch) openAll(ctx context.Context, going []*unit) {
	for _, of := range byVersion(going) {
		b.openUnder(ctx, of)
	}
}

// openUnder opens under one key version.
func (b *batch) openUnder(ctx context.Context, units []*unit) {
	var ref hsm.Ref
	var fit []*unit
	var blobs [][]byte
	for _, u := range units {
		if ref, u.err = u.t.opens(u.st, u.header); u.err != nil {
			continue
		}
		if u.t.key.Resident() {
			u.secret, u.err = b.openInside(ctx, ref, u.h, u.blob)
			continue
		}
		fit, blobs = append(fit, u), append(blobs, u.blob)
	}
	if fit == nil {
		return
	}
	ref, _ = fit[0].t.opens(fit[0].st, fit[0].header)
	b.withKeys(ctx, ref, hsm.Open, fit, blobs, func(i int, keys *hsm.MessageKeys) {
		u := fit[i]
		u.secret, u.err = b.openWith(ctx, ref, keys, u.h, u.blob)
	})
}

// withKeys has the HSM derive the keys of messages under one key, and does something with each.
func (b *batch) withKeys(ctx context.Context, ref hsm.Ref, use hsm.Use, units []*unit, blobs [][]byte, f func(i int, keys *hsm.MessageKeys)) {
	inputs := make([]hsm.MessageInput, len(units))
	for i, u := range units {
		inputs[i] = messageInput(blobs[i], u.h)
	}
	keys, err := b.deriver.DeriveAll(ctx, ref, inputs, use)
	defer clear(keys)
	for i, u := range units {
		if u.err = err; err == nil {
			f(i, &keys[i])
		}
	}
}
