//go:build measure

package cluster

import "github.com/hashicorp/raft"

// Raft is the Raft of a member, for measurements.
func (m *Member) Raft() (*raft.Raft, error) {
	e, err := m.engine()
	if err != nil {
		return nil, err
	}
	return e.raft, nil
}
