package fsm

import "reflect"

// Command is the body of an entry.
type Command interface {
	// validate checks what can be checked without a state; it wraps ErrInvalid.
	validate() error
	apply(t *tx) (Result, error)
}

// Result is what a command that was not refused answers.
type Result struct {
	Index   uint64 `json:"index"`             // log index of the entry
	ID      string `json:"id,omitempty"`      // of what was made or changed
	Version uint32 `json:"version,omitempty"` // current key version afterwards, or the one whose material it is about
}

// Effect says what a command does to what callers may do.
type Effect int

// Restricts is the effect of every command that is not proved purely loosening:
// its call returns only when every node has applied it or has no lease left.
const (
	Restricts Effect = iota
	Loosens
)

// spec is one row of the table of commands.
type spec struct {
	name   string
	since  int // the release it came with
	effect Effect
	make   func() Command
}

// commands is the one table of commands. A row, once released, stays as it is, and
// so do the fields of its command and of the records that it writes: what is new
// comes as a command of a new release.
var commands = []spec{
	{"InitCluster", 1, Loosens, func() Command { return new(InitCluster) }},
	{"Tick", 1, Loosens, func() Command { return new(Tick) }},
	{"Repeat", 1, Restricts, func() Command { return new(Repeat) }},

	{"CreateKey", 1, Loosens, func() Command { return new(CreateKey) }},
	{"UpdateKeyDescription", 1, Loosens, func() Command { return new(UpdateKeyDescription) }},
	{"EnableKey", 1, Loosens, func() Command { return new(EnableKey) }},
	{"DisableKey", 1, Restricts, func() Command { return new(DisableKey) }},
	{"ScheduleKeyDeletion", 1, Restricts, func() Command { return new(ScheduleKeyDeletion) }},
	{"CancelKeyDeletion", 1, Loosens, func() Command { return new(CancelKeyDeletion) }},
	{"RotateKey", 1, Loosens, func() Command { return new(RotateKey) }},
	{"CreateAlias", 1, Restricts, func() Command { return new(CreateAlias) }},
	{"UpdateAlias", 1, Restricts, func() Command { return new(UpdateAlias) }},
	{"DeleteAlias", 1, Restricts, func() Command { return new(DeleteAlias) }},
	{"TagKey", 1, Restricts, func() Command { return new(TagKey) }},
	{"UntagKey", 1, Restricts, func() Command { return new(UntagKey) }},

	{"CreateTicket", 1, Loosens, func() Command { return new(CreateTicket) }},
	{"AdmitNode", 1, Loosens, func() Command { return new(AdmitNode) }},
	{"ActivateNode", 1, Loosens, func() Command { return new(ActivateNode) }},
	{"UpdateMember", 1, Loosens, func() Command { return new(UpdateMember) }},
	{"RemoveNode", 1, Restricts, func() Command { return new(RemoveNode) }},
	{"RetireNode", 1, Loosens, func() Command { return new(RetireNode) }},

	{"RaiseRelease", 1, Loosens, func() Command { return new(RaiseRelease) }},

	{"RecoverCluster", 1, Restricts, func() Command { return new(RecoverCluster) }},
	{"RestoreCluster", 1, Restricts, func() Command { return new(RestoreCluster) }},

	{"SetVoter", 2, Loosens, func() Command { return new(SetVoter) }},

	// Who may join is decided in the log alone: by AdmitNode, which comes behind them.
	{"InviteNode", 2, Loosens, func() Command { return new(InviteNode) }},
	{"RequestJoin", 2, Loosens, func() Command { return new(RequestJoin) }},
	{"ApproveJoin", 2, Loosens, func() Command { return new(ApproveJoin) }},
	{"RejectJoin", 2, Loosens, func() Command { return new(RejectJoin) }},

	{"SetKeyDecryptOnly", 2, Restricts, func() Command { return new(SetKeyDecryptOnly) }},
	{"MoveAlias", 2, Restricts, func() Command { return new(MoveAlias) }},
	{"SetRequiredContext", 2, Restricts, func() Command { return new(SetRequiredContext) }},
	{"DisableKeyVersion", 2, Restricts, func() Command { return new(DisableKeyVersion) }},
	{"EnableKeyVersion", 2, Loosens, func() Command { return new(EnableKeyVersion) }},
	{"ScheduleKeyVersionDestruction", 2, Restricts, func() Command { return new(ScheduleKeyVersionDestruction) }},
	// A version that comes back without its material makes its whole key wait for that.
	{"CancelKeyVersionDestruction", 2, Restricts, func() Command { return new(CancelKeyVersionDestruction) }},
	{"DestroyKeyVersions", 2, Restricts, func() Command { return new(DestroyKeyVersions) }},
	{"DeleteKey", 2, Restricts, func() Command { return new(DeleteKey) }},
	{"RotateKeyOnSchedule", 2, Loosens, func() Command { return new(RotateKeyOnSchedule) }},
	{"CreateServiceKey", 2, Loosens, func() Command { return new(CreateServiceKey) }},
	{"CreateKeyOfSpec", 2, Loosens, func() Command { return new(CreateKeyOfSpec) }},
	{"CreateResidentKey", 2, Loosens, func() Command { return new(CreateResidentKey) }},
	{"ReserveMessages", 2, Loosens, func() Command { return new(ReserveMessages) }},
	{"RotateKeyAtLimit", 2, Loosens, func() Command { return new(RotateKeyAtLimit) }},

	// An import only adds: material that is there is made to end no earlier.
	{"CreateExternalKey", 2, Loosens, func() Command { return new(CreateExternalKey) }},
	{"ImportKeyMaterial", 2, Loosens, func() Command { return new(ImportKeyMaterial) }},
	{"RotateToImported", 2, Loosens, func() Command { return new(RotateToImported) }},
	{"DeleteKeyMaterial", 2, Restricts, func() Command { return new(DeleteKeyMaterial) }},
	{"ExpireKeyMaterial", 2, Restricts, func() Command { return new(ExpireKeyMaterial) }},
	{"DisableAwaitedKey", 2, Restricts, func() Command { return new(DisableAwaitedKey) }},

	{"RecordAuditHeads", 2, Loosens, func() Command { return new(RecordAuditHeads) }},

	// No result is released or withheld because of these: the log alone, which puts
	// commands in order, decides by them.
	{"EnableKeyRotation", 2, Loosens, func() Command { return new(EnableKeyRotation) }},
	{"DisableKeyRotation", 2, Loosens, func() Command { return new(DisableKeyRotation) }},
	{"SetDeletionProtection", 2, Loosens, func() Command { return new(SetDeletionProtection) }},
	{"BindResource", 2, Loosens, func() Command { return new(BindResource) }},
	{"ReleaseResource", 2, Loosens, func() Command { return new(ReleaseResource) }},
	{"RecordUse", 2, Loosens, func() Command { return new(RecordUse) }},
	{"CreateTenant", 2, Loosens, func() Command { return new(CreateTenant) }},
	{"SetTenantQuota", 2, Loosens, func() Command { return new(SetTenantQuota) }},

	// A generation takes nothing from callers: what an earlier one wraps goes on opening,
	// and one that is retired wraps nothing.
	{"ProposeGeneration", 2, Loosens, func() Command { return new(ProposeGeneration) }},
	{"InstallGeneration", 2, Loosens, func() Command { return new(InstallGeneration) }},
	{"ActivateGeneration", 2, Loosens, func() Command { return new(ActivateGeneration) }},
	{"RetireGeneration", 2, Loosens, func() Command { return new(RetireGeneration) }},
	{"BeginRewrap", 2, Loosens, func() Command { return new(BeginRewrap) }},
	{"EndRewrap", 2, Loosens, func() Command { return new(EndRewrap) }},
	{"RewrapKeyVersions", 2, Loosens, func() Command { return new(RewrapKeyVersions) }},

	// Who could recover the domain key decides nothing about a call.
	{"AddRecoveryCopy", 2, Loosens, func() Command { return new(AddRecoveryCopy) }},
	{"ProposeRecipientChange", 2, Loosens, func() Command { return new(ProposeRecipientChange) }},
	{"ApproveRecipientChange", 2, Loosens, func() Command { return new(ApproveRecipientChange) }},
	{"CancelRecipientChange", 2, Loosens, func() Command { return new(CancelRecipientChange) }},
	{"ProposeRecoverySettings", 2, Loosens, func() Command { return new(ProposeRecoverySettings) }},
	{"RecordDrill", 2, Loosens, func() Command { return new(RecordDrill) }},

	{"FreezeTenant", 2, Restricts, func() Command { return new(FreezeTenant) }},
	{"ThawTenant", 2, Loosens, func() Command { return new(ThawTenant) }},
	{"DisablePrincipal", 2, Restricts, func() Command { return new(DisablePrincipal) }},
	{"EnablePrincipal", 2, Loosens, func() Command { return new(EnablePrincipal) }},
	{"PutPolicy", 2, Restricts, func() Command { return new(PutPolicy) }},

	// CreateGrant forbids nothing. Its call waits like a restriction's, so that the grant
	// is usable on every node when it returns, whoever holds it.
	{"CreateGrant", 2, Restricts, func() Command { return new(CreateGrant) }},
	{"RetireGrant", 2, Restricts, func() Command { return new(RetireGrant) }},
	{"RevokeGrant", 2, Restricts, func() Command { return new(RevokeGrant) }},
	{"ExpireGrant", 2, Restricts, func() Command { return new(ExpireGrant) }},
}

// EffectOf tells the effect of a command; an unknown one restricts.
func EffectOf(c Command) Effect {
	if s, ok := lookup(NameOf(c)); ok {
		return s.effect
	}
	return Restricts
}

// WellFormed says what is wrong with a command, whatever the state; it wraps ErrInvalid.
func WellFormed(c Command) error { return c.validate() }

// NameOf is a command's name in entries: its type's name.
func NameOf(c Command) string { return reflect.TypeOf(c).Elem().Name() }

func lookup(name string) (spec, bool) {
	for _, s := range commands {
		if s.name == name {
			return s, true
		}
	}
	return spec{}, false
}
