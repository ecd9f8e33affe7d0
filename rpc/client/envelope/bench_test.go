package envelope_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/minio/sio"
	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

var benchSizes = []int{1 << 10, 64 << 10, 16 << 20}

// BenchmarkSeal compares with sio alone, and with AES-256-GCM alone in pieces
// of 64 KiB.
func BenchmarkSeal(b *testing.B) {
	for _, n := range benchSizes {
		plaintext := pattern(n)
		run(b, "envelope", n, func() error {
			_, err := envelope.Seal(b.Context(), testKeys, keyName, nil, io.Discard, bytes.NewReader(plaintext), int64(n))
			return err
		})
		run(b, "sio", n, func() error {
			_, err := sio.Encrypt(io.Discard, bytes.NewReader(plaintext), bareSio())
			return err
		})
		aead, sealed, nonce := bareGCM(b), make([]byte, 0, refPackLen), make([]byte, 12)
		run(b, "gcm", n, func() error {
			for p := range slices.Chunk(plaintext, refPayload) {
				sealed = aead.Seal(sealed[:0], nonce, p, nil)
			}
			return nil
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, n := range benchSizes {
		plaintext := pattern(n)
		object := honest(plaintext, false).object()
		run(b, "envelope", n, func() error {
			_, err := envelope.Open(b.Context(), testKeys, nil, io.Discard, bytes.NewReader(object))
			return err
		})
		var stream bytes.Buffer
		if _, err := sio.Encrypt(&stream, bytes.NewReader(plaintext), bareSio()); err != nil {
			b.Fatal(err)
		}
		run(b, "sio", n, func() error {
			_, err := sio.Decrypt(io.Discard, bytes.NewReader(stream.Bytes()), bareSio())
			return err
		})
		aead, nonce, opened := bareGCM(b), make([]byte, 12), make([]byte, 0, refPayload)
		var sealed [][]byte
		for p := range slices.Chunk(plaintext, refPayload) {
			sealed = append(sealed, aead.Seal(nil, nonce, p, nil))
		}
		run(b, "gcm", n, func() error {
			for _, p := range sealed {
				var err error
				if opened, err = aead.Open(opened[:0], nonce, p, nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// BenchmarkReadAt reads 4 KiB, and 64 KiB at its place, out of 16 MiB.
func BenchmarkReadAt(b *testing.B) {
	const total = 16 << 20
	object := honest(pattern(total), true).object()
	r, err := envelope.NewReaderAt(b.Context(), testKeys, nil, bytes.NewReader(object), int64(len(object)))
	if err != nil {
		b.Fatal(err)
	}
	config := bareSio()
	var stream bytes.Buffer
	if _, err := sio.Encrypt(&stream, bytes.NewReader(pattern(total)), config); err != nil {
		b.Fatal(err)
	}
	bare, err := sio.DecryptReaderAt(bytes.NewReader(stream.Bytes()), config)
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{4 << 10, 64 << 10} {
		for _, from := range []struct {
			name string
			io.ReaderAt
		}{{"envelope", r}, {"sio", bare}} {
			p, off := make([]byte, n), int64(0)
			run(b, from.name, n, func() error {
				off = (off + 37*refPayload) % total
				_, err := from.ReadAt(p, off)
				return err
			})
		}
	}
}

func run(b *testing.B, name string, n int, f func() error) {
	b.Run(fmt.Sprintf("%s/%dKiB", name, n>>10), func(b *testing.B) {
		b.SetBytes(int64(n))
		b.ReportAllocs()
		for b.Loop() {
			if err := f(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func bareSio() sio.Config {
	return sio.Config{MinVersion: sio.Version20, MaxVersion: sio.Version20, CipherSuites: []byte{sio.AES_256_GCM}, Key: testKeys.dataKey}
}

func bareGCM(b *testing.B) cipher.AEAD {
	b.Helper()
	block, err := aes.NewCipher(testKeys.dataKey)
	if err != nil {
		b.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	return aead
}
