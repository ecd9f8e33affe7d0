package transport

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"
)

// gossipDelegate is what memberlist asks and tells a Gossip. Several of its
// methods are called with memberlist's own lock held, so none calls it back.
type gossipDelegate Gossip

var (
	_ memberlist.Delegate         = (*gossipDelegate)(nil)
	_ memberlist.EventDelegate    = (*gossipDelegate)(nil)
	_ memberlist.AliveDelegate    = (*gossipDelegate)(nil)
	_ memberlist.ConflictDelegate = (*gossipDelegate)(nil)
)

// NodeMeta implements memberlist.Delegate.
func (d *gossipDelegate) NodeMeta(int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.meta
}

// NotifyMsg implements memberlist.Delegate: there are no messages of users.
func (d *gossipDelegate) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate: there is nothing to add.
func (d *gossipDelegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate: there is nothing to add.
func (d *gossipDelegate) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate: nothing was added.
func (d *gossipDelegate) MergeRemoteState([]byte, bool) {}

// NotifyAlive implements memberlist.AliveDelegate: it bounds what peers can make
// this node remember.
func (d *gossipDelegate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == "" || len(n.Name) > maxGossipName || len(n.Meta) > MaxGossipMeta {
		return fmt.Errorf("name of %d bytes, metadata of %d bytes", len(n.Name), len(n.Meta))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.members[n.Name]; known || len(d.members) < maxGossipMembers || d.forgetOne() {
		return nil
	}
	return fmt.Errorf("%d members known already", maxGossipMembers)
}

// forgetOne drops the member that has been dead for longest, if any is.
func (d *gossipDelegate) forgetOne() bool {
	var oldest *GossipMember
	for _, m := range d.members {
		if m.State == GossipDead && (oldest == nil || m.Since.Before(oldest.Since)) {
			oldest = &m
		}
	}
	if oldest == nil {
		return false
	}
	delete(d.members, oldest.Name)
	return true
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *gossipDelegate) NotifyJoin(n *memberlist.Node) { d.note(n, GossipAlive) }

// NotifyLeave implements memberlist.EventDelegate.
func (d *gossipDelegate) NotifyLeave(n *memberlist.Node) { d.note(n, GossipDead) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d *gossipDelegate) NotifyUpdate(n *memberlist.Node) { d.note(n, GossipAlive) }

func (d *gossipDelegate) note(n *memberlist.Node, state GossipState) {
	m := GossipMember{
		Name:  n.Name,
		Addr:  net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(n.Port))),
		Meta:  bytes.Clone(n.Meta),
		State: state,
		Since: time.Now(),
	}
	d.mu.Lock()
	if before, ok := d.members[n.Name]; ok && before.State == state {
		m.Since = before.Since
	}
	d.members[n.Name] = m
	d.mu.Unlock()
	if d.config.Events != nil {
		d.config.Events(m)
	}
}

// NotifyConflict implements memberlist.ConflictDelegate: two nodes claim one
// name, as after a copy of a disk.
func (d *gossipDelegate) NotifyConflict(existing, other *memberlist.Node) {
	d.config.Logger.Warn("two nodes gossip under one name", "name", existing.Name,
		"address", existing.Address(), "other", other.Address())
}
