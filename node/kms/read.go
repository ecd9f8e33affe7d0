package kms

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// reading is a call that only looks.
type reading struct {
	name string
	call Call
	key  *string // that it names; nil: it is about the tenant

	target  string // what else it is about, for the record
	grant   string
	context []Pair

	needs     permission
	operation string // as policies name it; empty: name
}

// begin starts its record.
func (r reading) begin() audit.Event {
	e := begin(r.name, r.call)
	e.Target, e.Grant, e.Context = r.target, r.grant, contextMap(r.context)
	if r.key != nil {
		nameKey(&e, *r.key)
	}
	return e
}

// read is what all calls that only look have in common: f answers from a state,
// and from the key if the call names one.
func read[T any](ctx context.Context, s *Service, r reading, f func(st *fsm.State, tenant string, k *fsm.Key) (T, error)) (T, *fsm.State, error) {
	var none T
	e := r.begin()
	e.Tenant = r.call.acting()
	st, tenant, k, err := s.readable(ctx, r, &e)
	if err != nil {
		return none, nil, s.refuse(e, err)
	}
	e.StateIndex = st.Index()
	answer, err := f(st, tenant, k)
	if err != nil {
		return none, nil, s.refuse(e, err)
	}
	if err := s.succeed(e, st); err != nil {
		return none, nil, err
	}
	return answer, st, nil
}

// readOwn is read for what concerns the caller itself, or the whole cluster: its role
// decides.
func readOwn[T any](ctx context.Context, s *Service, r reading, f func(st *fsm.State) (T, error)) (T, *fsm.State, error) {
	var none T
	e := r.begin()
	e.DecidedBy = "role"
	st, err := s.fit(ctx, r, &e)
	if err == nil {
		e.StateIndex = st.Index()
		err = enabled(st, r.call.Caller)
	}
	var answer T
	if err == nil {
		answer, err = f(st)
	}
	if err != nil {
		return none, nil, s.refuse(e, err)
	}
	if err := s.succeed(e, st); err != nil {
		return none, nil, err
	}
	return answer, st, nil
}

// fit gives a state to answer from: as new as the caller has seen, and one that every
// restriction that has returned stands in.
func (s *Service) fit(ctx context.Context, r reading, e *audit.Event) (*fsm.State, error) {
	if err := s.admit(ctx, r.call, r.needs, limit.Control, e); err != nil {
		return nil, err
	}
	if err := s.confirm(ctx, r.call); err != nil {
		return nil, err
	}
	if _, err := s.await(ctx, r.call.IndexToken); err != nil {
		return nil, err
	}
	return s.present()
}

// readable finds what a call looks at and asks whether it may.
func (s *Service) readable(ctx context.Context, r reading, e *audit.Event) (st *fsm.State, tenant string, k *fsm.Key, err error) {
	e.DecidedBy = "role" // until something else has
	if st, err = s.fit(ctx, r, e); err != nil {
		return nil, "", nil, err
	}
	q := question{caller: r.call.Caller, needs: r.needs, operation: cmp.Or(r.operation, r.name)}
	if r.key == nil {
		tenant, err = s.ofTenant(st, r.call, q, e)
		return st, tenant, nil, err
	}
	if k, err = s.named(st, r.call, *r.key, q, e); err != nil {
		return nil, "", nil, err
	}
	return st, k.Tenant, k, nil
}

// DescribeKey returns what is known of a key.
func (s *Service) DescribeKey(ctx context.Context, c Call, key string) (Metadata, *fsm.State, error) {
	return read(ctx, s, reading{name: "DescribeKey", call: c, key: &key, needs: mayRead}, func(st *fsm.State, _ string, k *fsm.Key) (Metadata, error) {
		return s.metadata(st, k), nil
	})
}

// Page is one page of a list; Next is empty on the last one.
type Page[T any] struct {
	Items []T
	Next  string
}

// maxPageBytes is how large the texts of a page may be, so that it fits into a
// message; a page has one item at least.
const maxPageBytes = 512 << 10

// page cuts a list of up to n+1 items to a page. size is about how large an item is,
// in bytes.
func page[T any](items []T, n int, place func(T) string, size func(T) int) Page[T] {
	total := 0
	for i, item := range items {
		if total += size(item); i > 0 && (i == n || total > maxPageBytes) {
			return Page[T]{Items: items[:i], Next: encodeMarker(place(items[i-1]))}
		}
	}
	return Page[T]{Items: items}
}

// recordSize is about what the fixed fields of a listed record take, in bytes.
const recordSize = 512

// ListKeys returns a tenant's keys in the order of their ids.
func (s *Service) ListKeys(ctx context.Context, c Call, limit uint32, marker string) (Page[Metadata], *fsm.State, error) {
	return read(ctx, s, reading{name: "ListKeys", call: c, needs: mayRead}, func(st *fsm.State, tenant string, _ *fsm.Key) (Page[Metadata], error) {
		n, after, err := listFrom(limit, marker)
		if err != nil {
			return Page[Metadata]{}, err
		}
		var from fsm.ID
		if after != "" {
			if from, err = uuid.Parse(after); err != nil {
				return Page[Metadata]{}, invalid("marker is none that ListKeys returned")
			}
		}
		var items []Metadata
		for _, k := range st.Keys(tenant, from, n+1) {
			if s.describable(st, c, k) {
				items = append(items, s.metadata(st, k))
			} else {
				items = append(items, Metadata{Key: &fsm.Key{ID: k.ID, Tenant: k.Tenant}, ARN: KeyARN(st.Cluster().ID, k.Tenant, k.ID), Hidden: true})
			}
		}
		return page(items, n, func(m Metadata) string { return m.Key.ID.String() }, func(m Metadata) int {
			n := recordSize + len(m.Key.Description)
			for _, a := range m.Aliases {
				n += len(a)
			}
			return n
		}), nil
	})
}

// describable tells whether who may list may also know what a key is.
func (s *Service) describable(st *fsm.State, c Call, k *fsm.Key) bool {
	_, err := s.decide(st, question{caller: c.Caller, tenant: k.Tenant, needs: mayRead, operation: "DescribeKey"}, k)
	return err == nil
}

// ListAliases returns a tenant's aliases, or those of one key, by name. Of a key that the
// caller may not describe, a tenant's list does not tell which it is: such an alias names none.
func (s *Service) ListAliases(ctx context.Context, c Call, key string, limit uint32, marker string) (Page[*fsm.Alias], *fsm.State, error) {
	var one *string
	if key != "" {
		one = &key
	}
	return read(ctx, s, reading{name: "ListAliases", call: c, key: one, needs: mayRead}, func(st *fsm.State, tenant string, k *fsm.Key) (Page[*fsm.Alias], error) {
		n, after, err := listFrom(limit, marker)
		if err != nil {
			return Page[*fsm.Alias]{}, err
		}
		var items []*fsm.Alias
		if k == nil {
			items = st.Aliases(tenant, after, n+1)
			for i, a := range items {
				if k, ok := st.Key(a.Key); !ok || !s.describable(st, c, k) {
					items[i] = &fsm.Alias{Tenant: a.Tenant, Name: a.Name}
				}
			}
		} else {
			items = slices.DeleteFunc(st.AliasesOf(k.ID), func(a *fsm.Alias) bool { return a.Name <= after })
		}
		return page(items, n, func(a *fsm.Alias) string { return a.Name }, func(a *fsm.Alias) int { return recordSize + 2*len(a.Name) }), nil
	})
}

// ListResourceTags returns a key's tags by key.
func (s *Service) ListResourceTags(ctx context.Context, c Call, key string, limit uint32, marker string) (Page[fsm.Tag], *fsm.State, error) {
	return read(ctx, s, reading{name: "ListResourceTags", call: c, key: &key, needs: mayRead}, func(_ *fsm.State, _ string, k *fsm.Key) (Page[fsm.Tag], error) {
		n, after, err := listFrom(limit, marker)
		if err != nil {
			return Page[fsm.Tag]{}, err
		}
		i, found := slices.BinarySearchFunc(k.Tags, after, func(t fsm.Tag, after string) int { return strings.Compare(t.Key, after) })
		if found {
			i++
		}
		return page(k.Tags[i:], n, func(t fsm.Tag) string { return t.Key }, func(t fsm.Tag) int { return len(t.Key) + len(t.Value) }), nil
	})
}

// Rotation is one version of a key.
type Rotation struct {
	Key     fsm.ID
	Version fsm.KeyVersion
}

// ListKeyRotations returns a key's versions, the first one included.
func (s *Service) ListKeyRotations(ctx context.Context, c Call, key string, limit uint32, marker string) (Page[Rotation], *fsm.State, error) {
	return read(ctx, s, reading{name: "ListKeyRotations", call: c, key: &key, needs: mayRead}, func(_ *fsm.State, _ string, k *fsm.Key) (Page[Rotation], error) {
		n, after, err := versionsFrom(limit, marker)
		if err != nil {
			return Page[Rotation]{}, err
		}
		var items []Rotation
		for _, v := range k.Versions {
			if v.Version > after {
				items = append(items, Rotation{k.ID, v})
			}
		}
		return page(items, n, func(r Rotation) string { return versionPlace(r.Version.Version) }, func(Rotation) int { return recordSize }), nil
	})
}

// GetKeyRotationStatus returns a key, for its schedule.
func (s *Service) GetKeyRotationStatus(ctx context.Context, c Call, key string) (*fsm.Key, *fsm.State, error) {
	return read(ctx, s, reading{name: "GetKeyRotationStatus", call: c, key: &key, needs: mayRead}, func(_ *fsm.State, _ string, k *fsm.Key) (*fsm.Key, error) {
		return k, nil
	})
}

// VersionView is a version as callers see it.
type VersionView struct {
	fsm.KeyVersion
	Current bool
	Missing bool  // it lacks its imported material
	Used    int64 // unix seconds; 0: not as far as is known
}

// ListKeyVersions returns a key's versions by number.
func (s *Service) ListKeyVersions(ctx context.Context, c Call, key string, limit uint32, marker string) (Page[VersionView], *fsm.State, error) {
	return read(ctx, s, reading{name: "ListKeyVersions", call: c, key: &key, needs: mayRead}, func(st *fsm.State, _ string, k *fsm.Key) (Page[VersionView], error) {
		n, after, err := versionsFrom(limit, marker)
		if err != nil {
			return Page[VersionView]{}, err
		}
		use, known := st.LastUse(k.ID)
		var items []VersionView
		for _, v := range k.Versions {
			if v.Version <= after {
				continue
			}
			view := VersionView{KeyVersion: v, Current: v.Version == k.Current().Version, Missing: v.Missing(s.at(st, k))}
			if known {
				view.Used = use.Version(v.Version)
			}
			items = append(items, view)
		}
		return page(items, n, func(v VersionView) string { return versionPlace(v.Version) }, func(VersionView) int { return recordSize }), nil
	})
}

func versionPlace(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func versionsFrom(limit uint32, marker string) (n int, after uint32, err error) {
	n, place, err := listFrom(limit, marker)
	if err != nil || place == "" {
		return n, 0, err
	}
	last, err := strconv.ParseUint(place, 10, 32)
	if err != nil {
		return 0, 0, invalid("marker is none that a list of versions returned")
	}
	return n, uint32(last), nil
}

// ListResources returns what a key protects, by name.
func (s *Service) ListResources(ctx context.Context, c Call, key string, limit uint32, marker string) (Page[*fsm.Binding], *fsm.State, error) {
	return read(ctx, s, reading{name: "ListResources", call: c, key: &key, needs: mayRead}, func(st *fsm.State, _ string, k *fsm.Key) (Page[*fsm.Binding], error) {
		n, after, err := listFrom(limit, marker)
		if err != nil {
			return Page[*fsm.Binding]{}, err
		}
		return page(st.Bindings(k.ID, after, n+1), n, func(b *fsm.Binding) string { return b.Resource },
			func(b *fsm.Binding) int { return recordSize + 2*len(b.Resource) + len(b.By) }), nil
	})
}

func listFrom(limit uint32, marker string) (int, string, error) {
	n, err := pageSize(limit)
	if err != nil {
		return 0, "", err
	}
	after, err := decodeMarker(marker)
	return n, after, err
}
