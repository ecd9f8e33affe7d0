package fsm

import (
	"cmp"
	"fmt"

	"github.com/google/uuid"
)

// Limits of a lease, in milliseconds.
const (
	MinLeaseMillis = 1_000
	MaxLeaseMillis = 60_000
)

// Limits of a cluster.
const (
	MaxTrustDomain = 255 // bytes, as in SPIFFE
)

// Cluster is what holds for the whole cluster.
type Cluster struct {
	ID            ID           `json:"id"`
	TrustDomain   string       `json:"trust_domain"`
	Release       int          `json:"release"` // the gate: no command of a later release is proposed
	RecoveryEpoch uint32       `json:"recovery_epoch"`
	RecoveryID    ID           `json:"recovery_id,omitzero"` // of the history that the last recovery began
	Created       int64        `json:"created"`              // unix seconds
	Operator      string       `json:"operator"`             // SPIFFE URI of the first operator
	LeaseMillis   int64        `json:"lease_ms"`             // how long a lease lasts: the same for all nodes
	Generations   []Generation `json:"generations"`
	Rewrap        *Rewrap      `json:"rewrap,omitempty"` // under way
	Revision      uint64       `json:"revision"`
	Profile       string       `json:"profile,omitempty"`  // how domain keys come to another partition: empty is ProfileGeneric
	Recovery      *Recovery    `json:"recovery,omitempty"` // nil: nothing was said
}

// The transfer profiles: how a partition comes by the cluster's domain keys. A cluster has
// one for life.
const (
	ProfileGeneric = "generic" // a member's partition wraps them for it
	ProfileCloned  = "cloned"  // the vendor's cloning, or backup: they can be wrapped for nobody
)

// TransferProfile is the cluster's profile, by name.
func (c Cluster) TransferProfile() string { return cmp.Or(c.Profile, ProfileGeneric) }

// InitCluster is the first entry of every log.
type InitCluster struct {
	Cluster       ID            `json:"cluster"`
	TrustDomain   string        `json:"trust_domain"`
	Operator      string        `json:"operator"`
	Administrator string        `json:"administrator"`
	LeaseMillis   int64         `json:"lease_ms"`
	Generation    uint32        `json:"generation"`
	Checks        []DomainCheck `json:"checks"`
	Node          string        `json:"node"` // raft id of the first member
	Name          string        `json:"name"`
	PeerAddress   string        `json:"peer_address"`
	ClientAddress string        `json:"client_address"`
	Identity      []byte        `json:"identity"`
	Release       int           `json:"release,omitempty"` // the cluster's; 0 is FirstRelease, which had no such field
	Profile       string        `json:"profile,omitempty"` // ProfileCloned; empty is ProfileGeneric

	// Since release 2 the first generation, too, is active only with recovery copies, or
	// because an operator said by name that it needs none.
	Recovery   *FirstRecovery `json:"recovery,omitempty"`
	NoRecovery bool           `json:"no_recovery,omitempty"`
}

func (c *InitCluster) validate() error {
	switch {
	case c.Cluster == uuid.Nil:
		return invalid("cluster id is missing")
	case c.TrustDomain == "" || len(c.TrustDomain) > MaxTrustDomain:
		return invalid("trust domain has %d bytes: must be 1 to %d", len(c.TrustDomain), MaxTrustDomain)
	case c.Operator == "" || c.Administrator == "":
		return invalid("the first operator and the first administrator must be named")
	case len(c.Operator) > MaxPrincipal || len(c.Administrator) > MaxPrincipal:
		return invalid("the first operator or administrator has more than %d bytes", MaxPrincipal)
	case c.LeaseMillis < MinLeaseMillis || c.LeaseMillis > MaxLeaseMillis:
		return invalid("lease of %d ms: must be %d to %d", c.LeaseMillis, MinLeaseMillis, MaxLeaseMillis)
	case c.Release < 0 || c.Release == FirstRelease || c.Release > NewestRelease:
		return invalid("release %d: must be %d to %d, or 0", c.Release, FirstRelease+1, NewestRelease)
	case c.Profile != "" && (c.Profile != ProfileCloned || c.Release <= FirstRelease):
		return invalid("transfer profile %q at release %d: must be %s, from release %d on, or nothing", c.Profile, c.Release, ProfileCloned, FirstRelease+1)
	case c.Generation == 0:
		return invalid("domain key generation is missing")
	}
	if err := validChecks(c.Checks); err != nil {
		return err
	}
	if err := c.validRecovery(); err != nil {
		return err
	}
	return validMember(c.Node, c.Name, c.PeerAddress, c.ClientAddress, c.Identity)
}

func (c *InitCluster) validRecovery() error {
	if c.Recovery != nil {
		if err := c.Recovery.Validate(true); err != nil {
			return err
		}
	}
	copies := c.Recovery != nil && len(c.Recovery.Recipients) > 0
	switch {
	case c.Release == 0 && (c.Recovery != nil || c.NoRecovery):
		return invalid("release %d knows no recovery recipients", FirstRelease)
	case c.Release != 0 && copies == c.NoRecovery:
		return invalid("a cluster is founded with recovery recipients, or without any by name")
	}
	return nil
}

func (c *InitCluster) apply(t *tx) (Result, error) {
	if t.s.Initialized() {
		return Result{}, fmt.Errorf("%w: the cluster is initialized (%s)", ErrExists, t.s.cluster.ID)
	}
	if c.Recovery != nil {
		for _, x := range c.Recovery.Recipients {
			if err := x.Apart(c.Node, c.Identity); err != nil {
				return Result{}, err
			}
		}
	}
	now := t.seconds()
	cluster := Cluster{
		ID: c.Cluster, TrustDomain: c.TrustDomain, Release: max(c.Release, FirstRelease), Created: now, Operator: c.Operator, LeaseMillis: c.LeaseMillis, Profile: c.Profile,
		Generations: []Generation{{Number: c.Generation, State: GenerationActive, Created: now, Checks: c.Checks, NoRecovery: c.NoRecovery}},
	}
	t.found(&cluster, c)
	t.putCluster(cluster)
	t.putTenant(&Tenant{Name: DefaultTenant, Created: now, Administrator: c.Administrator})
	t.putMember(&Member{
		ID: c.Node, Name: c.Name, PeerAddress: c.PeerAddress, ClientAddress: c.ClientAddress, Identity: c.Identity,
		State: MemberActive, Voter: true, Since: now,
	})
	return Result{ID: c.Cluster.String()}, nil
}

// Tick changes nothing. Its commit proves that its proposer led the cluster when
// it was proposed; it carries the time, and the proposer's running hash at an
// index, for others to compare theirs with.
type Tick struct {
	HashIndex uint64 `json:"hash_index"`
	Hash      []byte `json:"hash"` // 32 bytes
}

func (c *Tick) validate() error {
	if len(c.Hash) != 32 {
		return invalid("tick hash has %d bytes, must be 32", len(c.Hash))
	}
	return nil
}

func (c *Tick) apply(*tx) (Result, error) { return Result{}, nil }

// Repeat asks again for the answer to a request id, where the command itself could
// not be made again. It restricts, as the command that it repeats may: its call
// waits like the first.
type Repeat struct{}

func (c *Repeat) validate() error { return nil }

func (c *Repeat) apply(*tx) (Result, error) {
	return Result{}, fmt.Errorf("%w: the request is not remembered", ErrNotFound)
}
