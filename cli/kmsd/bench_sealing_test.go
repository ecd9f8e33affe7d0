//go:build measure

package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
)

const (
	sealedSize  = 16 << 20 // bytes of an object whose sealing is measured, again and again: processors cache it
	sealedChunk = 64 << 10 // of one package of an object, and of one message of the floors
	smallObject = 16 << 20
	largeObject = 1 << 30
)

// oneKey gives always the same data key.
type oneKey struct{}

func (oneKey) GenerateDataKey(context.Context, string, map[string]string) (plaintext, blob []byte, err error) {
	return make([]byte, envelope.DataKeySize), []byte("blob"), nil
}

func (oneKey) DecryptDataKey(context.Context, []byte, map[string]string) ([]byte, error) {
	return make([]byte, envelope.DataKeySize), nil
}

// sealing measures the library that seals objects, on one processor, beside its bare AEAD
// and openssl's: bytes for each second of processor time.
func (b *bench) sealing() {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	ctx := b.t.Context()
	var object bytes.Buffer
	seal := func(dst io.Writer, size int64) {
		_, err := envelope.Seal(ctx, oneKey{}, "k", nil, dst, io.LimitReader(nothing{}, size), size)
		must(b.t, err)
	}
	open := func(src io.Reader) {
		_, err := envelope.Open(ctx, oneKey{}, nil, io.Discard, src)
		must(b.t, err)
	}
	seal(&object, sealedSize)
	block, err := aes.NewCipher(make([]byte, envelope.DataKeySize))
	must(b.t, err)
	aead, err := cipher.NewGCM(block)
	must(b.t, err)
	nonce, plain, sealed, opened := make([]byte, aead.NonceSize()), make([]byte, sealedChunk), make([]byte, 0, 2*sealedChunk), make([]byte, 0, sealedChunk)
	stream := make([][]byte, sealedSize/sealedChunk)
	for i := range stream {
		stream[i] = aead.Seal(nil, nonce, plain, nil)
	}

	x := b.inTurn(
		b.bytesOf(func() { seal(io.Discard, sealedSize) }),
		b.bytesOf(func() {
			for range stream {
				sealed = aead.Seal(sealed[:0], nonce, plain, nil)
			}
		}),
		b.opensslSpeed(),
		b.bytesOf(func() { open(bytes.NewReader(object.Bytes())) }),
		b.bytesOf(func() {
			for _, chunk := range stream {
				opened, err = aead.Open(opened[:0], nonce, chunk, nil)
				must(b.t, err)
			}
		}),
		b.opensslSpeed("-decrypt"),
	)
	b.against("seal.throughput", x[0].rate, x[1].rate, "GB/s", ">= 0.8")
	b.against("seal.openssl", x[0].rate, x[2].rate, "GB/s", "")
	b.against("open.throughput", x[3].rate, x[4].rate, "GB/s", ">= 0.8")
	b.against("open.openssl", x[3].rate, x[5].rate, "GB/s", "")

	b.memory("seal.memory", func(src *weighed) { seal(src, src.size) })
	b.memory("open.memory", func(dst *weighed) {
		r, w := io.Pipe()
		go func() {
			seal(w, dst.size)
			_ = w.Close()
		}()
		_, err := envelope.Open(ctx, oneKey{}, nil, dst, r)
		must(b.t, err)
	})
}

// bytesOf is a turn of what works on sealedSize bytes, for as long as a slice is.
func (b *bench) bytesOf(work func()) func() sample {
	return func() sample {
		x := b.run(side{pid: os.Getpid(), call: func(context.Context, int) error { work(); return nil }}, 1)
		return sample{rate: sealedSize / x.cpu / 1e3}
	}
}

// opensslSpeed is a turn of openssl's own measurement, which counts processor time too.
func (b *bench) opensslSpeed(more ...string) func() sample {
	return func() sample {
		args := append([]string{"speed", "-mr", "-evp", "aes-256-gcm", "-bytes", strconv.Itoa(sealedChunk), "-seconds", "1"}, more...)
		out, err := exec.CommandContext(b.t.Context(), "openssl", args...).Output()
		must(b.t, err)
		for line := range strings.Lines(string(out)) {
			if fields := strings.Split(strings.TrimSpace(line), ":"); fields[0] == "+F" { // +F:number:name:bytes a second
				v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
				must(b.t, err)
				return sample{rate: v / 1e9}
			}
		}
		b.t.Fatalf("openssl speed says no speed:\n%s", out)
		return sample{}
	}
}

// memory measures how much more memory is in use while a stream flows than before it, of a
// small object and of a large one.
func (b *bench) memory(name string, flow func(*weighed)) {
	b.t.Helper()
	of := func(size int64) func() sample {
		return func() sample {
			w := &weighed{size: size, before: inUse()}
			flow(w)
			return sample{rate: float64(w.most)}
		}
	}
	x := b.inTurn(of(smallObject), of(largeObject))
	b.against(name, x[1].rate, x[0].rate, "B", "<= 1.1")
}

// weighed is written to, and weighs the heap after each quarter of a size.
type weighed struct {
	size, n, quarters int64
	before, most      uint64 // bytes in use
}

func (w *weighed) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	for w.quarters < 4*w.n/w.size {
		w.quarters++
		if now := inUse(); now > w.before {
			w.most = max(w.most, now-w.before)
		}
	}
	return len(p), nil
}

// inUse is how many bytes of the heap are in use.
func inUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// nothing is a stream of zeros.
type nothing struct{}

func (nothing) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
