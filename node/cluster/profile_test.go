package cluster

import (
	"errors"
	"strings"
	"testing"

	"github.com/quorumkms/quorumkms/fsm"
)

// TestRestoreOfOtherProfile: a backup of a cluster of the other transfer profile is refused
// before anything is written.
func TestRestoreOfOtherProfile(t *testing.T) {
	m := &Member{config: Config{Profile: fsm.ProfileCloned}}
	err := m.HoldsDomain(t.Context(), rotated(t))
	if !errors.Is(err, ErrProfile) || !strings.Contains(err.Error(), "configured for cloned, the backup's cluster is generic") {
		t.Errorf("restoring a cluster of the profile generic into a node of cloned: %v", err)
	}
}

// TestJoinerErrors: which refusals end a joiner, and which have it try again.
func TestJoinerErrors(t *testing.T) {
	for _, err := range []error{fsm.ErrTicket, fsm.ErrMember, fsm.ErrIdentity, ErrJoin, ErrProfile} {
		if !Permanent(FromCode(Code(err), "told by another node")) {
			t.Errorf("%v does not end a joiner", err)
		}
	}
	for _, err := range []error{ErrNoLeader, ErrNoLease, ErrOutcomeUnknown, ErrBusy, ErrShutdown} {
		if Permanent(FromCode(Code(err), "told by another node")) {
			t.Errorf("%v ends a joiner", err)
		}
	}
}
