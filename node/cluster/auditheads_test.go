package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// TestRecordableHeads: the leader records what goes on and what convicts, and not what was signed
// before, whoever brings it again.
func TestRecordableHeads(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := &fsm.Member{ID: "n1"}
	if m.Identity, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
		t.Fatal(err)
	}
	tree := func(altered int) *trail.Tree {
		t.Helper()
		out := new(trail.Tree)
		for i := range 40 {
			if _, err := out.Add(trail.RecordHash(fmt.Append(nil, i, i == altered))); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	honest, rewritten := tree(-1), tree(5)
	head := func(of *trail.Tree, from, size, second int64) fsm.NextAuditHead {
		t.Helper()
		c := trail.Checkpoint{Cluster: "c1", Node: m.ID, Size: size, Time: time.Unix(1_700_000_000+second, 0).UTC()}
		var err error
		if c.Root, err = tlog.TreeHash(size, of); err != nil {
			t.Fatal(err)
		}
		note, err := c.Sign(m.Identity, func(b []byte) ([]byte, error) {
			digest := sha256.Sum256(b)
			return ecdsa.SignASN1(rand.Reader, key, digest[:])
		})
		if err != nil {
			t.Fatal(err)
		}
		h := fsm.NextAuditHead{Node: m.ID, From: from, Size: size, Root: c.Root[:], Checkpoint: note}
		if from > 0 && from < size {
			proof, err := tlog.ProveTree(size, from, of)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range proof {
				h.Proof = append(h.Proof, p[:])
			}
		}
		return h
	}
	first := head(honest, 0, 20, 100)
	old := &fsm.AuditHead{Node: m.ID, Size: first.Size, Root: first.Root, Checkpoint: first.Checkpoint}
	unproved := head(honest, 20, 33, 90)
	unproved.Proof = nil
	for what, row := range map[string]struct {
		next fsm.NextAuditHead
		want bool
	}{
		"the next":                       {head(honest, 20, 33, 101), true},
		"the next, by a clock set back":  {head(honest, 20, 33, 90), true},
		"the same":                       {head(honest, 20, 20, 100), true},
		"rewritten":                      {head(rewritten, 20, 33, 101), true},
		"another of the same size":       {head(rewritten, 20, 20, 90), true},
		"cut off":                        {head(honest, 20, 10, 101), true},
		"one from before":                {head(honest, 20, 10, 90), false},
		"one from before, with no proof": {unproved, false},
	} {
		if err := recordable(m, old, row.next); (err == nil) != row.want {
			t.Errorf("%s: %v", what, err)
		}
	}
}
