package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
)

// stage is how far a data directory is in its life.
type stage string

const (
	stageNew          stage = "new"
	stageInitializing stage = "initializing" // founding: nothing was acknowledged yet
	stageEntering     stage = "entering"     // joined; Raft may or may not have run under this id
	stageMember       stage = "sealed member"
	stageRecovering   stage = "recovering" // becoming the only member of a recovered cluster: it goes on after a crash
	// stageUnsealed is a member in whose directory a release wrote that did not seal.
	// Such a release does not know stageMember: it cannot write behind what is sealed.
	stageUnsealed stage = "member"
)

func (s stage) known() bool {
	switch s {
	case stageNew, stageInitializing, stageEntering, stageMember, stageRecovering, stageUnsealed:
		return true
	}
	return false
}

// hasLog tells whether Raft has run under the directory's id.
func (s stage) hasLog() bool {
	return s == stageMember || s == stageUnsealed || s == stageRecovering
}

// identity is the file node.json of a data directory. The raft id is the node's
// name and the incarnation of the directory: a wiped directory comes back as a
// new node, never as the old one. An incarnation that begins with an s is of a
// release that seals the log: since the cluster knows the raft id, nobody can make
// such a directory look like an older one and strip its seals.
type identity struct {
	RaftID  string `json:"raft_id"`
	Name    string `json:"name"`
	Stage   stage  `json:"stage"`
	Cluster fsm.ID `json:"cluster"`
	// History is the history of the cluster that the directory belongs to, for good.
	History fsm.History `json:"history,omitzero"`
	// Recovery is whose recovery is under way in stageRecovering.
	Recovery *recoverer `json:"recovery,omitempty"`
}

// recoverer is who asked for a recovery, and how.
type recoverer struct {
	Principal string `json:"principal"`
	Request   string `json:"request"`
	Digest    []byte `json:"digest"`
	// Replay are restrictions that this node's log lacks, in their order.
	Replay []replayed `json:"replay,omitempty"`
}

// replayed is a command as entries carry it.
type replayed struct {
	Command string          `json:"command"`
	Body    json.RawMessage `json:"body"`
}

const (
	identityFile     = "node.json"
	evidenceFile     = "diverged.txt"
	raftDir          = "raft"
	raftFile         = "raft.db"
	incarnationBytes = 8
	// sealedIncarnation is between name and incarnation; before the log was sealed it
	// was a dot.
	sealedIncarnation = ".s"
)

// sealedFromBirth tells whether the directory was made by a release that seals.
func (id identity) sealedFromBirth() bool {
	return strings.HasPrefix(strings.TrimPrefix(id.RaftID, id.Name), sealedIncarnation)
}

// noteEvidence leaves a note that keeps a data directory from being used again.
func noteEvidence(dir string, why error, now time.Time) error {
	return errors.Join(writeSynced(filepath.Join(dir, evidenceFile), fmt.Appendf(nil, "%s %s\n", now.UTC().Format(time.RFC3339), why)), syncDir(dir))
}

// IsNew fails unless a data directory belongs to no cluster yet.
func IsNew(dir, name string) error {
	id, err := openIdentity(dir, name)
	if err == nil && id.Stage != stageNew {
		err = fmt.Errorf("%w %s: the node belongs to cluster %s already", ErrDataDir, dir, id.Cluster)
	}
	return err
}

// Inspect says what a data directory is, and changes nothing in it. The error is why no node
// of that name would start on it; what is in the log is found out at the start only.
func Inspect(dir, name string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, identityFile)); errors.Is(err, fs.ErrNotExist) {
		if left, err := os.ReadDir(filepath.Join(dir, raftDir)); err == nil && len(left) > 0 {
			return "", fmt.Errorf("%w %s: %s is missing but %s is not empty: the directory is damaged; start with an empty one and join anew", ErrDataDir, dir, identityFile, raftDir)
		}
		return dir + " is that of a new node", evidenceOf(dir)
	}
	if err := evidenceOf(dir); err != nil {
		return "", err
	}
	id, err := readIdentity(dir, name)
	if err != nil {
		return "", err
	}
	if id.Cluster == uuid.Nil {
		return fmt.Sprintf("%s is that of %s, which belongs to no cluster yet", dir, id.RaftID), nil
	}
	return fmt.Sprintf("%s is that of %s in cluster %s (%s)", dir, id.RaftID, id.Cluster, id.Stage), nil
}

// evidenceOf is the error of a directory that is kept as evidence.
func evidenceOf(dir string) error {
	note, err := os.ReadFile(filepath.Join(dir, evidenceFile))
	if err != nil {
		return nil //nolint:nilerr // there is none
	}
	return fmt.Errorf("%w, as it found before (%s): keep %s for whoever finds out why; the node comes back with an empty data directory, after it was removed and invited again",
		ErrDiverged, strings.TrimSpace(string(note)), dir)
}

// openIdentity reads the directory's identity, or makes it the first time.
func openIdentity(dir, name string) (identity, error) {
	if err := os.MkdirAll(filepath.Join(dir, raftDir), 0o700); err != nil {
		return identity{}, fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	if err := evidenceOf(dir); err != nil {
		return identity{}, err
	}
	if _, err := os.Stat(filepath.Join(dir, identityFile)); errors.Is(err, fs.ErrNotExist) {
		if raftFiles, err := os.ReadDir(filepath.Join(dir, raftDir)); err != nil || len(raftFiles) > 0 {
			return identity{}, fmt.Errorf("%w %s: %s is missing but %s is not empty: the directory is damaged; start with an empty one and join anew", ErrDataDir, dir, identityFile, raftDir)
		}
		incarnation := make([]byte, incarnationBytes)
		if _, err := rand.Read(incarnation); err != nil {
			return identity{}, err
		}
		id := identity{RaftID: name + sealedIncarnation + hex.EncodeToString(incarnation), Name: name, Stage: stageNew, Cluster: uuid.Nil}
		return id, id.save(dir)
	}
	id, err := readIdentity(dir, name)
	if err != nil {
		return identity{}, err
	}
	if id.Stage == stageUnsealed {
		id.Stage = stageMember
		return id, id.save(dir)
	}
	if id.Stage == stageInitializing {
		id.Stage, id.Cluster, id.History = stageNew, uuid.Nil, fsm.History{}
		return id, errors.Join(id.clear(dir), id.save(dir))
	}
	return id, nil
}

// readIdentity reads and checks the file.
func readIdentity(dir, name string) (identity, error) {
	b, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err != nil {
		return identity{}, fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return identity{}, fmt.Errorf("%w %s: %s is damaged: %w", ErrDataDir, dir, identityFile, err)
	}
	if id.RaftID == "" || !id.Stage.known() {
		return identity{}, fmt.Errorf("%w %s: %s is damaged, or of a later release: raft id %q, stage %q", ErrDataDir, dir, identityFile, id.RaftID, id.Stage)
	}
	if id.Name != name {
		return identity{}, fmt.Errorf("%w %s belongs to node %s, not %s", ErrDataDir, dir, id.Name, name)
	}
	if _, err := os.Stat(filepath.Join(dir, raftDir, raftFile)); id.Stage.hasLog() && err != nil {
		return identity{}, fmt.Errorf("%w %s: its log is missing, and with it this node's votes (%w): start with an empty directory and join anew", ErrDataDir, dir, err)
	}
	return id, nil
}

// clear empties Raft's directory: only of a node that is not yet a member.
func (id identity) clear(dir string) error {
	path := filepath.Join(dir, raftDir)
	return errors.Join(os.RemoveAll(path), os.MkdirAll(path, 0o700))
}

// save replaces the file so that a crash leaves the old one or the new one.
func (id identity) save(dir string) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, identityFile)
	if err := writeSynced(path+".new", append(b, '\n')); err != nil {
		return fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	return syncDir(dir)
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
