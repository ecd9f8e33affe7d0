package kms

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
)

// An ARN has six parts, as parsers of the form expect:
//
//	arn:quorumkms:kms:<cluster>:<tenant>:key/<id> or …:alias/<name>
const arnPrefix = "arn:quorumkms:kms:"

// maxReference is the longest way to name a key, in bytes.
const maxReference = 1024

// KeyARN is the full name of a key.
func KeyARN(cluster fsm.ID, tenant string, key fsm.ID) string {
	var room [256]byte
	b := appendID(append(room[:0], arnPrefix...), cluster)
	b = append(append(append(b, ':'), tenant...), ":key/"...)
	return string(appendID(b, key))
}

// idSize is the size of an id as text, in bytes.
const idSize = 36

// appendID is id.String, without a string of its own.
func appendID(b []byte, id fsm.ID) []byte {
	for i, part := range [][]byte{id[:4], id[4:6], id[6:8], id[8:10], id[10:]} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, part)
	}
	return b
}

// parseID reads an id in its one form: 36 bytes, in lower case.
func parseID(text string) (id fsm.ID, ok bool) {
	if len(text) != idSize || strings.ContainsAny(text, "ABCDEF") {
		return id, false
	}
	id, err := uuid.Parse(text)
	return id, err == nil
}

// AliasARN is the full name of an alias; name has the prefix alias/.
func AliasARN(cluster fsm.ID, tenant, name string) string {
	return arnPrefix + cluster.String() + ":" + tenant + ":" + name
}

// reference is one of the ways to name a key, taken apart.
type reference struct {
	tenant string
	id     fsm.ID // or
	alias  string // with the prefix
}

// CheckReference tells what is wrong with the way a key is named, as far as that shows without
// a cluster.
func CheckReference(text string) error {
	_, err := readReference(text, fsm.DefaultTenant, "", func(string) error { return nil })
	return err
}

// parseReference reads a key id, ARN, alias name or alias ARN. An ARN names its tenant;
// everything else is the acting tenant's.
func parseReference(st *fsm.State, c Call, text string) (reference, error) {
	return readReference(text, c.acting(), c.Tenant, func(cluster string) error {
		if cluster != st.Cluster().ID.String() {
			return fmt.Errorf("%w: the ARN is of another cluster (%s)", fsm.ErrNotFound, cluster)
		}
		return nil
	})
}

// readReference is parseReference; asked is the tenant that the call names, own tells whether an
// ARN's cluster is this one.
func readReference(text, tenant, asked string, own func(cluster string) error) (reference, error) {
	if text == "" {
		return reference{}, invalid("key id is missing: give a key id, key ARN, alias name or alias ARN")
	}
	if len(text) > maxReference {
		return reference{}, invalid("key id has %d bytes, at most %d", len(text), maxReference)
	}
	resource := text
	if rest, ok := strings.CutPrefix(text, arnPrefix); ok {
		parts := strings.SplitN(rest, ":", 3)
		if len(parts) != 3 {
			return reference{}, invalid("%q is no ARN: want %s<cluster>:<tenant>:key/<id>", text, arnPrefix)
		}
		if err := own(parts[0]); err != nil {
			return reference{}, err
		}
		if !fsm.ValidName(parts[1]) {
			return reference{}, invalid("%q is no ARN: %.80q is no tenant's name", text, parts[1])
		}
		if asked != "" && asked != parts[1] {
			return reference{}, invalid("the ARN is of tenant %s, the call is for tenant %s", parts[1], asked)
		}
		tenant = parts[1]
		resource = parts[2]
		if id, ok := strings.CutPrefix(resource, "key/"); ok && !strings.HasPrefix(id, fsm.AliasPrefix) {
			resource = id
		} else if !strings.HasPrefix(resource, fsm.AliasPrefix) {
			return reference{}, invalid("%q is no ARN of a key or an alias", text)
		}
	}
	if strings.HasPrefix(resource, fsm.AliasPrefix) {
		return reference{tenant: tenant, alias: resource}, fsm.ValidAlias(resource)
	}
	id, ok := parseID(resource)
	if !ok {
		return reference{}, invalid("%q is no key id, key ARN, alias name (alias/…) or alias ARN", text)
	}
	return reference{tenant: tenant, id: id}, nil
}

// resolve finds the key in a state. What is not the tenant's is not there.
func (r reference) resolve(st *fsm.State) (*fsm.Key, error) {
	id := r.id
	if r.alias != "" {
		a, ok := st.Alias(r.tenant, r.alias)
		if !ok {
			return nil, fmt.Errorf("%w: %s", fsm.ErrNotFound, r.alias)
		}
		id = a.Key
	}
	k, ok := st.Key(id)
	if !ok || k.Tenant != r.tenant {
		return nil, fmt.Errorf("%w: key %s", fsm.ErrNotFound, id)
	}
	return k, nil
}

// An index token is cluster 16 | recovery epoch u32 | index u64, big-endian:
// opaque to callers.
const (
	indexTokenSize = 28
	awaitAtMost    = time.Second // how long a node waits to reach a caller's index
)

// IndexToken tells how new a state is. Ticks do not count: a follower that has not heard
// of the last one yet, as after the leader's death, answers all the same.
func IndexToken(st *fsm.State) []byte {
	c := st.Cluster()
	b := make([]byte, 0, indexTokenSize)
	b = append(b, c.ID[:]...)
	b = binary.BigEndian.AppendUint32(b, c.RecoveryEpoch)
	return binary.BigEndian.AppendUint64(b, st.Changed())
}

// await returns a state at least as new as the token, waiting a second at most:
// ErrBehind afterwards. A token of an earlier recovery epoch cannot be honoured
// and is ignored.
func (s *Service) await(ctx context.Context, token []byte) (*fsm.State, error) {
	st := s.log.State()
	if !st.Initialized() { // no cluster, or a member that has just started and knows no state yet
		return nil, cmp.Or(s.fresh.Usable(), fsm.ErrNotInitialized)
	}
	if err := s.fresh.Serves(st); err != nil { // it was removed: what it knows is old
		return nil, err
	}
	if len(token) == 0 {
		return st, nil
	}
	c := st.Cluster()
	if len(token) != indexTokenSize || !bytes.Equal(token[:16], c.ID[:]) {
		return nil, invalid("index token is none of this cluster's")
	}
	epoch, index := binary.BigEndian.Uint32(token[16:]), binary.BigEndian.Uint64(token[20:])
	if epoch > c.RecoveryEpoch {
		return nil, fmt.Errorf("%w: it has not seen the cluster's recovery", ErrBehind)
	}
	if epoch < c.RecoveryEpoch || st.Index() >= index {
		return st, nil
	}
	ctx, cancel := context.WithTimeout(ctx, awaitAtMost)
	defer cancel()
	st, err := s.log.Wait(ctx, index)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBehind, err)
	}
	return st, nil
}
