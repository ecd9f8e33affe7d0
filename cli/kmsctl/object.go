package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/envelope"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// progressPeriod is the time between two looks of the progress bar.
const progressPeriod = 100 * time.Millisecond

func (a *app) objectCommand() *cobra.Command {
	g := group("object", "Seal files and streams with data keys, and open them",
		a.objectSeal(), a.objectOpen(), a.objectRewrap(), a.objectInspect())
	g.Long = `Seal files and streams with data keys, and open them.

An object of any size is encrypted here, under a data key of its own; the cluster
sees that key only. A file appears at --out when it is complete, and not at all
after a failure.`
	return g
}

func (a *app) objectSeal() *cobra.Command {
	var f inOut
	c := &cobra.Command{
		Use:   "seal [KEY]",
		Short: "Encrypt a file or a stream",
		Long:  "Encrypt a file or a stream.\n\n" + serviceKeyHelp,
		Example: `  kmsctl object seal alias/backups --context db=orders --in orders.dump --out orders.sealed
  tar -c /srv | kmsctl object seal alias/backups > srv.sealed`,
	}
	ec := contextFlag(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		return a.transform(ctx, f, func(dst io.Writer, src io.Reader, size int64) error {
			_, err := envelope.Seal(ctx, kms, named(args), ec.toMap(), dst, src, size)
			if errors.Is(err, envelope.ErrSize) {
				return fmt.Errorf("the input changed while it was read: %w", err)
			}
			return err
		})
	})
	f.flags(c)
	return c
}

func (a *app) objectOpen() *cobra.Command {
	var f inOut
	var span string
	c := &cobra.Command{
		Use:         "open",
		Annotations: map[string]string{opens: "yes"},
		Short:       "Decrypt a sealed object, or a range of it",
		Long: `Decrypt a sealed object, or a range of it.

Every byte that is given out is authentic. But into a pipe, bytes are given out
before the end of the object has been verified: if it is damaged or cut short, the
command stops there and exits with 1, and what came before is a beginning only. A
file at --out appears only if the whole object is good.

--range reads only that part of a file; damage elsewhere goes unseen.`,
		Example: `  kmsctl object open --context db=orders --in orders.sealed --out orders.dump
  kmsctl object open --in video.sealed --range 1048576:65536 > part`,
	}
	ec := contextFlag(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
		if span == "" {
			return a.transform(ctx, f, func(dst io.Writer, src io.Reader, _ int64) error {
				_, err := envelope.Open(ctx, kms, ec.toMap(), dst, src)
				return err
			})
		}
		off, n, err := parseRange(span)
		if err != nil {
			return &usageError{err}
		}
		return a.openRange(ctx, kms, f, ec.toMap(), off, n)
	})
	f.flags(c)
	c.Flags().StringVar(&span, "range", "", "only LENGTH bytes from OFFSET on, as OFFSET:LENGTH; needs --in")
	return c
}

func (a *app) openRange(ctx context.Context, kms *client.Client, f inOut, ec map[string]string, off, n int64) error {
	if f.in == "" || f.in == stdio {
		return usagef("--range needs a file: --in FILE")
	}
	if err := a.checkTerminal(f.out); err != nil {
		return err
	}
	src, err := os.Open(f.in)
	if err != nil {
		return &usageError{err}
	}
	defer src.Close() //nolint:errcheck // only read
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return usagef("--range needs a regular file, which %s is not", f.in)
	}
	dst, err := a.create(f.out)
	if err != nil {
		return err
	}
	_, err = envelope.OpenRange(ctx, kms, ec, dst, src, info.Size(), off, n)
	return dst.finish(err)
}

// parseRange parses "OFFSET:LENGTH", both decimal.
func parseRange(s string) (off, n int64, err error) {
	first, second, _ := strings.Cut(s, ":")
	a, errA := strconv.ParseUint(first, 10, 63)
	b, errB := strconv.ParseUint(second, 10, 63)
	if errA != nil || errB != nil {
		return 0, 0, fmt.Errorf("--range %q: want OFFSET:LENGTH in bytes", s)
	}
	return int64(a), int64(b), nil
}

func (a *app) objectRewrap() *cobra.Command {
	var f inOut
	var key string
	c := &cobra.Command{
		Use:         "rewrap",
		Annotations: map[string]string{opens: "yes"},
		Short:       "Move a sealed object's data key to the current version of its key, or to another key",
		Long: `Move a sealed object's data key to the current version of its key, or to another
key. Neither the data nor the data key is decrypted here; the rest of the object
is copied as it is.

Without --out, the file --in is replaced, unless its data key is there already.`,
		Example: `  kmsctl object rewrap --context db=orders --in orders.sealed
  kmsctl object rewrap --to-key alias/archive --in orders.sealed --out archived.sealed`,
	}
	ec := contextFlag(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
		inPlace := f.in != "" && f.in != stdio && f.out == ""
		if inPlace {
			f.out = f.in
		}
		if a.output == formatJSON && (f.out == "" || f.out == stdio) {
			return usagef("--output json needs --out FILE: standard output is the object's")
		}
		var answer *quorumkmsv1.ReEncryptResponse
		err := a.transform(ctx, f, func(dst io.Writer, src io.Reader, _ int64) error {
			var err error
			answer, err = rewrap(ctx, kms, dst, src, *ec, key)
			if err == nil && inPlace && answer.GetUnchanged() {
				return errUnchanged
			}
			return err
		})
		if err != nil && !errors.Is(err, errUnchanged) {
			return err
		}
		return a.printRewrapped(answer)
	})
	f.flags(c)
	c.Flags().StringVar(&key, "to-key", "", "the key to move to (default: the same)")
	return c
}

// errUnchanged keeps a file from being replaced by its equal.
var errUnchanged = errors.New("unchanged")

// printRewrapped tells what was done: beside the object if that goes to standard
// output.
func (a *app) printRewrapped(answer *quorumkmsv1.ReEncryptResponse) error {
	if a.output == formatJSON {
		answer.Ciphertext = nil
		return a.print(answer, nil)
	}
	text := fmt.Sprintf("The data key is now under %s, version %d.", answer.GetKeyId(), answer.GetKeyVersion())
	if answer.GetUnchanged() {
		text = fmt.Sprintf("Nothing to do: the data key is under %s, version %d.", answer.GetKeyId(), answer.GetKeyVersion())
	}
	_, err := fmt.Fprintln(a.stderr, clean(text))
	return err
}

func rewrap(ctx context.Context, kms *client.Client, dst io.Writer, src io.Reader, ec pairs, key string) (*quorumkmsv1.ReEncryptResponse, error) {
	var header bytes.Buffer
	if _, err := envelope.ReadHeader(io.TeeReader(src, &header)); err != nil {
		return nil, err
	}
	var answer *quorumkmsv1.ReEncryptResponse
	moved, err := envelope.Rewrap(ctx, header.Bytes(), func(ctx context.Context, blob []byte) (_ []byte, err error) {
		answer, err = kms.Crypto().ReEncrypt(ctx, &quorumkmsv1.ReEncryptRequest{
			Ciphertext: blob, SourceEncryptionContext: ec, SameContext: true, DestinationKeyId: key,
		})
		return answer.GetCiphertext(), err
	})
	if err != nil {
		return nil, err
	}
	if _, err := dst.Write(moved); err != nil {
		return nil, err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{dst}, src, make([]byte, copyBuffer))
	return answer, err
}

func (a *app) objectInspect() *cobra.Command {
	var in string
	c := &cobra.Command{
		Use:   "inspect",
		Short: "Show the header of a sealed object; needs neither key nor cluster",
		Long: `Show the header of a sealed object; needs neither key nor cluster.

Nothing of it has been verified: only opening the object does that.`,
		Example: "  kmsctl object inspect --in orders.sealed",
		RunE: a.local(func(cmd *cobra.Command, _ []string) error {
			f, err := a.open(cmd.Context(), in)
			if err != nil {
				return err
			}
			defer f.Close() //nolint:errcheck // only read
			h, err := envelope.ReadHeader(f)
			if err != nil {
				return err
			}
			v := viewHeader(h)
			return a.printValue(v, func(w io.Writer) error {
				size := "unknown: sealed from a stream"
				if v.Size != nil {
					size = fmt.Sprintf("%d bytes", *v.Size)
				}
				return writeFields(w, [][2]string{
					{"Format", v.Format},
					{"Plaintext", size},
					{"Header", fmt.Sprintf("%d bytes", v.HeaderSize)},
					{"Data key", fmt.Sprintf("%d bytes, %s", v.BlobSize, orDash(v.BlobFormat))},
					{"Key", v.KeyID},
					{"Key version", number(v.KeyVersion)},
				})
			})
		}),
	}
	c.Flags().StringVar(&in, "in", "", "file to read (default: standard input)")
	return c
}

// headerView is what inspect prints.
type headerView struct {
	Format     string `json:"format"`
	Size       *int64 `json:"size"` // of the plaintext; null if unknown
	HeaderSize int    `json:"header_size"`
	BlobSize   int    `json:"blob_size"`
	BlobFormat string `json:"blob_format"` // empty if the blob is not the cluster's own format
	KeyID      string `json:"key_id"`
	KeyVersion uint32 `json:"key_version"`
}

func viewHeader(h *envelope.Header) headerView {
	v := headerView{Format: sealedMagic, HeaderSize: h.Len(), BlobSize: len(h.Blob)}
	if h.Size != envelope.UnknownSize {
		v.Size = &h.Size
	}
	if id, version, ok := parseBlob(h.Blob); ok {
		v.BlobFormat, v.KeyID, v.KeyVersion = blobMagic, id.String(), version
	}
	return v
}

// Ciphertext blob QKM1: magic, suite u8, flags u8, key id, version u32, and what
// only the cluster can read.
const (
	blobMagic   = "QKM1"
	blobSuites  = 2
	blobKeyID   = 6
	blobVersion = blobKeyID + 16
	blobMin     = 98 + 1
)

func parseBlob(b []byte) (id uuid.UUID, version uint32, ok bool) {
	if len(b) < blobMin || !bytes.HasPrefix(b, []byte(blobMagic)) || b[4] == 0 || b[4] > blobSuites || b[5] != 0 {
		return uuid.UUID{}, 0, false
	}
	return uuid.UUID(b[blobKeyID:blobVersion]), binary.BigEndian.Uint32(b[blobVersion:]), true
}

// transform runs f from the input to the output, and makes the output final only
// if f succeeds. size is the input's in bytes where that is known.
func (a *app) transform(ctx context.Context, files inOut, f func(dst io.Writer, src io.Reader, size int64) error) error {
	if err := a.checkTerminal(files.out); err != nil {
		return err
	}
	src, err := a.open(ctx, files.in)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // only read
	dst, err := a.create(files.out)
	if err != nil {
		return err
	}
	reader, done := a.progress(src, src.size, files.out)
	err = f(dst, reader, src.size)
	done()
	return dst.finish(err)
}

// checkTerminal refuses to pour an object onto the terminal.
func (a *app) checkTerminal(out string) error {
	if out == "" && isTerminal(a.stdout) {
		return usagef("standard output is a terminal: use --out FILE, a pipe, or --out - to have it there anyway")
	}
	return nil
}

// progress shows on a terminal how much of r has been read.
func (a *app) progress(r io.Reader, size int64, out string) (io.Reader, func()) {
	if !isTerminal(a.stderr) || out == stdio {
		return r, func() {}
	}
	bar := progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(a.stderr),
		progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(progressPeriod),
		progressbar.OptionSetSpinnerChangeInterval(0),
		progressbar.OptionClearOnFinish())
	return progressReader{r, bar}, func() { _ = bar.Finish() }
}

type progressReader struct {
	io.Reader
	bar *progressbar.ProgressBar
}

func (p progressReader) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	_ = p.bar.Add(n) // what cannot be shown is no reason to stop
	return n, err
}
