package client

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// Audit returns the call on the audit trails that is no stream, DescribeTrails; ReadTrail and
// SearchRecords are the others. Each node answers with a trail of its own: configure one
// address, and Fixed, to read a certain node's.
func (c *Client) Audit() quorumkmsv1.AuditServiceClient { return quorumkmsv1.NewAuditServiceClient(c) }

// ReadTrail has a node hand out the files of its audit trail, in the form of package trail,
// from the segment on that has the record from; zero: all. Each begins with a call of begin.
// Until the first message has come, other nodes are tried as for any call. An error of begin
// or data is returned as it is; after any error the files are not whole. To package trail a copy
// that begins later than the node's trail is one whose beginning was removed.
func (c *Client) ReadTrail(ctx context.Context, from uint64, begin func(name string) error, data func([]byte) error) error {
	return c.stream(ctx, func(ctx context.Context, conn *link, alive func()) (begun bool, err error) {
		r := &quorumkmsv1.ReadTrailRequest{From: from, Tenant: c.config.Tenant, IndexToken: c.indexToken()}
		s, err := quorumkmsv1.NewAuditServiceClient(conn).ReadTrail(ctx, r)
		if err != nil {
			return false, err
		}
		return each(s.Recv, alive, func(m *quorumkmsv1.ReadTrailResponse) error {
			switch {
			case m.GetFile() != "":
				return begin(m.GetFile())
			case len(m.GetData()) > 0:
				return data(m.GetData())
			}
			return nil
		})
	})
}

// SearchRecords has a node hand out the records of its own audit trail that fit, in their
// order. The first message tells which node it is; those without a record are signs of life,
// or a checkpoint. Tenant and index token of r are set here if they are empty. Until the first
// message has come, other nodes are tried as for any call. An error of found is returned as it
// is. A message may be kept.
func (c *Client) SearchRecords(ctx context.Context, r *quorumkmsv1.SearchRecordsRequest, found func(*quorumkmsv1.SearchRecordsResponse) error) error {
	return c.stream(ctx, func(ctx context.Context, conn *link, alive func()) (begun bool, err error) {
		if r.GetTenant() == "" {
			r.Tenant = c.config.Tenant
		}
		if len(r.GetIndexToken()) == 0 {
			r.IndexToken = c.indexToken()
		}
		s, err := quorumkmsv1.NewAuditServiceClient(conn).SearchRecords(ctx, r)
		if err != nil {
			return false, err
		}
		return each(s.Recv, alive, found)
	})
}

// each hands the messages of a stream on until it ends. How long whoever takes them takes is
// not the node's standing still.
func each[M any](recv func() (*M, error), alive func(), take func(*M) error) (begun bool, err error) {
	var taking atomic.Bool
	done := make(chan struct{})
	defer close(done)
	go func() {
		tick := time.NewTicker(streamStall / 4)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if taking.Load() {
					alive()
				}
			case <-done:
				return
			}
		}
	}()
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return begun, nil
		}
		if err != nil {
			return begun, err
		}
		begun = true
		alive()
		taking.Store(true)
		if err := take(m); err != nil {
			return begun, &ownError{err}
		}
		taking.Store(false)
		alive()
	}
}
