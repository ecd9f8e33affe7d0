package cluster

import (
	"errors"

	"github.com/quorumkms/quorumkms/fsm"
)

// The sentinels of this package. Those of fsm pass through it.
var (
	// ErrNoLeader means: nothing was done; there is no leader, or it is out of reach.
	ErrNoLeader = errors.New("no leader")
	// ErrNoLease means: this node has lost touch with the cluster and answers nothing
	// that a key was used for.
	ErrNoLease = errors.New("this node holds no lease")
	// ErrOutcomeUnknown means: the command may or may not be committed; repeat it with
	// the same request id.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrBusy means: too many commands wait.
	ErrBusy = errors.New("too many proposals are waiting")
	// ErrRemoved means: this node is no longer a member.
	ErrRemoved = errors.New("this node was removed from the cluster")
	// ErrJoin means: the other side refused, or failed a proof, while joining.
	ErrJoin = errors.New("joining refused")
	// ErrInitialized means: this node belongs to a cluster already.
	ErrInitialized = errors.New("already initialized")
	// ErrDataDir means: the data directory cannot be used.
	ErrDataDir = errors.New("data directory")
	// ErrStorage means: Raft's disk failed; the process must end.
	ErrStorage = errors.New("storage failed")
	// ErrShutdown means: the member is stopping.
	ErrShutdown = errors.New("this node is stopping")
)

// coded are the sentinels that travel between nodes beside fsm's.
var coded = []struct {
	code string
	err  error
}{
	{"NO_LEADER", ErrNoLeader},
	{"OUTCOME_UNKNOWN", ErrOutcomeUnknown},
	{"BUSY", ErrBusy},
	{"REMOVED", ErrRemoved},
	{"JOIN", ErrJoin},
	{"NO_LEADER", ErrShutdown}, // another node takes over
}

// Code names the sentinel that err wraps, for the wire; "" if there is none.
func Code(err error) string {
	for _, c := range coded {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return fsm.Code(err)
}

// FromCode restores an error that another node reported.
func FromCode(code, text string) error {
	for _, c := range coded {
		if c.code == code {
			return &remoteError{text, c.err}
		}
	}
	return fsm.FromCode(code, text)
}

type remoteError struct {
	text     string
	sentinel error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.sentinel }
