package fsm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// MaxRewraps is how many key versions one entry may move to another generation.
const MaxRewraps = 64

// Rewrap is a ceremony under way: one node has the twin of a generation of the domain
// key, and moves the key versions under it to the active one.
type Rewrap struct {
	Generation uint32 `json:"generation"`
	Node       string `json:"node"`  // raft id
	By         string `json:"by"`    // SPIFFE URI of the operator
	Since      int64  `json:"since"` // unix seconds
}

// Rewrapping is the ceremony under way, if there is one.
func (s *State) Rewrapping() (Rewrap, bool) {
	if s.cluster.Rewrap == nil {
		return Rewrap{}, false
	}
	return *s.cluster.Rewrap, true
}

// WrappedUnder returns up to limit keys, beginning behind after, by id, that have a version
// under a generation, and the last id that was looked at; done tells that there are no
// more. It looks at no more than scan keys.
func (s *State) WrappedUnder(generation uint32, after ID, limit, scan int) (keys []*Key, last ID, done bool) {
	done, last = true, after
	s.keys.tree.Ascend(keyItem{id: after}, func(item keyItem) bool {
		if item.id == after {
			return true
		}
		if len(keys) == limit || scan == 0 {
			done = false
			return false
		}
		scan--
		last = item.id
		if slices.ContainsFunc(item.key.Versions, func(v KeyVersion) bool { return v.wrappedUnder(generation) }) {
			keys = append(keys, item.key)
		}
		return true
	})
	return keys, last, done
}

// Wraps tells whether a generation wraps any key version. It looks at keys until it finds
// one.
func (s *State) Wraps(generation uint32) bool {
	keys, _, _ := s.WrappedUnder(generation, ID{}, 1, MaxKeys)
	return len(keys) > 0
}

func (v *KeyVersion) wrappedUnder(generation uint32) bool {
	return v.Token != nil && v.Generation == generation
}

// BeginRewrap has a node move what a generation wraps to the active one. The node's
// Security Officer has still to let it make the twin.
type BeginRewrap struct {
	Generation uint32 `json:"generation"`
	Node       string `json:"node"` // raft id
}

func (c *BeginRewrap) validate() error { return validRaftID(c.Node) }

func (c *BeginRewrap) apply(t *tx) (Result, error) {
	if now, ok := t.s.Rewrapping(); ok {
		if now.Generation == c.Generation && now.Node == c.Node {
			return Result{}, nil
		}
		return Result{}, fmt.Errorf("%w: %s moves key versions from generation %d: stop that first", ErrGeneration, now.Node, now.Generation)
	}
	if p := t.s.cluster.TransferProfile(); p != ProfileGeneric {
		return Result{}, fmt.Errorf("%w: in the transfer profile %s no domain key can be wrapped out, so none has a twin: rotate the keys instead", ErrGeneration, p)
	}
	g, ok := t.s.Generation(c.Generation)
	if !ok {
		return Result{}, fmt.Errorf("%w: domain key generation %d", ErrNotFound, c.Generation)
	}
	if g.State != GenerationDecryptOnly {
		return Result{}, fmt.Errorf("%w: generation %d is %s: key versions are moved from a generation that has been succeeded to the active one", ErrGeneration, g.Number, g.State)
	}
	if t.s.CountTokens()[g.Number] == 0 {
		return Result{}, fmt.Errorf("%w: generation %d wraps nothing: it can be retired", ErrGeneration, g.Number)
	}
	if m, ok := t.s.Member(c.Node); !ok || !m.Serves() {
		return Result{}, fmt.Errorf("%w: %s is no active member", ErrMember, c.Node)
	}
	cluster := t.s.cluster
	cluster.Rewrap = &Rewrap{Generation: c.Generation, Node: c.Node, By: t.entry.Principal, Since: t.seconds()}
	t.putCluster(cluster)
	return Result{}, nil
}

// EndRewrap ends a ceremony, at an operator's word or because all is done: the node
// destroys the twin. What was moved stays moved.
type EndRewrap struct {
	Generation uint32 `json:"generation"`
}

func (c *EndRewrap) validate() error { return nil }

func (c *EndRewrap) apply(t *tx) (Result, error) {
	now, ok := t.s.Rewrapping()
	if !ok || now.Generation != c.Generation {
		return Result{}, fmt.Errorf("%w: no key versions are being moved from generation %d", ErrNotFound, c.Generation)
	}
	t.endRewrap()
	return Result{}, nil
}

func (t *tx) endRewrap() {
	cluster := t.s.cluster
	cluster.Rewrap = nil
	t.putCluster(cluster)
}

// RewrapItem is one key version's new token.
type RewrapItem struct {
	Key     ID     `json:"key"`
	Version uint32 `json:"version"`
	Old     []byte `json:"old"`   // SHA-256 of the token that it replaces, 32 bytes
	Token   []byte `json:"token"` // of the same material
}

// RewrapKeyVersions replaces tokens by others of the same material, under the active
// generation. A majority of HSMs has opened them. An item whose token is not there any
// more is left out; nothing else of a key changes, its revision neither.
type RewrapKeyVersions struct {
	Generation uint32       `json:"generation"` // the active one, of the new tokens
	Items      []RewrapItem `json:"items"`
}

func (c *RewrapKeyVersions) validate() error {
	if len(c.Items) == 0 || len(c.Items) > MaxRewraps {
		return invalid("%d key versions to rewrap: must be 1 to %d", len(c.Items), MaxRewraps)
	}
	for i, item := range c.Items {
		switch {
		case item.Key == uuid.Nil || item.Version == 0:
			return invalid("item %d names no key version", i)
		case len(item.Old) != sha256.Size:
			return invalid("item %d: the hash of the old token has %d bytes, must be %d", i, len(item.Old), sha256.Size)
		}
		if err := validToken(item.Token); err != nil {
			return err
		}
	}
	return nil
}

func (c *RewrapKeyVersions) apply(t *tx) (Result, error) {
	if err := t.s.generationActive(c.Generation); err != nil {
		return Result{}, err
	}
	for _, item := range c.Items {
		old, ok := t.s.Key(item.Key)
		if !ok {
			continue
		}
		v := old.Version(item.Version)
		if v == nil || !v.Holds(item.Old) {
			continue
		}
		k := *old
		k.Versions = slices.Clone(old.Versions)
		v = k.Version(item.Version)
		v.Token, v.Generation = item.Token, c.Generation
		t.setKey(&k)
		t.wrote(kindKey, false, &k)
	}
	return Result{}, nil
}

// Holds tells whether the version's token is there and has this SHA-256.
func (v *KeyVersion) Holds(sum []byte) bool {
	present := sha256.Sum256(v.Token)
	return v.Token != nil && bytes.Equal(present[:], sum)
}
