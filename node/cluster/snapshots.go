package cluster

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
)

// The layout is that of raft.FileSnapshotStore: a directory a snapshot, named
// <term>-<index>-<milliseconds>, with meta.json and state.bin.
const (
	snapshotsDir    = "snapshots"
	metaFile        = "meta.json"
	stateFile       = "state.bin"
	unfinished      = ".tmp" // a snapshot that is being written or deleted
	refusedSuffix   = ".bad" // one that was not read back as it was written
	retainSnapshots = 2
	maxMeta         = 1 << 20 // bytes
)

// snapshotMeta is the file meta.json. The seal covers the rest of it, and through the
// checksum the contents: what Raft takes from beside the state (index, term, the
// voters) is as good as the state itself.
type snapshotMeta struct {
	raft.SnapshotMeta
	SHA256 []byte
	Seal   []byte
}

func (m snapshotMeta) seal(k sealKey) ([]byte, error) {
	m.Seal = nil
	b, err := json.Marshal(m)
	own := k.seal(sealedSnapshot, b)
	return own[:], err
}

// snapshots is Raft's snapshot store. A snapshot counts, and Raft compacts the log,
// only after it was read back from the disk and verified.
type snapshots struct {
	dir    string
	key    sealKey
	verify func(io.Reader) error // reads a state, and all of it
	fatal  func(error)
}

var _ raft.SnapshotStore = (*snapshots)(nil)

// openSnapshots verifies what is in the directory. unsealed: a snapshot without a
// seal is of a release that did not seal; it is taken as it is.
func openSnapshots(s *snapshots, unsealed bool) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	names, err := s.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if unsealed {
			if err := s.adopt(name); err != nil {
				return err
			}
		}
	}
	all, err := s.list()
	if err != nil {
		return err
	}
	for _, m := range all {
		f, err := s.open(m)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("%w: %w", ErrDataDir, err)
		}
	}
	return s.sweep()
}

// names are the directories of the snapshots that count.
func (s *snapshots) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("%w: snapshots: %w", ErrDataDir, err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasSuffix(e.Name(), unfinished) && !strings.HasSuffix(e.Name(), refusedSuffix) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// sweep deletes what an earlier process left half done.
func (s *snapshots) sweep() error {
	left, err := filepath.Glob(filepath.Join(s.dir, "*"+unfinished))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	if err != nil {
		return fmt.Errorf("%w: snapshots: %w", ErrDataDir, err)
	}
	return nil
}

// list gives the metadata of all snapshots, the newest first.
func (s *snapshots) list() ([]*snapshotMeta, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var all []*snapshotMeta
	for _, name := range names {
		m, err := s.meta(name)
		if errors.Is(err, fs.ErrNotExist) && !exists(filepath.Join(s.dir, name)) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, altered("snapshot %s: %w", name, err)
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *snapshotMeta) int {
		return -cmp.Or(cmp.Compare(a.Term, b.Term), cmp.Compare(a.Index, b.Index), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func (s *snapshots) readMeta(name string) (*snapshotMeta, error) {
	b, err := readLimited(filepath.Join(s.dir, name, metaFile), maxMeta)
	if err != nil {
		return nil, err
	}
	var m snapshotMeta
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", metaFile, err)
	}
	return &m, nil
}

func readLimited(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err = errors.Join(err, f.Close()); err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return b, err
}

// meta reads and verifies a snapshot's metadata.
func (s *snapshots) meta(name string) (*snapshotMeta, error) {
	m, err := s.readMeta(name)
	if err != nil {
		return nil, err
	}
	own, err := m.seal(s.key)
	if err != nil {
		return nil, err
	}
	if len(m.Seal) == 0 {
		return nil, errors.New("it has no seal")
	}
	if !seal(own).verifies(m.Seal) {
		return nil, fmt.Errorf("the seal of %s does not verify", metaFile)
	}
	if m.ID != name {
		return nil, fmt.Errorf("its name is %s", m.ID)
	}
	return m, nil
}

// open verifies a snapshot's contents and gives them from the beginning.
func (s *snapshots) open(m *snapshotMeta) (*os.File, error) {
	f, err := os.Open(filepath.Join(s.dir, m.ID, stateFile))
	if err != nil {
		return nil, altered("snapshot %s: %w", m.ID, err)
	}
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil && (n != m.Size || !seal(sum.Sum(nil)).verifies(m.SHA256)) {
		err = fmt.Errorf("the checksum of %s does not fit", stateFile)
	}
	if err != nil {
		return nil, errors.Join(altered("snapshot %s: %w", m.ID, err), f.Close())
	}
	return f, nil
}

func (s *snapshots) check(err error) error {
	if err != nil {
		s.fatal(err)
	}
	return err
}

// List implements raft.SnapshotStore.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	all, err := s.list()
	if err != nil {
		return nil, s.check(err)
	}
	var out []*raft.SnapshotMeta
	for _, m := range all[:min(len(all), retainSnapshots)] {
		out = append(out, &m.SnapshotMeta)
	}
	return out, nil
}

// Open implements raft.SnapshotStore.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m, err := s.meta(id)
	if errors.Is(err, fs.ErrNotExist) && !exists(filepath.Join(s.dir, id)) {
		return nil, nil, fmt.Errorf("snapshot %s is no longer there: %w", id, err)
	}
	if err != nil {
		return nil, nil, s.check(altered("snapshot %s: %w", id, err))
	}
	f, err := s.open(m)
	if err != nil {
		return nil, nil, s.check(err)
	}
	return &m.SnapshotMeta, f, nil
}

// adopt seals a snapshot of a release that did not, after it was verified.
func (s *snapshots) adopt(name string) error {
	if _, err := s.meta(name); err == nil {
		return nil // the last attempt was cut off
	}
	m, err := s.readMeta(name)
	if err != nil {
		return altered("snapshot %s: %w", name, err)
	}
	sum := sha256.New()
	if m.Size, err = s.readBack(filepath.Join(s.dir, name), sum); err != nil {
		return altered("snapshot %s: %w", name, err)
	}
	m.ID, m.SHA256 = name, sum.Sum(nil)
	return s.writeMeta(filepath.Join(s.dir, name), m)
}

// writeMeta seals the metadata and replaces the file.
func (s *snapshots) writeMeta(dir string, m *snapshotMeta) (err error) {
	if m.Seal, err = m.seal(s.key); err != nil {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, metaFile)
	if err := writeSynced(path+".new", append(b, '\n')); err != nil {
		return err
	}
	return errors.Join(os.Rename(path+".new", path), syncDir(dir))
}

// readBack reads and verifies a state from the disk, not from the system's memory
// where that can be had.
func (s *snapshots) readBack(dir string, sum hash.Hash) (size int64, err error) {
	f, err := os.Open(filepath.Join(dir, stateFile))
	if err != nil {
		return 0, err
	}
	forget(f)
	r := io.TeeReader(f, sum)
	if err = s.verify(r); err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	info, infoErr := f.Stat()
	if err = errors.Join(err, infoErr, f.Close()); err != nil {
		return 0, err
	}
	return info.Size(), nil
}
