package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// Raft's own names of its vote in the stable store.
const (
	keyVoteTerm = "LastVoteTerm"
	keyVoteFor  = "LastVoteCand"
	// keyVote holds both, so that they reach the disk in one transaction: term
	// u64, big-endian, then the candidate.
	keyVote = "quorumkms/vote"
)

// lockWait is how long the database's file lock is waited for.
const lockWait = 2 * time.Second

// Storage is where Raft keeps its log, its votes and its snapshots.
type Storage struct {
	Log       LogStorage
	Snapshots raft.SnapshotStore
}

// LogStorage is Raft's log and its votes. What a call has written is durable when it
// returns.
type LogStorage interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// store is Raft's log and stable store. Raft goes on after an error of its
// stores; this one ends the process instead: a node whose disk fails must not
// vote or acknowledge.
type store struct {
	LogStorage
	fatal    func(error)
	voteTerm uint64 // set by the first half of a vote, written with the second
}

// openFiles is the Storage of a directory.
func openFiles(dir string, log *slog.Logger) (Storage, error) {
	db, err := openBolt(filepath.Join(dir, raftFile))
	if err != nil {
		return Storage{}, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, retainSnapshots, raftLogger(log, SystemClock{}))
	if err != nil {
		return Storage{}, errors.Join(fmt.Errorf("%w: snapshots: %w", ErrDataDir, err), db.Close())
	}
	return Storage{Log: db, Snapshots: snapshots}, nil
}

func openBolt(path string) (*raftboltdb.BoltStore, error) {
	db, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: lockWait, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: raft store %s: %w", ErrDataDir, path, err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func (s *store) check(what string, err error) error {
	if err != nil {
		err = fmt.Errorf("%w: %s: %w", ErrStorage, what, err)
		s.fatal(err)
	}
	return err
}

// StoreLog implements raft.LogStore.
func (s *store) StoreLog(l *raft.Log) error {
	return s.check("writing the log", s.LogStorage.StoreLog(l))
}

// StoreLogs implements raft.LogStore.
func (s *store) StoreLogs(l []*raft.Log) error {
	return s.check("writing the log", s.LogStorage.StoreLogs(l))
}

// DeleteRange implements raft.LogStore.
func (s *store) DeleteRange(from, to uint64) error {
	return s.check("truncating the log", s.LogStorage.DeleteRange(from, to))
}

// SetUint64 implements raft.StableStore.
func (s *store) SetUint64(key []byte, v uint64) error {
	if string(key) == keyVoteTerm {
		s.voteTerm = v
		return nil
	}
	return s.check("writing the term", s.LogStorage.SetUint64(key, v))
}

// Set implements raft.StableStore.
func (s *store) Set(key, v []byte) error {
	if string(key) == keyVoteFor {
		key, v = []byte(keyVote), append(binary.BigEndian.AppendUint64(nil, s.voteTerm), v...)
	}
	return s.check("writing the vote", s.LogStorage.Set(key, v))
}

// GetUint64 implements raft.StableStore.
func (s *store) GetUint64(key []byte) (uint64, error) {
	if string(key) != keyVoteTerm {
		return s.LogStorage.GetUint64(key)
	}
	v, err := s.vote()
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil
}

// Get implements raft.StableStore.
func (s *store) Get(key []byte) ([]byte, error) {
	if string(key) != keyVoteFor {
		return s.LogStorage.Get(key)
	}
	v, err := s.vote()
	if err != nil {
		return nil, err
	}
	return v[8:], nil
}

func (s *store) vote() ([]byte, error) {
	v, err := s.LogStorage.Get([]byte(keyVote))
	if err == nil && len(v) < 8 {
		return nil, s.check("reading the vote", errors.New("it is damaged"))
	}
	return v, err
}
