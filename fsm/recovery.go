package fsm

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/google/uuid"
)

const (
	// versionBits is how many bits of a key version's number count the versions of one
	// recovery epoch; the bits above are the epoch. A history that was lost may have
	// minted numbers that nobody remembers; those of later epochs are others.
	versionBits = 20
	// recoveryRelease is the release of the record that a recovery writes, to which it
	// raises the cluster: all nodes but one are out, and that one knows it.
	recoveryRelease = 2
	// MaxRecoveryEpoch is the last epoch whose version numbers fit 32 bits.
	MaxRecoveryEpoch = 1<<(32-versionBits) - 1
)

// History names one history of a cluster. Each recovery and each restore begins
// another: what was made in one may be unknown to the next.
type History struct {
	Epoch uint32 `json:"epoch"` // of the recovery it began with; 0: the founding
	ID    ID     `json:"id"`    // chosen at random at that recovery; zero: the founding
}

// History is the history this state belongs to.
func (s *State) History() History {
	return History{Epoch: s.cluster.RecoveryEpoch, ID: s.cluster.RecoveryID}
}

// NextVersion is the number of the next version of a key: one more than the last
// one's, and in an epoch of its own behind a recovery.
func (s *State) NextVersion(k *Key) uint32 {
	return max(k.Versions[len(k.Versions)-1].Version+1, s.cluster.RecoveryEpoch<<versionBits+1)
}

// RecoverCluster begins a new history with what the log of one member held: all
// other members are out, and the open join tickets with them. It is a command of the
// first release, as RestoreCluster is: what they are for must not wait for an upgrade,
// and no node that does not know them is a member afterwards.
type RecoverCluster struct {
	Epoch uint32 `json:"epoch"` // the present one + 1
	ID    ID     `json:"id"`    // of the history that begins
	Node  string `json:"node"`  // raft id of the member that was recovered from
}

func (c *RecoverCluster) validate() error {
	if err := validHistory(History{c.Epoch, c.ID}); err != nil {
		return err
	}
	return validRaftID(c.Node)
}

func (c *RecoverCluster) apply(t *tx) (Result, error) {
	if want := t.s.cluster.RecoveryEpoch + 1; c.Epoch != want {
		return Result{}, fmt.Errorf("%w: recovery epoch %d was asked for, %d is next", ErrConflict, c.Epoch, want)
	}
	self, ok := t.s.Member(c.Node)
	if !ok || !self.Serves() {
		return Result{}, fmt.Errorf("%w: node %s is no active member", ErrMember, c.Node)
	}
	for _, m := range t.s.Members() {
		if m.Alive() && m.ID != c.Node {
			t.memberIs(m, MemberLeaving)
		}
	}
	if !self.Voter {
		m := *self
		m.Voter = true
		t.putMember(&m)
	}
	t.beginHistory(History{c.Epoch, c.ID})
	return Result{ID: c.Node}, nil
}

// RestoreCluster begins a new history with a backup, in one new node: all members
// that the backup knows are gone, and the open join tickets with them.
type RestoreCluster struct {
	Epoch         uint32 `json:"epoch"`          // later than the backup's
	ID            ID     `json:"id"`             // of the history that begins
	Backup        []byte `json:"backup"`         // SHA-256 of what was restored, 32 bytes
	DisableKeys   bool   `json:"disable_keys"`   // what was revoked after the backup is not fully known
	JournalEnd    uint64 `json:"journal_end"`    // index up to which it is known what was revoked; 0: it is not
	Node          string `json:"node"`           // raft id of the new node
	Name          string `json:"name"`           //
	PeerAddress   string `json:"peer_address"`   //
	ClientAddress string `json:"client_address"` //
	Identity      []byte `json:"identity"`       //
}

func (c *RestoreCluster) validate() error {
	if err := validHistory(History{c.Epoch, c.ID}); err != nil {
		return err
	}
	if len(c.Backup) != 32 {
		return invalid("the backup's hash has %d bytes, must be 32", len(c.Backup))
	}
	return validMember(c.Node, c.Name, c.PeerAddress, c.ClientAddress, c.Identity)
}

func (c *RestoreCluster) apply(t *tx) (Result, error) {
	if present := t.s.cluster.RecoveryEpoch; c.Epoch <= present {
		return Result{}, fmt.Errorf("%w: recovery epoch %d was asked for, the backup is of %d", ErrConflict, c.Epoch, present)
	}
	if _, ok := t.s.Member(c.Node); ok {
		return Result{}, fmt.Errorf("%w: the backup knows node %s: a restore needs a new one", ErrMember, c.Node)
	}
	for _, m := range t.s.Members() {
		if m.Alive() {
			t.memberIs(m, MemberGone)
		}
	}
	t.putMember(&Member{
		ID: c.Node, Name: c.Name, PeerAddress: c.PeerAddress, ClientAddress: c.ClientAddress, Identity: c.Identity,
		State: MemberActive, Voter: true, Since: t.seconds(),
	})
	if c.DisableKeys {
		for _, item := range t.s.keys.all() {
			if item.key.State == KeyEnabled || item.key.State == KeyDecryptOnly {
				k := *item.key
				k.State = KeyDisabled
				t.putKey(&k)
			}
		}
	}
	t.beginHistory(History{c.Epoch, c.ID})
	return Result{ID: c.Node}, nil
}

func (t *tx) beginHistory(h History) {
	for _, open := range t.s.Tickets() {
		t.dropTicket(open)
	}
	t.waitAnew()
	t.countAnew()
	c := t.s.cluster
	c.RecoveryEpoch, c.RecoveryID, c.Release = h.Epoch, h.ID, max(c.Release, recoveryRelease)
	if c.Recovery != nil && c.Recovery.Change != nil { // it may have been cancelled since, and its number is used again
		r := *c.Recovery
		r.Change = nil
		c.Recovery = &r
	}
	t.putCluster(c)
}

// waitAnew gives what is to be deleted or destroyed the shortest waiting period at least:
// in the history that was lost it may have been taken back, and be in use.
func (t *tx) waitAnew() {
	earliest := t.seconds() + MinDeletionDays*secondsPerDay
	early := func(v KeyVersion) bool { return v.State == VersionDestroyScheduled && v.Destroy < earliest }
	for _, item := range t.s.keys.all() {
		pending := item.key.State == KeyPendingDeletion && item.key.Deletion < earliest
		if !pending && !slices.ContainsFunc(item.key.Versions, early) {
			continue
		}
		k := *item.key
		if pending {
			k.Deletion = earliest
		}
		k.Versions = slices.Clone(k.Versions)
		for i := range k.Versions {
			if early(k.Versions[i]) {
				k.Versions[i].Destroy = earliest
			}
		}
		t.putKey(&k)
	}
}

func validHistory(h History) error {
	if h.Epoch == 0 || h.Epoch > MaxRecoveryEpoch {
		return invalid("recovery epoch %d: must be 1 to %d", h.Epoch, MaxRecoveryEpoch)
	}
	if h.ID == uuid.Nil {
		return invalid("the id of the new history is missing")
	}
	return nil
}

// Replay is a restricting command of a lost history as it is made again in the present
// one: without the revision that it expected. It is nil if it is not made again, since
// it concerns members of that history, or no state at all, or restricts nothing.
func Replay(c Command) Command {
	switch move := c.(type) {
	case *Repeat, *RemoveNode, *RecoverCluster, *RestoreCluster:
		return nil
	case *CreateGrant, *CancelKeyVersionDestruction: // they permit
		return nil
	case *MoveAlias: // wherever it leads in the present history
		t := move.AliasTarget
		t.Expect = 0
		return &UpdateAlias{t}
	}
	again := reflect.New(reflect.TypeOf(c).Elem())
	again.Elem().Set(reflect.ValueOf(c).Elem())
	for _, name := range []string{"Expect", "ExpectKey"} {
		if expect := again.Elem().FieldByName(name); expect.IsValid() {
			expect.SetZero()
		}
	}
	return again.Interface().(Command)
}

// Steps are the commands by which a replayed restriction is made on a state: itself, as a
// rule. A key that is pending deletion refuses most. In the lost history that may have been
// taken back, which is in no journal, or the command was refused there too: so it is made,
// and the key is pending afterwards as before, for the longest time.
func Steps(s *State, c Command) []Command {
	_, schedules := c.(*ScheduleKeyDeletion)
	if _, err := s.Try(c); schedules || !errors.Is(err, ErrPendingDeletion) {
		return []Command{c}
	}
	id, _ := KeyOf(c)
	k, ok := s.Key(id)
	if !ok {
		return []Command{c}
	}
	ref := KeyRef{ID: k.ID, Tenant: k.Tenant}
	return []Command{&CancelKeyDeletion{ref}, c, &ScheduleKeyDeletion{ref, MaxDeletionDays}}
}

// Instead is what takes the place of a replayed command that was refused, so that what it
// restricted does not come back: what loosened something in the lost history is in no
// journal, and may be what let the command through there. Nil if nothing does.
func Instead(c Command, refused error) Command {
	is := func(sentinels ...error) bool {
		return slices.ContainsFunc(sentinels, func(s error) bool { return errors.Is(refused, s) })
	}
	switch c := c.(type) {
	case *DisableKey: // its material had come, and is missing again
		if is(ErrPendingImport) {
			return &DisableAwaitedKey{c.KeyRef}
		}
	case *SetKeyDecryptOnly:
		if is(ErrPendingImport) {
			return &DisableAwaitedKey{c.KeyRef}
		}
	case *UpdateAlias: // it must not lead to the key again that it was taken from
		return &DeleteAlias{Tenant: c.Tenant, Name: c.Name}
	case *ScheduleKeyDeletion: // it had been protected no longer, or had nothing to protect
		if is(ErrProtected, ErrInUse) {
			return &DisableKey{c.KeyRef}
		}
	case *ScheduleKeyVersionDestruction: // the same, or a later version had been made
		if is(ErrProtected, ErrInUse, ErrVersionCurrent) {
			return &DisableKeyVersion{c.VersionRef}
		}
	}
	return nil
}

// KeyOf is the key that a command is about; ok is false if it is about none.
func KeyOf(c Command) (id ID, ok bool) {
	switch c.(type) {
	case *RecoverCluster, *RestoreCluster: // their ids are of histories
		return ID{}, false
	}
	v := reflect.ValueOf(c).Elem()
	for _, name := range []string{"ID", "Key"} {
		if f := v.FieldByName(name); f.IsValid() && f.Type() == reflect.TypeFor[ID]() && !f.IsZero() {
			return f.Interface().(ID), true
		}
	}
	return ID{}, false
}
