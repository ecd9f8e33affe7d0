package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// Storage is where Raft keeps its log, its votes and its snapshots.
type Storage struct {
	Log       LogStorage
	Snapshots raft.SnapshotStore
	Mark      MarkStorage
}

// LogStorage is Raft's log and its votes. What a call has written is durable when it
// returns.
type LogStorage interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// MarkStorage holds less than a sector of bytes, apart from the log: how far it is.
type MarkStorage interface {
	// Read gives what was written last; fs.ErrNotExist if there is none.
	Read() ([]byte, error)
	// Write replaces it. The process's end cannot undo it; if sync, a power loss
	// cannot either.
	Write(b []byte, sync bool) error
	io.Closer
}

// openFiles is the Storage of a directory. verify reads the state of a snapshot.
func openFiles(dir string, seals sealing, verify func(io.Reader) error) (Storage, error) {
	mark := &markFile{path: filepath.Join(dir, markFileName)}
	snapshots := &snapshots{dir: filepath.Join(dir, snapshotsDir), key: seals.key, verify: verify, fatal: seals.fatal}
	if err := openSnapshots(snapshots, seals.legacy && !exists(mark.path)); err != nil {
		return Storage{}, err
	}
	db, err := openBolt(filepath.Join(dir, raftFile))
	if err != nil {
		return Storage{}, err
	}
	return Storage{Log: db, Snapshots: snapshots, Mark: mark}, nil
}

// lockWait is how long the database's file lock is waited for.
const lockWait = 2 * time.Second

// boltStore is the log in a file of bbolt's. When the file is damaged under it, bbolt
// panics, or faults in its map of the file; here that is an error.
type boltStore struct {
	bolt   *raftboltdb.BoltStore
	broken atomic.Pointer[error] // bbolt panicked: it holds its locks for ever
}

var _ LogStorage = (*boltStore)(nil)

func openBolt(path string) (*boltStore, error) {
	if err := checkBoltFile(path); err != nil {
		return nil, altered("%s: %w", path, err)
	}
	s := new(boltStore)
	err := s.do(func() (err error) {
		s.bolt, err = raftboltdb.New(raftboltdb.Options{
			Path: path,
			BoltOptions: &bbolt.Options{
				Timeout: lockWait, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
			},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: raft store %s: %w", ErrDataDir, path, err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *boltStore) do(f func() error) (err error) {
	if broken := s.broken.Load(); broken != nil {
		return *broken
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the file is damaged: %v", r)
			s.broken.Store(&err)
		}
	}()
	return f()
}

// StoreLog implements raft.LogStore.
func (s *boltStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s *boltStore) StoreLogs(l []*raft.Log) error {
	return s.do(func() error { return s.bolt.StoreLogs(l) })
}

// DeleteRange implements raft.LogStore.
func (s *boltStore) DeleteRange(from, to uint64) error {
	return s.do(func() error { return s.bolt.DeleteRange(from, to) })
}

// GetLog implements raft.LogStore.
func (s *boltStore) GetLog(index uint64, l *raft.Log) error {
	return s.do(func() error { return s.bolt.GetLog(index, l) })
}

// FirstIndex implements raft.LogStore.
func (s *boltStore) FirstIndex() (index uint64, err error) {
	err = s.do(func() (err error) { index, err = s.bolt.FirstIndex(); return err })
	return index, err
}

// LastIndex implements raft.LogStore.
func (s *boltStore) LastIndex() (index uint64, err error) {
	err = s.do(func() (err error) { index, err = s.bolt.LastIndex(); return err })
	return index, err
}

// Set implements raft.StableStore.
func (s *boltStore) Set(key, v []byte) error {
	return s.do(func() error { return s.bolt.Set(key, v) })
}

// Get implements raft.StableStore.
func (s *boltStore) Get(key []byte) (v []byte, err error) {
	err = s.do(func() (err error) { v, err = s.bolt.Get(key); return err })
	return v, err
}

// SetUint64 implements raft.StableStore.
func (s *boltStore) SetUint64(key []byte, v uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 implements raft.StableStore.
func (s *boltStore) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err == nil && len(v) != 8 {
		err = fmt.Errorf("%s has %d bytes", key, len(v))
	}
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil
}

// Close implements io.Closer.
func (s *boltStore) Close() error { return s.do(s.bolt.Close) }
