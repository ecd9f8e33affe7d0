package trail

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

const (
	// headsFormat is the only format of files of heads there is.
	headsFormat = 1
	// MaxHeads is more than the size of any file of heads, in bytes.
	MaxHeads = 16 << 20
	maxNames = 512 // bytes
)

// ErrHeads means: what should be a file of heads is none.
var ErrHeads = errors.New("audit heads refused")

// Heads is what a cluster remembers of its nodes' trails. Who has it, and the files of a
// trail, needs no node to verify that.
type Heads struct {
	Format  int        `json:"format"`
	Cluster string     `json:"cluster"`
	Nodes   []NodeHead `json:"nodes"` // by Node
}

// NodeHead is what is remembered of one node's trail.
type NodeHead struct {
	Node       string `json:"node"` // raft id
	Name       string `json:"name"`
	Identity   []byte `json:"identity"`             // SPKI of its identity key
	Checkpoint string `json:"checkpoint,omitempty"` // the note; empty: none is remembered
	Conflict   string `json:"conflict,omitempty"`   // one that does not go on from what was remembered
	Removed    bool   `json:"removed"`              // it is a member no more
}

// Find finds a node by its raft id, or by its name: of several that had it, the one that is
// a member.
func (h Heads) Find(node string) (found NodeHead, ok bool) {
	for _, n := range h.Nodes {
		switch {
		case n.Node == node:
			return n, true
		case n.Name == node && (!ok || found.Removed):
			found, ok = n, true
		}
	}
	return found, ok
}

// Encode writes the file, in its only form. ErrHeads if it would not be read again.
func (h Heads) Encode() ([]byte, error) {
	h.Format = headsFormat
	if err := h.check(); err != nil {
		return nil, err
	}
	b, err := h.encode()
	if err == nil && len(b) > MaxHeads {
		err = fmt.Errorf("%w: %d bytes, at most %d", ErrHeads, len(b), MaxHeads)
	}
	return b, err
}

func (h Heads) encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(h)
	return b.Bytes(), err
}

// ParseHeads reads a file of heads, which must be in its only form, and verifies the
// checkpoints in it with the keys in it. ErrHeads.
func ParseHeads(b []byte) (Heads, error) {
	var h Heads
	if len(b) > MaxHeads {
		return h, fmt.Errorf("%w: more than %d bytes", ErrHeads, MaxHeads)
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("%w: %w", ErrHeads, err)
	}
	if h.Format != headsFormat {
		return h, fmt.Errorf("%w: format %d, this release reads %d", ErrHeads, h.Format, headsFormat)
	}
	again, err := h.encode()
	if err != nil {
		return h, fmt.Errorf("%w: %w", ErrHeads, err)
	}
	if !bytes.Equal(again, b) {
		return h, fmt.Errorf("%w: not in its canonical form", ErrHeads)
	}
	return h, h.check()
}

func (h Heads) check() error {
	if h.Cluster == "" || len(h.Cluster) > maxNames {
		return fmt.Errorf("%w: the cluster's id has %d bytes", ErrHeads, len(h.Cluster))
	}
	for i, n := range h.Nodes {
		if n.Node == "" || len(n.Node) > maxNames || len(n.Name) > maxNames {
			return fmt.Errorf("%w: node %d: its id or name", ErrHeads, i)
		}
		if i > 0 && h.Nodes[i-1].Node >= n.Node {
			return fmt.Errorf("%w: node %.80s stands behind %.80s", ErrHeads, n.Node, h.Nodes[i-1].Node)
		}
		if !validIdentity(n.Identity) {
			return fmt.Errorf("%w: node %.80s: its identity is no P-256 key", ErrHeads, n.Node)
		}
		if n.Conflict != "" && n.Checkpoint == "" {
			return fmt.Errorf("%w: node %.80s: a conflict with nothing", ErrHeads, n.Node)
		}
		for _, note := range []string{n.Checkpoint, n.Conflict} {
			if note == "" {
				continue
			}
			c, err := OpenCheckpoint([]byte(note), n.Identity)
			if err == nil && (c.Node != n.Node || c.Cluster != h.Cluster) {
				err = fmt.Errorf("it is of node %s in cluster %s", c.Node, c.Cluster)
			}
			if err != nil {
				return fmt.Errorf("%w: node %.80s: %w", ErrHeads, n.Node, err)
			}
		}
	}
	return nil
}

// Convicted is the finding that what is remembered of a node is by itself: it has signed a
// tree that does not go on from one it had signed. Nil if there is none. That the two do not
// belong together is the cluster's word, unless they are of one size: Verify, which has the
// records, knows better (Options.Conflict).
func (n NodeHead) Convicted() *Finding {
	was, err := OpenCheckpoint([]byte(n.Checkpoint), n.Identity)
	if err != nil {
		return nil
	}
	is, err := OpenCheckpoint([]byte(n.Conflict), n.Identity)
	if err != nil {
		return nil
	}
	return convicted(was, is)
}

func convicted(was, is Checkpoint) *Finding {
	if !is.Convicts(was) || is.Node != was.Node || is.Cluster != was.Cluster {
		return nil
	}
	return &Finding{
		Kind: Rewritten, First: 1, Last: uint64(max(was.Size, is.Size)), //nolint:gosec // not negative
		Text: fmt.Sprintf("the node has signed a trail of %d records, of %s, that does not go on from the one of %d records that the cluster remembers, of %s",
			is.Size, stamp(is.Time), was.Size, stamp(was.Time)),
	}
}
