package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"github.com/quorumkms/quorumkms/fsm"
)

// Recovery makes one member, with its log, the whole cluster, after a majority was
// lost for good. What only the lost ones held is gone. The other survivors come back
// as new nodes, like the dead ones: kept in the configuration, one whose log ends with
// entries that this one lacks could not be told from one that lags.
//
// The steps, each of which may be the last before a crash:
//
//	node.json says stageRecovering, and of which history the directory is now
//	Raft stops; its log becomes a snapshot whose configuration is this node alone
//	Raft starts; RecoverCluster is committed: the others are LEAVING
//	node.json says stageMember
//
// From the first step on the node speaks no Raft with nodes of the old history. The
// leader's duty retires the others when no lease of theirs can be alive any more.

// Survivor is what is known of one living member when a majority may be lost.
type Survivor struct {
	*fsm.Member
	Votes   bool   // in Raft's configuration
	Answers bool   // Found is what it said
	Found   Survey //
	Problem string // why it does not answer
}

// RecoveryPlan is what a recovery from this node would mean.
type RecoveryPlan struct {
	State   *fsm.State    // with the whole log applied
	Members []Survivor    // all but the gone, this node too, by name
	Wait    time.Duration // how long leases of the others may still run
	Refusal error         // why the cluster cannot be recovered from this node; nil: it can
}

// Dead are the names of the members that do not answer, Survivors those of the others
// that do, this node excepted.
func (p RecoveryPlan) Dead() []string { return p.names(func(s Survivor) bool { return !s.Answers }) }

// Rejoin are the names of the members other than self that answer: they must join anew.
func (p RecoveryPlan) Rejoin(self string) []string {
	return p.names(func(s Survivor) bool { return s.Answers && s.ID != self })
}

func (p RecoveryPlan) names(which func(Survivor) bool) (out []string) {
	for _, s := range p.Members {
		if which(s) {
			out = append(out, s.Name)
		}
	}
	return out
}

// PlanRecovery looks who is left: it reads this node's whole log and asks the other
// members. It changes nothing.
func (m *Member) PlanRecovery(ctx context.Context) (RecoveryPlan, error) {
	e, err := m.engine()
	if err != nil {
		return RecoveryPlan{}, err
	}
	s, err := e.replay()
	if err != nil {
		return RecoveryPlan{}, err
	}
	p := RecoveryPlan{State: s, Wait: LeaseWait(s)}
	servers := e.servers()
	for _, x := range s.Members() {
		if x.Alive() {
			p.Members = append(p.Members, Survivor{Member: x, Votes: servers[x.ID].Suffrage == raft.Voter && servers[x.ID].ID != ""})
		}
	}
	slices.SortFunc(p.Members, func(a, b Survivor) int { return strings.Compare(a.Name, b.Name) })
	var asking sync.WaitGroup
	for i := range p.Members {
		asking.Go(func() { e.lookAt(ctx, &p.Members[i]) })
	}
	asking.Wait()
	p.Refusal = p.refusal(e.id)
	return p, nil
}

func (e *engine) lookAt(ctx context.Context, x *Survivor) {
	if x.ID == e.id {
		x.Answers, x.Found = true, e.survey()
		return
	}
	found, err := e.ask(ctx, x.PeerAddress)
	switch {
	case err != nil:
		x.Problem = err.Error()
	case found.Node != x.ID:
		x.Problem = fmt.Sprintf("%s lives at its address", found.Node)
	default:
		x.Answers, x.Found = true, found
	}
}

// refusal is the one list of what forbids a recovery from a node.
func (p RecoveryPlan) refusal(self string) error {
	var own Survivor
	votes, answering := 0, 0
	for _, x := range p.Members {
		if x.ID == self {
			own = x
		}
		if x.Votes {
			votes++
		}
		if x.Votes && x.Answers {
			answering++
		}
		if x.Found.Leader != "" {
			return fmt.Errorf("%w: node %s knows a leader (%s): the cluster is alive", ErrRecovery, x.Name, x.Found.Leader)
		}
	}
	if own.Member == nil || !own.Serves() {
		return fmt.Errorf("%w: this node is no active member", ErrRecovery)
	}
	if 2*answering > votes {
		return fmt.Errorf("%w: %d of %d voters answer: they can elect a leader by themselves", ErrRecovery, answering, votes)
	}
	for _, x := range p.Members {
		if x.Answers && x.Found.later(own.Found) {
			return fmt.Errorf("%w: node %s has more (entry %d of term %d; this node ends with entry %d of term %d): recover from %s",
				ErrRecovery, x.Name, x.Found.LastIndex, x.Found.LastTerm, own.Found.LastIndex, own.Found.LastTerm, x.Name)
		}
	}
	return nil
}

// later orders logs as Raft's elections do.
func (s Survey) later(than Survey) bool {
	return cmp.Or(cmp.Compare(s.LastTerm, than.LastTerm), cmp.Compare(s.LastIndex, than.LastIndex)) > 0
}

// replay applies this node's whole log to a machine of its own, whether or not it is
// known to be committed: what a recovery would come to.
func (e *engine) replay() (*fsm.State, error) {
	machine, halted := e.scratch()
	var last uint64
	all, err := e.snapshots.List()
	if err != nil {
		return nil, fmt.Errorf("%w: listing snapshots: %w", ErrDataDir, err)
	}
	if len(all) > 0 {
		_, source, err := e.snapshots.Open(all[0].ID)
		if err != nil {
			return nil, fmt.Errorf("%w: snapshot %s: %w", ErrDataDir, all[0].ID, err)
		}
		if err := machine.Restore(source); err != nil {
			return nil, fmt.Errorf("%w: snapshot %s: %w", ErrDataDir, all[0].ID, err)
		}
		last = all[0].Index
	}
	end, err := e.store.LastIndex()
	if err != nil {
		return nil, fmt.Errorf("%w: reading the log: %w", ErrDataDir, err)
	}
	for i := last + 1; i <= end && *halted == nil; i++ {
		var entry raft.Log
		if err := e.store.GetLog(i, &entry); err != nil {
			return nil, fmt.Errorf("%w: reading log entry %d: %w", ErrDataDir, i, err)
		}
		if entry.Type == raft.LogCommand {
			machine.Apply(&entry)
		}
	}
	s := machine.State()
	switch {
	case *halted != nil:
		return nil, *halted
	case !s.Initialized():
		return nil, fmt.Errorf("%w: this node's log is empty", fsm.ErrNotInitialized)
	}
	return s, nil
}

// scratch is a machine that this node does not answer from.
func (e *engine) scratch() (machine *fsm.Machine, halted *error) {
	halted = new(error)
	return fsm.NewMachine(e.logKey, func(err error) { *halted = err }), halted
}

// Recovery asks to recover the cluster from this node. It says what the operator was
// shown: if anything is different, it is refused.
type Recovery struct {
	Cluster fsm.ID
	Epoch   uint32   // the present recovery epoch
	Node    string   // name or raft id of this node
	Dead    []string // names of all members that do not answer
	// Replay are restrictions that this node's log lacks, in their order: at most
	// maxReplay.
	Replay []fsm.Command
	// Proposal carries who asks, and the request id.
	Proposal fsm.Proposal
}

// maxReplay bounds the restrictions that a recovery makes again: they wait in
// node.json.
const maxReplay = 10_000

// CheckRecovery tells what a recovery would mean, or why it is refused.
func (m *Member) CheckRecovery(ctx context.Context, r Recovery) (RecoveryPlan, error) {
	p, err := m.PlanRecovery(ctx)
	if err != nil {
		return p, err
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrRecovery, fmt.Sprintf(format, args...))
	}
	c, given := p.State.Cluster(), slices.Clone(r.Dead)
	slices.Sort(given)
	switch {
	case p.Refusal != nil:
		return p, p.Refusal
	case r.Cluster != c.ID:
		return p, refuse("the cluster is %s, not %s", c.ID, r.Cluster)
	case r.Epoch != c.RecoveryEpoch:
		return p, refuse("the cluster is in recovery epoch %d, not %d", c.RecoveryEpoch, r.Epoch)
	case r.Node != m.id && r.Node != m.config.Name:
		return p, refuse("this is node %s (%s), not %s", m.config.Name, m.id, r.Node)
	case len(r.Replay) > maxReplay:
		return p, refuse("the journals know %d restrictions that this node lacks, at most %d can be made again: restore a backup instead", len(r.Replay), maxReplay)
	case !slices.Equal(slices.Compact(given), p.Dead()):
		return p, refuse("the members that do not answer are %s; named as dead were %s", list(p.Dead()), list(given))
	}
	return p, nil
}

func list(names []string) string { return cmp.Or(strings.Join(names, ", "), "none") }

// recoverTimeout bounds a recovery up to its first entry.
const recoverTimeout = 2 * time.Minute

// Recover makes this node the only member of the cluster. It returns when no lease of
// another one can be alive any more. Once it has begun, it goes on whatever becomes of
// ctx, and after a crash at the next start.
func (m *Member) Recover(ctx context.Context, r Recovery) (fsm.Result, error) {
	release, err := m.reserveRecovery()
	if err != nil {
		return fsm.Result{}, err
	}
	defer release()
	p, err := m.CheckRecovery(ctx, r)
	if err != nil {
		return fsm.Result{}, err
	}
	old, err := m.engine()
	if err != nil {
		return fsm.Result{}, err
	}
	id := m.identity
	id.Stage, id.History = stageRecovering, fsm.History{Epoch: r.Epoch + 1, ID: uuid.New()}
	id.Recovery = &recoverer{Principal: r.Proposal.Principal, Request: r.Proposal.Request, Digest: r.Proposal.Digest}
	for _, c := range r.Replay {
		body, err := json.Marshal(c)
		if err != nil {
			return fsm.Result{}, err
		}
		id.Recovery.Replay = append(id.Recovery.Replay, replayed{fsm.NameOf(c), body})
	}
	if err := id.save(m.config.DataDir); err != nil {
		return fsm.Result{}, err
	}
	m.config.Log.Warn("recovering the cluster from this node alone", "epoch", id.History.Epoch, "principal", r.Proposal.Principal,
		"dead", p.Dead(), "rejoin", p.Rejoin(m.id), "log_index", p.State.Index(), "restrictions_made_again", len(r.Replay))
	result, err := m.goOnAlone(context.WithoutCancel(ctx), old, id)
	if err != nil {
		m.config.Halt(fmt.Errorf("the recovery was not finished, it goes on at the next start: %w", err))
		return fsm.Result{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return result, m.WaitRetired(ctx)
}

func (m *Member) goOnAlone(ctx context.Context, old *engine, id identity) (fsm.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	if err := old.stop(); err != nil {
		return fsm.Result{}, err
	}
	e, result, err := m.startRecovered(ctx, id)
	if err != nil {
		return fsm.Result{}, err
	}
	return result, m.become(e, id)
}

// startRecovered starts Raft with this node alone and commits RecoverCluster, unless
// an earlier attempt has, and the restrictions that the node lacks: made twice, they
// are made.
func (m *Member) startRecovered(ctx context.Context, id identity) (*engine, fsm.Result, error) {
	e, err := m.start(ctx, id, recovered)
	if err != nil {
		return nil, fsm.Result{}, err
	}
	result, err := e.recover(ctx, id)
	if err != nil {
		return nil, fsm.Result{}, errors.Join(err, e.stop())
	}
	return e, result, nil
}

func (e *engine) recover(ctx context.Context, id identity) (fsm.Result, error) {
	r := id.Recovery
	command := fsm.Command(&fsm.RecoverCluster{Epoch: id.History.Epoch, ID: id.History.ID, Node: e.id})
	if e.machine.State().History() == id.History {
		s := e.machine.State()
		command = &fsm.Tick{HashIndex: s.Index(), Hash: s.Hash()}
		r = &recoverer{Principal: e.principal(), Replay: r.Replay}
	}
	result, err := e.firstEntry(ctx, fsm.Proposal{Command: command, Principal: r.Principal, Request: r.Request, Digest: r.Digest})
	if err != nil {
		return result, err
	}
	var again []fsm.Command
	for _, x := range r.Replay {
		c, err := fsm.DecodeCommand(x.Command, x.Body)
		if err != nil {
			return result, err
		}
		again = append(again, c)
	}
	_, err = e.replayAll(ctx, again, id.Recovery.Principal, func(int) {})
	return result, err
}

// recovered makes this node's log that of a cluster of this node alone. Done twice it
// is done.
func recovered(e *engine, rc *raft.Config) error {
	machine, halted := e.scratch()
	err := raft.RecoverCluster(rc, machine, e.store, e.store, e.snapshots, e.transport, e.alone())
	if err != nil || *halted != nil {
		return errors.Join(err, *halted)
	}
	all, err := e.snapshots.List()
	if err != nil {
		return err
	}
	if len(all) == 0 || !reflect.DeepEqual(all[0].Configuration, e.alone()) {
		return fmt.Errorf("the newest snapshot is not the one that the recovery made (does the clock go back?)")
	}
	return nil
}

// reserveRecovery makes sure that one recovery goes on at a time.
func (m *Member) reserveRecovery() (release func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, ErrShutdown
	case m.busy:
		return nil, fmt.Errorf("%w: it goes on just now", ErrRecovery)
	}
	m.busy = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.busy = false
	}, nil
}

// WaitRetired returns when every member that was put out is gone: no lease of theirs
// can be alive any more.
func (m *Member) WaitRetired(ctx context.Context) error {
	for _, x := range m.State().Members() {
		if x.State == fsm.MemberLeaving {
			if err := m.WaitGone(ctx, x.ID); err != nil {
				return err
			}
		}
	}
	return nil
}
