package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/quorumkms/quorumkms/rpc/client/envelope"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	stdio = "-" // the file name of standard input and output

	maxPlaintext  = 4096        // bytes, of Encrypt
	maxCiphertext = 64<<10 + 98 // bytes, of Decrypt
	maxTyped      = 1024        // bytes of an answer on the terminal
	copyBuffer    = 64 << 10    // bytes

	day  = 24 * time.Hour
	week = 7 * day

	spiffeForm = "spiffe://TRUST-DOMAIN/PATH"

	contextHelp = "encryption context as key=value; may be repeated"
	sealedMagic = "KEO1" // see package envelope
)

// pairs are repeated key=value arguments, in order.
type pairs []*quorumkmsv1.ContextPair

// String, Set and Type implement pflag.Value.
func (p *pairs) String() string { return "" }
func (p *pairs) Type() string   { return "key=value" }

func (p *pairs) Set(s string) error {
	key, value, err := parsePair(s)
	if err != nil {
		return err
	}
	for _, have := range *p {
		if have.GetKey() == key {
			return fmt.Errorf("%q is given twice", key)
		}
	}
	*p = append(*p, &quorumkmsv1.ContextPair{Key: key, Value: value})
	return nil
}

func (p *pairs) toMap() map[string]string {
	m := map[string]string{}
	for _, pair := range *p {
		m[pair.GetKey()] = pair.GetValue()
	}
	return m
}

func (p *pairs) tags() []*quorumkmsv1.Tag {
	var tags []*quorumkmsv1.Tag
	for _, pair := range *p {
		tags = append(tags, &quorumkmsv1.Tag{Key: pair.GetKey(), Value: pair.GetValue()})
	}
	return tags
}

// parsePair splits key=value at the first "=". The value may be empty.
func parsePair(s string) (key, value string, err error) {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return "", "", fmt.Errorf("%q: want key=value", s)
	}
	if !utf8.ValidString(s) {
		return "", "", fmt.Errorf("%q: not valid UTF-8", s)
	}
	return key, value, nil
}

func contextFlag(c *cobra.Command) *pairs {
	p := new(pairs)
	c.Flags().Var(p, "context", contextHelp)
	return p
}

// span is a duration that may also be in days or weeks.
type span time.Duration

// String, Set and Type implement pflag.Value.
func (s *span) String() string { return spanText(time.Duration(*s)) }
func (s *span) Type() string   { return "duration" }

func (s *span) Set(text string) error {
	d, err := parseSpan(text)
	*s = span(d)
	return err
}

// parseSpan reads a positive duration: 90d, 12w, or as Go writes them.
func parseSpan(text string) (time.Duration, error) {
	wrong := fmt.Errorf("%q: want a duration such as 90d, 12w or 36h", text)
	for unit, length := range map[string]time.Duration{"d": day, "w": week} {
		count, ok := strings.CutSuffix(text, unit)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(count, 10, 64)
		if err != nil || n <= 0 || n > int64(math.MaxInt64/length) || count[0] == '+' {
			return 0, wrong
		}
		return time.Duration(n) * length, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, wrong
	}
	return d, nil
}

// spanText is what parseSpan reads, in days where that is exact.
func spanText(d time.Duration) string {
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	return d.String()
}

// parseWhen reads when something ends: a time, or how long from now on. Whole seconds
// are what the cluster keeps.
func parseWhen(text string, now time.Time) (at time.Time, relative bool, err error) {
	if at, err = time.Parse(time.RFC3339, text); err != nil {
		d, err := parseSpan(text)
		if err != nil {
			return time.Time{}, false, fmt.Errorf("%q: want a duration such as 24h or 7d, or a time such as 2027-01-31T00:00:00Z", text)
		}
		at, relative = now.Add(d), true
	}
	if at = at.UTC().Truncate(time.Second); !at.After(now) || at.Year() > 9999 {
		return time.Time{}, false, fmt.Errorf("%q is %s, which is not to come", text, at.Format(time.DateTime)+" UTC")
	}
	return at, relative, nil
}

// principal is the SPIFFE URI of somebody.
type principal string

// String, Set and Type implement pflag.Value.
func (p *principal) String() string { return string(*p) }
func (p *principal) Type() string   { return "SPIFFE-URI" }

func (p *principal) Set(s string) error {
	if id, err := spiffeid.FromString(s); err != nil || id.Path() == "" {
		return fmt.Errorf("%q: want a SPIFFE URI, %s", s, spiffeForm)
	}
	*p = principal(s)
	return nil
}

// input is an open file or standard input. Reading ends with the context's error
// once that is done.
type input struct {
	io.Reader
	size  int64 // in bytes from here on, or envelope.UnknownSize
	close func() error
}

func (i *input) Close() error { return i.close() }

// open opens a file to read, or standard input for "" and "-".
func (a *app) open(ctx context.Context, path string) (*input, error) {
	if path == "" || path == stdio {
		if f, ok := a.stdin.(*os.File); ok {
			if left, ok := remaining(f); ok {
				return &input{contextReader{ctx, f}, left, func() error { return nil }}, nil
			}
		}
		return interruptible(ctx, a.stdin, func() error { return nil }), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, &usageError{err}
	}
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, errors.Join(usagef("%s is a directory", path), f.Close())
	}
	if left, ok := remaining(f); ok {
		return &input{contextReader{ctx, f}, left, f.Close}, nil
	}
	return interruptible(ctx, f, f.Close), nil
}

// remaining returns how much of a regular file is to be read.
func remaining(f *os.File) (int64, bool) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return 0, false
	}
	at, err := f.Seek(0, io.SeekCurrent)
	return info.Size() - at, err == nil && at <= info.Size()
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// interruptible is the input for what may keep a reader waiting, a terminal or a
// pipe: such a read does not end by itself. The goroutine that may be left in one
// ends with the process.
func interruptible(ctx context.Context, r io.Reader, closing func() error) *input {
	out, in := io.Pipe()
	stop := context.AfterFunc(ctx, func() { _ = in.CloseWithError(ctx.Err()) })
	go func() {
		_, err := io.CopyBuffer(in, struct{ io.Reader }{r}, make([]byte, copyBuffer))
		_ = in.CloseWithError(err)
	}()
	return &input{out, envelope.UnknownSize, func() error {
		stop()
		return errors.Join(out.Close(), closing())
	}}
}

// readSmall reads an input of at most limit bytes; tooLarge says what to do with
// more.
func (a *app) readSmall(ctx context.Context, path string, limit int64, tooLarge string) ([]byte, error) {
	f, err := a.open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()               //nolint:errcheck // only read
	data := make([]byte, limit+1) // in one piece: it may be secret, and io.ReadAll leaves behind what became too small
	n, err := io.ReadFull(f, data)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		clear(data)
		return nil, err
	}
	if data = data[:n]; int64(n) > limit {
		clear(data)
		return nil, usagef("%s is larger than %d bytes%s", inputName(path), limit, tooLarge)
	}
	return data, nil
}

// inputName is how a message calls an input: commands may read more than one.
func inputName(path string) string {
	if path == "" || path == stdio {
		return "the input"
	}
	return path
}

// confirm lets the user type one of the expected names before what cannot be
// undone. Without a terminal, --yes is the only way.
func (a *app) confirm(ctx context.Context, question string, expected ...string) error {
	if a.yes {
		return nil
	}
	if !isTerminal(a.stdin) {
		return usagef("this asks for confirmation, and standard input is no terminal: add --yes if you are sure")
	}
	if _, err := fmt.Fprint(a.stderr, question); err != nil {
		return err
	}
	in, err := a.open(ctx, stdio)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	line, err := bufio.NewReader(io.LimitReader(in, maxTyped)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	typed := strings.TrimSpace(line)
	for _, e := range expected {
		if typed == e && e != "" {
			return nil
		}
	}
	return fmt.Errorf("%q is not what was asked for; nothing was changed", typed)
}

// yesFlag adds --yes.
func (a *app) yesFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.yes, "yes", false, "do not ask for confirmation")
	return c
}
