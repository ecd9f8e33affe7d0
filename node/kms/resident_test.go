package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// resident makes a key of protection level HSM_RESIDENT and returns its id.
func (e *env) resident() string {
	e.t.Helper()
	m, _, err := e.CreateKey(e.t.Context(), as(ada), KeyParams{Spec: fsm.SpecSymmetric, Protection: fsm.ProtectionResident})
	e.ok(err)
	if !m.Key.Resident() {
		e.t.Errorf("key %+v", m.Key)
	}
	return m.Key.ID.String()
}

// TestResidentCalls: every call of symmetric keys is the same with both levels.
func TestResidentCalls(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	inside, outside := e.resident(), e.key("default")
	pairs := []Pair{{"a", "b"}}
	for _, key := range []string{inside, outside} {
		for _, n := range []int{1, 32, MaxPlaintext} {
			plaintext := bytes.Repeat([]byte{7}, n)
			s, err := e.Encrypt(ctx, as(uma), key, plaintext, pairs, "")
			e.ok(err)
			if len(s.Ciphertext) != n+BlobOverhead || (s.Ciphertext[4] == suite2) != (key == inside) {
				t.Errorf("%d bytes become %d of suite %d", n, len(s.Ciphertext), s.Ciphertext[4])
			}
			o, err := e.Decrypt(ctx, as(uma), s.Ciphertext, "", pairs, "")
			if e.ok(err); !bytes.Equal(o.Plaintext, plaintext) {
				t.Errorf("%d bytes open as something else", n)
			}
			_, err = e.Decrypt(ctx, as(uma), s.Ciphertext, "", nil, "")
			e.refused(err, ErrCiphertext)
		}
		for _, keep := range []bool{true, false} {
			s, err := e.dataKey(ctx, as(uma), "GenerateDataKey", key, 32, pairs, keep)
			e.ok(err)
			o, err := e.Decrypt(ctx, as(uma), s.Ciphertext, "", pairs, "")
			if e.ok(err); len(o.Plaintext) != 32 || keep && !bytes.Equal(o.Plaintext, s.Plaintext) {
				t.Errorf("data key %x, opened as %x", s.Plaintext, o.Plaintext)
			}
		}
		p, err := e.GenerateDataKeyPair(ctx, as(uma), key, fsm.SpecP256, pairs)
		e.ok(err)
		o, err := e.Decrypt(ctx, as(uma), p.Ciphertext, "", pairs, "")
		if e.ok(err); !bytes.Equal(o.Plaintext, p.Plaintext) {
			t.Error("a pair opens as something else")
		}
	}
	// ReEncrypt moves between the levels, both ways, and leaves alone what is there already.
	for _, way := range [][2]string{{inside, outside}, {outside, inside}, {inside, inside}} {
		s, err := e.Encrypt(ctx, as(uma), way[0], []byte("plain"), pairs, "")
		e.ok(err)
		m, err := e.ReEncrypt(ctx, as(uma), ReEncryption{Ciphertext: s.Ciphertext, SourceContext: pairs, DestinationKey: way[1], DestinationContext: pairs})
		e.ok(err)
		if m.Unchanged != (way[0] == way[1]) {
			t.Errorf("from %s to %s: unchanged %v", way[0], way[1], m.Unchanged)
		}
		e.ok(e.opens(as(uma), m.Ciphertext, pairs...))
	}
	// A rotation, and what the version before has sealed.
	old := e.sealed(as(uma), inside, pairs...)
	_, _, err := e.RotateKeyOnDemand(ctx, as(ada), inside, 0)
	e.ok(err)
	e.ok(e.opens(as(uma), old, pairs...))
	s, err := e.Encrypt(ctx, as(uma), inside, []byte("plain"), pairs, "")
	if e.ok(err); s.Version != 2 {
		t.Errorf("sealed under version %d", s.Version)
	}
	if k := e.stored(inside); k.Version(1).Messages == 0 || k.Version(2).Messages != firstReservation || !k.Resident() {
		t.Errorf("versions %+v", k.Versions)
	}
	if k := e.stored(outside); k.Version(1).Messages != 0 || e.log.count(&fsm.ReserveMessages{}) != 2 {
		t.Errorf("%d reservations", e.log.count(&fsm.ReserveMessages{}))
	}
	r := e.audit.of("ReserveMessages")
	if len(r) != 2 || r[0].Principal != who(node) || r[0].KeyID != inside || r[0].Result != audit.Success || r[0].Target != "1024 messages" {
		t.Errorf("records %+v", r)
	}
}

// TestResidentTampered changes each bit of a blob, and what it is said to be.
func TestResidentTampered(t *testing.T) {
	e := newEnv(t)
	key := e.resident()
	other := e.key("default")
	blob := e.sealed(as(uma), key, Pair{"a", "b"})
	for i := range blob {
		for bit := range 8 {
			x := bytes.Clone(blob)
			x[i] ^= 1 << bit
			err := e.opens(as(uma), x, Pair{"a", "b"})
			switch {
			case i < 4, i == 5, i >= 38 && i < 50, i == 4 && x[4] != suite1:
				e.refused(err, ErrMalformed)
			case i >= 6 && i < 22:
				e.refused(err, fsm.ErrNotFound)
			default:
				e.refused(err, ErrCiphertext)
			}
		}
	}
	for n := range len(blob) {
		if err := e.opens(as(uma), blob[:n], Pair{"a", "b"}); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrCiphertext) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	// The level that a blob names is not the key's, though all else is in order.
	x := bytes.Clone(blob)
	copy(x[6:22], e.stored(other).ID[:])
	e.refused(e.opens(as(uma), x, Pair{"a", "b"}), ErrCiphertext)
	rooted := e.sealed(as(uma), other, Pair{"a", "b"})
	copy(rooted[6:22], e.stored(key).ID[:])
	e.refused(e.opens(as(uma), rooted, Pair{"a", "b"}), ErrCiphertext)
	e.ok(e.opens(as(uma), blob, Pair{"a", "b"}))
}

func TestResidentRefused(t *testing.T) {
	e := newEnv(t)
	make := func(p KeyParams) error {
		_, _, err := e.CreateKey(t.Context(), as(ada), p)
		return err
	}
	made := e.hsm.made
	e.refused(make(KeyParams{Spec: fsm.SpecP256, Protection: fsm.ProtectionResident}), fsm.ErrUnsupported, "those of spec ECC_NIST_P256 work in the HSM in any case")
	e.refused(make(KeyParams{Spec: fsm.SpecHMAC256, Protection: fsm.ProtectionResident}), fsm.ErrUnsupported, "HMAC_256")
	e.refused(make(KeyParams{Spec: fsm.SpecSymmetric, Usage: fsm.UsageMac, Protection: fsm.ProtectionResident}), fsm.ErrInvalid, "for ENCRYPT_DECRYPT, not for")
	e.refused(make(KeyParams{Spec: "AES_128", Protection: fsm.ProtectionResident}), fsm.ErrInvalid, `"AES_128" is unknown`)
	e.refused(make(KeyParams{Spec: fsm.SpecSymmetric, Protection: "7"}), fsm.ErrInvalid, `protection level "7" is unknown`)
	dry := as(ada)
	dry.DryRun = true
	_, _, err := e.CreateKey(t.Context(), dry, KeyParams{Spec: fsm.SpecSymmetric, Protection: fsm.ProtectionResident})
	e.refused(err, ErrDryRun)
	if e.hsm.made != made {
		t.Error("the HSM made a key for nothing")
	}
	key := e.resident()
	dry = as(uma)
	dry.DryRun = true
	e.refused(e.encrypts(dry, key), ErrDryRun)
	if n := e.log.count(&fsm.ReserveMessages{}); n != 0 {
		t.Errorf("a dry run reserves messages: %d", n)
	}
	_, err = e.Encrypt(t.Context(), as(uma), key, bytes.Repeat([]byte{1}, MaxPlaintext+1), nil, "")
	e.refused(err, fsm.ErrInvalid, "1 to 4096")
}

// TestReservations: calls that come together make one reservation, half of one is followed
// by the next ahead of time, and each is twice as large.
func TestReservations(t *testing.T) {
	e := newEnv(t)
	key := e.resident()
	id := e.stored(key).ID
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			if err := e.countMessage(t.Context(), e.stored(key), 1); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := e.log.count(&fsm.ReserveMessages{}); n != 1 {
		t.Fatalf("%d reservations for 64 messages", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { e.RunReservations(ctx); close(done) }()
	defer cancel()
	reserved := func() uint64 { return e.stored(key).Current().Messages }
	used := uint64(64)
	for size := uint64(firstReservation); size <= fsm.MaxReservation; size *= 2 {
		before := reserved()
		for reserved() == before { // at half of what there is, the next is on its way
			e.ok(e.countMessage(t.Context(), e.stored(key), 1))
			used++
		}
		if got, want := reserved()-before, min(2*size, fsm.MaxReservation); got != want {
			t.Fatalf("%d more were reserved, want %d", got, want)
		}
		if used > reserved() {
			t.Fatalf("%d messages, %d reserved", used, reserved())
		}
	}
	e.meters.prune(e.log.State())
	if len(e.meters.of) != 1 {
		t.Errorf("%d meters", len(e.meters.of))
	}
	e.do(&fsm.RotateKey{KeyRef: fsm.KeyRef{ID: id, Tenant: "default"}, Version: 2, Generation: 1, Cause: fsm.CauseOnDemand, Token: []byte{1}})
	cancel() // what is under way, or asked for, is waited for
	<-done
	e.meters.prune(e.log.State())
	if len(e.meters.of) != 0 {
		t.Errorf("%d meters of versions that are past", len(e.meters.of))
	}
}

// TestWithoutALeader: a node encrypts what it has reserved, and then says why it does not.
func TestWithoutALeader(t *testing.T) {
	e := newEnv(t)
	key := e.resident()
	blob := e.sealed(as(uma), key)
	e.log.lose(func(fsm.Proposal) error { return errors.New("no leader") })
	for range firstReservation - 1 {
		e.ok(e.encrypts(as(uma), key))
	}
	made := e.hsm.made
	for range 3 {
		e.refused(e.encrypts(as(uma), key), ErrReservation, "no leader", key)
	}
	e.ok(e.opens(as(uma), blob))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { e.RunReservations(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	e.log.lose(nil)
	e.ok(e.encrypts(as(uma), key))
	if e.hsm.made != made {
		t.Error("a key was made")
	}
	// A caller that goes leaves the others waiting for none of it.
	e.log.mu.Lock()
	e.log.refuse = func(fsm.Command) error { return context.DeadlineExceeded }
	e.log.mu.Unlock()
	gone, leave := context.WithTimeout(t.Context(), time.Nanosecond)
	defer leave()
	<-gone.Done()
	err := e.countMessage(gone, e.stored(e.resident2()), 1)
	e.refused(err, ErrReservation)
}

// resident2 makes another resident key in the state alone.
func (e *env) resident2() string {
	e.t.Helper()
	e.log.mu.Lock()
	refuse := e.log.refuse
	e.log.refuse = nil
	e.log.mu.Unlock()
	key := e.resident()
	e.log.mu.Lock()
	e.log.refuse = refuse
	e.log.mu.Unlock()
	return key
}

// TestMessageLimit: the real limit, with what nodes have reserved before. The leader rotates
// whatever the key's schedule, and where it cannot, nothing is encrypted beyond the limit.
func TestMessageLimit(t *testing.T) {
	e := newEnv(t)
	key := e.resident()
	k := e.stored(key)
	ref := fsm.KeyRef{ID: k.ID, Tenant: k.Tenant}
	fill := func(version uint32, upTo uint64) {
		t.Helper()
		for has := e.stored(key).Version(version).Messages; has < upTo; has = e.stored(key).Version(version).Messages {
			e.do(&fsm.ReserveMessages{VersionRef: fsm.VersionRef{KeyRef: ref, Version: version}, Count: min(fsm.MaxReservation, upTo-has)})
		}
	}
	duty := func() { e.doDue(t.Context(), map[fsm.Due]time.Time{}) }
	first := e.sealed(as(uma), key)
	fill(1, fsm.RotateMessages-1)
	duty()
	if v := e.stored(key).Current().Version; v != 1 {
		t.Fatalf("rotated to %d before the limit", v)
	}
	fill(1, fsm.RotateMessages)
	// An HSM that makes no keys: the key goes on to its limit and no further.
	e.hsm.fail = func() error { return hsm.ErrUnavailable }
	duty()
	e.ok(e.encrypts(as(uma), key))
	fill(1, fsm.MaxMessages)
	for range firstReservation - 2 {
		e.ok(e.encrypts(as(uma), key))
	}
	e.refused(e.encrypts(as(uma), key), fsm.ErrMessages, "at most 2147483648", "rotate the key")
	e.ok(e.opens(as(uma), first))
	e.hsm.fail = nil
	duty()
	got := e.stored(key)
	if v := got.Current(); v.Version != 2 || v.Cause != fsm.CauseLimit {
		t.Fatalf("not rotated at the limit: %+v", v)
	}
	e.ok(e.encrypts(as(uma), key))
	e.ok(e.opens(as(uma), first))
	if r := e.audit.of("RotateKey"); len(r) != 1 || r[0].KeyVersion != 2 || r[0].DecidedBy != "schedule" {
		t.Errorf("records %+v", r)
	}
	duty()
	if v := e.stored(key).Current().Version; v != 2 {
		t.Errorf("rotated again, to %d", v)
	}
}

// TestMeterBound: a node forgets reservations rather than to remember any number.
func TestMeterBound(t *testing.T) {
	m := newMeters()
	for i := range maxMeters + 10 {
		of := useOf{uuid.NewSHA1(uuid.Nil, fmt.Append(nil, i)), 1}
		_, r, size := m.take(of, "default")
		m.end(of, r, size, nil)
	}
	if n := len(m.of); n > maxMeters {
		t.Errorf("%d meters", n)
	}
}
