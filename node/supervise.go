package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Supervisor is who has started the node and watches over it: systemd, say.
type Supervisor struct {
	// Notify passes a message of sd_notify(3) on; nil: there is nobody.
	Notify func(state string)
	// Watchdog is how long it waits for a sign of life before it ends the process; 0: it does
	// not.
	Watchdog time.Duration
}

const (
	// signsOfLife are given in the time that the supervisor waits for one.
	signsOfLife = 4
	// startExtension is how much longer a start may take, from each sign of life on.
	startExtension = 2 * time.Minute
	// lifeEvery is between signs of life while nobody waits for one, to extend the start.
	lifeEvery = 15 * time.Second
)

func (n *Node) notify(state ...string) {
	if n.options.Supervisor.Notify != nil {
		n.options.Supervisor.Notify(strings.Join(state, "\n"))
	}
}

// supervise tells the supervisor when the node serves for the first time, and in words how it
// does. A node that waits for people, since it belongs to no cluster, is ready, too.
func (n *Node) supervise(ctx context.Context) {
	if n.options.Supervisor.Notify == nil {
		return
	}
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	told := ""
	for {
		text, waits := n.inWords()
		if told != text {
			told = text
			n.notify("STATUS=" + text)
		}
		if !waits && n.told.CompareAndSwap(false, true) {
			n.notify(daemon.SdNotifyReady)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// inWords is how the node does, in a line, and whether it waits for other nodes.
func (n *Node) inWords() (text string, waits bool) {
	if !n.member.Joined() {
		return "belongs to no cluster yet: waits for kmsctl cluster init, or for its joining", false
	}
	if err := n.ready(); err != nil {
		return "does not serve: " + strings.ReplaceAll(err.Error(), "\n", " "), true
	}
	if n.member.Leads() {
		return "serves, and leads the cluster", false
	}
	return "serves", false
}

// signLife gives signs of life while the node's main loops go round: a node that hangs is
// ended and started again by its supervisor.
func (n *Node) signLife(ctx context.Context) {
	if n.options.Supervisor.Notify == nil {
		return
	}
	every := lifeEvery
	if w := n.options.Supervisor.Watchdog; w > 0 {
		every = w / signsOfLife
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := n.alive(ctx, every); err == nil {
			signs := []string{daemon.SdNotifyWatchdog}
			if !n.told.Load() {
				signs = append(signs, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", startExtension.Microseconds()))
			}
			n.notify(signs...)
		} else if ctx.Err() == nil {
			n.log.Error("this node hangs; its supervisor is given no sign of life", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// alive is nil if the loop that looks at lease, HSM and audit trail has gone round within a
// time, and Raft's answers within it.
func (n *Node) alive(ctx context.Context, within time.Duration) error {
	if last := n.beat.Load(); last != nil {
		if since := time.Since(*last); since > within+healthEvery {
			return fmt.Errorf("lease, HSM and audit trail were not looked at for %s", since.Round(time.Millisecond))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := n.member.Alive(ctx); err != nil {
		return fmt.Errorf("raft does not answer: %w", err)
	}
	return nil
}
