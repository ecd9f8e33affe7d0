package cluster

import (
	"bytes"
	"cmp"
	"fmt"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
)

// Profile is the transfer profile of this node's configuration.
func (m *Member) Profile() string { return cmp.Or(m.config.Profile, fsm.ProfileGeneric) }

func (m *Member) cloned() bool { return m.Profile() == fsm.ProfileCloned }

// belongs fails if this node is not the member that the state knows: if its partition is
// another, or a clone that was not adopted, or of another transfer profile.
func (e *engine) belongs(s *fsm.State, self *fsm.Member) error {
	if own := e.config.Domain.Identity(); !bytes.Equal(own, self.Identity) {
		return fmt.Errorf("%w: the node identity key in this node's HSM partition is %s, the cluster knows %s as %s: configure the partition that the node joined with; a node that has lost it is removed and joins anew, with an empty data directory",
			fsm.ErrIdentity, hsm.Fingerprint(own), e.id, hsm.Fingerprint(self.Identity))
	}
	if want, is := s.Cluster().TransferProfile(), e.member.Profile(); is != want {
		return fmt.Errorf("%w: this node is configured for %s, the cluster's is %s, since its founding: set hsm.profile", ErrProfile, is, want)
	}
	return nil
}
