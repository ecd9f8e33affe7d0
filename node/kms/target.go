package kms

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/gate"
)

// target is a key that a cryptographic call is about to use: how it was named, what it
// was when the call began, and the one rule that is asked twice.
type target struct {
	service *Service
	ref     reference
	q       question
	op      fsm.KeyOperation
	key     *fsm.Key
	version uint32 // that is used
	rule    string // that allowed, when the call began
	arn     string // of key, for answers

	on *fsm.State // that allowed it, and when, by the wall clock
	at int64      // unix nanoseconds
}

// find resolves a reference and asks whether the key may be used. version names the one
// to be used; 0 is the current one.
func (s *Service) find(st *fsm.State, ref reference, q question, op fsm.KeyOperation, version uint32) (target, error) {
	q.tenant = ref.tenant
	t := target{service: s, ref: ref, q: q, op: op, version: version}
	at := s.now().UnixNano()
	k, rule, err := s.lookUp(st, ref, q)
	t.rule = rule
	if k == nil {
		return t, err
	}
	t.key, t.arn = k, KeyARN(st.Cluster().ID, k.Tenant, k.ID)
	if version == 0 {
		t.version = k.Current().Version
	}
	if err != nil {
		return t, err
	}
	if err := t.usable(st, k); err != nil {
		return t, err
	}
	t.on, t.at = st, at
	return t, nil
}

// usable tells whether tenant, key, version and context let the key be used.
func (t target) usable(st *fsm.State, k *fsm.Key) error {
	if tenant, ok := st.Tenant(k.Tenant); ok {
		if err := tenant.Thawed(); err != nil {
			return err
		}
	}
	if err := k.AllowsAt(t.op, t.service.at(st, k)); err != nil {
		return err
	}
	if v := k.Version(t.version); v != nil { // what names none does not open
		if err := v.Usable(); err != nil {
			return fmt.Errorf("%w of key %s", err, k.ID)
		}
	}
	if err := k.Serves(fsm.GrantOperation(t.q.operation)); err != nil {
		return err
	}
	if err := fitsAlgorithm(k, t.q.algorithm); err != nil {
		return err
	}
	if len(k.Required) == 0 {
		return nil
	}
	return k.HasContext(tagsOf(t.q.context))
}

// authorise asks a state whether the key may be used. It is asked before the work
// and, by the gate, after it. Nothing but the state and the wall clock decides: what the very
// same state has just allowed stands for as long as the gate lets any check stand.
func (t *target) authorise(st *fsm.State) error {
	if since := t.service.now().UnixNano() - t.at; st == t.on && 0 <= since && since <= int64(gate.HandOver) {
		return nil
	}
	k, _, err := t.service.lookUp(st, t.ref, t.q)
	if err != nil {
		return err
	}
	if k.ID != t.key.ID {
		return fmt.Errorf("%w: %s names another key now", fsm.ErrConflict, t.ref.alias)
	}
	return t.usable(st, k)
}

// describe tells the record what was found; what the request said of it stays where nothing was.
func (t target) describe(e *audit.Event) {
	e.Tenant, e.Alias, e.DecidedBy = cmp.Or(t.ref.tenant, e.Tenant), cmp.Or(t.ref.alias, e.Alias), t.rule
	if t.key != nil {
		e.KeyID, e.KeyVersion = t.id(), t.version
	}
}

// id is the key's, as text: its ARN ends with it.
func (t target) id() string { return t.arn[len(t.arn)-idSize:] }

// describeDestination is describe for what a ciphertext is moved to.
func (t target) describeDestination(e *audit.Event) {
	e.DestinationAlias, e.DestinationDecidedBy = t.ref.alias, t.rule
	if t.key != nil {
		e.Target, e.DestinationKeyID, e.DestinationVersion = t.arn, t.id(), t.version
	}
}

// hsmRef names a key version for the HSM.
func hsmRef(st *fsm.State, k *fsm.Key, v *fsm.KeyVersion) hsm.Ref {
	kind := kindOfKey(k)
	attributes := kind.Class.Attributes()
	if k.Origin == fsm.OriginExternal {
		attributes |= hsm.AttrImported
	}
	return hsm.Ref{Token: v.Token, Want: hsm.TokenHeader{
		Class: kind.Class, Attributes: attributes, Generation: v.Generation,
		Cluster: hsm.ID(st.Cluster().ID), Key: hsm.ID(k.ID), Version: v.Version, Created: time.Unix(v.Created, 0).UTC(),
	}, Kind: kind, SPKI: v.Public}
}

// source is a ciphertext that a call is about to open.
type source struct {
	target
	header blobHeader
	h      [32]byte
}

// findSource finds the key that a blob names; key, unless empty, must name it too.
func (s *Service) findSource(st *fsm.State, c Call, header blobHeader, h [32]byte, key string, q question) (source, error) {
	src := source{header: header, h: h}
	ref := reference{tenant: c.acting(), id: header.key}
	if key != "" {
		named, err := parseReference(st, c, key)
		if err != nil {
			return src, err
		}
		k, rule, err := s.lookUp(st, named, q)
		if err != nil {
			src.target = target{ref: named, key: k, rule: rule}
			if k != nil {
				src.arn = KeyARN(st.Cluster().ID, k.Tenant, k.ID)
			}
			return src, err
		}
		if k.ID != header.key {
			return src, invalid("the ciphertext names key %s, the request key %s", header.key, k.ID)
		}
		ref = named
	}
	var err error
	src.target, err = s.find(st, ref, q, fsm.OpOpen, header.version)
	return src, err
}

func parseSource(blob []byte, pairs []Pair) (blobHeader, [32]byte, error) {
	header, err := parseBlob(blob)
	if err != nil {
		return header, [32]byte{}, err
	}
	h, err := contextHash(pairs)
	return header, h, err
}

func digest(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
