package fsm

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/btree"
)

// State is the replicated state after one log entry. It never changes: Apply
// makes a new one that shares what is equal. Records reached through it are
// read-only.
type State struct {
	index uint64   // of the last entry
	term  uint64   // of the last entry
	now   int64    // unix nanoseconds: the latest time any entry carried
	hash  [32]byte // running hash over every entry and every record written

	restricted uint64 // index of the last entry whose command restricts, or of the snapshot that was read
	tick       *Tick  // the last entry, if it is one; no part of what is replicated
	changed    uint64 // index of the last entry that is no Tick, or of the snapshot that was read

	restrictions []Restriction // the latest, oldest first; no part of what is replicated
	forgotten    uint64        // index up to which there may have been more of them

	cluster      Cluster
	keys         table[keyItem]
	keysByTenant table[*Key]
	aliases      table[*Alias]
	aliasesByKey table[*Alias]
	tenants      table[*Tenant]
	members      table[*Member]
	tickets      table[*Ticket]
	requests     table[*Request]
	requestOrder table[*Request]

	grants           table[*Grant]
	grantsByKey      table[*Grant]
	grantsByGrantee  table[*Grant]
	grantsByResource table[resourceGrant]
	grantsByRetiring table[*Grant] // those that name a retiring principal
	grantsByParent   table[*Grant] // those that have a parent
	grantNames       table[*Grant] // those that have a name
	policies         table[*Policy]
	disabled         table[*DisabledPrincipal]
	bindings         table[*Binding]
	uses             table[*LastUse]
	copies           table[*RecoveryCopy]
	auditHeads       table[*AuditHead]
	due              table[Due]   // what keys and grants have coming
	counts           table[count] // keys of a tenant, principals it disabled; grants, bindings of a key
}

// keyItem keeps the id beside the pointer so that a look-up needs no allocation.
type keyItem struct {
	id  ID
	key *Key
}

// resourceGrant keeps the resource that a grant is constrained to beside it; empty: none.
type resourceGrant struct {
	resource string
	grant    *Grant
}

func byResource(g *Grant) resourceGrant {
	resource, _ := g.Constraints.names(ContextResource)
	return resourceGrant{resource, g}
}

// table is an ordered set of immutable records: a copy-on-write B-tree, copied at
// the first write of an entry.
type table[T any] struct {
	tree    *btree.BTreeG[T]
	owner   uint64      // index of the entry that may write this copy
	copying *sync.Mutex // copying marks the original, where no reader looks; an Apply and a Try may both do it
}

// treeDegree is the B-tree's degree: 32 keeps the index near 13 bytes a record.
const treeDegree = 32

func newTable[T any](less func(a, b T) bool) table[T] {
	return table[T]{tree: btree.NewBTreeGOptions(less, btree.Options{Degree: treeDegree, NoLocks: true}), copying: new(sync.Mutex)}
}

func (x *table[T]) len() int { return x.tree.Len() }

func (x *table[T]) edit(t *tx) *btree.BTreeG[T] {
	if x.owner != t.s.index {
		x.copying.Lock()
		defer x.copying.Unlock()
		x.tree, x.owner = x.tree.Copy(), t.s.index
	}
	return x.tree
}

func (x *table[T]) all() []T {
	out := make([]T, 0, x.tree.Len())
	x.tree.Scan(func(item T) bool { out = append(out, item); return true })
	return out
}

// NewState is the state before the first entry.
func NewState() *State {
	return &State{
		keys: newTable(func(a, b keyItem) bool { return bytes.Compare(a.id[:], b.id[:]) < 0 }),
		keysByTenant: newTable(func(a, b *Key) bool {
			return cmp.Or(strings.Compare(a.Tenant, b.Tenant), bytes.Compare(a.ID[:], b.ID[:])) < 0
		}),
		aliases: newTable(func(a, b *Alias) bool {
			return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Name, b.Name)) < 0
		}),
		aliasesByKey: newTable(func(a, b *Alias) bool {
			return cmp.Or(bytes.Compare(a.Key[:], b.Key[:]), strings.Compare(a.Name, b.Name)) < 0
		}),
		tenants: newTable(func(a, b *Tenant) bool { return a.Name < b.Name }),
		members: newTable(func(a, b *Member) bool { return a.ID < b.ID }),
		tickets: newTable(func(a, b *Ticket) bool { return a.ID < b.ID }),
		requests: newTable(func(a, b *Request) bool {
			return cmp.Or(strings.Compare(a.Principal, b.Principal), strings.Compare(a.ID, b.ID)) < 0
		}),
		requestOrder: newTable(func(a, b *Request) bool { return a.Index < b.Index }),

		grants: newTable(func(a, b *Grant) bool { return compareID(a.ID, b.ID) < 0 }),
		grantsByKey: newTable(func(a, b *Grant) bool {
			return cmp.Or(compareID(a.Key, b.Key), compareID(a.ID, b.ID)) < 0
		}),
		grantsByGrantee: newTable(func(a, b *Grant) bool {
			return cmp.Or(strings.Compare(a.Grantee, b.Grantee), compareID(a.Key, b.Key), compareID(a.ID, b.ID)) < 0
		}),
		grantsByResource: newTable(func(a, b resourceGrant) bool {
			return cmp.Or(strings.Compare(a.grant.Grantee, b.grant.Grantee), compareID(a.grant.Key, b.grant.Key),
				strings.Compare(a.resource, b.resource), compareID(a.grant.ID, b.grant.ID)) < 0
		}),
		grantsByRetiring: newTable(func(a, b *Grant) bool {
			return cmp.Or(strings.Compare(a.Retiring, b.Retiring), compareID(a.ID, b.ID)) < 0
		}),
		grantsByParent: newTable(func(a, b *Grant) bool {
			return cmp.Or(compareID(a.Parent, b.Parent), compareID(a.ID, b.ID)) < 0
		}),
		grantNames: newTable(func(a, b *Grant) bool {
			return cmp.Or(compareID(a.Key, b.Key), strings.Compare(a.Name, b.Name)) < 0
		}),
		policies: newTable(func(a, b *Policy) bool {
			return cmp.Or(strings.Compare(a.Tenant, b.Tenant), compareID(a.Key, b.Key), cmp.Compare(a.Number, b.Number)) < 0
		}),
		disabled: newTable(func(a, b *DisabledPrincipal) bool {
			return cmp.Or(strings.Compare(a.Principal, b.Principal), strings.Compare(a.Tenant, b.Tenant)) < 0
		}),
		bindings: newTable(func(a, b *Binding) bool {
			return cmp.Or(compareID(a.Key, b.Key), strings.Compare(a.Resource, b.Resource)) < 0
		}),
		uses: newTable(func(a, b *LastUse) bool { return compareID(a.Key, b.Key) < 0 }),
		copies: newTable(func(a, b *RecoveryCopy) bool {
			return cmp.Or(cmp.Compare(a.Generation, b.Generation), strings.Compare(a.Recipient, b.Recipient)) < 0
		}),
		auditHeads: newTable(func(a, b *AuditHead) bool { return a.Node < b.Node }),
		due:        newTable(dueBefore),
		counts:     newTable(func(a, b count) bool { return cmp.Or(strings.Compare(a.what, b.what), compareID(a.of, b.of)) < 0 }),
	}
}

func compareID(a, b ID) int { return bytes.Compare(a[:], b[:]) }

// Index is the log index of the last entry in this state.
func (s *State) Index() uint64 { return s.index }

// Term is the Raft term of that entry.
func (s *State) Term() uint64 { return s.term }

// Now is the latest time any entry carried, in unix nanoseconds. It never goes
// back.
func (s *State) Now() int64 { return s.now }

// Hash is the running hash (32 bytes).
func (s *State) Hash() []byte { return bytes.Clone(s.hash[:]) }

// Restricted is the index of the last entry whose command restricts, as far as
// this process knows: a snapshot that was read counts as one. It is no part of
// what is replicated.
func (s *State) Restricted() uint64 { return s.restricted }

// Changed is the index of the last entry that is more than a Tick, as far as this
// process knows: a snapshot that was read counts as one. It is no part of what is
// replicated.
func (s *State) Changed() uint64 { return s.changed }

// Initialized tells whether the first entry has been applied.
func (s *State) Initialized() bool { return s.cluster.Release != 0 }

// Cluster returns what holds for the whole cluster.
func (s *State) Cluster() Cluster { return s.cluster }

// Key returns the key with that id.
func (s *State) Key(id ID) (*Key, bool) {
	item, ok := s.keys.tree.Get(keyItem{id: id})
	return item.key, ok
}

// KeyCount is the number of keys of all tenants.
func (s *State) KeyCount() int { return s.keys.len() }

// CountKeys is the number of keys in a state, of all tenants. It looks at every key.
func (s *State) CountKeys(state KeyState) int {
	n := 0
	s.keys.tree.Scan(func(item keyItem) bool {
		if item.key.State == state {
			n++
		}
		return true
	})
	return n
}

// Keys returns up to limit keys of a tenant in the order of their ids, beginning
// behind after.
func (s *State) Keys(tenant string, after ID, limit int) []*Key {
	var out []*Key
	s.keysByTenant.tree.Ascend(&Key{Tenant: tenant, ID: after}, func(k *Key) bool {
		if k.Tenant != tenant || len(out) >= limit {
			return false
		}
		if k.ID != after {
			out = append(out, k)
		}
		return true
	})
	return out
}

// Alias returns a tenant's alias by its full name.
func (s *State) Alias(tenant, name string) (*Alias, bool) {
	return s.aliases.tree.Get(&Alias{Tenant: tenant, Name: name})
}

// Aliases returns up to limit aliases of a tenant by name, beginning behind after.
func (s *State) Aliases(tenant, after string, limit int) []*Alias {
	var out []*Alias
	s.aliases.tree.Ascend(&Alias{Tenant: tenant, Name: after}, func(a *Alias) bool {
		if a.Tenant != tenant || len(out) >= limit {
			return false
		}
		if a.Name != after {
			out = append(out, a)
		}
		return true
	})
	return out
}

// AliasesOf returns the aliases of a key by name, at most MaxAliases.
func (s *State) AliasesOf(key ID) []*Alias {
	var out []*Alias
	s.aliasesByKey.tree.Ascend(&Alias{Key: key}, func(a *Alias) bool {
		if a.Key != key {
			return false
		}
		out = append(out, a)
		return true
	})
	return out
}

func (s *State) countAliases(key ID) int { return len(s.AliasesOf(key)) }

// Member returns a member, or its tombstone, by raft id.
func (s *State) Member(id string) (*Member, bool) { return s.members.tree.Get(&Member{ID: id}) }

// Members returns all members and tombstones by raft id.
func (s *State) Members() []*Member { return s.members.all() }

// MemberByName returns the living member of that name, or nil.
func (s *State) MemberByName(name string) *Member {
	all := s.Members()
	i := slices.IndexFunc(all, func(m *Member) bool { return m.Alive() && m.Name == name })
	if i < 0 {
		return nil
	}
	return all[i]
}

func (s *State) aliveMembers() int {
	n := 0
	for _, m := range s.Members() {
		if m.Alive() {
			n++
		}
	}
	return n
}

func (s *State) activeVoters() int {
	n := 0
	for _, m := range s.Members() {
		if m.State == MemberActive && m.Voter {
			n++
		}
	}
	return n
}

// Ticket returns an open join ticket.
func (s *State) Ticket(id string) (*Ticket, bool) { return s.tickets.tree.Get(&Ticket{ID: id}) }

// Tickets returns the open join tickets by id.
func (s *State) Tickets() []*Ticket { return s.tickets.all() }

// tx is one entry being applied: the state that is being made and the hash of
// what was written to it.
type tx struct {
	s     *State
	entry *Entry
	hash  hash.Hash
}

func (t *tx) seconds() int64 { return t.s.now / 1e9 }

// Apply applies an entry whose MAC has been verified. The result or the command's
// error comes with a state that is always the successor of s; only an entry that
// this release must not apply gives no state.
func (s *State) Apply(index, term uint64, raw []byte) (*State, Result, error) {
	entry, command, err := decodeEntry(raw)
	if err != nil {
		return nil, Result{}, err
	}
	if index <= s.index {
		return nil, Result{}, fmt.Errorf("%w: entry %d follows %d", ErrHalted, index, s.index)
	}
	t := s.begin(index, term, entry, raw)
	result, err := t.run(command)
	if err != nil {
		t = s.begin(index, term, entry, raw) // whatever was half done is dropped
	}
	t.hash.Sum(t.s.hash[:0])
	if EffectOf(command) == Restricts {
		t.s.restricted = index
	}
	if err == nil {
		t.s.restricts(command)
	}
	if t.s.tick, _ = command.(*Tick); t.s.tick == nil {
		t.s.changed = index
	}
	result.Index = index
	return t.s, result, err
}

func (s *State) begin(index, term uint64, entry *Entry, raw []byte) *tx {
	next := *s
	next.index, next.term, next.now, next.tick = index, term, max(s.now, entry.Time), nil
	t := &tx{s: &next, entry: entry, hash: sha256.New()}
	sum := sha256.Sum256(raw)
	t.hash.Write([]byte("quorumkms/state/v1"))
	t.hash.Write(s.hash[:])
	t.hash.Write(binary.BigEndian.AppendUint64(nil, index))
	t.hash.Write(sum[:])
	return t
}

func (t *tx) run(c Command) (Result, error) {
	if _, first := c.(*InitCluster); !first && !t.s.Initialized() {
		return Result{}, ErrNotInitialized
	}
	if err := t.s.Permits(c); err != nil {
		return Result{}, err
	}
	if _, off := t.s.Disabled(t.entry.Principal); off { // whoever forwarded it may not have known
		return Result{}, fmt.Errorf("%w: %s", ErrPrincipalDisabled, t.entry.Principal)
	}
	if result, done, err := t.remembered(); done || err != nil {
		return result, err
	}
	if err := c.validate(); err != nil {
		return Result{}, err
	}
	result, err := c.apply(t)
	if err != nil {
		return Result{}, err
	}
	t.remember(result)
	return result, nil
}

// wrote adds a written or deleted record to the running hash.
func (t *tx) wrote(kind recordKind, deleted bool, record any) {
	b, err := json.Marshal(record)
	if err != nil {
		panic(fmt.Sprintf("fsm: record of kind %c does not encode: %v", kind, err)) // plain structs only
	}
	op := byte('+')
	if deleted {
		op = '-'
	}
	t.hash.Write([]byte{byte(kind), op})
	t.hash.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b)))) //nolint:gosec // records are bounded far below 4 GiB
	t.hash.Write(b)
}

// Try tells how a command would be answered on this state, and changes nothing.
// Request ids are not looked at, and nobody is the proposer.
func (s *State) Try(c Command) (Result, error) {
	result, _, err := s.try(c, "")
	return result, err
}

// TryAs is Try for a proposer.
func (s *State) TryAs(principal string, c Command) (Result, error) {
	result, _, err := s.try(c, principal)
	return result, err
}

// After is the state that a command would come to, as Try tells it.
func (s *State) After(c Command) (*State, error) {
	_, next, err := s.try(c, "")
	return next, err
}

func (s *State) try(c Command, principal string) (Result, *State, error) {
	if !s.Initialized() {
		return Result{}, nil, ErrNotInitialized
	}
	if err := s.Permits(c); err != nil {
		return Result{}, nil, err
	}
	if err := c.validate(); err != nil {
		return Result{}, nil, err
	}
	t := s.begin(s.index+1, s.term, &Entry{Time: s.now, Principal: principal}, nil)
	result, err := c.apply(t)
	return result, t.s, err
}
