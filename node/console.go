package node

import (
	"fmt"
	"strings"
	"time"

	"github.com/quorumkms/quorumkms/node/cluster"
)

// tellPending tells a person that a joining node must be approved.
func (n *Node) tellPending(p cluster.JoinPending) {
	expires := time.Unix(p.Expires, 0).UTC().Format(time.RFC3339)
	n.log.Info("waiting for an operator's approval", "identity", p.Fingerprint, "expires", expires)
	_, err := fmt.Fprintf(n.options.Console, `
This node asks to join. Its invitation names no identity: until %s an
operator must read this node's identity off this console, and approve it:

  kmsctl cluster approve %s --identity %s

`, expires, n.config.Name, p.Fingerprint)
	if err != nil {
		n.log.Debug("console", "error", err)
	}
}

// tellFingerprint tells a person what a joining node waits for.
func (n *Node) tellFingerprint(w cluster.JoinWaiting) {
	n.log.Info("waiting for the security officer", "donor", w.DonorName, "fingerprint", w.Fingerprint)
	_, err := fmt.Fprintf(n.options.Console, `
This node asks node %s for the domain key. The Security Officer of %s must
compare this fingerprint with the one below and trust it, on that host:

  kmsd hsm trust --config <configuration of %s> --so-pin-file <file> %s

`, w.DonorName, w.DonorName, w.DonorName, w.Fingerprint)
	if err != nil {
		n.log.Debug("console", "error", err)
	}
}

// tellWaiting tells a person what a member waits for that lacks a generation.
func (n *Node) tellWaiting(w cluster.DomainWait) {
	if w.Twin {
		n.tellTwin(w)
		return
	}
	donors := strings.Join(w.Donors, ", ")
	if w.Fingerprint == "" {
		n.tellCloning(w.Generation, donors)
		return
	}
	n.log.Info("waiting for a security officer", "generation", w.Generation, "donors", donors, "fingerprint", w.Fingerprint)
	_, err := fmt.Fprintf(n.options.Console, `
This node asks for generation %d of the domain key. The Security Officer of one of
these nodes must compare this fingerprint with the one below and trust it, on that
host: %s

  kmsd hsm trust --config <configuration> --so-pin-file <file> %s

`, w.Generation, donors, w.Fingerprint)
	if err != nil {
		n.log.Debug("console", "error", err)
	}
}

// tellTwin tells a person what a node waits for that is to move key versions.
func (n *Node) tellTwin(w cluster.DomainWait) {
	n.log.Info("waiting for this node's security officer", "generation", w.Generation, "fingerprint", w.Fingerprint)
	_, err := fmt.Fprintf(n.options.Console, `
This node is to move key versions from generation %d of the domain key to the active
one. For that it makes the generation's twin in its HSM partition, which this node's own
Security Officer must allow, on this host:

  kmsd hsm trust --config <configuration> --so-pin-file <file> %s

`, w.Generation, w.Fingerprint)
	if err != nil {
		n.log.Debug("console", "error", err)
	}
}

// tellCloning tells a person that a generation must be cloned into this node's partition.
func (n *Node) tellCloning(generation uint32, donors string) {
	n.log.Info("waiting for a generation of the domain key to be cloned", "generation", generation, "donors", donors)
	_, err := fmt.Fprintf(n.options.Console, `
This node's HSM partition does not hold generation %d of the domain key. Clone it with
the HSM vendor's tools, from the partition of one of these nodes: %s
This node goes on by itself when it is there.

`, generation, donors)
	if err != nil {
		n.log.Debug("console", "error", err)
	}
}
