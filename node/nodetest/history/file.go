package history

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// line is one line of a history's file.
type line struct {
	Operation *Operation `json:"operation,omitempty"`
	Digest    *Digest    `json:"digest,omitempty"`
}

// maxLine bounds one line of a file, in bytes.
const maxLine = 1 << 20

// Save writes the history as JSON, one line an operation or digest.
func (h History) Save(w io.Writer) error {
	buffered := bufio.NewWriter(w)
	e := json.NewEncoder(buffered)
	for i := range h.Operations {
		if err := e.Encode(line{Operation: &h.Operations[i]}); err != nil {
			return err
		}
	}
	for i := range h.Digests {
		if err := e.Encode(line{Digest: &h.Digests[i]}); err != nil {
			return err
		}
	}
	return buffered.Flush()
}

// ErrFile means: what was read is no history.
var ErrFile = errors.New("not a history")

// Load reads what Save wrote.
func Load(r io.Reader) (History, error) {
	var h History
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return History{}, fmt.Errorf("%w: line %d: %w", ErrFile, n, err)
		}
		switch {
		case (l.Operation == nil) == (l.Digest == nil):
			return History{}, fmt.Errorf("%w: line %d: must hold an operation or a digest", ErrFile, n)
		case l.Operation != nil:
			h.Operations = append(h.Operations, *l.Operation)
		default:
			h.Digests = append(h.Digests, *l.Digest)
		}
	}
	if err := lines.Err(); err != nil {
		return History{}, fmt.Errorf("%w: %w", ErrFile, err)
	}
	return h, nil
}

func sortDigests(d []Digest) {
	slices.SortFunc(d, func(a, b Digest) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Hash, b.Hash))
	})
}
