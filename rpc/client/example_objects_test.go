package client_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

// bucket is one of an object store's. Every object is sealed with a data key of its own, which
// is in the object's header, encrypted under the bucket's CMK.
type bucket struct {
	cmk     string
	context map[string]string   // the same for all its objects: a pool is for one context
	fresh   *client.DataKeyPool // so that writing does not wait for the cluster
	opened  *client.KeyCache    // so that reading the same object again does not
	objects map[string][]byte   // in real life: files
}

func openBucket(kms *client.Client, cmk, name string) (*bucket, error) {
	b := &bucket{cmk: cmk, context: map[string]string{"bucket": name}, objects: map[string][]byte{}}
	var err error
	b.fresh, err = client.NewDataKeyPool(kms, b.cmk, b.context, client.PoolOptions{Size: 64, MaxAge: 5 * time.Minute, Watched: true})
	if err != nil {
		return nil, err
	}
	b.opened, err = client.NewKeyCache(kms, client.CacheLimits{MaxEntries: 10_000, MaxAge: 5 * time.Minute})
	if err != nil {
		_ = b.fresh.Close()
		return nil, err
	}
	return b, nil
}

func (b *bucket) Close() {
	_ = b.fresh.Close() // they wipe the keys they have, and have no errors
	_ = b.opened.Close()
}

func (b *bucket) put(ctx context.Context, name string, data []byte) error {
	var object bytes.Buffer
	_, err := envelope.Seal(ctx, b.fresh, b.cmk, b.context, &object, bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return err // nothing was stored
	}
	b.objects[name] = object.Bytes()
	return nil
}

func (b *bucket) get(ctx context.Context, name string) ([]byte, error) {
	var data bytes.Buffer
	_, err := envelope.Open(ctx, b.opened, b.context, &data, bytes.NewReader(b.objects[name]))
	if err != nil {
		return nil, err // what stands in data is a beginning at most
	}
	return data.Bytes(), nil
}

// An object store: each object is sealed with a data key that was fetched ahead.
func Example_objectStore() {
	ctx := context.Background()
	kms, disconnect := connect() // client.New(client.Config{…})
	defer disconnect()

	photos, err := openBucket(kms, "alias/photos", "photos")
	if err != nil {
		log.Panic(err)
	}
	defer photos.Close()
	for _, name := range []string{"cat", "dog"} {
		if err := photos.put(ctx, name, []byte("a picture of a "+name)); err != nil {
			log.Panic(err)
		}
	}
	data, err := photos.get(ctx, "cat")
	if err != nil {
		log.Panic(err)
	}
	fmt.Printf("%s\n", data)
	// Output: a picture of a cat
}
