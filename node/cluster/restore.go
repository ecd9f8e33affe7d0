package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// A restore makes a new node the only member of a cluster whose nodes are lost, with
// the state of a backup. The state becomes the first snapshot of an empty log, and
// what the restore changes are entries behind it: RestoreCluster, then each restriction
// that was made after the backup. Until all of it is done, and no lease of the old
// nodes can be alive, the node belongs to no cluster: after a crash it begins anew.

// Restoration says what is restored. All of it has been verified.
type Restoration struct {
	State      *fsm.State
	Backup     []byte // SHA-256 of the backup
	Epoch      uint32 // of the history that begins
	Disable    bool   // bring every key back disabled
	JournalEnd uint64
	Replay     []fsm.Command // restrictions, in their order
	// Proposal carries who asks, and the request id.
	Proposal fsm.Proposal
	// Progress, optional, is told how many restrictions have been made again.
	Progress func(done int)
}

// Restored is what came of it.
type Restored struct {
	Refused int // restrictions that changed nothing: as a rule their key is not in the backup
}

// MayRestore is nil while this node belongs to no cluster.
func (m *Member) MayRestore() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running == nil {
		return nil
	}
	return fmt.Errorf("%w: this node belongs to cluster %s: a backup is restored into a node with an empty data directory", ErrInitialized, m.identity.Cluster)
}

// RestoreKey is the log key of a cluster that might be restored in this node: its HSM
// partition must hold the domain key.
func (m *Member) RestoreKey(ctx context.Context, cluster fsm.ID) (fsm.LogKey, error) {
	key, err := m.config.Domain.LogKey(ctx, hsm.ID(cluster))
	if err != nil {
		return nil, fmt.Errorf("%w: the HSM partition of this node does not hold the domain key of cluster %s: %w", ErrRecovery, cluster, err)
	}
	return key, nil
}

// HoldsDomain fails unless this node's HSM partition holds every domain key generation
// that a state needs, by their check values: the active one and those that wrap key
// versions.
func (m *Member) HoldsDomain(ctx context.Context, s *fsm.State) error {
	c := s.Cluster()
	if want, is := c.TransferProfile(), m.Profile(); is != want {
		return fmt.Errorf("%w: this node is configured for %s, the backup's cluster is %s: set hsm.profile", ErrProfile, is, want)
	}
	held, err := m.config.Domain.Generations(ctx, hsm.ID(c.ID))
	if err != nil {
		return err
	}
	wrapped := s.CountTokens()
	for _, g := range c.Generations {
		needed := g.State == fsm.GenerationActive || wrapped[g.Number] > 0
		if needed && !slices.ContainsFunc(held, sameAs(g)) {
			return fmt.Errorf("%w: the HSM partition of this node does not hold generation %d of the domain key as the backup knows it", ErrRecovery, g.Number)
		}
	}
	return nil
}

// Restore makes this node the only member of the cluster in r.State.
func (m *Member) Restore(ctx context.Context, r Restoration) (Restored, error) {
	release, err := m.reserve()
	if err != nil {
		return Restored{}, err
	}
	defer release()
	if err := m.HoldsDomain(ctx, r.State); err != nil {
		return Restored{}, err
	}
	id := m.identity
	id.Stage, id.Cluster, id.History = stageInitializing, r.State.Cluster().ID, fsm.History{Epoch: r.Epoch, ID: uuid.New()}
	if err := errors.Join(id.clear(m.config.DataDir), id.save(m.config.DataDir)); err != nil {
		return Restored{}, err
	}
	fresh := func(err error) error {
		return errors.Join(err, m.identity.clear(m.config.DataDir), m.identity.save(m.config.DataDir))
	}
	e, err := m.start(ctx, id, restored(r.State))
	if err != nil {
		return Restored{}, fresh(err)
	}
	refused, err := e.restore(ctx, r)
	if err != nil {
		return Restored{}, fresh(errors.Join(err, e.stop()))
	}
	return Restored{Refused: refused}, m.become(e, id)
}

// restored makes a state the snapshot of an empty log of this node alone.
func restored(s *fsm.State) prepare {
	return func(e *engine, _ *raft.Config) error {
		if err := e.store.SetUint64([]byte(keyTerm), s.Term()); err != nil {
			return err
		}
		sink, err := e.snapshots.Create(raft.SnapshotVersionMax, s.Index(), s.Term(), e.alone(), firstIndex, e.transport)
		if err != nil {
			return err
		}
		if err := s.WriteSnapshot(sink, e.logKey); err != nil {
			return errors.Join(err, sink.Cancel())
		}
		return sink.Close()
	}
}

const firstIndex = 1 // where a configuration stands that no entry made

// restore commits what changes, and waits until no lease of the old nodes can be alive.
func (e *engine) restore(ctx context.Context, r Restoration) (refused int, err error) {
	c := e.config
	_, err = e.firstEntry(ctx, fsm.Proposal{
		Command: &fsm.RestoreCluster{
			Epoch: e.history.Epoch, ID: e.history.ID, Backup: r.Backup, DisableKeys: r.Disable, JournalEnd: r.JournalEnd,
			Node: e.id, Name: c.Name, PeerAddress: c.PeerAddress, ClientAddress: c.ClientAddress, Identity: c.Domain.Identity(),
		},
		Principal: r.Proposal.Principal, Request: r.Proposal.Request, Digest: r.Proposal.Digest,
	})
	if err != nil {
		return 0, err
	}
	progress := r.Progress
	if progress == nil {
		progress = func(int) {}
	}
	if refused, err = e.replayAll(ctx, r.Replay, r.Proposal.Principal, progress); err != nil {
		return 0, err
	}
	if err := e.retireUnheld(ctx, r.Proposal.Principal); err != nil {
		return 0, err
	}
	return refused, e.waitFloor(ctx)
}

// retireUnheld retires generations that wrap nothing and that this node, the only one,
// does not hold: they were retired after the backup.
func (e *engine) retireUnheld(ctx context.Context, principal string) error {
	s := e.machine.State()
	wrapped := s.CountTokens()
	for _, g := range s.Cluster().Generations {
		if g.State != fsm.GenerationDecryptOnly || wrapped[g.Number] > 0 || slices.ContainsFunc(e.domain.now(), sameAs(g)) {
			continue
		}
		if _, err := e.commit(ctx, fsm.Proposal{Command: &fsm.RetireGeneration{Number: g.Number}, Principal: principal}, e.id); err != nil {
			return fmt.Errorf("retiring generation %d of the domain key, which no node holds: %w", g.Number, err)
		}
	}
	return nil
}

// replayAll makes restrictions of a lost history again, and counts those that change
// nothing: as a rule their key is not in this one.
func (e *engine) replayAll(ctx context.Context, all []fsm.Command, principal string, progress func(done int)) (refused int, err error) {
	for i, command := range all {
		for _, step := range fsm.Steps(e.machine.State(), command) {
			n, err := e.replayOne(ctx, step, principal)
			if err != nil {
				return 0, fmt.Errorf("restriction %d of %d: %w", i+1, len(all), err)
			}
			refused += n
		}
		progress(i + 1)
	}
	return refused, nil
}

// replayOne makes one command, or what takes its place, and counts those that were refused.
func (e *engine) replayOne(ctx context.Context, command fsm.Command, principal string) (refused int, err error) {
	for command != nil {
		_, err := e.commit(ctx, fsm.Proposal{Command: command, Principal: principal}, e.id)
		if err == nil {
			break
		}
		if fsm.Code(err) == "" || errors.Is(err, fsm.ErrHalted) {
			return 0, err
		}
		e.log.Warn("a restriction of the lost history changes nothing", "command", fsm.NameOf(command), "reason", err)
		refused++
		command = fsm.Instead(command, err)
	}
	return refused, nil
}

// waitFloor returns when no lease from before this node's term can be alive.
func (e *engine) waitFloor(ctx context.Context) error {
	for {
		left := e.grantor.over("") - e.config.Clock.Now()
		if left <= 0 {
			return nil
		}
		select {
		case <-time.After(left): // the clock is read again behind it
		case <-e.ctx.Done():
			return ErrShutdown
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// LeaseWait is how long leases of a lost cluster's nodes may be alive.
func LeaseWait(s *fsm.State) time.Duration { return withMargin(leaseDuration(s)) }
