package fsm

import (
	"fmt"
	"slices"
	"strings"
)

// A release of the formats is a set of commands and of the records that they write.
// The cluster's release is the gate: no command of a later one is proposed, so that
// in a rolling upgrade nodes of both kinds understand everything in the log.
const (
	FirstRelease  = 1 // v0.1.0
	NewestRelease = 2 // of this software
)

// RaiseRelease raises the cluster's release, which never falls again. It is a
// command of the first release, since it is what lets later ones in: that every
// living member knows the new release makes it safe, not that the old one knew it.
type RaiseRelease struct {
	Release int      `json:"release"`
	Members []string `json:"members"` // raft ids of the members that the leader knows to know that release
}

func (c *RaiseRelease) validate() error {
	switch {
	case c.Release <= FirstRelease || c.Release > NewestRelease:
		return invalid("release %d: must be %d to %d", c.Release, FirstRelease+1, NewestRelease)
	case len(c.Members) > MaxMembers:
		return invalid("%d members named, at most %d", len(c.Members), MaxMembers)
	}
	return nil
}

func (c *RaiseRelease) apply(t *tx) (Result, error) {
	if at := t.s.cluster.Release; c.Release < at {
		return Result{}, fmt.Errorf("%w: the cluster is at release %d and never goes back", ErrRelease, at)
	} else if c.Release == at {
		return Result{}, nil
	}
	var behind []string
	for _, m := range t.s.Members() {
		if m.Alive() && !slices.Contains(c.Members, m.ID) {
			behind = append(behind, m.Name)
		}
	}
	if len(behind) > 0 {
		return Result{}, fmt.Errorf("%w: not known to run a version that knows release %d: %s; upgrade and start these nodes, or remove them", ErrRelease, c.Release, strings.Join(behind, ", "))
	}
	cluster := t.s.cluster
	cluster.Release = c.Release
	t.putCluster(cluster)
	return Result{}, nil
}

func (c *RaiseRelease) raisesTo() int { return c.Release }

func (c *InitCluster) raisesTo() int { return c.Release }

// Permits tells whether the cluster's release lets a command in.
func (s *State) Permits(c Command) error {
	row, known := lookup(NameOf(c))
	if !known || !s.Initialized() || row.since <= s.cluster.Release {
		return nil
	}
	return fmt.Errorf("%w: %s is of release %d, the cluster is at release %d: run `kmsctl cluster upgrade` when every node runs a version that knows it",
		ErrRelease, row.name, row.since, s.cluster.Release)
}

// checkRelease refuses what raises the release beyond what this software knows: to
// stop here is better than to read what follows wrongly.
func checkRelease(c Command) error {
	if r, ok := c.(interface{ raisesTo() int }); ok && r.raisesTo() > NewestRelease {
		return fmt.Errorf("%s to release %d, this software knows %d", NameOf(c), r.raisesTo(), NewestRelease)
	}
	return nil
}
