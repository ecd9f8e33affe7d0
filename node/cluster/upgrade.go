package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
)

// reportRecent is how lately a node must have said what its software knows for the
// cluster's release to be raised.
const reportRecent = 10 * time.Second

// knowledge is the newest release that a node's software knows, as it said itself.
type knowledge struct {
	release int
	at      time.Duration
}

// reported notes what a node said of its software.
func (g *grantor) reported(node string, release int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.knows[node] = knowledge{release, g.clock.Now()}
}

// knowing tells whether a node has said lately that its software knows a release.
func (g *grantor) knowing(node string, release int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.knows[node]
	return k.release >= release && g.clock.Now()-k.at < reportRecent
}

// vouch names the members that this leader knows to know the release: nobody else's
// word counts.
func (e *engine) vouch(c *fsm.RaiseRelease) *fsm.RaiseRelease {
	out := &fsm.RaiseRelease{Release: c.Release, Members: []string{}}
	for _, m := range e.machine.State().Members() {
		if m.Alive() && e.grantor.knowing(m.ID, c.Release) {
			out.Members = append(out.Members, m.ID)
		}
	}
	return out
}

// MayUpgrade says why the cluster's release cannot be raised to that one, whatever
// the nodes run, if so.
func (m *Member) MayUpgrade(release int) error {
	s := m.State()
	c := &fsm.RaiseRelease{Release: release, Members: []string{}}
	for _, x := range s.Members() {
		if x.Alive() {
			c.Members = append(c.Members, x.ID)
		}
	}
	_, err := s.Try(c)
	return err
}

// Upgrade raises the cluster's release. propose commits a command in the caller's
// name.
func (m *Member) Upgrade(ctx context.Context, release int, propose func(context.Context, fsm.Command) (fsm.Result, error)) error {
	_, err := propose(ctx, &fsm.RaiseRelease{Release: release})
	if errors.Is(err, fsm.ErrInvalid) { // this node would have found nothing wrong with it
		return fmt.Errorf("%w: the leader does not know the command, it runs a version that is too old: upgrade it", fsm.ErrRelease)
	}
	return err
}
