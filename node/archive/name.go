package archive

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
)

// The kinds of files, by their names' ends.
const (
	backupEnd  = ".qkb"
	journalEnd = ".qkj"
	partialEnd = ".partial"
)

// timeForm is how names carry a time: milliseconds, UTC.
const timeForm = "20060102T150405.000Z"

// File is a file of an archive as its name tells it; nothing of that is verified.
type File struct {
	Path    string
	Cluster fsm.ID
	Epoch   uint32
	Time    time.Time
	Index   uint64
	Node    string // raft id
}

func (f File) name(end string) string {
	return fmt.Sprintf("quorumkms-%s-e%d-%s-%d-%s%s", f.Cluster, f.Epoch, f.Time.UTC().Format(timeForm), f.Index, f.Node, end)
}

// parseName reads a name that ends in end; ok is false if it is none of ours.
func parseName(dir, name, end string) (f File, ok bool) {
	form := regexp.MustCompile(`^quorumkms-([0-9a-f-]{36})-e([0-9]{1,10})-([0-9]{8}T[0-9]{6}\.[0-9]{3}Z)-([0-9]{1,20})-(.+)$`)
	base, ended := cutEnd(name, end)
	m := form.FindStringSubmatch(base)
	if !ended || m == nil {
		return File{}, false
	}
	cluster, errCluster := uuid.Parse(m[1])
	epoch, errEpoch := strconv.ParseUint(m[2], 10, 32)
	at, errTime := time.Parse(timeForm, m[3])
	index, errIndex := strconv.ParseUint(m[4], 10, 64)
	if cmp.Or(errCluster, errEpoch, errTime, errIndex) != nil {
		return File{}, false
	}
	f = File{Path: filepath.Join(dir, name), Cluster: cluster, Epoch: uint32(epoch), Time: at, Index: index, Node: m[5]}
	return f, f.name(end) == name
}

func cutEnd(name, end string) (base string, ok bool) {
	n := len(name) - len(end)
	if n < 0 || name[n:] != end {
		return "", false
	}
	return name[:n], true
}

// list returns a cluster's files in dir that end in end, the oldest first.
func list(dir string, cluster fsm.ID, end string) ([]File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []File
	for _, e := range entries {
		if f, ok := parseName(dir, e.Name(), end); ok && f.Cluster == cluster && e.Type().IsRegular() {
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, older)
	return out, nil
}

func older(a, b File) int {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Index, b.Index), a.Time.Compare(b.Time), cmp.Compare(a.Node, b.Node))
}

// Backups returns the backups of a cluster in the given directories, the oldest
// first, as their names tell.
func Backups(cluster fsm.ID, dirs ...string) ([]File, error) {
	var all []File
	for _, dir := range dirs {
		files, err := list(dir, cluster, backupEnd)
		if err != nil {
			return nil, err
		}
		all = append(all, files...)
	}
	slices.SortStableFunc(all, older)
	return all, nil
}
