package kms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// Suite 2: the HSM encrypts whole messages under the key itself, and how many is counted.
// A node reserves messages through the log and then encrypts them without it. What it has
// reserved and not used is lost with the process: the cluster's count is never too low.

const (
	// firstReservation is how many messages a node reserves first of a version; each
	// further time it is twice as many, up to fsm.MaxReservation.
	firstReservation = 1 << 10
	// reserveTimeout bounds a reservation that is made ahead of time, and reservePause is
	// how long after a failure the next is tried.
	reserveTimeout = 10 * time.Second
	reservePause   = time.Second
	// pruneEvery is how often a node forgets versions that encrypt no more.
	pruneEvery = time.Minute
	// maxMeters bounds the versions that a node has reservations of. Beyond it, one is
	// forgotten, with what is left of it.
	maxMeters = 65_536
)

// meters is what this node may encrypt under each version.
type meters struct {
	mu   sync.Mutex
	of   map[useOf]*meter
	low  map[useOf]bool // to be reserved ahead of time
	wake chan struct{}  // takes one token when low has something
}

// meter is what is reserved of one version.
type meter struct {
	tenant  string
	left    uint64
	last    uint64       // the size of the last reservation
	pending *reservation // under way
}

type reservation struct {
	done chan struct{} // closed when it has ended
	err  error         // set before
}

func newMeters() *meters {
	return &meters{of: map[useOf]*meter{}, low: map[useOf]bool{}, wake: make(chan struct{}, 1)}
}

// take uses one message, if there is one. Otherwise it returns the reservation that is
// under way and whether the caller must make it, of so many messages.
func (m *meters) take(of useOf, tenant string) (ok bool, wait *reservation, size uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.meter(of, tenant)
	if x.left == 0 {
		if x.pending != nil {
			return false, x.pending, 0
		}
		return false, x.begin(), x.size()
	}
	if x.left--; x.left <= x.last/2 && x.pending == nil {
		m.low[of] = true
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
	return true, nil, 0
}

func (m *meters) meter(of useOf, tenant string) *meter {
	if x := m.of[of]; x != nil {
		return x
	}
	for other, x := range m.of {
		if len(m.of) < maxMeters {
			break
		}
		if x.pending == nil {
			delete(m.of, other)
		}
	}
	x := &meter{tenant: tenant}
	m.of[of] = x
	return x
}

func (x *meter) begin() *reservation {
	x.pending = &reservation{done: make(chan struct{})}
	return x.pending
}

func (x *meter) size() uint64 { return min(max(2*x.last, firstReservation), fsm.MaxReservation) }

// ahead begins the reservation of one version that is low; ok tells whether there is one.
func (m *meters) ahead() (of useOf, next meter, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for of = range m.low {
		delete(m.low, of)
		if x := m.of[of]; x != nil && x.pending == nil {
			x.begin()
			return of, *x, true
		}
	}
	return of, meter{}, false
}

// lows is how many versions are low.
func (m *meters) lows() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.low)
}

// end ends a reservation, and takes in what was reserved.
func (m *meters) end(of useOf, r *reservation, size uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.err = err
	if x := m.of[of]; x != nil && x.pending == r {
		x.pending = nil
		if err == nil {
			x.left, x.last = x.left+size, size
		} else if x.left > 0 {
			m.low[of] = true // tried again
		}
	}
	close(r.done)
}

// prune forgets the versions that are not the current ones of a state.
func (m *meters) prune(st *fsm.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.of, func(of useOf, x *meter) bool {
		k, ok := st.Key(of.key)
		return x.pending == nil && (!ok || k.Current().Version > of.version)
	})
}

// countMessage takes one message of a version, for which it reserves more if need be.
func (s *Service) countMessage(ctx context.Context, k *fsm.Key, version uint32) error {
	of := useOf{k.ID, version}
	for {
		ok, r, size := s.meters.take(of, k.Tenant)
		if ok {
			return nil
		}
		if size > 0 {
			s.meters.end(of, r, size, s.reserve(ctx, of, k.Tenant, size))
		}
		select {
		case <-r.done:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrReservation, context.Cause(ctx))
		}
		gone := errors.Is(r.err, context.Canceled) || errors.Is(r.err, context.DeadlineExceeded)
		if r.err != nil && (!gone || ctx.Err() != nil) { // another's caller that has gone is no reason
			return r.err
		}
	}
}

// reserve has the log count so many messages as encrypted.
func (s *Service) reserve(ctx context.Context, of useOf, tenant string, size uint64) error {
	command := &fsm.ReserveMessages{VersionRef: fsm.VersionRef{KeyRef: fsm.KeyRef{ID: of.key, Tenant: tenant}, Version: of.version}, Count: size}
	p := fsm.Proposal{Command: command, Principal: s.self, Request: uuid.NewString()}
	var err error
	if p.Digest, err = requestDigest("ReserveMessages", tenant, command); err != nil {
		return err
	}
	result, err := s.log.Propose(ctx, p)
	if err != nil && (fsm.Code(err) == "" || errors.Is(err, fsm.ErrHalted)) {
		return fmt.Errorf("%w: version %d of key %s: %w", ErrReservation, of.version, of.key, err)
	}
	if err != nil {
		return err
	}
	return s.audit.Record(audit.Event{
		Name: "ReserveMessages", Principal: s.self, Class: string(ClassNode), DecidedBy: "reservation", Tenant: tenant, Target: fmt.Sprintf("%d messages", size),
		KeyID: of.key.String(), KeyVersion: of.version, StateIndex: result.Index, Result: audit.Success,
	})
}

// RunReservations reserves messages ahead of time until ctx ends, so that calls need not
// wait for the log.
func (s *Service) RunReservations(ctx context.Context) {
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	var again <-chan time.Time // after a failure
	for {
		select {
		case <-ctx.Done():
			return
		case <-prune.C:
			s.meters.prune(s.log.State())
		case <-s.meters.wake:
		case <-again:
		}
		again = nil
		for range s.meters.lows() { // what fails is low again, and waits for the next round
			of, x, ok := s.meters.ahead()
			if !ok {
				break
			}
			within, cancel := context.WithTimeout(ctx, reserveTimeout)
			err := s.reserve(within, of, x.tenant, x.size())
			cancel()
			s.meters.end(of, x.pending, x.size(), err)
			if err != nil {
				s.logger.Debug("messages were not reserved ahead of time, trying again", "key", of.key, "version", of.version, "error", err)
				again = time.After(reservePause)
			}
		}
	}
}

// sealInside makes a blob of suite 2 under the key's current version.
func (s *Service) sealInside(ctx context.Context, st *fsm.State, t target, h [32]byte, plaintext []byte) ([]byte, error) {
	v := t.key.Current()
	if err := s.countMessage(ctx, t.key, v.Version); err != nil {
		return nil, err
	}
	b := insideBlob{header: blobHeader{suite: suite2, key: t.key.ID, version: v.Version}, context: h, plaintext: len(plaintext)}
	ciphertext, err := s.deriver.Encrypt(ctx, hsmRef(st, t.key, v), plaintext, b.bind)
	if err != nil {
		return nil, err
	}
	return append(b.blob, ciphertext...), nil
}

// insideBlob is a blob of suite 2 that is being made.
type insideBlob struct {
	header    blobHeader // its nonce is the HSM's to make
	context   [32]byte
	plaintext int    // bytes
	blob      []byte // without the ciphertext
}

// bind is the hsm.Binding of the blob.
func (b *insideBlob) bind(iv [hsm.IVSize]byte) (t [32]byte, aad func(com *[32]byte) []byte) {
	copy(b.header.nonce[:], iv[:])
	b.blob = newBlob(b.header, b.plaintext)
	return messageInput(b.blob, b.context).T, func(com *[32]byte) []byte {
		c := commitment(com, b.blob, b.context)
		b.blob = append(b.blob, c[:]...)
		return associatedData(b.blob, b.context)
	}
}

// openInside opens a blob of suite 2. The commitment, which covers the header and the
// context, is compared before the HSM sees the ciphertext; what was altered in that is found
// by its tag.
func (s *Service) openInside(ctx context.Context, ref hsm.Ref, h [32]byte, blob []byte) ([]byte, error) {
	iv := [hsm.IVSize]byte(blob[blobNonce:])
	plaintext, err := s.deriver.Decrypt(ctx, ref, iv, messageInput(blob, h).T, blob[blobBody:], func(com *[32]byte) ([]byte, error) {
		if !commits(com, blob, h) {
			return nil, ErrCiphertext
		}
		return associatedData(blob, h), nil
	})
	if errors.Is(err, hsm.ErrCiphertext) {
		err = ErrCiphertext
	}
	return plaintext, err
}
