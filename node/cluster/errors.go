package cluster

import (
	"cmp"
	"errors"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
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
	// ErrUnopened means: nothing was done; too few voters' HSM partitions have opened a
	// new key.
	ErrUnopened = errors.New("too few HSMs have opened the new key")
	// ErrBusy means: too many commands wait.
	ErrBusy = errors.New("too many proposals are waiting")
	// ErrRemoved means: this node is no longer a member.
	ErrRemoved = errors.New("this node was removed from the cluster")
	// ErrDiverged means: this node's state is not the cluster's. Its data directory is
	// evidence and is not used again.
	ErrDiverged = errors.New("this node's state differs from the cluster's")
	// ErrStuck means: this node leads and could not commit; the process must end, so
	// that another leads.
	ErrStuck = errors.New("this node leads the cluster and has committed nothing")
	// ErrJoin means: the other side refused, or failed a proof, while joining.
	ErrJoin = errors.New("joining refused")
	// ErrProfile means: this node and the cluster have different transfer profiles.
	ErrProfile = errors.New("transfer profile")
	// ErrRecovery means: this node is not the one, or now not the time, to recover the
	// cluster from.
	ErrRecovery = errors.New("recovery refused")
	// ErrInitialized means: this node belongs to a cluster already.
	ErrInitialized = errors.New("already initialized")
	// ErrDataDir means: the data directory cannot be used.
	ErrDataDir = errors.New("data directory")
	// ErrStorage means: Raft's disk failed; the process must end.
	ErrStorage = errors.New("storage failed")
	// ErrAltered means: the log, a snapshot or what belongs to them is not what this
	// node wrote to its disk; the process must end and not come back on this directory.
	ErrAltered = errors.New("the data on the disk was altered, or is damaged")
	// ErrShutdown means: the member is stopping.
	ErrShutdown = errors.New("this node is stopping")
)

// coded are the sentinels that travel between nodes beside fsm's.
var coded = fsm.Codes{
	{Code: "NO_LEADER", Err: ErrNoLeader},
	{Code: "OUTCOME_UNKNOWN", Err: ErrOutcomeUnknown},
	{Code: "BUSY", Err: ErrBusy},
	{Code: "REMOVED", Err: ErrRemoved},
	{Code: "NO_LEASE", Err: ErrNoLease},
	{Code: "DIVERGED", Err: ErrDiverged},
	{Code: "PROFILE", Err: ErrProfile},
	{Code: "JOIN", Err: ErrJoin},
	{Code: "NO_GENERATION", Err: hsm.ErrNotFound},
	{Code: "NO_LEADER", Err: ErrShutdown}, // another node takes over
}

// Code names the sentinel that err wraps, for the wire; "" if there is none.
func Code(err error) string { return cmp.Or(coded.Of(err), fsm.Code(err)) }

// FromCode restores an error that another node reported.
func FromCode(code, text string) error {
	if err := coded.Restore(code, text); err != nil {
		return err
	}
	return fsm.FromCode(code, text)
}
