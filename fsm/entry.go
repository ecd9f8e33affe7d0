package fsm

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// MaxEntry is the largest entry, in bytes.
const MaxEntry = 1 << 20

// format is the number of the one format of entries and snapshots there has been.
const format = 1

// Entry is one log entry: a command and who asked for it when. Its bytes are the
// canonical JSON of this struct with one more member at the end, "mac": the
// base64 of HMAC-SHA256 under the cluster's log key over
// "quorumkms/entry/v1" and the JSON without it.
type Entry struct {
	Format    int             `json:"format"`    // of the entry; its command has a release of its own
	Command   string          `json:"command"`   // a row of the table
	Request   string          `json:"request"`   // request id; empty for the system's own acts
	Digest    []byte          `json:"digest"`    // SHA-256 of what the caller asked for; empty without a request id
	Principal string          `json:"principal"` // SPIFFE URI of who asked
	Proposer  string          `json:"proposer"`  // raft id of the node that was asked
	Time      int64           `json:"time"`      // unix nanoseconds, stamped by the leader
	Body      json.RawMessage `json:"body"`
}

// Limits of an entry's fields, in bytes.
const (
	MaxRequestID = 128
	MaxPrincipal = 512
)

// LogKey is the key of entry and snapshot MACs (LMK), 32 bytes.
type LogKey []byte

func (k LogKey) mac(label string, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, k)
	h.Write([]byte(label))
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// Prove is HMAC-SHA256 under the log key over a label and a value: 32 bytes. The
// labels of entries and snapshots are taken.
func (k LogKey) Prove(label string, value []byte) []byte { return k.mac(label, value) }

const (
	entryLabel = "quorumkms/entry/v1"
	macPrefix  = `,"mac":"`
	macSuffix  = `"}`
	macText    = 44 // base64 of 32 bytes
	macTail    = len(macPrefix) + macText + len(macSuffix)
)

// EncodeEntry gives the bytes of an entry with its MAC. e.Command and e.Body are
// set from c. ErrInvalid if the command or a field breaks a rule that needs no
// state, or if the entry would not be read back as it was meant (text that is not
// UTF-8): such an entry would halt every node.
func EncodeEntry(e Entry, c Command, key LogKey) ([]byte, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", NameOf(c), err)
	}
	e.Format, e.Command, e.Body = format, NameOf(c), body
	if err := e.validate(); err != nil {
		return nil, err
	}
	plain, err := json.Marshal(&e)
	if err != nil {
		return nil, fmt.Errorf("encoding entry: %w", err)
	}
	mac := base64.StdEncoding.EncodeToString(key.mac(entryLabel, plain))
	out := append(plain[:len(plain)-1], macPrefix+mac+macSuffix...)
	if len(out) > MaxEntry {
		return nil, invalid("entry of %d bytes, at most %d", len(out), MaxEntry)
	}
	if _, _, err := decodeEntry(out); err != nil {
		return nil, invalid("%s cannot be written to the log (is every text valid UTF-8?): %s", NameOf(c), err.Error())
	}
	return out, nil
}

func (e *Entry) validate() error {
	switch {
	case len(e.Request) > MaxRequestID:
		return invalid("request id has %d bytes, at most %d", len(e.Request), MaxRequestID)
	case (e.Request == "") != (len(e.Digest) == 0) || len(e.Digest) != 0 && len(e.Digest) != sha256.Size:
		return invalid("request id and digest must come together")
	case e.Principal == "" || len(e.Principal) > MaxPrincipal:
		return invalid("principal has %d bytes: must be 1 to %d", len(e.Principal), MaxPrincipal)
	case e.Proposer == "" || len(e.Proposer) > MaxRaftID:
		return invalid("proposer has %d bytes: must be 1 to %d", len(e.Proposer), MaxRaftID)
	}
	return nil
}

// VerifyEntry checks an entry's MAC.
func (k LogKey) VerifyEntry(raw []byte) error {
	plain, mac, err := splitMAC(raw)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, k.mac(entryLabel, plain)) {
		return fmt.Errorf("%w: entry MAC does not verify: the log was altered, or another cluster wrote it", ErrHalted)
	}
	return nil
}

func splitMAC(raw []byte) (plain, mac []byte, err error) {
	if len(raw) > MaxEntry || len(raw) < macTail+1 {
		return nil, nil, fmt.Errorf("%w: entry of %d bytes", ErrHalted, len(raw))
	}
	head, tail := raw[:len(raw)-macTail], raw[len(raw)-macTail:]
	text, ok := bytes.CutPrefix(tail, []byte(macPrefix))
	if ok {
		text, ok = bytes.CutSuffix(text, []byte(macSuffix))
	}
	if ok {
		mac, err = base64.StdEncoding.Strict().DecodeString(string(text))
	}
	if !ok || err != nil || len(mac) != sha256.Size {
		return nil, nil, fmt.Errorf("%w: entry does not end with a MAC", ErrHalted)
	}
	return append(bytes.Clone(head), '}'), mac, nil
}

// OpenEntry verifies an entry's MAC and decodes it. The MAC covers what is asked for,
// by whom and when, and not the place in the log: whoever keeps entries outside it
// must bind the index to them.
func (k LogKey) OpenEntry(raw []byte) (*Entry, Command, error) {
	if err := k.VerifyEntry(raw); err != nil {
		return nil, nil, err
	}
	return decodeEntry(raw)
}

// decodeEntry reads an entry strictly: every field known, and the bytes exactly
// those this release would write.
func decodeEntry(raw []byte) (*Entry, Command, error) {
	plain, _, err := splitMAC(raw)
	if err != nil {
		return nil, nil, err
	}
	var e Entry
	if err := decodeStrict(plain, &e); err != nil {
		return nil, nil, fmt.Errorf("%w: entry: %w", ErrHalted, err)
	}
	if e.Format != format {
		return nil, nil, fmt.Errorf("%w: entry of format %d, this release knows %d: upgrade this node", ErrHalted, e.Format, format)
	}
	if err := e.validate(); err != nil {
		return nil, nil, fmt.Errorf("%w: entry: %s", ErrHalted, err.Error()) // wraps no ErrInvalid: it is no caller's fault
	}
	c, err := DecodeCommand(e.Command, e.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s: upgrade this node", ErrHalted, err.Error())
	}
	if err := checkRelease(c); err != nil {
		return nil, nil, fmt.Errorf("%w: %w: upgrade this node", ErrHalted, err)
	}
	return &e, c, nil
}

// DecodeCommand reads a command's body strictly. ErrInvalid if this release does
// not know the command or a field.
func DecodeCommand(name string, body []byte) (Command, error) {
	s, ok := lookup(name)
	if !ok {
		return nil, invalid("unknown command %q", name)
	}
	c := s.make()
	if err := decodeStrict(body, c); err != nil {
		return nil, invalid("%s: %v", name, err)
	}
	return c, nil
}

// decodeStrict decodes canonical JSON: unknown fields, other spellings, duplicate
// members, white space and trailing bytes are refused, because encoding what was
// decoded must give the same bytes again. It is what Apply and the reading of
// snapshots cost most: whatever only words a refusal happens after it.
func decodeStrict(b []byte, into any) error {
	again := same{want: b}
	if json.Unmarshal(b, into) == nil && json.NewEncoder(&again).Encode(into) == nil && again.is {
		return nil
	}
	return whyNot(b, reflect.New(reflect.TypeOf(into).Elem()).Interface())
}

// same compares what a json.Encoder writes, which is one value and a line end.
type same struct {
	want []byte
	is   bool
}

func (s *same) Write(b []byte) (int, error) {
	s.is = bytes.Equal(bytes.TrimSuffix(b, []byte{'\n'}), s.want)
	return len(b), nil
}

// whyNot says why bytes are not the canonical JSON of a value of into's type.
func whyNot(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := json.Marshal(into); err != nil {
		return err
	}
	return errors.New("not in canonical form")
}
