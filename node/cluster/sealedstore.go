package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// Raft's own names in the stable store.
const (
	keyTerm     = "CurrentTerm"
	keyVoteTerm = "LastVoteTerm"
	keyVoteFor  = "LastVoteCand"
	// keyVote holds both halves of a vote, so that they reach the disk in one
	// transaction: term u64, big-endian, then the candidate.
	keyVote = "quorumkms/vote"
)

// sealedStore is Raft's log and stable store: it seals what Raft writes and verifies
// what it reads. Raft goes on after an error of its stores; this one ends the process
// instead: a node whose disk fails, or is not as it left it, must not vote,
// acknowledge, replicate or apply.
//
// The log has no gaps: where Raft leaves one, after it has installed a snapshot, the
// records before it are of no further use and are deleted. The seals of all records
// are in memory, so that a record is verified against what this process wrote or
// walked over at its start, wherever it lies.
type sealedStore struct {
	storage Storage
	key     sealKey
	fatal   func(error)

	voteTerm uint64 // set by the first half of a vote, written with the second

	mu    sync.Mutex
	mark  mark
	first uint64 // index of seals[0]
	seals []seal // of the records in the log
	tail  seal   // of the last record written, which may be deleted by now
}

// check ends the process because of err, if it is one.
func (s *sealedStore) check(err error) error {
	if err != nil {
		s.fatal(err)
	}
	return err
}

func (s *sealedStore) written(what string, err error) error {
	if err != nil {
		err = s.check(fmt.Errorf("%w: writing the %s: %w", ErrStorage, what, err))
	}
	return err
}

func (s *sealedStore) setMark(m mark, sync bool) error {
	if m == s.mark {
		return nil
	}
	s.mark = m
	return s.written("mark of the log", s.storage.Mark.Write(m.encode(s.key), sync))
}

// covered is the index of the newest snapshot: up to there the log is superfluous.
func (s *sealedStore) covered() (uint64, error) {
	all, err := s.storage.Snapshots.List()
	if err != nil || len(all) == 0 {
		return 0, err
	}
	return all[0].Index, nil
}

// FirstIndex implements raft.LogStore.
func (s *sealedStore) FirstIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seals) == 0 {
		return 0, nil
	}
	return s.first, nil
}

// LastIndex implements raft.LogStore.
func (s *sealedStore) LastIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last(), nil
}

// last is the index of the last record in the log; 0 if there is none.
func (s *sealedStore) last() uint64 {
	if len(s.seals) == 0 {
		return 0
	}
	return s.first + uint64(len(s.seals)) - 1
}

func (s *sealedStore) sealOf(index uint64) (seal, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index < s.first || index-s.first >= uint64(len(s.seals)) {
		return seal{}, false
	}
	return s.seals[index-s.first], true
}

// GetLog implements raft.LogStore.
func (s *sealedStore) GetLog(index uint64, l *raft.Log) error {
	want, ok := s.sealOf(index)
	if !ok {
		return raft.ErrLogNotFound
	}
	got, _, own, err := s.read(index)
	if err == nil && own != want {
		err = altered("log entry %d was replaced by one that this node wrote at that place before", index)
	}
	if err == nil {
		*l = got
		return nil
	}
	if now, still := s.sealOf(index); !still || now != want {
		return raft.ErrLogNotFound // deleted or replaced meanwhile, or the store is closed
	}
	return s.check(err)
}

// read reads a record that must be there and verifies its own seal.
func (s *sealedStore) read(index uint64) (l raft.Log, link, own seal, err error) {
	err = s.storage.Log.GetLog(index, &l)
	switch {
	case errors.Is(err, raft.ErrLogNotFound):
		return l, link, own, altered("log entry %d is missing", index)
	case err != nil:
		return l, link, own, altered("log entry %d cannot be read: %w", index, err)
	case l.Index != index:
		return l, link, own, altered("log entry %d is in the place of entry %d", l.Index, index)
	}
	link, own, err = s.key.openRecord(&l)
	return l, link, own, err
}

// StoreLog implements raft.LogStore.
func (s *sealedStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s *sealedStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	if err := s.makeRoom(logs[0].Index); err != nil {
		return err
	}
	records, sealed, seals, link := make([]raft.Log, len(logs)), make([]*raft.Log, len(logs)), make([]seal, len(logs)), s.tail
	for i, l := range logs {
		if l.Index != logs[0].Index+uint64(i) {
			return s.check(fmt.Errorf("%w: raft writes entry %d after %d", ErrStorage, l.Index, logs[0].Index+uint64(i)-1))
		}
		records[i], link = s.key.sealRecord(l, link)
		sealed[i], seals[i] = &records[i], link
	}
	if err := s.written("log", s.storage.Log.StoreLogs(sealed)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seals) == 0 {
		s.first = logs[0].Index
	}
	s.seals, s.tail = append(s.seals, seals...), link
	m := s.mark
	m.index, m.seal = s.last(), link
	return s.setMark(m, false)
}

// makeRoom makes sure that a record of that index can follow the log's last one.
func (s *sealedStore) makeRoom(index uint64) error {
	first, _ := s.FirstIndex()
	last, _ := s.LastIndex()
	switch {
	case last == 0 || index == last+1:
		return nil
	case index <= last:
		return s.check(fmt.Errorf("%w: raft writes entry %d over those up to %d", ErrStorage, index, last))
	}
	return s.DeleteRange(first, last)
}

// DeleteRange implements raft.LogStore. The mark is lowered before records at the end
// are deleted that no snapshot covers: a leader of a later term has others in their
// place.
//
// What a snapshot covers at the beginning goes piece by piece: while records are deleted
// none can be written. A crash in between leaves a log that begins later.
func (s *sealedStore) DeleteRange(from, to uint64) error {
	compacted := s.compacts(from, to)
	if err := s.forget(from, to); err != nil {
		return err
	}
	for ; compacted && to-from >= deleteAtATime; from += deleteAtATime {
		if err := s.written("log", s.storage.Log.DeleteRange(from, from+deleteAtATime-1)); err != nil {
			return err
		}
	}
	return s.written("log", s.storage.Log.DeleteRange(from, to))
}

// deleteAtATime is how many records are deleted in one transaction: some 10 ms.
const deleteAtATime = 4096

// compacts tells whether records at the beginning of the log are to go, and others stay.
func (s *sealedStore) compacts(from, to uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return from == s.first && to < s.last()
}

func (s *sealedStore) forget(from, to uint64) error {
	covered, err := s.covered()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.last()
	switch {
	case len(s.seals) == 0 || to < s.first || from > last:
		return nil
	case from > s.first && to < last:
		return s.check(fmt.Errorf("%w: raft deletes the log's entries %d to %d out of %d to %d", ErrStorage, from, to, s.first, last))
	case to < last:
		s.seals = slices.Clone(s.seals[to-s.first+1:]) // what is left is little, as a rule: the rest need not stay in memory
		s.first = to + 1
		return nil
	case from <= s.first && covered >= last:
		s.seals = nil
		return nil
	}
	keep := max(from, s.first) - s.first
	s.seals, s.tail = s.seals[:keep], seal{}
	if keep > 0 {
		s.tail = s.seals[keep-1]
	}
	m := s.mark
	m.index, m.seal = s.first+keep-1, s.tail
	return s.setMark(m, true)
}

// SetUint64 implements raft.StableStore.
func (s *sealedStore) SetUint64(key []byte, v uint64) error {
	if string(key) == keyVoteTerm {
		s.voteTerm = v
		return nil
	}
	return s.Set(key, binary.BigEndian.AppendUint64(nil, v))
}

// Set implements raft.StableStore.
func (s *sealedStore) Set(key, v []byte) error {
	if string(key) == keyVoteFor {
		key, v = []byte(keyVote), append(binary.BigEndian.AppendUint64(nil, s.voteTerm), v...)
	}
	if err := s.written("term or vote", s.storage.Log.Set(key, s.key.sealValue(key, v))); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.mark
	switch string(key) {
	case keyTerm:
		m.term = binary.BigEndian.Uint64(v)
	case keyVote:
		m.vote = binary.BigEndian.Uint64(v)
	}
	return s.setMark(m, false)
}

// GetUint64 implements raft.StableStore.
func (s *sealedStore) GetUint64(key []byte) (uint64, error) {
	if string(key) == keyVoteTerm {
		key = []byte(keyVote)
	}
	v, err := s.checkedValue(key)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil
}

// Get implements raft.StableStore.
func (s *sealedStore) Get(key []byte) ([]byte, error) {
	if string(key) != keyVoteFor {
		return s.checkedValue(key)
	}
	v, err := s.checkedValue([]byte(keyVote))
	if err != nil {
		return nil, err
	}
	return v[8:], nil
}

// value reads and verifies a value of the stable store: a number, or what begins with
// one. Raft knows by errNotFound's text that there is none.
func (s *sealedStore) value(key []byte) ([]byte, error) {
	b, err := s.storage.Log.Get(key)
	if err != nil && err.Error() == errNotFound.Error() {
		return nil, errNotFound
	}
	if err != nil {
		return nil, altered("raft's %s cannot be read: %w", key, err)
	}
	return s.key.openValue(key, b)
}

var errNotFound = errors.New("not found")

func (s *sealedStore) checkedValue(key []byte) ([]byte, error) {
	v, err := s.value(key)
	if errors.Is(err, errNotFound) {
		return nil, err
	}
	return v, s.check(err)
}

func (k sealKey) value(key, v []byte) seal {
	return k.seal(sealedValue, binary.BigEndian.AppendUint32(nil, uint32(len(key))), key, v) //nolint:gosec // short names
}

func (k sealKey) sealValue(key, v []byte) []byte {
	own := k.value(key, v)
	return append(append(make([]byte, 0, len(v)+len(own)), v...), own[:]...)
}

func (k sealKey) openValue(key, b []byte) ([]byte, error) {
	n := len(b) - len(seal{})
	if n < 8 || !k.value(key, b[:n]).verifies(b[n:]) {
		return nil, altered("the seal of raft's %s does not verify", key)
	}
	return b[:n:n], nil
}

// Close implements io.Closer.
func (s *sealedStore) Close() error {
	s.mu.Lock()
	s.seals = nil // who still reads finds nothing, and takes that for no alarm
	s.mu.Unlock()
	return errors.Join(s.storage.Mark.Close(), s.storage.Log.Close())
}
