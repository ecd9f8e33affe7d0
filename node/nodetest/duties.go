package nodetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// Duties is what the nodes of a cluster did by themselves.
type Duties struct {
	making time.Duration

	mu       sync.Mutex
	random   *rand.Rand
	made     int
	proposed map[string]fsm.RotateKeyOnSchedule // by token, of which no two are the same
	records  []audit.Event
}

func newDuties(making time.Duration, seed uint64) *Duties {
	return &Duties{making: making, random: rand.New(rand.NewPCG(seed, 4)), proposed: map[string]fsm.RotateKeyOnSchedule{}}
}

// Proposed is the command that brought, or was to bring, a token into the log.
func (d *Duties) Proposed(token []byte) (c fsm.RotateKeyOnSchedule, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok = d.proposed[string(token)]
	return c, ok
}

// Tries is how many rotations were proposed.
func (d *Duties) Tries() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.proposed)
}

// Records are the audit records of all nodes.
func (d *Duties) Records() []audit.Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]audit.Event(nil), d.records...)
}

// GenerateKey implements kms.KeyMaker: it takes its time.
func (d *Duties) GenerateKey(ctx context.Context, _ hsm.KeySpec) (hsm.NewKey, error) {
	d.mu.Lock()
	d.made++
	token := fmt.Appendf(nil, "token %d", d.made)
	takes := time.Duration(d.random.Int64N(int64(d.making) + 1))
	d.mu.Unlock()
	return hsm.NewKey{Token: token}, sleepFor(ctx, takes)
}

// Supports implements kms.KeyMaker. Nobody asks.
func (d *Duties) Supports(hsm.Algorithm) bool { return false }

// NewImportPair, ImportsInside and ImportKey implement kms.KeyMaker. Nobody asks.
func (d *Duties) NewImportPair(context.Context, hsm.ImportPairSpec) (hsm.NewKey, error) {
	return hsm.NewKey{}, errNoDomain
}
func (d *Duties) ImportsInside(hsm.ImportAlgorithm) bool { return false }
func (d *Duties) ImportKey(context.Context, hsm.ImportRequest) (hsm.NewKey, error) {
	return hsm.NewKey{}, errNoDomain
}

// Opened implements kms.Opener: no partition is here that could open a token.
func (d *Duties) Opened(context.Context, fsm.ID, uint32, hsm.Kind, hsm.NewKey) error { return nil }

// Random implements kms.KeyMaker. Nobody asks.
func (d *Duties) Random(context.Context, []byte) error { return errNoDomain }

// Record implements gate.Recorder.
func (d *Duties) Record(e audit.Event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records = append(d.records, e)
	return nil
}

// RecordAll implements gate.Recorder.
func (d *Duties) RecordAll(all []audit.Event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records = append(d.records, all...)
	return nil
}

// Healthy implements gate.Recorder.
func (d *Duties) Healthy() error { return nil }

// dutiful is a member whose rotations are noted before they are proposed.
type dutiful struct {
	*cluster.Member
	duties *Duties
}

var _ kms.Log = dutiful{}

// Propose implements kms.Log.
func (x dutiful) Propose(ctx context.Context, p fsm.Proposal) (fsm.Result, error) {
	if c, ok := p.Command.(*fsm.RotateKeyOnSchedule); ok {
		x.duties.mu.Lock()
		x.duties.proposed[string(c.Token)] = *c
		x.duties.mu.Unlock()
	}
	return x.Member.Propose(ctx, p)
}

// serve has a process do its duties, as a node's key service does, until it ends.
func (c *Cluster) serve(l *life) {
	m, clock := l.opened.Load(), l.node.Clock
	service := kms.New(kms.Config{
		Log: dutiful{m, c.Duties}, Fresh: m, Keys: c.Duties, Opener: c.Duties, Audit: c.Duties, Out: l.releases,
		Deriver: nil, // nobody calls
		Now:     clock.wall, Clock: clock.Now, Leader: m, Limits: limit.New(limit.Config{}, clock.wall),
		Principal:   func(uri string) (kms.Caller, error) { return kms.Caller{Principal: uri}, nil },
		MinRotation: fsm.MinRotationPeriod * time.Second, Self: "spiffe://" + trustDomain + "/node/" + l.node.Name,
		Logger: c.Trace.logger(l.node.Name),
	})
	c.background(func() { service.RunDuties(l.end.ctx) })
}
