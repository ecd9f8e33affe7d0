package client_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"log"
	"slices"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client"
)

// tablespace is a database's file of encrypted pages. Its data keys are in its header, encrypted
// under the CMK: a new one after so many pages were sealed with the last.
type tablespace struct {
	name  string
	cmk   string
	cache *client.KeyCache
	keys  [][]byte        // the header: data keys by number, as ciphertexts
	pages map[uint64]page // the file
}

type page struct {
	key    int // number of the data key
	sealed []byte
}

func (t *tablespace) context() map[string]string { return map[string]string{"tablespace": t.name} }

// place is what a page is bound to: it opens at no other place and with no other key.
func (t *tablespace) place(number uint64, key int) []byte {
	b := binary.BigEndian.AppendUint64([]byte(t.name+"\x00"), number)
	return binary.BigEndian.AppendUint32(b, uint32(key))
}

// pageCipher is AES-256-GCM with a random nonce in front of what it seals: one data key is good
// for 2^32 pages, which client.MaxCacheUses keeps to.
func pageCipher(dataKey []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(dataKey)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (t *tablespace) write(ctx context.Context, number uint64, data []byte) error {
	key, err := t.cache.DataKey(ctx, t.cmk, t.context(), int64(len(data)))
	if err != nil {
		return err
	}
	defer key.Wipe()
	n := slices.IndexFunc(t.keys, func(c []byte) bool { return bytes.Equal(c, key.Ciphertext) })
	if n < 0 { // in the header before any page that needs it
		n = len(t.keys)
		t.keys = append(t.keys, key.Ciphertext)
	}
	aead, err := pageCipher(key.Plaintext)
	if err != nil {
		return err
	}
	t.pages[number] = page{n, aead.Seal(nil, nil, data, t.place(number, n))}
	return nil
}

func (t *tablespace) read(ctx context.Context, number uint64) ([]byte, error) {
	p := t.pages[number]
	key, err := t.cache.DecryptDataKey(ctx, t.keys[p.key], t.context())
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := pageCipher(key)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nil, p.sealed, t.place(number, p.key))
}

// A database: its pages' keys come out of a cache, and change after so many pages.
func Example_database() {
	ctx := context.Background()
	kms, disconnect := connect() // client.New(client.Config{…})
	defer disconnect()

	cache, err := client.NewKeyCache(kms, client.CacheLimits{
		MaxEntries: 1000, MaxAge: 10 * time.Minute,
		MaxUses: 2, // in earnest 1 << 31 or less
	})
	if err != nil {
		log.Panic(err)
	}
	defer cache.Close() //nolint:errcheck // it wipes the keys it has, and has no errors
	warm(cache)         // otherwise the first pages have each a key of their own

	orders := &tablespace{name: "orders", cmk: "alias/databases", cache: cache, pages: map[uint64]page{}}
	for number := range uint64(4) {
		if err := orders.write(ctx, number, fmt.Appendf(nil, "rows of page %d", number)); err != nil {
			log.Panic(err)
		}
	}
	for number := range uint64(4) {
		data, err := orders.read(ctx, number)
		if err != nil {
			log.Panic(err)
		}
		fmt.Printf("%s\n", data)
	}
	orders.pages[0], orders.pages[1] = orders.pages[1], orders.pages[0]
	_, err = orders.read(ctx, 0)
	fmt.Println("data keys:", len(orders.keys), "exchanged pages open:", err == nil)
	// Output:
	// rows of page 0
	// rows of page 1
	// rows of page 2
	// rows of page 3
	// data keys: 2 exchanged pages open: false
}
