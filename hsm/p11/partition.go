//go:build cgo

package p11

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// Partition is a partition of a PKCS#11 token. When the token is lost, calls fail at
// once with ErrUnavailable while the partition tries to open it again; loaded keys
// of before are then ErrStale.
type Partition struct {
	cfg      Config
	lib      *library
	serial   string
	info     hsm.Info
	traits   traits
	identity []byte

	cancel context.CancelFunc
	done   chan struct{} // closed when monitor has returned

	attending sync.WaitGroup // for attend

	// ceremony is held while token objects are made or destroyed.
	ceremony chan struct{}

	meter hsm.Meter

	mu   sync.Mutex
	link *link // nil while the token is lost, and after Close
	why  error // why link is nil
	end  error // of the library, at Close

	drawn            [sha256.Size]byte // hash of the last random bytes
	losses, returns  uint64
	lostAt, returned time.Time // the last
}

var _ hsm.Partition = (*Partition)(nil)

var errClosed = errors.New("partition closed")

// Open opens a token, runs the self-test and makes the node identity key if there is
// none yet. ErrPIN: the one attempt to log in failed. ErrSelfTest names the probes
// that failed. ErrUnavailable says what is missing and what would be right.
func Open(ctx context.Context, cfg Config) (*Partition, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	lib, err := acquire(cfg.Module, cfg.ModuleArguments)
	if err != nil {
		return nil, err
	}
	p := &Partition{
		cfg: cfg, lib: lib,
		done:     make(chan struct{}),
		ceremony: make(chan struct{}, 1),
	}
	l, err := p.first(ctx)
	if err != nil {
		clear(cfg.PIN)
		return nil, errors.Join(err, lib.release())
	}
	p.link = l
	monitored, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	p.attending.Go(func() { p.attend(monitored) })
	go p.monitor(monitored, l)
	return p, nil
}

// check refuses what makes no sense, fills in defaults and takes copies.
func (c *Config) check() error {
	switch {
	case c.Token == "":
		return fmt.Errorf("%w: no token label configured", hsm.ErrRefused)
	case len(c.PIN) == 0:
		return fmt.Errorf("%w: no PIN configured", hsm.ErrRefused)
	case c.Sessions < 0 || c.Sessions > MaxSessions:
		return fmt.Errorf("%w: %d sessions configured, the ceiling is %d", hsm.ErrRefused, c.Sessions, MaxSessions)
	case c.KeySessions != nil && (*c.KeySessions < 0 || *c.KeySessions > MaxKeySessions):
		return fmt.Errorf("%w: %d sessions of keys configured, there are 0 to %d", hsm.ErrRefused, *c.KeySessions, MaxKeySessions)
	case c.ReopenEvery < 0:
		return fmt.Errorf("%w: negative pause configured", hsm.ErrRefused)
	}
	for _, name := range c.AcceptWeakness {
		if !slices.Contains(acceptableNames(), name) {
			return fmt.Errorf("%w: no weakness %q to accept, there are: %s",
				hsm.ErrRefused, name, strings.Join(acceptableNames(), ", "))
		}
	}
	if c.Sessions == 0 {
		c.Sessions = defaultSessions
	}
	if c.ReopenEvery == 0 {
		c.ReopenEvery = defaultReopenEvery
	}
	if c.patience == 0 {
		c.patience = defaultPatience
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.PIN = bytes.Clone(c.PIN)
	return nil
}

// first makes the first link and fills in what stays the same for all later ones.
func (p *Partition) first(ctx context.Context) (*link, error) {
	s, err := p.lib.await(ctx, p.cfg.Token, p.cfg.Serial)
	if err != nil {
		return nil, err
	}
	l, err := connect(p.lib, s, p.cfg.PIN, p.cfg.Sessions, false, nil)
	if err != nil {
		return nil, err
	}
	p.serial = s.token.SerialNumber
	p.info = hsm.Info{
		Kind: "pkcs11", Manufacturer: s.token.ManufacturerID, Model: s.token.Model,
		Serial: p.serial, Label: s.token.Label,
	}
	if err := p.prepare(ctx, l); err != nil {
		l.drain()
		return nil, err
	}
	l.meter = &p.meter
	l.ongoing.places = make([]encryption, p.keySessions(s.token))
	return l, nil
}

func (p *Partition) prepare(ctx context.Context, l *link) error {
	var err error
	if p.traits, p.info.Probes, err = selfTest(ctx, l, p.cfg.Cloned, p.cfg.AcceptWeakness, true); err != nil {
		return err
	}
	for _, probe := range p.info.Probes {
		if probe.Accepted {
			p.cfg.Logger.Warn("hsm weakness accepted", "probe", probe.Name, "detail", probe.Detail)
		}
	}
	return p.on(ctx, l, func(s *session) error {
		l.nik, p.identity, err = s.ensureIdentity()
		l.identity = p.identity
		return err
	})
}

// Info describes the token.
func (p *Partition) Info() hsm.Info {
	info := p.info
	info.Probes = append([]hsm.Probe(nil), info.Probes...)
	return info
}

// Healthy is nil while there is a link to the token, and its calls return.
func (p *Partition) Healthy() error {
	_, err := p.current()
	return err
}

// Close waits for the calls under way and gives the token back.
func (p *Partition) Close() error {
	p.cancel()
	<-p.done
	p.attending.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end
}

func (p *Partition) current() (*link, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link == nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrUnavailable, p.why)
	}
	if d, hung := p.link.hangs(); hung {
		return nil, fmt.Errorf("%w: token %q hangs: a call has not returned for %s", hsm.ErrUnavailable, p.cfg.Token, d.Truncate(time.Second))
	}
	return p.link, nil
}

// set makes l the current link, or says why there is none.
func (p *Partition) set(l *link, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.link, p.why = l, why
}

// do runs fn with a session of the current link.
func (p *Partition) do(ctx context.Context, fn func(*session) error) error {
	l, err := p.current()
	if err != nil {
		return err
	}
	return p.on(ctx, l, fn)
}

// on runs fn with a session of l's pool. It judges the error: the token may be
// lost; otherwise a session whose call failed is replaced.
func (p *Partition) on(ctx context.Context, l *link, fn func(*session) error) error {
	s, err := l.take(ctx, l.work)
	if err != nil {
		return err
	}
	defer p.giveBack(s, l.work)
	if err = fn(s); err == nil {
		return nil
	}
	if code(err) != pkcs11.CKR_OK && !p.lostBy(s, err) {
		if broken := l.replace(s); broken != nil {
			p.lose(l, broken)
		} else if isDoubtful(code(err)) {
			p.doubted(l, err, s.provesAll(p.traits))
		}
	}
	return wrapped(err)
}

// doubted takes the link out of use if the token, which has said that it fails, did not
// answer what is known either.
func (p *Partition) doubted(l *link, err, answer error) {
	if answer != nil {
		p.lose(l, fmt.Errorf("%w, and then: %w", err, answer))
	}
}

// giveBack ends the use of a session.
func (p *Partition) giveBack(s *session, pool chan *session) {
	s.ends()
	if _, hung := s.link.hangs(); hung {
		p.judge(s.link)
	}
	pool <- s
}

// held runs fn with the session that owns the loaded keys. fn makes only calls that
// leave no operation pending.
func (p *Partition) held(ctx context.Context, l *link, fn func(*session) error) error {
	return p.heldBeside(ctx, l, nil, fn)
}

// heldBeside is held for who has a work session already: what is known is asked on that, since
// there may be no other.
func (p *Partition) heldBeside(ctx context.Context, l *link, other *session, fn func(*session) error) error {
	s, err := l.take(ctx, l.hold)
	if err != nil {
		return err
	}
	defer p.giveBack(s, l.hold)
	if err = fn(s); err == nil {
		return nil
	}
	if !p.lostBy(s, err) && isDoubtful(code(err)) { // asked on a session that owns nothing
		if other != nil {
			p.doubted(l, err, other.provesAll(p.traits))
			return wrapped(err)
		}
		asked := context.WithoutCancel(ctx)
		p.doubted(l, err, p.on(asked, l, func(s *session) error { return s.provesAll(p.traits) }))
	}
	return wrapped(err)
}

// lostBy judges the error of a call and reports whether the link is lost by it.
func (p *Partition) lostBy(s *session, err error) bool {
	rv := code(err)
	switch {
	case isVague(rv), isDoubtful(rv):
		if s.link.alive(s) == nil {
			return false
		}
	case !isLoss(rv):
		return false
	}
	p.lose(s.link, err)
	return true
}

// lose takes the link out of use; monitor does the rest.
func (p *Partition) lose(l *link, why error) {
	if !l.lose() {
		return
	}
	p.mu.Lock()
	p.losses, p.lostAt = p.losses+1, time.Now()
	if p.link == l {
		p.link, p.why = nil, fmt.Errorf("token %q lost: %w", p.cfg.Token, why)
	}
	p.mu.Unlock()
	p.cfg.Logger.Warn("hsm token lost", "token", p.cfg.Token, "error", why)
}

// attend looks from time to time whether calls return. It makes none itself.
func (p *Partition) attend(ctx context.Context) {
	tick := time.NewTicker(p.cfg.ReopenEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.mu.Lock()
			l := p.link
			p.mu.Unlock()
			if l != nil {
				p.judge(l)
			}
		}
	}
}

// judge says whether a call of the link hangs.
func (p *Partition) judge(l *link) {
	changed, hung := l.judge(time.Now(), p.cfg.patience)
	switch {
	case changed && hung > 0:
		p.cfg.Logger.Warn("hsm token hangs: it is not used until the call returns", "token", p.cfg.Token, "for", hung)
	case changed:
		p.cfg.Logger.Info("hsm token answers again", "token", p.cfg.Token)
	}
}

// monitor owns the link: it watches it, and when it is lost makes another, until the
// partition is closed or the token refuses the PIN.
func (p *Partition) monitor(ctx context.Context, l *link) {
	defer close(p.done)
	for l != nil {
		p.watch(ctx, l)
		if ctx.Err() != nil {
			p.set(nil, errClosed)
		}
		l.drain()
		l = p.reopen(ctx)
	}
	clear(p.cfg.PIN)
	<-ctx.Done()
	p.set(nil, errClosed)
	p.end = p.lib.release()
}

// watch returns when the link is lost or the context ends. It looks at the token
// from time to time in case nobody uses it.
func (p *Partition) watch(ctx context.Context, l *link) {
	tick := time.NewTicker(p.cfg.ReopenEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.gone:
			return
		case <-tick.C:
			_ = p.on(ctx, l, l.alive) // which judges the error
		}
	}
}

// reopen makes a new link, one attempt every Config.ReopenEvery. It returns nil if
// the context ends or the token refuses the PIN.
func (p *Partition) reopen(ctx context.Context) *link {
	for ctx.Err() == nil {
		l, err := p.again(ctx)
		if err == nil {
			p.cfg.Logger.Info("hsm token open again", "token", p.cfg.Token)
			p.mu.Lock()
			p.returns, p.returned = p.returns+1, time.Now()
			p.mu.Unlock()
			p.set(l, nil)
			return l
		}
		p.set(nil, fmt.Errorf("token %q lost, not back yet: %w", p.cfg.Token, err))
		if errors.Is(err, hsm.ErrPIN) {
			p.cfg.Logger.Error("hsm token refuses the pin, giving up", "token", p.cfg.Token, "error", err)
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(p.cfg.ReopenEvery):
		}
	}
	return nil
}

// again makes one attempt to open the token that was lost: the same serial number
// and the same node identity key. After a failure the library starts anew.
func (p *Partition) again(ctx context.Context) (*link, error) {
	l, err := p.reconnect(ctx)
	if err != nil && !errors.Is(err, hsm.ErrPIN) {
		err = errors.Join(err, p.lib.restart())
	}
	return l, err
}

func (p *Partition) reconnect(ctx context.Context) (*link, error) {
	s, err := p.lib.find(p.cfg.Token, p.serial)
	if err != nil {
		return nil, fmt.Errorf("%w (if the token is destroyed: remove this node from the cluster and let it join anew with a new token)", err)
	}
	l, err := connect(p.lib, s, p.cfg.PIN, p.cfg.Sessions, true, &p.meter)
	if err != nil {
		return nil, err
	}
	l.quirks = p.traits.quirks
	l.ongoing.places = make([]encryption, p.keySessions(s.token))
	err = p.on(ctx, l, func(s *session) error {
		var spki []byte
		l.nik, spki, err = s.identity()
		if err == nil && !bytes.Equal(spki, p.identity) {
			err = fmt.Errorf("%w: the token has another node identity key than before", hsm.ErrUnavailable)
		}
		if l.identity = spki; err == nil {
			err = s.provesAll(p.traits)
		}
		return err
	})
	if err != nil {
		l.drain()
		return nil, err
	}
	return l, nil
}
