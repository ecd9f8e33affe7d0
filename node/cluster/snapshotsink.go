package cluster

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// Create implements raft.SnapshotStore.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != raft.SnapshotVersionMax {
		return nil, fmt.Errorf("%w: snapshot of version %d", ErrStorage, version)
	}
	id := fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixMilli())
	x := &snapshotSink{store: s, dir: filepath.Join(s.dir, id+unfinished), sum: sha256.New(), meta: &snapshotMeta{SnapshotMeta: raft.SnapshotMeta{
		Version: version, ID: id, Index: index, Term: term, Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}}
	if err := os.MkdirAll(x.dir, 0o700); err != nil {
		return nil, s.check(fmt.Errorf("%w: snapshot: %w", ErrStorage, err))
	}
	var err error
	if x.file, err = os.OpenFile(filepath.Join(x.dir, stateFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
		return nil, s.check(fmt.Errorf("%w: snapshot: %w", ErrStorage, err))
	}
	x.buffer = bufio.NewWriterSize(io.MultiWriter(x.file, x.sum), 1<<16)
	return x, nil
}

// snapshotSink takes one snapshot in.
type snapshotSink struct {
	store  *snapshots
	dir    string
	meta   *snapshotMeta
	file   *os.File
	buffer *bufio.Writer
	sum    hash.Hash
	closed bool

	unsynced int // bytes written since the last sync
}

// syncSnapshotEvery is how many bytes of a snapshot are synced at a time: a sync of all
// of them at the end would hold those of the log up.
const syncSnapshotEvery = 8 << 20

// ID implements raft.SnapshotSink.
func (x *snapshotSink) ID() string { return x.meta.ID }

// Write implements raft.SnapshotSink.
func (x *snapshotSink) Write(b []byte) (int, error) {
	n, err := x.buffer.Write(b)
	if x.unsynced += n; err == nil && x.unsynced >= syncSnapshotEvery {
		x.unsynced, err = 0, x.file.Sync()
	}
	return n, x.failed(err)
}

// failed ends the process if the snapshot cannot be written.
func (x *snapshotSink) failed(err error) error {
	if err != nil {
		err = x.store.check(fmt.Errorf("%w: writing snapshot %s: %w", ErrStorage, x.meta.ID, err))
	}
	return err
}

// Cancel implements raft.SnapshotSink.
func (x *snapshotSink) Cancel() error {
	if x.closed {
		return nil
	}
	x.closed = true
	return errors.Join(x.file.Close(), os.RemoveAll(x.dir))
}

// Close implements raft.SnapshotSink: it verifies the snapshot and makes it count.
func (x *snapshotSink) Close() error {
	if x.closed {
		return nil
	}
	x.closed = true
	if err := errors.Join(x.buffer.Flush(), x.file.Sync(), x.file.Close()); err != nil {
		return x.failed(err)
	}
	if err := x.verify(); err != nil {
		bad := strings.TrimSuffix(x.dir, unfinished) + refusedSuffix
		err = errors.Join(err, os.Rename(x.dir, bad))
		return x.store.check(fmt.Errorf("%w: snapshot %s (kept as %s): %w", ErrStorage, x.meta.ID, bad, err))
	}
	return x.failed(x.finish())
}

func (x *snapshotSink) verify() (err error) {
	read := sha256.New()
	if x.meta.Size, err = x.store.readBack(x.dir, read); err != nil {
		return err
	}
	x.meta.SHA256 = x.sum.Sum(nil)
	if !seal(read.Sum(nil)).verifies(x.meta.SHA256) {
		return errors.New("what was read back is not what was written")
	}
	return nil
}

func (x *snapshotSink) finish() error {
	s := x.store
	if err := s.writeMeta(x.dir, x.meta); err != nil {
		return err
	}
	if err := errors.Join(os.Rename(x.dir, filepath.Join(s.dir, x.meta.ID)), syncDir(s.dir)); err != nil {
		return err
	}
	all, err := s.list()
	if err != nil {
		return err
	}
	for _, old := range all[min(len(all), retainSnapshots):] {
		path := filepath.Join(s.dir, old.ID)
		if err := errors.Join(os.Rename(path, path+unfinished), os.RemoveAll(path+unfinished)); err != nil {
			return err
		}
	}
	return nil
}
