package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/hashicorp/raft"
)

// sealing is what is known of a directory before its log is opened.
type sealing struct {
	key sealKey
	// legacy: it was made by a release that did not seal. While it has no mark, what is
	// in it is taken as it is.
	legacy bool
	// member: Raft has run under this id, so there is a mark.
	member bool
	fatal  func(error)
}

// openSealed reads all of a log, its term and its vote, and refuses what this node
// did not write, or what is less than it wrote.
func openSealed(on Storage, c sealing) (*sealedStore, error) {
	s := &sealedStore{storage: on, key: c.key, fatal: c.fatal}
	covered, err := s.covered()
	if err != nil {
		return nil, err
	}
	b, err := on.Mark.Read()
	switch {
	case errors.Is(err, fs.ErrNotExist) && c.legacy:
		err = s.adopt(covered)
	case errors.Is(err, fs.ErrNotExist):
		err = s.begin(covered, c.member)
	case err != nil:
		err = fmt.Errorf("%w: the mark of the log: %w", ErrDataDir, err)
	default:
		if s.mark, err = decodeMark(b, c.key); err != nil {
			return nil, altered("the mark of the log: %w", err)
		}
		err = s.load(covered)
	}
	return s, err
}

// begin makes the mark of a log that has not begun.
func (s *sealedStore) begin(covered uint64, member bool) error {
	last, err := s.storage.Log.LastIndex()
	if err != nil {
		return altered("the log cannot be read: %w", err)
	}
	if member || last > 0 || covered > 0 {
		return altered("the mark of the log is missing")
	}
	return s.firstMark(mark{})
}

func (s *sealedStore) firstMark(m mark) error {
	s.mark = m
	if err := s.storage.Mark.Write(m.encode(s.key), true); err != nil {
		return fmt.Errorf("%w: the mark of the log: %w", ErrDataDir, err)
	}
	return nil
}

// load walks over the log from its end to its beginning.
func (s *sealedStore) load(covered uint64) error {
	first, last, err := s.bounds()
	if err != nil {
		return err
	}
	var seals []seal
	var link seal // of the record that was read before, which follows this one
	lastTerm := uint64(0)
	for i := last; i >= first && i > 0; i-- {
		l, before, own, err := s.read(i)
		if err != nil {
			return err
		}
		if i < last && own != link {
			return altered("log entry %d is not the one that entry %d was written after", i, i+1)
		}
		lastTerm, link = max(lastTerm, l.Term), before
		seals = append(seals, own)
	}
	slices.Reverse(seals)
	s.first, s.seals, s.tail = first, seals, s.mark.seal
	if len(seals) > 0 {
		s.tail = seals[len(seals)-1]
	}
	if err := s.complete(covered); err != nil {
		return err
	}
	return s.current(lastTerm)
}

func (s *sealedStore) bounds() (first, last uint64, err error) {
	if first, err = s.storage.Log.FirstIndex(); err == nil {
		last, err = s.storage.Log.LastIndex()
	}
	if err == nil && (first > last || first == 0 && last != 0) {
		err = fmt.Errorf("it begins at %d and ends at %d", first, last)
	}
	if err != nil {
		return 0, 0, altered("the log cannot be read: %w", err)
	}
	return first, last, nil
}

// complete refuses a log that lacks records at its beginning or its end.
func (s *sealedStore) complete(covered uint64) error {
	m, last := s.mark, s.last()
	switch {
	case len(s.seals) == 0 && m.index > covered:
		return altered("the log is empty and the newest snapshot is of entry %d, but this node has written up to entry %d", covered, m.index)
	case len(s.seals) == 0:
		return nil
	case last < m.index:
		return altered("the log ends at entry %d, but this node has written up to entry %d", last, m.index)
	case s.first > covered+1:
		return altered("the log begins at entry %d, but the newest snapshot is of entry %d", s.first, covered)
	case m.index >= s.first && s.seals[m.index-s.first] != m.seal:
		return altered("log entry %d is not the one that this node wrote last at that place", m.index)
	}
	return nil
}

// current refuses a term or a vote that are older than what this node has written.
func (s *sealedStore) current(lastTerm uint64) error {
	for key, least := range map[string]uint64{keyTerm: max(s.mark.term, lastTerm), keyVote: s.mark.vote} {
		var term uint64
		v, err := s.value([]byte(key))
		switch {
		case err == nil:
			term = binary.BigEndian.Uint64(v)
		case !errors.Is(err, errNotFound):
			return err
		}
		if term < least {
			return altered("raft's %s is of term %d, but this node was in term %d", key, term, least)
		}
	}
	return nil
}

// adoptBatch is how many records are sealed in one transaction.
const adoptBatch = 1024

// adopt seals what a release wrote that did not seal. It can be cut off and begun
// again: the mark is written last.
func (s *sealedStore) adopt(covered uint64) error {
	first, last, err := s.bounds()
	if err != nil {
		return err
	}
	if last > 0 {
		if err := s.adoptLog(first, last, covered); err != nil {
			return err
		}
	}
	m := mark{index: last, seal: s.tail}
	if m.term, err = s.adoptValue(keyTerm); err != nil {
		return err
	}
	if m.vote, err = s.adoptValue(keyVote); err != nil {
		return err
	}
	return s.firstMark(m)
}

func (s *sealedStore) adoptLog(first, last, covered uint64) error {
	from := last
	for from > first { // records before a gap are of no further use
		var l raft.Log
		err := s.storage.Log.GetLog(from-1, &l)
		if errors.Is(err, raft.ErrLogNotFound) {
			break
		}
		if err != nil {
			return altered("log entry %d cannot be read: %w", from-1, err)
		}
		from--
	}
	if from > covered+1 {
		return altered("the log begins at entry %d, but the newest snapshot is of entry %d", from, covered)
	}
	if from > first {
		if err := s.storage.Log.DeleteRange(first, from-1); err != nil {
			return err
		}
	}
	s.first = from
	for ; from <= last; from += adoptBatch {
		if err := s.adoptRecords(from, min(last, from+adoptBatch-1)); err != nil {
			return err
		}
	}
	return nil
}

func (s *sealedStore) adoptRecords(from, to uint64) error {
	var sealed []*raft.Log
	for i := from; i <= to; i++ {
		l := new(raft.Log)
		if err := s.storage.Log.GetLog(i, l); err != nil {
			return altered("log entry %d cannot be read: %w", i, err)
		}
		plain := *l
		if _, _, err := s.key.openRecord(&plain); err != nil {
			plain = *l // not sealed yet
		}
		*l, s.tail = s.key.sealRecord(&plain, s.tail)
		sealed, s.seals = append(sealed, l), append(s.seals, s.tail)
	}
	return s.storage.Log.StoreLogs(sealed)
}

func (s *sealedStore) adoptValue(key string) (uint64, error) {
	b, err := s.storage.Log.Get([]byte(key))
	if err != nil && err.Error() == errNotFound.Error() {
		return 0, nil
	}
	if err != nil {
		return 0, altered("raft's %s cannot be read: %w", key, err)
	}
	if v, err := s.key.openValue([]byte(key), b); err == nil {
		return binary.BigEndian.Uint64(v), nil
	}
	if len(b) < 8 {
		return 0, altered("raft's %s is damaged", key)
	}
	return binary.BigEndian.Uint64(b), s.storage.Log.Set([]byte(key), s.key.sealValue([]byte(key), b))
}
