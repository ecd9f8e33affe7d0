package cluster

import (
	"context"
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
)

// SurveyRequest asks a node what it has of the cluster. It also says, with proof, what
// history the one who asks is of: a node of an earlier one ends.
type SurveyRequest struct {
	Cluster fsm.ID
	Node    string // raft id of who asks
	History fsm.History
	Proof   []byte // of History, under the log key: see historyProof
}

// Survey is what a node has of the cluster.
type Survey struct {
	Cluster   fsm.ID
	Node      string // raft id
	History   fsm.History
	LastTerm  uint64 // of the last entry of its log
	LastIndex uint64 // of that entry
	Applied   uint64
	Leader    string // raft id; empty while it knows none
}

const (
	// surveyTimeout bounds what a node that does not answer may cost.
	surveyTimeout = 3 * time.Second
	// splitEvery is how often a recovered cluster's nodes look whether members of an
	// earlier history are back.
	splitEvery = 5 * time.Second
	// maxSurveyed bounds the addresses that are looked at; the latest tombstones' first.
	maxSurveyed = 32
	// answerGrace is how long a node of an earlier history goes on, so that who told it
	// gets its answer.
	answerGrace = 500 * time.Millisecond
)

// historyBytes is a history as it stands in proofs: epoch u32, big-endian, id 16.
func historyBytes(h fsm.History) []byte {
	return append(binary.BigEndian.AppendUint32(nil, h.Epoch), h.ID[:]...)
}

// historyProof shows that a holder of the log key says that the cluster is in that
// history. It stays true: whoever repeats it says nothing new.
func (e *engine) historyProof(h fsm.History) []byte {
	return e.logKey.Prove("quorumkms/history/v1", append(e.cluster[:], historyBytes(h)...))
}

func (e *engine) survey() Survey {
	stats := e.raft.Stats() // the only place where Raft tells the term of its last entry
	last := func(what string) (term, index uint64) {
		term, _ = strconv.ParseUint(stats["last_"+what+"_term"], 10, 64)
		index, _ = strconv.ParseUint(stats["last_"+what+"_index"], 10, 64)
		return term, index
	}
	term, index := last("log")
	if t, i := last("snapshot"); t > term || t == term && i > index {
		term, index = t, i // a snapshot that was installed can be ahead of the log
	}
	_, leader := e.leader()
	return Survey{
		Cluster: e.cluster, Node: e.id, History: e.history,
		LastTerm: term, LastIndex: index, Applied: e.machine.State().Index(), Leader: leader,
	}
}

// HandleSurvey answers a survey by the node of that name. One that proves a later
// history ends this node: its cluster was recovered without it.
func (m *Member) HandleSurvey(r SurveyRequest, name string) (Survey, error) {
	e, err := m.engine()
	if err != nil {
		return Survey{}, err
	}
	if r.Cluster != e.cluster {
		return Survey{}, fmt.Errorf("%w: this node belongs to cluster %s", fsm.ErrMember, e.cluster)
	}
	if r.History.Epoch > e.history.Epoch && e.knows(name) && hmac.Equal(r.Proof, e.historyProof(r.History)) {
		select {
		case e.outlived <- fmt.Errorf(
			"%w: node %s proves that the cluster was recovered without this node (recovery epoch %d, this one's is %d): its data directory is of no further use; to come back it joins with an empty one",
			ErrRemoved, name, r.History.Epoch, e.history.Epoch):
		default: // it knows already
		}
	}
	return e.survey(), nil
}

// knows tells whether a server of Raft's configuration has that name. The state will
// not do: a node that was started without a leader has none yet.
func (e *engine) knows(name string) bool {
	for id := range e.servers() {
		if nameOf(id) == name {
			return true
		}
	}
	return false
}

// nameOf is the node's name in a raft id.
func nameOf(id string) string { return id[:max(0, strings.LastIndexByte(id, '.'))] }

// ask surveys one address.
func (e *engine) ask(ctx context.Context, address string) (Survey, error) {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	return e.config.Peers.Survey(ctx, address, SurveyRequest{
		Cluster: e.cluster, Node: e.id, History: e.history, Proof: e.historyProof(e.history),
	})
}

// splitLoop looks where members of earlier histories lived whether they are back:
// two of three dead nodes that come back together would be a second cluster. Each
// is told of this history, which ends it, and the operator is told of each. It also
// ends this node when it is itself one of those.
func (e *engine) splitLoop() {
	timer := time.NewTicker(splitEvery)
	defer timer.Stop()
	for {
		select {
		case err := <-e.outlived:
			e.log.Error("this node's history has ended", "error", err)
			select {
			case <-time.After(answerGrace):
				e.config.Halt(err)
			case <-e.ctx.Done():
			}
			return
		case <-timer.C:
		case <-e.ctx.Done():
			return
		}
		s := e.machine.State()
		if e.history == (fsm.History{}) || s.History() != e.history {
			continue
		}
		var looking sync.WaitGroup
		for _, address := range formerAddresses(s) {
			looking.Go(func() { e.noteSplit(address) })
		}
		looking.Wait()
	}
}

// formerAddresses are the peer addresses of members that are gone, where none lives now.
func formerAddresses(s *fsm.State) []string {
	members := s.Members()
	slices.SortStableFunc(members, func(a, b *fsm.Member) int { return int(b.Revision) - int(a.Revision) }) //nolint:gosec // log indexes
	var living, out []string
	for _, m := range members {
		if m.Serves() {
			living = append(living, m.PeerAddress)
		}
	}
	for _, m := range members {
		if len(out) < maxSurveyed && !slices.Contains(living, m.PeerAddress) && !slices.Contains(out, m.PeerAddress) {
			out = append(out, m.PeerAddress)
		}
	}
	return out
}

func (e *engine) noteSplit(address string) {
	found, err := e.ask(e.ctx, address)
	e.splitsMu.Lock()
	defer e.splitsMu.Unlock()
	if err != nil || found.Cluster != e.cluster || found.History == e.history {
		delete(e.splits, address)
		return
	}
	text := fmt.Sprintf("split: node %s at %s lives in another history of this cluster (recovery epoch %d, this one's is %d): power it off and empty its data directory",
		found.Node, address, found.History.Epoch, e.history.Epoch)
	if e.splits[address] != text {
		e.log.Error(text)
	}
	e.splits[address] = text
}

func (e *engine) splitsSeen() []string {
	e.splitsMu.Lock()
	defer e.splitsMu.Unlock()
	return slices.Sorted(maps.Values(e.splits))
}
