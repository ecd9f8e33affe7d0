package node

import (
	"context"
	"errors"
	"time"

	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/rpc"
)

// What a node is ready for is decided here alone: the health services, `kmsctl cluster
// status`, the probes and the metrics tell the same.

var errNoLeader = errors.New("this node knows no leader to bring changes to")

// ready is nil while this node answers cryptographic calls.
func (n *Node) ready() error {
	if n.stopping.Load() {
		return cluster.ErrShutdown
	}
	if err := n.member.Usable(); err != nil {
		return err
	}
	if err := n.member.Serves(n.member.State()); err != nil {
		return err
	}
	if err := n.partition.Healthy(); err != nil {
		return err
	}
	if err := n.audit.Healthy(); err != nil {
		return err
	}
	return n.creds.Valid()
}

// writable is nil while changes can be brought into the log through this node.
func (n *Node) writable() error {
	switch {
	case n.stopping.Load():
		return cluster.ErrShutdown
	case !n.member.LeaderKnown():
		return errNoLeader
	}
	return nil
}

// watchHealth publishes the health checks.
func (n *Node) watchHealth(ctx context.Context) {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		n.server.SetHealth("", true)
		n.server.SetHealth(rpc.HealthCrypto, n.ready() == nil)
		n.server.SetHealth(rpc.HealthWrite, n.writable() == nil)
		now := time.Now()
		n.beat.Store(&now)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
