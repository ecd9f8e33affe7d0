package archive

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
)

func archiveOf(m *member, dir string) *Archive {
	return New(Config{Name: "n1", Dir: dir, Member: m, Signer: m, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
}

// backupOf is a backup of a member with two keys, the second disabled, at index 5.
func backupOf(t *testing.T) (*member, []byte) {
	t.Helper()
	m := newMember(t)
	m.create(8)
	m.create(9)
	m.restrict(9)
	m.tick()
	var b bytes.Buffer
	must(t, archiveOf(m, "").Make(t.Context(), &b, m.State()))
	return m, b.Bytes()
}

func (r *Restoration) String() string {
	var again []string
	for _, c := range r.Replay {
		id, _ := fsm.KeyOf(c)
		again = append(again, fmt.Sprintf("%s %d", fsm.NameOf(c), id[15]))
	}
	return fmt.Sprintf("epoch %d, %q, end %d, %v, %d unknown", r.Epoch, r.Doubt, r.JournalEnd(), again, r.Unknown)
}

func TestPlanRestore(t *testing.T) {
	_, b := backupOf(t)
	const a, other = "a.01", "b.02"
	for _, row := range []struct {
		name     string
		epoch    uint32
		segments []*script
		want     string
	}{
		{"no journal", 0, nil, `epoch 1, "there is no journal", end 0, [], 0 unknown`},
		{"a later epoch wanted", 7, nil, `epoch 7, "there is no journal", end 0, [], 0 unknown`},
		{"the whole journal", 0, []*script{begin(t, a, 0, 2).entry(4).entry(8).entry(12).covered(20)}, `epoch 1, "", end 20, [DisableKey 8 DisableKey 12], 1 unknown`},
		{"of two nodes", 0, []*script{begin(t, a, 0, 2).covered(7), begin(t, other, 0, 7).entry(8).covered(9)}, `epoch 1, "", end 9, [DisableKey 8], 0 unknown`},
		{"nothing after the backup", 0, []*script{begin(t, a, 0, 2).entry(4).covered(5)}, `epoch 1, "", end 5, [], 0 unknown`},
		{"one that ends before the backup", 0, []*script{begin(t, a, 0, 2).entry(4).covered(4)}, `epoch 1, "no journal covers what follows the backup's index 5", end 0, [], 0 unknown`},
		{"one that begins after it", 0, []*script{begin(t, a, 0, 7).entry(8).covered(20)}, `epoch 1, "the journal has a gap behind index 5", end 0, [DisableKey 8], 0 unknown`},
		{"a gap", 0, []*script{begin(t, a, 0, 2).entry(8).gap(9, 11).entry(12).covered(20)}, `epoch 1, "the journal has a gap behind index 8", end 0, [DisableKey 8 DisableKey 12], 1 unknown`},
		{
			"a recovery after the backup", 0,
			[]*script{begin(t, a, 0, 2).entry(12).covered(20), begin(t, a, 2, 3).entry(4).entry(8).covered(9)},
			`epoch 3, "the cluster was recovered after the backup (epoch 2, the backup is of 0): no journal tells how the two follow each other", end 0, [DisableKey 12 DisableKey 4 DisableKey 8], 2 unknown`,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := PlanRestore(bytes.NewReader(b), testKey(), row.epoch, put(t, row.segments...))
			must(t, err)
			if r.String() != row.want {
				t.Errorf("%s\nwant %s", r, row.want)
			}
			sum := sha256.Sum256(b)
			if r.Keys != 2 || r.Enabled != 1 || !bytes.Equal(r.SHA256, sum[:]) || r.Signer.Name != "n1" || r.State.Index() != 5 {
				t.Errorf("restoration %+v", r)
			}
			for _, c := range r.Replay {
				if d := c.(*fsm.DisableKey); d.Expect != 0 {
					t.Errorf("%+v expects a revision", d)
				}
			}
		})
	}
}

func TestPlanRestoreRefuses(t *testing.T) {
	m, b := backupOf(t)
	altered := short(t)
	altered.b[altered.ends[1]+20] ^= 1
	plan := func(b []byte, key fsm.LogKey, epoch uint32, dirs ...string) error {
		_, err := PlanRestore(bytes.NewReader(b), key, epoch, dirs...)
		return err
	}
	for name, x := range map[string]struct {
		err, want error
		text      string
	}{
		"an altered journal":    {plan(b, testKey(), 0, put(t, altered)), ErrJournal, "without them has a gap"},
		"a missing directory":   {plan(b, testKey(), 0, "nowhere"), os.ErrNotExist, "nowhere"},
		"another cluster's key": {plan(b, bytes.Repeat([]byte{1}, 32), 0), fsm.ErrSnapshot, "MAC"},
		"a cut backup":          {plan(b[:len(b)-1], testKey(), 0), backup.ErrRefused, "cut off"},
		"a flipped bit":         {plan(append(bytes.Clone(b[:200]), append([]byte{b[200] ^ 1}, b[201:]...)...), testKey(), 0), nil, ""},
		"the last epoch":        {plan(b, testKey(), fsm.MaxRecoveryEpoch+1), fsm.ErrInvalid, "recovery epoch 4096"},
		"a journal of the last epoch": {
			plan(b, testKey(), 0, put(t, begin(t, "a.01", fsm.MaxRecoveryEpoch, 2).covered(9))), fsm.ErrInvalid, "recovery epoch 4096",
		},
	} {
		if x.err == nil || x.want != nil && !errors.Is(x.err, x.want) || !strings.Contains(x.err.Error(), x.text) {
			t.Errorf("%s: %v, want %v saying %q", name, x.err, x.want, x.text)
		}
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	m.key = stranger
	var forged bytes.Buffer
	must(t, archiveOf(m, "").Make(t.Context(), &forged, m.State()))
	if err := plan(forged.Bytes(), testKey(), 0); !errors.Is(err, backup.ErrRefused) || !strings.Contains(err.Error(), "is and was no member") {
		t.Errorf("a backup that a stranger signed: %v", err)
	}
}

// TestMissed: what a node's own log has, or had before it was compacted, is not missed.
func TestMissed(t *testing.T) {
	m := newMember(t)
	for range 9 {
		m.restrict(8)
	}
	m.forget(1, 4)
	m.mu.Lock()
	m.terms[9] = 0 // another entry: it was never committed
	m.mu.Unlock()
	dir := put(t, begin(t, "a.01", 0, 0).entry(3).entry(6).entry(9).entry(12).covered(20), begin(t, "a.01", 1, 0).entry(30).covered(40))
	missed, err := archiveOf(m, dir).Missed(m.State(), 10)
	must(t, err)
	var ids []byte
	for _, c := range missed.Replay {
		id, _ := fsm.KeyOf(c)
		ids = append(ids, id[15])
	}
	if !bytes.Equal(ids, []byte{9, 12}) || missed.Until.UnixNano() != startTime+20 || missed.Problem != "" || missed.Dir != dir {
		t.Errorf("missed %v: %+v", ids, missed)
	}
	if none, err := archiveOf(m, "").Missed(m.State(), 10); err != nil || none.Dir != "" || none.Replay != nil {
		t.Errorf("without a journal: %+v, %v", none, err)
	}
	if gone, err := archiveOf(m, filepath.Join(dir, "gone")).Missed(m.State(), 10); err != nil || gone.Problem == "" {
		t.Errorf("with a directory that is gone: %+v, %v", gone, err)
	}
}
