//go:build cgo

package p11

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// link is one connection to a token: its sessions and the handles found through
// them. All of it dies together, and the partition makes a new link.
type link struct {
	lib   *library
	token slot
	meter *hsm.Meter // nil until the self-test is over; set before use

	// Each session is in its channel or with the goroutine that took it. One of noSession
	// was closed and could not be replaced.
	work     chan *session // pool for everything
	hold     chan *session // one: keeps the login, owns the loaded keys
	sessions []*session    // of both, for judge

	waiting atomic.Int32
	uses    uses
	proofs  proofs
	ongoing ongoing       // its places are set before use
	gone    chan struct{} // closed when the link is lost
	lost    sync.Once

	nik      pkcs11.ObjectHandle // private half of the node identity key; set before use
	identity []byte              // its public half, SPKI; likewise
	quirks   quirks              // as in traits; set before use

	mu      sync.Mutex
	domains map[domainID]domain
	// recovered is what copies were opened to: objects of hold. It goes before domains.
	recovered map[domainID]domain
}

const noSession pkcs11.SessionHandle = 0 // CK_INVALID_HANDLE

// connect opens the sessions and logs in, with one attempt. Only a caller whose PIN
// this token took before may find itself logged in already: nobody checks it then.
func connect(lib *library, s slot, pin []byte, sessions int, again bool, meter *hsm.Meter) (*link, error) {
	if s.token.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0 {
		return nil, fmt.Errorf("%w: the user PIN of token %q is locked", hsm.ErrPIN, s.token.Label)
	}
	l := &link{
		lib: lib, token: s, meter: meter,
		work:    make(chan *session, sessions),
		hold:    make(chan *session, 1),
		gone:    make(chan struct{}),
		proofs:  newProofs(),
		domains: map[domainID]domain{}, recovered: map[domainID]domain{},
	}
	holder, err := l.open()
	if err != nil {
		return nil, err
	}
	l.fill(l.hold, holder)
	if err := login(lib, holder, pkcs11.CKU_USER, pin, again); err != nil {
		return nil, errors.Join(fmt.Errorf("token %q: %w", s.token.Label, err), lib.ctx.CloseSession(holder))
	}
	for n := range sessions {
		h, err := l.open()
		if err != nil {
			for range sessions - n {
				l.fill(l.work, noSession)
			}
			l.drain()
			return nil, fmt.Errorf("session %d of %d: %w", n+1, sessions, err)
		}
		l.fill(l.work, h)
	}
	return l, nil
}

// fill puts a new session into a pool. connect alone does.
func (l *link) fill(pool chan *session, h pkcs11.SessionHandle) {
	s := &session{link: l, h: h}
	l.sessions = append(l.sessions, s)
	pool <- s
}

func login(lib *library, h pkcs11.SessionHandle, user uint, pin []byte, again bool) error {
	err := lib.ctx.Login(h, user, string(pin))
	switch rv := code(err); {
	case err == nil, again && rv == pkcs11.CKR_USER_ALREADY_LOGGED_IN:
		return nil
	case isPIN(rv):
		return fmt.Errorf("%w: %w", hsm.ErrPIN, err)
	case rv == pkcs11.CKR_USER_ALREADY_LOGGED_IN, rv == pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN:
		return fmt.Errorf("%w: this process is logged in to it already; use a process of its own: %w", hsm.ErrUnavailable, err)
	default:
		return fmt.Errorf("%w: login: %w", hsm.ErrUnavailable, err)
	}
}

func (l *link) open() (pkcs11.SessionHandle, error) {
	began := time.Now()
	h, err := l.lib.ctx.OpenSession(l.token.id, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	l.meter.Done(hsm.CallSession, began, err)
	if code(err) == pkcs11.CKR_SESSION_COUNT {
		return noSession, fmt.Errorf("%w: the token has no session left; lower hsm.sessions or hsm.key_sessions, or end what else uses the token: %w", hsm.ErrUnavailable, err)
	}
	if err != nil {
		return noSession, fmt.Errorf("%w: open a session: %w", hsm.ErrUnavailable, err)
	}
	return h, nil
}

// take gets a session out of pool, waiting in a bounded queue.
func (l *link) take(ctx context.Context, pool chan *session) (*session, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrUnavailable, context.Cause(ctx))
	}
	select {
	case s := <-pool:
		s.begins()
		return s, nil
	default:
	}
	if l.waiting.Add(1) > maxWaiting {
		l.waiting.Add(-1)
		return nil, fmt.Errorf("%w: %d calls wait for a session", hsm.ErrBusy, maxWaiting)
	}
	defer l.waiting.Add(-1)
	select {
	case s := <-pool:
		s.begins()
		return s, nil
	case <-l.gone:
		return nil, fmt.Errorf("%w: the token was lost", hsm.ErrUnavailable)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: waiting for a session: %w", hsm.ErrUnavailable, context.Cause(ctx))
	}
}

// replace closes a session whose call failed and opens another in its place.
func (l *link) replace(s *session) error {
	began := time.Now()
	err := l.lib.ctx.CloseSession(s.h)
	l.meter.Done(hsm.CallSession, began, err)
	if err != nil {
		s.h = noSession
		return fmt.Errorf("%w: close a session: %w", hsm.ErrUnavailable, err)
	}
	h, err := l.open()
	if code(err) == pkcs11.CKR_SESSION_COUNT && l.ongoing.yields(s, err) {
		h, err = l.open()
	}
	s.h = h
	return err
}

// lose marks the link as lost; it reports whether this call did.
func (l *link) lose() (first bool) {
	l.lost.Do(func() { first = true; close(l.gone) })
	return first
}

// drain waits for every session to come back and closes it. Only then may sessions
// be opened anew: the library may give out the same handles again.
func (l *link) drain() {
	l.lose()
	defer l.drainOngoing()
	for _, pool := range []chan *session{l.work, l.hold} {
		for range cap(pool) {
			if s := <-pool; s.h != noSession {
				_ = l.lib.ctx.CloseSession(s.h) // of a lost token: it may be closed already
			}
		}
	}
}

// alive asks whether the session is logged in and a token object can be read. It is
// cheap, and meant for errors that say nothing.
func (l *link) alive(s *session) error {
	began := time.Now()
	info, err := l.lib.ctx.GetSessionInfo(s.h)
	l.meter.Done(hsm.CallSession, began, err)
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	if info.State != pkcs11.CKS_RW_USER_FUNCTIONS {
		return fmt.Errorf("session: %w", pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN))
	}
	_, err = s.attribute(l.nik, pkcs11.CKA_TOKEN)
	return err
}
