package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// Signer signs checkpoints, in the HSM.
type Signer interface {
	Identity() []byte // SubjectPublicKeyInfo
	SignIdentity(ctx context.Context, message []byte) ([]byte, error)
}

// Head is a checkpoint, and the proof that its tree goes on from an earlier one.
type Head struct {
	Checkpoint trail.Checkpoint
	Note       []byte
	From       int64        // records of the earlier tree; 0: there is none
	Proof      []trail.Hash // as RFC 6962, section 2.1.2
}

// Checkpoint brings all records to the disk and has the tree signed, unless it was already.
// It is called from one goroutine at a time.
func (l *Log) Checkpoint(ctx context.Context, cluster string, by Signer) error {
	last, _ := l.lastSigned()
	tree, node, err := l.settled()
	if err != nil {
		return err
	}
	c := trail.Checkpoint{Cluster: cluster, Node: node, Size: tree.Size(), Time: l.config.Now().UTC()}
	if c.Size == 0 || c.Size == last.Size && c.Node == last.Node && cluster == last.Cluster {
		return nil
	}
	if c.Root, err = tree.Root(); err != nil {
		return err
	}
	note, err := c.Sign(by.Identity(), func(message []byte) ([]byte, error) { return by.SignIdentity(ctx, message) })
	if err != nil {
		return fmt.Errorf("audit checkpoint: %w", err)
	}
	file := l.path(trail.Name((c.Size-1)/trail.SegmentRecords, trail.CheckpointsEnd))
	if err := appendTo(file, note); err != nil {
		return fmt.Errorf("audit checkpoint: %w", err)
	}
	l.signing.Lock()
	defer l.signing.Unlock()
	l.signed, l.note = c, note
	return nil
}

func (l *Log) lastSigned() (trail.Checkpoint, []byte) {
	l.signing.Lock()
	defer l.signing.Unlock()
	return l.signed, l.note
}

// settled is the tree of all that is written now, which is on the disk.
func (l *Log) settled() (*trail.Tree, string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	tree, node := l.tree.Clone(), l.node
	if err := l.await(uint64(tree.Size())); err != nil { //nolint:gosec // not negative
		return nil, "", err
	}
	return tree, node, nil
}

// Head is the last checkpoint, with the proof that it goes on from a tree of so many records
// and that root, which others remember; from is 0 if they remember none. ok is false if it
// is that very tree. There is no proof if the trail does not go on from there: then this
// node convicts itself.
func (l *Log) Head(from int64, root []byte) (h Head, ok bool, err error) {
	h.From = from
	h.Checkpoint, h.Note = l.lastSigned()
	size := h.Checkpoint.Size
	if h.Note == nil || size == from && bytes.Equal(root, h.Checkpoint.Root[:]) {
		return Head{}, false, nil
	}
	if from == 0 || from >= size {
		return h, true, nil
	}
	h.Proof, err = tlog.ProveTree(size, from, l.Snapshot())
	return h, err == nil, err
}

// Snapshot is the tree as it is now, for proofs.
func (l *Log) Snapshot() *trail.Tree {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree.Clone()
}

// newest is the checkpoint that this node made last, as its files have it.
type newest struct {
	checkpoint trail.Checkpoint
	note       []byte           // nil: there is none
	torn       map[string]int64 // files, and what of them is whole: a crash has left the rest
	wrong      error            // what follows the last checkpoint is none
}

// findNewest reads it. Its signature is not verified here: that nobody has altered it is for who
// verifies the trail.
func (l *Log) findNewest() (n newest, err error) {
	files, err := filepath.Glob(l.path("*" + trail.CheckpointsEnd))
	if err != nil {
		return n, err
	}
	slices.Sort(files)
	n.torn = map[string]int64{}
	for _, file := range slices.Backward(files) {
		b, err := os.ReadFile(file)
		if err != nil {
			return n, err
		}
		c, note, whole, wrong := trail.LastCheckpoint(b)
		if wrong != nil {
			n.wrong = fmt.Errorf("%s: %w", file, wrong)
		}
		if whole < len(b) {
			n.torn[file] = int64(whole)
		}
		if note != nil {
			n.checkpoint, n.note = c, note
			return n, nil
		}
	}
	return n, nil
}

// takeNewest compares the tree with the newest checkpoint. What a loss of power has left behind
// it in its file is cut off then; without one that the tree agrees with nobody knows what it was.
func (l *Log) takeNewest(n newest, there *trail.Loaded) error {
	c := n.checkpoint
	if n.note == nil && n.wrong != nil {
		return fmt.Errorf("%w: %w", ErrAltered, n.wrong)
	}
	if size := l.tree.Size(); c.Size > size {
		err := fmt.Errorf("%w: it ends at record %d, and the node has signed %d", ErrAltered, size, c.Size)
		if there.Wrong != nil {
			err = fmt.Errorf("%w: %w", err, there.Wrong)
		}
		return err
	}
	if n.note != nil {
		root, err := tlog.TreeHash(c.Size, l.tree)
		if err != nil {
			return err
		}
		if root != c.Root {
			return fmt.Errorf("%w: the first %d records are not those that the node has signed; kmsd audit verify names the first", ErrAltered, c.Size)
		}
	}
	for file, whole := range n.torn {
		if n.wrong != nil {
			l.config.Log.Warn("what a loss of power has left of a checkpoint of the audit trail is cut off", "file", file, "at", whole, "error", n.wrong)
		}
		if err := os.Truncate(file, whole); err != nil {
			return err
		}
	}
	l.signed, l.note = c, n.note
	return nil
}

func appendTo(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		if _, err = f.Write(b); err == nil {
			err = f.Sync()
		}
		if err != nil { // half of one would spoil the next
			err = errors.Join(err, f.Truncate(info.Size()))
		}
	}
	if err == nil && info.Size() == 0 {
		err = syncDir(filepath.Dir(path))
	}
	return errors.Join(err, f.Close())
}
