package fsm

// Proposal is a command on its way to the leader.
type Proposal struct {
	Command   Command
	Request   string // request id; empty for the system's own acts
	Digest    []byte // SHA-256 of what the caller asked for; with Request only
	Principal string // SPIFFE URI of who asked
}
