package envelope_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"strings"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

func Example() {
	ctx := context.Background()
	keys := newVault() // a client of the key service
	ec := map[string]string{"tenant": "default", "resource": "bucket/report"}
	const text = "Quarterly report"

	var object bytes.Buffer
	if _, err := envelope.Seal(ctx, keys, "alias/reports", ec, &object, strings.NewReader(text), int64(len(text))); err != nil {
		log.Fatal(err)
	}
	var plaintext bytes.Buffer
	if _, err := envelope.Open(ctx, keys, ec, &plaintext, &object); err != nil {
		log.Fatal(err) // what stands in plaintext is a beginning at most
	}
	fmt.Println(plaintext.String())
	// Output: Quarterly report
}

func ExampleNewSealWriter() {
	ctx := context.Background()
	keys := newVault()

	var object bytes.Buffer
	w, err := envelope.NewSealWriter(ctx, keys, "alias/logs", nil, &object, envelope.UnknownSize)
	if err != nil {
		log.Fatal(err)
	}
	for i := range 3 {
		if _, err := fmt.Fprintf(w, "line %d\n", i); err != nil {
			log.Fatal(err)
		}
	}
	if err := w.Close(); err != nil { // without it the object is truncated
		log.Fatal(err)
	}

	r, err := envelope.NewOpenReader(ctx, keys, nil, &object)
	if err != nil {
		log.Fatal(err)
	}
	lines, err := io.ReadAll(r)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(lines))
	// Output:
	// line 0
	// line 1
	// line 2
}

func ExampleReaderAt() {
	ctx := context.Background()
	keys := newVault()

	var object bytes.Buffer
	if _, err := envelope.Seal(ctx, keys, "alias/disks", nil, &object, strings.NewReader("0123456789"), 10); err != nil {
		log.Fatal(err)
	}
	r, err := envelope.NewReaderAt(ctx, keys, nil, bytes.NewReader(object.Bytes()), int64(object.Len()))
	if err != nil {
		log.Fatal(err)
	}
	p := make([]byte, 4)
	if _, err := r.ReadAt(p, 3); err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.Size(), string(p))
	// Output: 10 3456
}

func ExampleRewrap() {
	ctx := context.Background()
	keys := newVault()

	var object bytes.Buffer
	if _, err := envelope.Seal(ctx, keys, "alias/old", objectContext, &object, strings.NewReader("unchanged"), 9); err != nil {
		log.Fatal(err)
	}
	h, err := envelope.ReadHeader(bytes.NewReader(object.Bytes()))
	if err != nil {
		log.Fatal(err)
	}
	header, stream := object.Bytes()[:h.Len()], object.Bytes()[h.Len():]
	header, err = envelope.Rewrap(ctx, header, keys.reencrypt("alias/new"))
	if err != nil {
		log.Fatal(err)
	}

	var plaintext bytes.Buffer
	moved := io.MultiReader(bytes.NewReader(header), bytes.NewReader(stream))
	if _, err := envelope.Open(ctx, keys, objectContext, &plaintext, moved); err != nil {
		log.Fatal(err)
	}
	fmt.Println(plaintext.String())
	// Output: unchanged
}
