package kms

import (
	"context"
	"fmt"

	"github.com/quorumkms/quorumkms/fsm"
)

// A node seals whole segments of its audit trail under data keys of a key that its configuration
// names. It asks for them as callers do, with its own principal: by the lease, by grants (it
// belongs to no tenant, so policies give it nothing, but may forbid), and recorded. No call from
// outside has these rights, whatever certificate it comes with.

// trailOperations are all that a node does with a key.
var trailOperations = []fsm.GrantOperation{fsm.GrantGenerateDataKey, fsm.GrantDecrypt}

// itself is a call of this node.
func (s *Service) itself(tenant string) Call {
	c, err := s.principal(s.self)
	if err != nil { // its certificate was verified when the node started
		c = Caller{Principal: s.self, Class: ClassNode}
	}
	c.itself = true
	return Call{Caller: c, Tenant: tenant}
}

// TrailDataKey makes a data key for a segment of this node's audit trail.
func (s *Service) TrailDataKey(ctx context.Context, key string, n int, pairs []Pair) (Sealed, error) {
	sealed, err := s.GenerateDataKey(ctx, s.itself(""), key, n, pairs)
	if err != nil {
		return sealed, fmt.Errorf("%s: %w", key, err)
	}
	return sealed, nil
}

// OpenTrailDataKey opens a data key of a segment of this node's audit trail.
func (s *Service) OpenTrailDataKey(ctx context.Context, blob []byte, pairs []Pair) (Opened, error) {
	header, err := parseBlob(blob)
	if err != nil {
		return Opened{}, err
	}
	tenant := ""
	if k, ok := s.log.State().Key(header.key); ok {
		tenant = k.Tenant
	}
	opened, err := s.Decrypt(ctx, s.itself(tenant), blob, "", pairs, "")
	if err != nil {
		return opened, fmt.Errorf("key %s: %w", header.key, err)
	}
	return opened, nil
}
