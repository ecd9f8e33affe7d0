package fsm

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
)

// Limits of domain key generations.
const (
	MaxGenerations      = 1000 // of a cluster's life, retired ones included
	generationBits      = 10   // of a generation's number count those of one recovery epoch
	MaxGenerationsInUse = 16   // that are not retired
	MaxChecks           = 16   // check values of one generation: one a kind of domain key
)

// GenerationState is how far a domain key generation is in its life.
type GenerationState string

// The states of a generation. It is proposed by the node that made it, becomes active
// when every node that may serve has proved possession, and is succeeded by the next.
// Nothing of a retired one is left but its number, which is never used again.
const (
	GenerationProposed    GenerationState = "PROPOSED"     // nodes install it; it wraps nothing
	GenerationActive      GenerationState = "ACTIVE"       // wraps new and rotated keys
	GenerationDecryptOnly GenerationState = "DECRYPT_ONLY" // what it has wrapped is opened
	GenerationRetired     GenerationState = "RETIRED"      // destroyed in every partition
)

// Generation is a generation of the domain key: what is public about it.
type Generation struct {
	Number  uint32          `json:"number"`
	State   GenerationState `json:"state"`
	Created int64           `json:"created"` // unix seconds
	Checks  []DomainCheck   `json:"checks"`

	Proposed   uint64   `json:"proposed,omitempty"`    // index of the entry that proposed it; 0: the first
	Since      int64    `json:"since,omitempty"`       // unix seconds of the last change of state; 0: none yet
	Installed  []string `json:"installed,omitempty"`   // raft ids of nodes that proved possession while it was proposed, in order
	Recipients []string `json:"recipients,omitempty"`  // names of the recovery recipients that hold it, in order
	NoRecovery bool     `json:"no_recovery,omitempty"` // it may become active without any: an operator said so by name
}

// DomainCheck is the check value of one key of a generation.
type DomainCheck struct {
	Kind  uint8  `json:"kind"`
	Value []byte `json:"value"`
}

// ChecksHash is SHA-256 of the kind and check value of each of its keys, in order.
func (g Generation) ChecksHash() []byte {
	h := sha256.New()
	for _, c := range g.Checks {
		h.Write([]byte{c.Kind})
		h.Write(c.Value)
	}
	return h.Sum(nil)
}

// InUse tells whether tokens may be wrapped under it: whoever lacks it cannot serve.
func (g Generation) InUse() bool {
	return g.State == GenerationActive || g.State == GenerationDecryptOnly
}

// Retired tells whether it is destroyed, or to be.
func (g Generation) Retired() bool { return g.State == GenerationRetired }

func validChecks(checks []DomainCheck) error {
	if len(checks) == 0 {
		return invalid("domain key generation is missing: it has no check values")
	}
	if len(checks) > MaxChecks {
		return invalid("%d check values given, at most %d", len(checks), MaxChecks)
	}
	for _, k := range checks {
		if len(k.Value) != 16 {
			return invalid("check value of domain key kind %d has %d bytes, must be 16", k.Kind, len(k.Value))
		}
	}
	return nil
}

// hasKindsOf tells whether a generation has every kind of key of the one before, in its
// order, and none twice: releases add kinds, and what is wrapped needs those that there were.
func hasKindsOf(now, before []DomainCheck) bool {
	seen := map[uint8]bool{}
	for _, k := range now {
		if seen[k.Kind] {
			return false
		}
		seen[k.Kind] = true
		if len(before) > 0 && before[0].Kind == k.Kind {
			before = before[1:]
		}
	}
	return len(before) == 0
}

// ProposeGeneration records a generation that a node has made in its partition.
type ProposeGeneration struct {
	Number     uint32        `json:"number"` // later than every other, and new to the node's partition
	Checks     []DomainCheck `json:"checks"`
	Node       string        `json:"node"`        // raft id of the node that made it
	NoRecovery bool          `json:"no_recovery"` // accept by name that no recovery recipient holds it
}

func (c *ProposeGeneration) validate() error {
	if err := validChecks(c.Checks); err != nil {
		return err
	}
	if c.Number < 2 {
		return invalid("generation %d: must be 2 or more", c.Number)
	}
	return validRaftID(c.Node)
}

func (c *ProposeGeneration) apply(t *tx) (Result, error) {
	active, err := t.s.ActiveGeneration()
	if err != nil {
		return Result{}, err
	}
	all := t.s.cluster.Generations
	last, inUse := all[len(all)-1], 0
	for _, g := range all {
		if !g.Retired() {
			inUse++
		}
	}
	node, ok := t.s.Member(c.Node)
	switch {
	case last.State == GenerationProposed:
		return Result{}, fmt.Errorf("%w: generation %d is proposed already; it becomes active, or is retired, before another is", ErrGeneration, last.Number)
	case c.Number < t.s.NextGeneration():
		return Result{}, fmt.Errorf("%w: generation %d was asked for, the last one is %d, and the next at least %d", ErrConflict, c.Number, last.Number, t.s.NextGeneration())
	case len(all) >= MaxGenerations:
		return Result{}, fmt.Errorf("%w: the cluster has had %d domain key generations", ErrLimit, len(all))
	case !ok || !node.Serves():
		return Result{}, fmt.Errorf("%w: %s is no active member", ErrMember, c.Node)
	case !hasKindsOf(c.Checks, active.Checks):
		return Result{}, invalid("the generation lacks kinds of keys that generation %d has, or has other kinds of keys in their place", active.Number)
	case inUse >= MaxGenerationsInUse:
		return Result{}, fmt.Errorf("%w: %d domain key generations are in use: retire some", ErrLimit, inUse)
	}
	cluster := t.s.cluster
	cluster.Generations = append(slices.Clone(all), Generation{
		Number: c.Number, State: GenerationProposed, Created: t.seconds(), Checks: c.Checks,
		Proposed: t.s.index, Installed: []string{c.Node}, NoRecovery: c.NoRecovery,
	})
	t.putCluster(cluster)
	return Result{ID: fmt.Sprint(c.Number)}, nil
}

// InstallGeneration records that a node has proved possession of a proposed generation.
// It changes nothing of one that is in use.
type InstallGeneration struct {
	Number uint32 `json:"number"`
	Node   string `json:"node"` // raft id
}

func (c *InstallGeneration) validate() error { return validRaftID(c.Node) }

func (c *InstallGeneration) apply(t *tx) (Result, error) {
	if m, ok := t.s.Member(c.Node); !ok || !m.Serves() {
		return Result{}, fmt.Errorf("%w: %s is no active member", ErrMember, c.Node)
	}
	return t.changeGeneration(c.Number, func(g *Generation) error {
		at, there := slices.BinarySearch(g.Installed, c.Node)
		switch {
		case g.Retired():
			return fmt.Errorf("%w: generation %d is retired", ErrGeneration, g.Number)
		case g.State == GenerationProposed && !there:
			g.Installed = slices.Insert(slices.Clone(g.Installed), at, c.Node)
		}
		return nil
	})
}

// ActivateGeneration has a proposed generation wrap new and rotated keys from here on. It
// is refused as long as a node that may serve has not proved possession, or too few
// recovery recipients hold it.
type ActivateGeneration struct {
	Number uint32 `json:"number"`
}

func (c *ActivateGeneration) validate() error { return nil }

func (c *ActivateGeneration) apply(t *tx) (Result, error) {
	before, err := t.s.ActiveGeneration()
	if err != nil || before.Number == c.Number {
		return Result{}, err
	}
	result, err := t.changeGeneration(c.Number, func(g *Generation) error {
		if g.State != GenerationProposed {
			return fmt.Errorf("%w: generation %d is %s", ErrGeneration, g.Number, g.State)
		}
		if err := t.s.Activable(*g); err != nil {
			return err
		}
		g.State, g.Since = GenerationActive, t.seconds()
		return nil
	})
	if err != nil {
		return Result{}, err
	}
	_, err = t.changeGeneration(before.Number, func(g *Generation) error {
		g.State, g.Since = GenerationDecryptOnly, t.seconds()
		return nil
	})
	return result, err
}

// NextGeneration is the least number that the next generation may have: one more than the
// last one's, and beyond those of lost histories, of which partitions may still hold keys.
func (s *State) NextGeneration() uint32 {
	all := s.cluster.Generations
	if len(all) == 0 {
		return 1
	}
	return max(all[len(all)-1].Number+1, s.cluster.RecoveryEpoch<<generationBits+1)
}

// Lacks are the names of the nodes that have not proved possession of a proposed
// generation and may serve.
func (s *State) Lacks(g Generation) (names []string) {
	for _, m := range s.Members() {
		if m.LeaseHolder() && !slices.Contains(g.Installed, m.ID) {
			names = append(names, m.Name)
		}
	}
	return names
}

// Activable is nil, or says what a proposed generation waits for; it wraps ErrGeneration.
func (s *State) Activable(g Generation) error {
	if lacking := s.Lacks(g); len(lacking) > 0 {
		return fmt.Errorf("%w: nodes that have not installed generation %d: %s", ErrGeneration, g.Number, strings.Join(lacking, ", "))
	}
	if n, must := len(g.Recipients), s.Recovery().Required; n < must && !g.NoRecovery {
		return fmt.Errorf("%w: %d recovery recipients hold generation %d, %d must", ErrGeneration, n, g.Number, must)
	}
	return nil
}

// RetireGeneration ends a generation that no token names any more, or gives up a proposed
// one: nodes destroy it in their partitions.
type RetireGeneration struct {
	Number uint32 `json:"number"`
}

func (c *RetireGeneration) validate() error { return nil }

func (c *RetireGeneration) apply(t *tx) (Result, error) {
	return t.changeGeneration(c.Number, func(g *Generation) error {
		if g.State == GenerationActive {
			return fmt.Errorf("%w: generation %d is active: make another first", ErrGeneration, g.Number)
		}
		if g.Retired() {
			return nil
		}
		if now, ok := t.s.Rewrapping(); ok && now.Generation == g.Number {
			return fmt.Errorf("%w: key versions are being moved from generation %d by %s: see with kmsctl domain status what that waits for, or end it with kmsctl domain rewrap stop %d; retire the generation when it wraps nothing any more", ErrGeneration, g.Number, now.Node, g.Number)
		}
		if n := t.s.CountTokens()[g.Number]; n > 0 {
			return fmt.Errorf("%w: generation %d wraps %d key versions", ErrGeneration, g.Number, n)
		}
		g.State, g.Since = GenerationRetired, t.seconds()
		for _, name := range g.Recipients {
			if x, ok := t.s.RecoveryCopy(g.Number, name); ok {
				t.dropCopy(x)
			}
		}
		g.Checks, g.Installed, g.Recipients = nil, nil, nil
		return nil
	})
}

// changeGeneration lets f edit a copy of a generation, and stores it if it has changed.
func (t *tx) changeGeneration(number uint32, f func(*Generation) error) (Result, error) {
	cluster := t.s.cluster
	i := slices.IndexFunc(cluster.Generations, func(g Generation) bool { return g.Number == number })
	if i < 0 {
		return Result{}, fmt.Errorf("%w: domain key generation %d", ErrNotFound, number)
	}
	old, g := cluster.Generations[i], cluster.Generations[i]
	if err := f(&g); err != nil {
		return Result{}, err
	}
	if g.State == old.State && len(g.Installed) == len(old.Installed) && len(g.Recipients) == len(old.Recipients) {
		return Result{}, nil
	}
	cluster.Generations = slices.Clone(cluster.Generations)
	cluster.Generations[i] = g
	t.putCluster(cluster)
	return Result{}, nil
}

// ActiveGeneration is the generation that wraps new keys.
func (s *State) ActiveGeneration() (Generation, error) {
	return s.generationIn(GenerationActive)
}

// ProposedGeneration is the generation that is to become active, if there is one.
func (s *State) ProposedGeneration() (Generation, bool) {
	g, err := s.generationIn(GenerationProposed)
	return g, err == nil
}

func (s *State) generationIn(state GenerationState) (Generation, error) {
	i := slices.IndexFunc(s.cluster.Generations, func(g Generation) bool { return g.State == state })
	if i < 0 {
		return Generation{}, ErrNotInitialized
	}
	return s.cluster.Generations[i], nil
}

// Generation is a generation by its number.
func (s *State) Generation(number uint32) (Generation, bool) {
	i := slices.IndexFunc(s.cluster.Generations, func(g Generation) bool { return g.Number == number })
	if i < 0 {
		return Generation{}, false
	}
	return s.cluster.Generations[i], true
}

// generationActive refuses a token that was wrapped under a generation which is no
// longer the active one: the proposer makes another.
func (s *State) generationActive(number uint32) error {
	g, err := s.ActiveGeneration()
	if err != nil {
		return err
	}
	if g.Number != number {
		return fmt.Errorf("%w: domain key generation %d is active, not %d", ErrConflict, g.Number, number)
	}
	return nil
}

// CountTokens is how many key versions each generation wraps. It looks at every key.
func (s *State) CountTokens() map[uint32]int {
	n := map[uint32]int{}
	s.keys.tree.Scan(func(item keyItem) bool {
		for _, v := range item.key.Versions {
			if v.Token != nil {
				n[v.Generation]++
			}
		}
		return true
	})
	return n
}

// Exposed are the removed nodes whose partitions may hold the newest generation: as long
// as there are any, another one is advised. A node that was on its way out when that
// generation was proposed counts, too.
func (s *State) Exposed() (names []string) {
	newest, err := s.ActiveGeneration()
	if err != nil {
		return nil
	}
	if g, ok := s.ProposedGeneration(); ok {
		newest = g
	}
	for _, m := range s.Members() {
		if (m.State == MemberLeaving || m.State == MemberGone) && m.Revision > newest.Proposed {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
