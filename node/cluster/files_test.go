package cluster

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func testToken() JoinToken {
	return JoinToken{
		Cluster: uuid.MustParse("11111111-2222-4333-8444-555555555555"),
		Ticket:  ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)),
		Pin:     bytes.Repeat([]byte{9}, 32),
		LogKey:  [16]byte{1, 2, 3},
	}
}

// goldenToken pins the format: a token printed by one release is read by the next.
const goldenToken = "AEIRCEIREIREGM4EIRKVKVKVKVKQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYJBEEQSCIJBEEQSCIJBEEQSCIJBEEQSCIJBEEQSCIJBEEQSCIJBEAQEAYAAAAAAAAAAAAAAAAAAAAIBTLM34"

func TestJoinToken(t *testing.T) {
	text := testToken().String()
	if text != goldenToken {
		t.Errorf("token is\n%s, was\n%s", text, goldenToken)
	}
	for _, spelled := range []string{text, " " + text + "\n", strings.ToLower(text)} {
		got, err := ParseJoinToken(spelled)
		if err != nil {
			t.Fatal(err)
		}
		if want := testToken(); got.Cluster != want.Cluster || !got.Ticket.Equal(want.Ticket) || !bytes.Equal(got.Pin, want.Pin) || got.LogKey != want.LogKey {
			t.Fatalf("read %+v", got)
		}
	}
	for i := range text {
		other := byte('A')
		if text[i] == other {
			other = 'B'
		}
		bad := text[:i] + string(other) + text[i+1:]
		if got, err := ParseJoinToken(bad); err == nil && got.String() != text {
			t.Errorf("character %d changed: the token still reads", i)
		} else if err != nil && !errors.Is(err, ErrJoin) {
			t.Errorf("character %d changed: %v", i, err)
		}
	}
	for _, bad := range []string{"", "x", text[:len(text)-1], text + "A", "0" + text[1:], strings.Repeat("A", 1000)} {
		if _, err := ParseJoinToken(bad); !errors.Is(err, ErrJoin) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func FuzzParseJoinToken(f *testing.F) {
	f.Add(testToken().String())
	f.Add("AE")
	f.Fuzz(func(t *testing.T, text string) {
		if token, err := ParseJoinToken(text); err == nil {
			if again, err := ParseJoinToken(token.String()); err != nil || again.String() != token.String() {
				t.Fatal("a token that reads does not read again")
			}
		} else if !errors.Is(err, ErrJoin) {
			t.Fatal(err)
		}
	})
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	id, err := openIdentity(dir, "kms-1")
	if err != nil {
		t.Fatal(err)
	}
	if id.Stage != stageNew || !strings.HasPrefix(id.RaftID, "kms-1.") {
		t.Fatalf("%+v", id)
	}
	again, err := openIdentity(dir, "kms-1")
	if err != nil || again != id {
		t.Fatalf("opened again: %+v, %v", again, err)
	}
	other, err := openIdentity(t.TempDir(), "kms-1")
	if err != nil || other.RaftID == id.RaftID {
		t.Fatalf("another directory has the same id %s, %v", other.RaftID, err)
	}
	if _, err := openIdentity(dir, "kms-2"); !errors.Is(err, ErrDataDir) {
		t.Fatalf("another name: %v", err)
	}

	// Founding that was cut off leaves nothing behind: nothing was acknowledged.
	id.Stage, id.Cluster = stageInitializing, uuid.New()
	if err := id.save(dir); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, raftDir, "raft.db")
	if err := os.WriteFile(left, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err = openIdentity(dir, "kms-1"); err != nil || id.Stage != stageNew || id.Cluster != uuid.Nil {
		t.Fatalf("after a cut-off founding: %+v, %v", id, err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("its log is still there: %v", err)
	}

	// A member without its log has forgotten its votes.
	id.Stage = stageMember
	if err := id.save(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := openIdentity(dir, "kms-1"); !errors.Is(err, ErrDataDir) || !strings.Contains(err.Error(), "log is missing") {
		t.Fatalf("log lost: %v", err)
	}

	// The directory of a release that did not seal is one of this release from now on.
	if err := os.WriteFile(left, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	id.Stage = stageUnsealed
	if err := id.save(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if id, err = openIdentity(dir, "kms-1"); err != nil || id.Stage != stageMember {
			t.Fatalf("of an earlier release: %+v, %v", id, err)
		}
	}

	// A lost identity beside a log is damage, never a new node on an old log.
	if err := os.WriteFile(left, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, identityFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := openIdentity(dir, "kms-1"); !errors.Is(err, ErrDataDir) || !strings.Contains(err.Error(), "missing") {
		t.Fatalf("identity lost: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, identityFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openIdentity(dir, "kms-1"); !errors.Is(err, ErrDataDir) || !strings.Contains(err.Error(), "damaged") {
		t.Fatalf("identity damaged: %v", err)
	}
}

// TestVote: the two halves of a vote reach the disk together, and read back as
// Raft wrote them.
func TestVote(t *testing.T) {
	d := newLogDir(t)
	s := d.open()
	if _, err := s.GetUint64([]byte(keyVoteTerm)); err == nil || err.Error() != "not found" { // Raft compares the text
		t.Fatalf("no vote yet: %v", err)
	}
	if err := errors.Join(s.SetUint64([]byte(keyVoteTerm), 7), s.Set([]byte(keyVoteFor), []byte("10.0.0.1:7"))); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUint64([]byte(keyVoteTerm), 8); err != nil { // and the crash comes here
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = d.open()
	defer func() { _ = s.Close() }()
	term, err := s.GetUint64([]byte(keyVoteTerm))
	if err != nil || term != 7 {
		t.Fatalf("term %d, %v", term, err)
	}
	candidate, err := s.Get([]byte(keyVoteFor))
	if err != nil || string(candidate) != "10.0.0.1:7" {
		t.Fatalf("candidate %q, %v", candidate, err)
	}
}

// TestStorageFailureIsFatal: Raft would go on after an error of its store.
func TestStorageFailureIsFatal(t *testing.T) {
	d := newLogDir(t)
	s := d.open()
	must(t, s.Close())
	for what, write := range map[string]func() error{
		"log":        func() error { return s.StoreLogs(entries(1, 1, 1)) },
		"truncation": func() error { return s.DeleteRange(1, 1) },
		"term":       func() error { return s.SetUint64([]byte(keyTerm), 1) },
	} {
		d.fatal = nil
		if err := write(); !errors.Is(err, ErrStorage) || len(d.fatal) != 1 || !errors.Is(d.fatal[0], ErrStorage) {
			t.Errorf("%s: %v, fatal %v", what, err, d.fatal)
		}
	}
}
