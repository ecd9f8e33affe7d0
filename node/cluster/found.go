package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// Founding says what a new cluster begins with.
type Founding struct {
	Operator      string // SPIFFE URI of who founds it
	Administrator string // SPIFFE URI of the first key administrator of the default tenant
	// Lease is how long a node may answer by itself. Zero means DefaultLease.
	Lease time.Duration
	// Recovery says who can recover the domain key; the copies are made here. NoRecovery
	// is an operator's word that nobody needs to.
	Recovery   *fsm.FirstRecovery
	NoRecovery bool
	// Request and Digest make the founding idempotent, as a Proposal's do.
	Request string
	Digest  []byte
}

// DefaultLease covers a leader's crash with one split vote: 2 renewals, 2
// heartbeats and 2 elections of a second each.
const DefaultLease = 6 * time.Second

// firstGeneration is the number of a new cluster's domain key.
const firstGeneration = 1

// Found makes this node the first member of a new cluster.
func (m *Member) Found(ctx context.Context, f Founding) (fsm.ID, error) {
	if f.Recovery != nil {
		if err := m.TrustsRecovery(ctx, f.Recovery.Recipients); err != nil {
			return uuid.Nil, err
		}
	}
	release, err := m.reserve()
	if err != nil {
		return uuid.Nil, err
	}
	defer release()
	id := m.identity
	id.Stage, id.Cluster = stageInitializing, uuid.New()
	if err := errors.Join(id.clear(m.config.DataDir), id.save(m.config.DataDir)); err != nil {
		return uuid.Nil, err
	}
	generation, err := m.config.Domain.CreateDomain(ctx, hsm.ID(id.Cluster), firstGeneration)
	if err != nil {
		return uuid.Nil, fmt.Errorf("making the domain key: %w", err)
	}
	recovery, err := m.recoverable(ctx, id, generation, f.Recovery)
	if err != nil {
		return uuid.Nil, err
	}
	e, err := m.start(ctx, id, bootstrap)
	if err != nil {
		return uuid.Nil, err
	}
	command := &fsm.InitCluster{
		Cluster: id.Cluster, TrustDomain: m.config.TrustDomain, Operator: f.Operator, Administrator: f.Administrator,
		LeaseMillis: cmp.Or(f.Lease, DefaultLease).Milliseconds(), Generation: generation.Number, Node: e.id, Name: m.config.Name,
		PeerAddress: m.config.PeerAddress, ClientAddress: m.config.ClientAddress, Identity: m.config.Domain.Identity(),
		Release: fsm.NewestRelease, Recovery: recovery, NoRecovery: f.NoRecovery,
	}
	if m.cloned() {
		command.Profile = fsm.ProfileCloned
	}
	for _, k := range generation.Checks {
		command.Checks = append(command.Checks, fsm.DomainCheck{Kind: uint8(k.Kind), Value: k.Value[:]})
	}
	if _, err := e.firstEntry(ctx, fsm.Proposal{Command: command, Principal: f.Operator, Request: f.Request, Digest: f.Digest}); err != nil {
		return uuid.Nil, errors.Join(err, e.stop())
	}
	return id.Cluster, m.become(e, id)
}

// firstEntry commits the first entry of a history as soon as this node leads itself.
func (e *engine) firstEntry(ctx context.Context, p fsm.Proposal) (fsm.Result, error) {
	for {
		result, err := e.commit(ctx, p, e.id)
		if !errors.Is(err, ErrNoLeader) {
			return result, err
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return fsm.Result{}, fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// become records that the node is a member, for good: Raft has run under its id.
func (m *Member) become(e *engine, id identity) error {
	if id.Stage != stageMember {
		id.Stage, id.Recovery = stageMember, nil
		if err := id.save(m.config.DataDir); err != nil {
			return errors.Join(err, e.stop())
		}
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return errors.Join(ErrShutdown, e.stop())
	}
	m.identity, m.running = id, e
	m.mu.Unlock()
	return nil
}
