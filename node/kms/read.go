package kms

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

// read is what all calls that only look have in common: f answers from a state,
// and from the key if the call names one.
func read[T any](ctx context.Context, s *Service, name string, c Call, key *string, f func(st *fsm.State, tenant string, k *fsm.Key) (T, error)) (T, *fsm.State, error) {
	var none T
	e := begin(name, c)
	tenant, rule, err := c.allow(mayRead)
	e.Tenant, e.DecidedBy = tenant, rule
	if err != nil {
		return none, nil, s.refuse(e, err)
	}
	if err := s.confirm(ctx, c); err != nil {
		return none, nil, s.refuse(e, err)
	}
	st, err := s.await(ctx, c.IndexToken)
	if err != nil {
		return none, nil, s.refuse(e, err)
	}
	e.StateIndex = st.Index()
	var k *fsm.Key
	if key != nil {
		if k, err = s.lookUp(st, tenant, *key, &e); err != nil {
			return none, nil, s.refuse(e, err)
		}
	}
	answer, err := f(st, tenant, k)
	if err != nil {
		return none, nil, s.refuse(e, err)
	}
	if err := s.succeed(e, st); err != nil {
		return none, nil, err
	}
	return answer, st, nil
}

func (s *Service) lookUp(st *fsm.State, tenant, key string, e *audit.Event) (*fsm.Key, error) {
	ref, err := parseReference(st, tenant, key)
	if err != nil {
		return nil, err
	}
	e.Alias = ref.alias
	k, err := ref.resolve(st, tenant)
	if err == nil {
		e.KeyID = k.ID.String()
	}
	return k, err
}

// DescribeKey returns what is known of a key.
func (s *Service) DescribeKey(ctx context.Context, c Call, key string) (Metadata, *fsm.State, error) {
	return read(ctx, s, "DescribeKey", c, &key, func(st *fsm.State, _ string, k *fsm.Key) (Metadata, error) {
		return metadata(st, k), nil
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
	return read(ctx, s, "ListKeys", c, nil, func(st *fsm.State, tenant string, _ *fsm.Key) (Page[Metadata], error) {
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
			items = append(items, metadata(st, k))
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

// ListAliases returns a tenant's aliases, or those of one key, by name.
func (s *Service) ListAliases(ctx context.Context, c Call, key string, limit uint32, marker string) (Page[*fsm.Alias], *fsm.State, error) {
	var one *string
	if key != "" {
		one = &key
	}
	return read(ctx, s, "ListAliases", c, one, func(st *fsm.State, tenant string, k *fsm.Key) (Page[*fsm.Alias], error) {
		n, after, err := listFrom(limit, marker)
		if err != nil {
			return Page[*fsm.Alias]{}, err
		}
		var items []*fsm.Alias
		if k == nil {
			items = st.Aliases(tenant, after, n+1)
		} else {
			items = slices.DeleteFunc(st.AliasesOf(k.ID), func(a *fsm.Alias) bool { return a.Name <= after })
		}
		return page(items, n, func(a *fsm.Alias) string { return a.Name }, func(a *fsm.Alias) int { return recordSize + 2*len(a.Name) }), nil
	})
}

// ListResourceTags returns a key's tags by key.
func (s *Service) ListResourceTags(ctx context.Context, c Call, key string, limit uint32, marker string) (Page[fsm.Tag], *fsm.State, error) {
	return read(ctx, s, "ListResourceTags", c, &key, func(_ *fsm.State, _ string, k *fsm.Key) (Page[fsm.Tag], error) {
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
	return read(ctx, s, "ListKeyRotations", c, &key, func(_ *fsm.State, _ string, k *fsm.Key) (Page[Rotation], error) {
		n, after, err := listFrom(limit, marker)
		if err != nil {
			return Page[Rotation]{}, err
		}
		var last uint64
		if after != "" {
			if last, err = strconv.ParseUint(after, 10, 32); err != nil {
				return Page[Rotation]{}, invalid("marker is none that ListKeyRotations returned")
			}
		}
		var items []Rotation
		for _, v := range k.Versions {
			if uint64(v.Version) > last {
				items = append(items, Rotation{k.ID, v})
			}
		}
		return page(items, n, func(r Rotation) string { return strconv.FormatUint(uint64(r.Version.Version), 10) }, func(Rotation) int { return recordSize }), nil
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
