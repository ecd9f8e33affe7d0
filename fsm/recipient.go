package fsm

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
)

// Limits of recovery recipients.
const (
	MaxRecipients    = 8
	MaxRecipientName = 64
	MaxRecipientKey  = 1 << 10 // bytes of a public key
	MaxRecoveryCopy  = 8 << 10 // bytes of a domain key that is wrapped for one
	MaxRecoveryShare = 32      // shares of a recovery key
	MaxApprovals     = 16
	MaxDrillDays     = 3650
	// ChangeSeconds is how long a change of the recipients waits for its approvals.
	ChangeSeconds = 7 * secondsPerDay
	// drillSkew is how far the clock of the machine of a drill may be ahead, in seconds.
	drillSkew = 600
)

// What holds unless an operator has said otherwise at the founding.
const (
	DefaultRequired  = 1  // recipients that hold a generation before it becomes active
	DefaultApprovals = 2  // operators who approve a change of the recipients
	DefaultDrillDays = 90 // after which a drill is old
)

// Recovery is how the domain key is recovered when every partition is lost: who holds
// copies of it, and who may change that.
type Recovery struct {
	Recipients []Recipient      `json:"recipients"` // by name
	Required   int              `json:"required"`   // of them hold a generation before it becomes active
	Approvals  int              `json:"approvals"`  // operators who approve a change
	DrillDays  int              `json:"drill_days"` // after which a drill is old
	Change     *RecipientChange `json:"change,omitempty"`
}

// RecoveryKey is the public half of a recovery key.
type RecoveryKey struct {
	Name      string `json:"name"`
	Kind      string `json:"kind"`      // how its private half is kept: KindShares or KindToken
	SPKI      []byte `json:"spki"`      // opaque here
	Threshold int    `json:"threshold"` // of kind SHARES: people of so many open it
	Shares    int    `json:"shares"`
	// Of kind TOKEN: the hash of OAEP that the token has, and the SPKI of its identity key,
	// which signs the reports of drills.
	OAEPHash uint8  `json:"oaep_hash,omitempty"`
	Identity []byte `json:"identity,omitempty"`
}

// The kinds of recovery keys.
const (
	KindShares = "SHARES" // split among people
	KindToken  = "TOKEN"  // in an HSM token
)

// Recipient is a recovery key that the domain key is wrapped for.
type Recipient struct {
	RecoveryKey
	Added int64  `json:"added"` // unix seconds
	Drill *Drill `json:"drill,omitempty"`
}

// Drill is the last time that a recipient's key was seen to open a backup.
type Drill struct {
	At         int64  `json:"at"`         // unix seconds, as its report says
	Generation uint32 `json:"generation"` // the active one in the backup
	Index      uint64 `json:"index"`      // of the backup
	Backup     []byte `json:"backup"`     // SHA-256 of the backup
	Tokens     uint64 `json:"tokens"`     // key versions in it
	Opened     uint64 `json:"opened"`     // of them
}

// RecipientChange is a change of the recipients, or of the settings of the recovery, that
// waits for approvals.
type RecipientChange struct {
	ID       uint64            `json:"id"` // index of the entry that proposed it
	Add      *RecoveryKey      `json:"add,omitempty"`
	Remove   string            `json:"remove,omitempty"`
	Settings *RecoverySettings `json:"settings,omitempty"`
	Proposed int64             `json:"proposed"` // unix seconds
	Expires  int64             `json:"expires"`  // unix seconds
	By       []string          `json:"by"`       // operators who approve, the proposer first
}

// RecoverySettings are what a change makes of the settings of the recovery; 0 leaves one as
// it is.
type RecoverySettings struct {
	Required  int `json:"required"`
	Approvals int `json:"approvals"`
	DrillDays int `json:"drill_days"`
}

// in is a recovery with the settings.
func (x RecoverySettings) in(r Recovery) Recovery {
	r.Required, r.Approvals, r.DrillDays = cmp.Or(x.Required, r.Required), cmp.Or(x.Approvals, r.Approvals), cmp.Or(x.DrillDays, r.DrillDays)
	return r
}

// RecoveryCopy is a generation of the domain key, wrapped for a recovery recipient. Unlike
// what nodes hand to each other it is in the state, and so in every backup.
type RecoveryCopy struct {
	Generation uint32 `json:"generation"`
	Recipient  string `json:"recipient"`
	Donor      string `json:"donor"`    // raft id of the node that made it
	Identity   []byte `json:"identity"` // of that node's partition: it has signed the message
	Message    []byte `json:"message"`  // opaque here: DKX1
	Created    int64  `json:"created"`  // unix seconds
	Revision   uint64 `json:"revision"`
}

func (k *RecoveryKey) validate() error {
	switch {
	case !ValidName(k.Name):
		return invalid("recovery recipient %.80q: that is no name of 1 to %d characters", k.Name, MaxRecipientName)
	case k.Kind != KindShares && k.Kind != KindToken:
		return invalid("recovery recipient %s is of kind %.40q, this release knows %s and %s", k.Name, k.Kind, KindShares, KindToken)
	case len(k.SPKI) == 0 || len(k.SPKI) > MaxRecipientKey:
		return invalid("public key of recovery recipient %s has %d bytes, must be 1 to %d", k.Name, len(k.SPKI), MaxRecipientKey)
	case k.Kind == KindToken && (k.Threshold != 0 || k.Shares != 0):
		return invalid("recovery recipient %s of kind %s opens with %d of %d shares", k.Name, k.Kind, k.Threshold, k.Shares)
	case k.Kind == KindToken && (k.OAEPHash == 0 || len(k.Identity) == 0 || len(k.Identity) > MaxIdentity):
		return invalid("recovery recipient %s of kind %s: oaep hash %d, node identity key of %d bytes", k.Name, k.Kind, k.OAEPHash, len(k.Identity))
	case k.Kind == KindToken:
		return nil
	case k.OAEPHash != 0 || k.Identity != nil:
		return invalid("recovery recipient %s of kind %s has an oaep hash or a token's identity", k.Name, k.Kind)
	case k.Shares < 1 || k.Shares > MaxRecoveryShare || k.Threshold < 1 || k.Threshold > k.Shares:
		return invalid("recovery recipient %s opens with %d of %d shares", k.Name, k.Threshold, k.Shares)
	}
	return nil
}

// Apart refuses a recovery key that is in the HSM partition of a node: it would be lost with it.
func (k *RecoveryKey) Apart(node string, identity []byte) error {
	if k.Kind == KindToken && bytes.Equal(k.Identity, identity) {
		return fmt.Errorf("%w: the key of recovery recipient %s is in the HSM partition of node %s: it would be lost with it, and must be in another token", ErrIdentity, k.Name, node)
	}
	return nil
}

// sameToken tells whether both keys are in one HSM token.
func (k *RecoveryKey) sameToken(other RecoveryKey) bool {
	return k.Kind == KindToken && other.Kind == KindToken && bytes.Equal(k.Identity, other.Identity)
}

// Recovery is how the domain key is recovered; with the defaults where nothing was said.
// A change that has expired is none.
func (s *State) Recovery() Recovery {
	r := Recovery{Required: DefaultRequired, Approvals: DefaultApprovals, DrillDays: DefaultDrillDays}
	if s.cluster.Recovery != nil {
		r = *s.cluster.Recovery
	}
	if r.Change != nil && r.Change.Expires <= s.now/1e9 {
		r.Change = nil
	}
	return r
}

// Recipient is a recovery recipient by its name.
func (r Recovery) Recipient(name string) (Recipient, bool) {
	i, ok := slices.BinarySearchFunc(r.Recipients, name, func(x Recipient, name string) int { return strings.Compare(x.Name, name) })
	if !ok {
		return Recipient{}, false
	}
	return r.Recipients[i], true
}

// with is the recovery with one recipient more.
func (r Recovery) with(x Recipient) Recovery {
	r.Recipients = append(slices.Clone(r.Recipients), x)
	slices.SortFunc(r.Recipients, func(a, b Recipient) int { return strings.Compare(a.Name, b.Name) })
	return r
}

// RecoveryCopy is a generation as it was wrapped for a recipient.
func (s *State) RecoveryCopy(generation uint32, recipient string) (*RecoveryCopy, bool) {
	return s.copies.tree.Get(&RecoveryCopy{Generation: generation, Recipient: recipient})
}

// RecoveryCopies are the copies of all generations, by number and recipient.
func (s *State) RecoveryCopies() []*RecoveryCopy { return s.copies.all() }

// Uncopied are the recipients that hold no copy of a generation which is not retired.
func (s *State) Uncopied(g Generation) (names []string) {
	if g.Retired() {
		return nil
	}
	for _, r := range s.Recovery().Recipients {
		if !slices.Contains(g.Recipients, r.Name) {
			names = append(names, r.Name)
		}
	}
	return names
}

// RecoveryAlarms say what is wrong with the recovery of the domain key at a moment (unix
// seconds); for people.
func (s *State) RecoveryAlarms(now int64) (alarms []string) {
	if !s.Initialized() {
		return nil
	}
	r := s.Recovery()
	if len(r.Recipients) == 0 {
		return []string{"the domain key has no recovery recipient: if every node's HSM partition is lost, so is all data"}
	}
	for _, g := range s.cluster.Generations {
		if lacking := s.Uncopied(g); len(lacking) > 0 && g.InUse() {
			alarms = append(alarms, fmt.Sprintf("generation %d of the domain key is not wrapped for %s: a Security Officer of a node that holds it must trust that key (kmsd hsm trust --recovery)", g.Number, strings.Join(lacking, ", ")))
		}
	}
	for _, d := range s.OldDrills(now) {
		alarms = append(alarms, d.Text)
	}
	return alarms
}

// OldDrill is a recovery recipient with which nobody has tried a recovery for too long.
type OldDrill struct {
	Recipient string
	Since     int64 // unix seconds: of what should have been followed by a drill
	Text      string
}

// OldDrills are those recipients at a moment (unix seconds), by name.
func (s *State) OldDrills(now int64) (out []OldDrill) {
	r := s.Recovery()
	active, _ := s.ActiveGeneration()
	old := func(since int64) bool { return now-since > int64(r.DrillDays)*secondsPerDay }
	for _, x := range r.Recipients {
		switch d := x.Drill; {
		case d == nil && old(x.Added):
			out = append(out, OldDrill{x.Name, x.Added, fmt.Sprintf("nobody has tried to recover with %s: kmsd recovery verify", x.Name)})
		case d == nil:
		case old(d.At):
			out = append(out, OldDrill{x.Name, d.At, fmt.Sprintf("the last recovery with %s was tried %d days ago: kmsd recovery verify", x.Name, (now-d.At)/secondsPerDay)})
		case d.Generation < active.Number && old(active.Since):
			out = append(out, OldDrill{x.Name, active.Since, fmt.Sprintf("no recovery with %s was tried since generation %d of the domain key is active: kmsd recovery verify", x.Name, active.Number)})
		}
	}
	return out
}

// FirstRecovery is the recovery that a cluster is founded with. It came with release 2.
type FirstRecovery struct {
	Recipients []FirstRecipient `json:"recipients"`
	Required   int              `json:"required"`
	Approvals  int              `json:"approvals"`
	DrillDays  int              `json:"drill_days"`
}

// FirstRecipient is a recipient that a cluster is founded with, and its copy of the first
// generation.
type FirstRecipient struct {
	RecoveryKey
	Message []byte `json:"message"`
}

// Validate says what is wrong with the recovery of a new cluster; copies tells that they
// have been made. It wraps ErrInvalid.
func (f *FirstRecovery) Validate(copies bool) error {
	switch n := len(f.Recipients); {
	case n > MaxRecipients:
		return invalid("%d recovery recipients given, at most %d", n, MaxRecipients)
	case n > 0 && (f.Required < 1 || f.Required > n), n == 0 && (f.Required < 1 || f.Required > MaxRecipients):
		return invalid("%d recovery recipients are to hold each generation: must be 1 to the %d given", f.Required, n)
	case f.Approvals < 1 || f.Approvals > MaxApprovals:
		return invalid("%d operators are to approve a change of the recovery recipients: must be 1 to %d", f.Approvals, MaxApprovals)
	case f.DrillDays < 1 || f.DrillDays > MaxDrillDays:
		return invalid("a recovery is to be tried each %d days: must be 1 to %d", f.DrillDays, MaxDrillDays)
	}
	seen := map[string]bool{}
	for i, x := range f.Recipients {
		if err := x.validate(); err != nil {
			return err
		}
		for _, other := range f.Recipients[:i] {
			if x.sameToken(other.RecoveryKey) {
				return invalid("the keys of recovery recipients %s and %s are in the same token: both would be lost with it", other.Name, x.Name)
			}
		}
		if seen[x.Name] || seen[string(x.SPKI)] {
			return invalid("recovery recipient %s is given twice, or its key is", x.Name)
		}
		seen[x.Name], seen[string(x.SPKI)] = true, true
		if copies {
			if err := validMessage(x.Message); err != nil {
				return err
			}
		}
	}
	return nil
}

func validMessage(m []byte) error {
	if len(m) == 0 || len(m) > MaxRecoveryCopy {
		return invalid("recovery copy has %d bytes, must be 1 to %d", len(m), MaxRecoveryCopy)
	}
	return nil
}

// found puts the recovery of a new cluster into it, with the copies of its first generation.
func (t *tx) found(c *Cluster, init *InitCluster) {
	f := init.Recovery
	if f == nil {
		return
	}
	r := Recovery{Required: f.Required, Approvals: f.Approvals, DrillDays: f.DrillDays}
	first := &c.Generations[0]
	for _, x := range f.Recipients {
		r = r.with(Recipient{RecoveryKey: x.RecoveryKey, Added: c.Created})
		first.Recipients = append(first.Recipients, x.Name)
		t.putCopy(&RecoveryCopy{
			Generation: first.Number, Recipient: x.Name, Donor: init.Node, Identity: init.Identity, Message: x.Message, Created: c.Created,
		})
	}
	slices.Sort(first.Recipients)
	c.Recovery = &r
}

// AddRecoveryCopy records a generation that a node has wrapped for a recipient. It changes
// nothing if the recipient has a copy.
type AddRecoveryCopy struct {
	Generation uint32 `json:"generation"`
	Recipient  string `json:"recipient"`
	Key        []byte `json:"key"`  // SHA-256 of the recovery key that it is wrapped for, 32 bytes
	Node       string `json:"node"` // raft id of the node that made it
	Message    []byte `json:"message"`
}

func (c *AddRecoveryCopy) validate() error {
	if err := validMessage(c.Message); err != nil {
		return err
	}
	return validRaftID(c.Node)
}

func (c *AddRecoveryCopy) apply(t *tx) (Result, error) {
	r, err := t.s.recipientWith(c.Recipient, c.Key)
	if err != nil {
		return Result{}, err
	}
	node, ok := t.s.Member(c.Node)
	switch {
	case !ok || !node.Serves():
		return Result{}, fmt.Errorf("%w: %s is no active member", ErrMember, c.Node)
	case t.entry.Proposer != c.Node: // its identity key, as it is registered, has signed
		return Result{}, fmt.Errorf("%w: node %s cannot bring a recovery copy that %s has made", ErrMember, t.entry.Proposer, c.Node)
	}
	return t.changeGeneration(c.Generation, func(g *Generation) error {
		at, there := slices.BinarySearch(g.Recipients, r.Name)
		switch {
		case g.Retired():
			return fmt.Errorf("%w: generation %d is retired", ErrGeneration, g.Number)
		case !there:
			g.Recipients = slices.Insert(slices.Clone(g.Recipients), at, r.Name)
			t.putCopy(&RecoveryCopy{
				Generation: g.Number, Recipient: r.Name, Donor: node.ID, Identity: node.Identity, Message: c.Message, Created: t.seconds(),
			})
		}
		return nil
	})
}

// recipientWith is a recipient by its name and the SHA-256 of its key.
func (s *State) recipientWith(name string, key []byte) (Recipient, error) {
	r, ok := s.Recovery().Recipient(name)
	if !ok {
		return r, fmt.Errorf("%w: recovery recipient %.80q", ErrNotFound, name)
	}
	if sum := sha256.Sum256(r.SPKI); !bytes.Equal(sum[:], key) {
		return r, fmt.Errorf("%w: recovery recipient %s has another key", ErrConflict, name)
	}
	return r, nil
}

// ProposeRecipientChange asks for one recipient more or less. It counts as the first
// approval, and is done at once if no other is needed.
type ProposeRecipientChange struct {
	Add    *RecoveryKey `json:"add"`    // or
	Remove string       `json:"remove"` // a recipient's name
}

func (c *ProposeRecipientChange) validate() error {
	if (c.Add == nil) == (c.Remove == "") {
		return invalid("a change adds one recovery recipient, or removes one")
	}
	if c.Add != nil {
		return c.Add.validate()
	}
	return nil
}

func (c *ProposeRecipientChange) apply(t *tx) (Result, error) {
	return t.propose(&RecipientChange{Add: c.Add, Remove: c.Remove})
}

// propose has a change wait for its approvals, of which the proposer's is the first.
func (t *tx) propose(change *RecipientChange) (Result, error) {
	r := t.s.Recovery()
	if open := r.Change; open != nil {
		return Result{}, fmt.Errorf("%w: change %d of the recovery recipients waits for approvals: approve it or cancel it first", ErrExists, open.ID)
	}
	change.ID, change.Proposed, change.Expires, change.By = t.s.index, t.seconds(), t.seconds()+ChangeSeconds, []string{t.entry.Principal}
	if err := t.s.possible(r, change); err != nil {
		return Result{}, err
	}
	return t.approved(r, change)
}

// ProposeRecoverySettings asks for other settings of the recovery, in the way of
// ProposeRecipientChange: what is in force before says how many operators approve it.
type ProposeRecoverySettings struct {
	RecoverySettings
}

func (c *ProposeRecoverySettings) validate() error {
	switch {
	case c.RecoverySettings == RecoverySettings{}:
		return invalid("no setting of the recovery is named")
	case c.Required < 0 || c.Required > MaxRecipients:
		return invalid("%d recovery recipients are to hold each generation: must be 1 to %d", c.Required, MaxRecipients)
	case c.Approvals < 0 || c.Approvals > MaxApprovals:
		return invalid("%d operators are to approve a change of the recovery recipients: must be 1 to %d", c.Approvals, MaxApprovals)
	case c.DrillDays < 0 || c.DrillDays > MaxDrillDays:
		return invalid("a recovery is to be tried each %d days: must be 1 to %d", c.DrillDays, MaxDrillDays)
	}
	return nil
}

func (c *ProposeRecoverySettings) apply(t *tx) (Result, error) {
	return t.propose(&RecipientChange{Settings: &c.RecoverySettings})
}

// settable says why other settings are refused, if so.
func (x RecoverySettings) settable(r Recovery) error {
	then := x.in(r)
	switch n := len(r.Recipients); {
	case then.Required == r.Required && then.Approvals == r.Approvals && then.DrillDays == r.DrillDays:
		return fmt.Errorf("%w: the settings of the recovery are these already", ErrExists)
	case x.Required > n:
		return fmt.Errorf("%w: %d recovery recipients would have to hold each generation, there are %d: add another first", ErrGeneration, x.Required, n)
	}
	return nil
}

// possible says why a change cannot be made, if so.
func (s *State) possible(r Recovery, c *RecipientChange) error {
	if c.Settings != nil {
		return c.Settings.settable(r)
	}
	if c.Add == nil {
		if _, ok := r.Recipient(c.Remove); !ok {
			return fmt.Errorf("%w: recovery recipient %.80q", ErrNotFound, c.Remove)
		}
		if n := len(r.Recipients) - 1; n < r.Required {
			return fmt.Errorf("%w: %d recovery recipients would be left, %d must hold each generation: add another first", ErrGeneration, n, r.Required)
		}
		return s.keepsCopies(r, c.Remove)
	}
	if p := s.cluster.TransferProfile(); p != ProfileGeneric {
		return fmt.Errorf("%w: in the transfer profile %s nothing wraps the domain key for a recovery key: the HSM vendor's backup recovers it", ErrGeneration, p)
	}
	for _, m := range s.Members() {
		if err := c.Add.Apart(m.ID, m.Identity); m.Alive() && err != nil {
			return err
		}
	}
	for _, x := range r.Recipients {
		if x.Name == c.Add.Name || bytes.Equal(x.SPKI, c.Add.SPKI) {
			return fmt.Errorf("%w: recovery recipient %s has that name or key", ErrExists, x.Name)
		}
		if x.sameToken(*c.Add) {
			return fmt.Errorf("%w: the key of recovery recipient %s is in the same token: both would be lost with it", ErrExists, x.Name)
		}
	}
	if len(r.Recipients) >= MaxRecipients {
		return fmt.Errorf("%w: the cluster has %d recovery recipients", ErrLimit, len(r.Recipients))
	}
	return nil
}

// keepsCopies refuses to let go of a recipient whose copy of a generation in use is one of
// those that must be: a recipient without a copy does not stand in for it.
func (s *State) keepsCopies(r Recovery, name string) error {
	for _, g := range s.cluster.Generations {
		if !g.InUse() || !slices.Contains(g.Recipients, name) {
			continue
		}
		must := r.Required
		if g.NoRecovery || len(g.Recipients) < must { // it has never had as many: the last one stays
			must = 1
		}
		if n := len(g.Recipients) - 1; n < must {
			return fmt.Errorf("%w: %d recovery recipients would hold generation %d, %d must: have it wrapped for another first", ErrGeneration, n, g.Number, must)
		}
	}
	return nil
}

// ApproveRecipientChange is one operator's approval of a change; the last one that it needs
// makes it.
type ApproveRecipientChange struct {
	Change uint64 `json:"change"`
}

func (c *ApproveRecipientChange) validate() error { return nil }

func (c *ApproveRecipientChange) apply(t *tx) (Result, error) {
	r, err := t.s.openChange(c.Change)
	if err != nil {
		return Result{}, err
	}
	change := *r.Change
	if slices.Contains(change.By, t.entry.Principal) {
		return Result{}, fmt.Errorf("%w: %s has approved change %d already: another operator must", ErrExists, t.entry.Principal, c.Change)
	}
	if err := t.s.possible(r, &change); err != nil {
		return Result{}, err
	}
	change.By = append(slices.Clone(change.By), t.entry.Principal)
	return t.approved(r, &change)
}

// openChange is the recovery with the change of an id that waits in it.
func (s *State) openChange(id uint64) (Recovery, error) {
	r := s.Recovery()
	if r.Change == nil || r.Change.ID != id {
		return r, fmt.Errorf("%w: no change %d of the recovery recipients waits for approvals: it was made, cancelled, or has expired", ErrNotFound, id)
	}
	return r, nil
}

// approved makes a change if enough operators approve it who are not disabled since, and
// lets it wait otherwise.
func (t *tx) approved(r Recovery, change *RecipientChange) (Result, error) {
	approvals := 0
	for _, p := range change.By {
		if _, off := t.s.Disabled(p); !off {
			approvals++
		}
	}
	cluster := t.s.cluster
	waits := approvals < r.Approvals
	if r.Change = nil; waits {
		r.Change = change
	}
	switch {
	case waits:
	case change.Settings != nil:
		r = change.Settings.in(r)
	case change.Add != nil:
		r = r.with(Recipient{RecoveryKey: *change.Add, Added: t.seconds()})
	default:
		r = t.without(&cluster, r, change.Remove)
	}
	cluster.Recovery = &r
	t.putCluster(cluster)
	result := Result{ID: fmt.Sprint(change.ID)}
	if !waits {
		result.Version = ChangeMade
	}
	return result, nil
}

// ChangeMade is the Version in the result of what made a change; it is 0 where more approvals
// are waited for.
const ChangeMade = 1

// without removes a recipient, and the copies that were made for it.
func (t *tx) without(c *Cluster, r Recovery, name string) Recovery {
	named := func(x Recipient) bool { return x.Name == name }
	r.Recipients = slices.DeleteFunc(slices.Clone(r.Recipients), named)
	c.Generations = slices.Clone(c.Generations)
	for i := range c.Generations {
		g := &c.Generations[i]
		if x, ok := t.s.RecoveryCopy(g.Number, name); ok {
			t.dropCopy(x)
			g.Recipients = slices.DeleteFunc(slices.Clone(g.Recipients), func(n string) bool { return n == name })
		}
	}
	return r
}

// CancelRecipientChange gives a change up.
type CancelRecipientChange struct {
	Change uint64 `json:"change"`
}

func (c *CancelRecipientChange) validate() error { return nil }

func (c *CancelRecipientChange) apply(t *tx) (Result, error) {
	r, err := t.s.openChange(c.Change)
	if err != nil {
		return Result{}, err
	}
	r.Change = nil
	cluster := t.s.cluster
	cluster.Recovery = &r
	t.putCluster(cluster)
	return Result{ID: fmt.Sprint(c.Change)}, nil
}

// RecordDrill records that a recipient's key has opened a backup.
type RecordDrill struct {
	Recipient string `json:"recipient"`
	Key       []byte `json:"key"` // SHA-256 of the recovery key, 32 bytes
	Drill     Drill  `json:"drill"`
}

func (c *RecordDrill) validate() error {
	if d := c.Drill; len(d.Backup) != 32 || d.At <= 0 || d.Opened > d.Tokens {
		return invalid("a drill at %d that opened %d of %d key versions, of a backup with a hash of %d bytes", d.At, d.Opened, d.Tokens, len(d.Backup))
	}
	return nil
}

func (c *RecordDrill) apply(t *tx) (Result, error) {
	x, err := t.s.recipientWith(c.Recipient, c.Key)
	if err != nil {
		return Result{}, err
	}
	if _, ok := t.s.Generation(c.Drill.Generation); !ok {
		return Result{}, fmt.Errorf("%w: domain key generation %d", ErrNotFound, c.Drill.Generation)
	}
	switch last := cmp.Or(x.Drill, &Drill{}); {
	case c.Drill.At > t.seconds()+drillSkew:
		return Result{}, invalid("the report is dated %d s in the future", c.Drill.At-t.seconds())
	case c.Drill.At <= last.At:
		return Result{}, fmt.Errorf("%w: a report of the same time or a later one is recorded", ErrExists)
	}
	r := t.s.Recovery()
	r.Recipients = slices.Clone(r.Recipients)
	for i := range r.Recipients {
		if r.Recipients[i].Name == x.Name {
			r.Recipients[i].Drill = &c.Drill
		}
	}
	cluster := t.s.cluster
	cluster.Recovery = &r
	t.putCluster(cluster)
	return Result{ID: x.Name}, nil
}

// checkRecovery: generations name the recipients that have their copies, and no others.
func (s *State) checkRecovery() error {
	r := s.Recovery()
	for i, x := range r.Recipients {
		if err := x.validate(); err != nil {
			return err
		}
		if i > 0 && x.Name <= r.Recipients[i-1].Name {
			return fmt.Errorf("recovery recipient %s follows %s", x.Name, r.Recipients[i-1].Name)
		}
	}
	named := 0
	for _, g := range s.cluster.Generations {
		named += len(g.Recipients)
		for _, name := range g.Recipients {
			if _, ok := s.RecoveryCopy(g.Number, name); !ok {
				return fmt.Errorf("recovery recipient %s has no copy of generation %d", name, g.Number)
			}
			if _, ok := r.Recipient(name); !ok {
				return fmt.Errorf("generation %d names recovery recipient %s, which is none", g.Number, name)
			}
		}
	}
	if n := s.copies.len(); n != named {
		return fmt.Errorf("%d recovery copies, %d are named by generations", n, named)
	}
	return nil
}
