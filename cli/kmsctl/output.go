package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client"
)

// The values of --output.
const (
	formatText = "text"
	formatJSON = "json"
)

// The exit codes.
const (
	exitOK          = 0
	exitRefused     = 1
	exitUsage       = 2
	exitUnavailable = 3
	exitFinding     = 4
)

const (
	maxNotices = 32  // lines about failed attempts
	maxCell    = 200 // characters in one cell of a table
)

// opens marks commands that open a ciphertext, which names its key.
const opens = "opens a ciphertext"

// usageError is a mistake in the command line or the configuration.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*verdictError](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if errors.Is(err, errFinding) {
		return exitFinding
	}
	for _, refusal := range []error{client.ErrServerRefused, client.ErrClientRefused} {
		if errors.Is(err, refusal) {
			return exitRefused
		}
	}
	for _, passing := range []error{client.ErrOutcomeUnknown, client.ErrBusy, client.ErrRateLimited, context.DeadlineExceeded} {
		if errors.Is(err, passing) {
			return exitUnavailable
		}
	}
	if e, ok := errors.AsType[*client.Error](err); ok && (e.Code == codes.Unavailable || e.Code == codes.DeadlineExceeded) {
		return exitUnavailable
	}
	return exitRefused
}

// report writes what went wrong, and what would be right where that is known.
func (a *app) report(cmd *cobra.Command, err error) {
	if errors.Is(err, context.Canceled) {
		err = fmt.Errorf("interrupted: %w", err)
	}
	text := fmt.Sprintf("%s: %v\n", cmd.CommandPath(), err)
	if hint := a.hint(cmd, err); hint != "" {
		text += "  " + hint + "\n"
	}
	if cmd.Annotations[opens] != "" && errors.Is(err, client.ErrNotFound) {
		text += "  If the key is another tenant's, add --tenant: a ciphertext names its key without the tenant.\n"
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		text += fmt.Sprintf("  %s --help shows how to use it.\n", cmd.CommandPath())
	}
	fmt.Fprint(a.stderr, text) //nolint:errcheck // there is nowhere else to say it
}

func (a *app) hint(cmd *cobra.Command, err error) string {
	hints := []struct {
		err  error
		text string
	}{
		{client.ErrOutcomeUnknown, "The change may have been made or not. To find out, and to make it once, repeat the command with --request-id " + a.requestID + a.repeat},
		{client.ErrServerRefused, "Check --addresses, --ca and --trust-domain."},
		{client.ErrClientRefused, "The node does not accept your certificate: see kmsctl whoami."},
		{client.ErrPrincipalDisabled, "Who disabled you can end that: kmsctl principal enable " + a.self()},
		{client.ErrDenied, "You are " + a.self() + "."},
		{client.ErrNotFound, a.missingText(cmd)},
		{client.ErrKeyDisabled, "An administrator can enable it: kmsctl key enable KEY"},
		{client.ErrKeyPendingDeletion, "An administrator can keep it: kmsctl key cancel-deletion KEY"},
		{client.ErrKeyDecryptOnly, "It only opens what it has sealed. An administrator can end that: kmsctl key enable KEY"},
		{client.ErrKeyVersionDisabled, "An administrator can enable it: kmsctl key version enable KEY VERSION; if it is to be destroyed, kmsctl key version cancel-destruction KEY VERSION before that."},
		{client.ErrKeyVersionDestroyed, "Its material is gone, and what it has sealed is lost: see kmsctl key versions KEY."},
		{client.ErrKeyProtected, "An administrator can end the protection: kmsctl key unprotect KEY"},
		{client.ErrKeyInUse, "See what it protects: kmsctl key resources KEY. When one is gone, or another key protects it: kmsctl key release KEY RESOURCE"},
		{client.ErrServiceManaged, "Its service has its life in hand. You can rotate it: kmsctl key rotate KEY; and make all keys unusable: kmsctl tenant freeze"},
		{client.ErrTenantFrozen, "Who froze it can end that: kmsctl tenant thaw; kmsctl tenant show tells who did."},
		{client.ErrPolicyInvalid, "Each problem with its line and column: kmsctl policy validate --file FILE"},
		{client.ErrPolicyLockout, "Keep a statement by which you or the tenant's administrator may put another policy: see kmsctl policy explain."},
		{client.ErrRateLimited, retryText(err)},
		{client.ErrInvalidCiphertext, unopenedText(cmd)},
		{client.ErrInvalidSignature, "The file, the signature, the key or --algorithm is another one than when it was signed."},
		{client.ErrInvalidMac, "The input, the MAC or the key is another one than when it was made."},
		{client.ErrMalformedCiphertext, "It must be the bytes that encrypt or data-key gave, not base64; a sealed object is opened with kmsctl object open, a ciphertext of RSA with --algorithm and --expect-key."},
		{client.ErrNotInitialized, "The first node of a new cluster is initialized with kmsctl cluster init."},
		{client.ErrConflict, "It was changed meanwhile: look at it with kmsctl key describe KEY, or kmsctl policy get, and decide again."},
	}
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.text
		}
	}
	return ""
}

// missingText says where to look for what was not found.
func (a *app) missingText(cmd *cobra.Command) string {
	for c := cmd; c != nil; c = c.Parent() {
		if c.Name() == "domain" {
			return "See which generations there are: kmsctl domain status"
		}
	}
	return "Check the name, and the tenant: you are " + a.self() + "."
}

// unopenedText says why a ciphertext may not open: what RSA has encrypted has no context.
func unopenedText(cmd *cobra.Command) string {
	if f := cmd.Flags().Lookup("algorithm"); f != nil && f.Changed {
		return "It is damaged, or was made for another key, or with another --algorithm."
	}
	return "It is damaged, or its --context is another one than it was made with."
}

// retryText says when a caller that asks too often may ask again.
func retryText(err error) string {
	if e, ok := errors.AsType[*client.Error](err); ok && e.RetryAfter > 0 {
		return "Try again in " + e.RetryAfter.Round(time.Millisecond).String() + "."
	}
	return "Try again later."
}

// self is who the certificate says the caller is.
func (a *app) self() string {
	id, _, err := readIdentity(a.value(setCert))
	if err != nil {
		return "unknown"
	}
	return id.String()
}

// retrying tells the user why an answer takes long: once for each reason.
func (a *app) retrying(_ string, err error) {
	a.notices.Lock()
	defer a.notices.Unlock()
	text := err.Error()
	if a.noticed[text] || len(a.noticed) >= maxNotices {
		return
	}
	a.noticed[text] = true
	fmt.Fprintf(a.stderr, "kmsctl: %s; trying again\n", text) //nolint:errcheck // a courtesy
}

// print prints a response, as JSON or as text says.
func (a *app) print(response proto.Message, text func(w io.Writer) error) error {
	if a.output != formatJSON {
		return a.printText(text)
	}
	return a.printMessage(nil, response)
}

// printMessage prints a message of the protocol as JSON. The fields of head, an object that
// has some, come before its own.
func (a *app) printMessage(head []byte, response proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(response)
	if err != nil {
		return err
	}
	if head != nil {
		b = slices.Concat(bytes.TrimRight(head, "}\n "), []byte(","), bytes.TrimLeft(b, "{"))
	}
	var indented bytes.Buffer // protojson varies its white space on purpose
	if err := json.Indent(&indented, b, "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.stdout, indented.String())
	return err
}

// printLine is print with one line of text.
func (a *app) printLine(response proto.Message, format string, args ...any) error {
	return a.print(response, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, clean(fmt.Sprintf(format, args...)))
		return err
	})
}

// printValue is print for what is no message of the protocol.
func (a *app) printValue(value any, text func(w io.Writer) error) error {
	if a.output != formatJSON {
		return a.printText(text)
	}
	b, err := marshal(value)
	if err != nil {
		return err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, b, "", "  "); err != nil {
		return err
	}
	_, err = a.stdout.Write(indented.Bytes())
	return err
}

// marshal is a value as JSON that people may read, in one line.
func marshal(value any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return b.Bytes(), err
}

// printText writes in one piece.
func (a *app) printText(text func(w io.Writer) error) error {
	var b bytes.Buffer
	if err := text(&b); err != nil {
		return err
	}
	_, err := a.stdout.Write(b.Bytes())
	return err
}

func (a *app) printDryRun() error {
	return a.printValue(struct {
		WouldSucceed bool `json:"would_succeed"`
	}{true}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, "Nothing was changed. The call would have succeeded.")
		return err
	})
}

// wrapped are words in lines, indented behind a title, as help shows them.
func wrapped(title string, words []string) string {
	const width = 86
	var b strings.Builder
	line := " " + title
	for _, w := range words {
		if len(line)+1+len(w) > width {
			b.WriteString(line + "\n")
			line = strings.Repeat(" ", 1+len(title))
		}
		line += " " + w
	}
	return b.String() + line + "\n"
}

// writeTable writes rows of equal length; the first is the heading.
func writeTable(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = shorten(clean(orDash(cell)))
		}
		if _, err := fmt.Fprintln(t, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// writeFields writes names and values, one a line.
func writeFields(w io.Writer, fields [][2]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, f := range fields {
		if _, err := fmt.Fprintf(t, "%s\t%s\n", f[0], clean(orDash(f[1]))); err != nil {
			return err
		}
	}
	return t.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func shorten(s string) string {
	if r := []rune(s); len(r) > maxCell {
		return string(r[:maxCell-1]) + "…"
	}
	return s
}

// clean keeps what others wrote from steering the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// enumName is a name of the protocol as people read it.
func enumName(name fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name.String(), prefix), "_", " "))
}

func timeText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.DateTime) + " UTC"
}

// expiryText is expiry of a time that may be missing.
func expiryText(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return ""
	}
	return expiry(t.AsTime(), now)
}

// expiry says when, and how long that is from now.
func expiry(t, now time.Time) string {
	text := t.UTC().Format(time.DateTime) + " UTC"
	switch left := t.Sub(now); {
	case left <= 0:
		return text + " (EXPIRED)"
	case left < 2*day:
		return fmt.Sprintf("%s (in %s)", text, left.Round(time.Minute))
	default:
		return fmt.Sprintf("%s (in %d days)", text, left/day)
	}
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// printable reports whether data can be shown on a terminal.
func printable(data []byte) bool {
	return utf8.Valid(data) && !slices.ContainsFunc([]rune(string(data)), func(r rune) bool {
		return !unicode.IsPrint(r) && r != '\n' && r != '\t'
	})
}
