package sink

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/quorumkms/quorumkms/node/audit"
)

const cursorEnd = ".cursor"

// cursor keeps how far a sink is: the sequence number of the last record that it has.
type cursor struct{ path string }

func newCursor(dir, name string) cursor { return cursor{filepath.Join(dir, name+cursorEnd)} }

// load is the cursor of an earlier run; there is false if there is none.
func (c cursor) load() (sequence uint64, there bool, err error) {
	b, err := os.ReadFile(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	sequence, err = strconv.ParseUint(strings.TrimSuffix(string(b), "\n"), 10, 63)
	if err != nil {
		return 0, false, fmt.Errorf("%s is no sequence number; remove it and the sink gets all records again: %w", c.path, err)
	}
	return sequence, true, nil
}

// save replaces the cursor, whole or not at all.
func (c cursor) save(sequence uint64) error {
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return err
	}
	return audit.Replace(c.path, 0o600, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, sequence)
		return err
	})
}
