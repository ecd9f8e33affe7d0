package fsm

import (
	"reflect"
	"slices"
	"testing"
)

// TestCommandTable pins the rows: a row, once released, stays as it is.
func TestCommandTable(t *testing.T) {
	type row struct {
		name   string
		since  int
		effect Effect
	}
	want := []row{
		{"InitCluster", 1, Loosens},
		{"Tick", 1, Loosens},
		{"Repeat", 1, Restricts},
		{"CreateKey", 1, Loosens},
		{"UpdateKeyDescription", 1, Loosens},
		{"EnableKey", 1, Loosens},
		{"DisableKey", 1, Restricts},
		{"ScheduleKeyDeletion", 1, Restricts},
		{"CancelKeyDeletion", 1, Loosens},
		{"RotateKey", 1, Loosens},
		{"CreateAlias", 1, Restricts},
		{"UpdateAlias", 1, Restricts},
		{"DeleteAlias", 1, Restricts},
		{"TagKey", 1, Restricts},
		{"UntagKey", 1, Restricts},
		{"CreateTicket", 1, Loosens},
		{"AdmitNode", 1, Loosens},
		{"ActivateNode", 1, Loosens},
		{"UpdateMember", 1, Loosens},
		{"RemoveNode", 1, Restricts},
		{"RetireNode", 1, Loosens},
		{"RaiseRelease", 1, Loosens},
		{"RecoverCluster", 1, Restricts},
		{"RestoreCluster", 1, Restricts},
		{"SetVoter", 2, Loosens},
		{"InviteNode", 2, Loosens},
		{"RequestJoin", 2, Loosens},
		{"ApproveJoin", 2, Loosens},
		{"RejectJoin", 2, Loosens},
		{"SetKeyDecryptOnly", 2, Restricts},
		{"MoveAlias", 2, Restricts},
		{"SetRequiredContext", 2, Restricts},
		{"DisableKeyVersion", 2, Restricts},
		{"EnableKeyVersion", 2, Loosens},
		{"ScheduleKeyVersionDestruction", 2, Restricts},
		{"CancelKeyVersionDestruction", 2, Restricts},
		{"DestroyKeyVersions", 2, Restricts},
		{"DeleteKey", 2, Restricts},
		{"RotateKeyOnSchedule", 2, Loosens},
		{"CreateServiceKey", 2, Loosens},
		{"CreateKeyOfSpec", 2, Loosens},
		{"CreateResidentKey", 2, Loosens},
		{"ReserveMessages", 2, Loosens},
		{"RotateKeyAtLimit", 2, Loosens},
		{"CreateExternalKey", 2, Loosens},
		{"ImportKeyMaterial", 2, Loosens},
		{"RotateToImported", 2, Loosens},
		{"DeleteKeyMaterial", 2, Restricts},
		{"ExpireKeyMaterial", 2, Restricts},
		{"DisableAwaitedKey", 2, Restricts},
		{"RecordAuditHeads", 2, Loosens},
		{"EnableKeyRotation", 2, Loosens},
		{"DisableKeyRotation", 2, Loosens},
		{"SetDeletionProtection", 2, Loosens},
		{"BindResource", 2, Loosens},
		{"ReleaseResource", 2, Loosens},
		{"RecordUse", 2, Loosens},
		{"CreateTenant", 2, Loosens},
		{"SetTenantQuota", 2, Loosens},
		{"ProposeGeneration", 2, Loosens},
		{"InstallGeneration", 2, Loosens},
		{"ActivateGeneration", 2, Loosens},
		{"RetireGeneration", 2, Loosens},
		{"BeginRewrap", 2, Loosens},
		{"EndRewrap", 2, Loosens},
		{"RewrapKeyVersions", 2, Loosens},
		{"AddRecoveryCopy", 2, Loosens},
		{"ProposeRecipientChange", 2, Loosens},
		{"ApproveRecipientChange", 2, Loosens},
		{"CancelRecipientChange", 2, Loosens},
		{"ProposeRecoverySettings", 2, Loosens},
		{"RecordDrill", 2, Loosens},
		{"FreezeTenant", 2, Restricts},
		{"ThawTenant", 2, Loosens},
		{"DisablePrincipal", 2, Restricts},
		{"EnablePrincipal", 2, Loosens},
		{"PutPolicy", 2, Restricts},
		{"CreateGrant", 2, Restricts},
		{"RetireGrant", 2, Restricts},
		{"RevokeGrant", 2, Restricts},
		{"ExpireGrant", 2, Restricts},
	}
	var got []row
	for _, s := range commands {
		got = append(got, row{s.name, s.since, s.effect})
		c := s.make()
		if s.since < FirstRelease || s.since > NewestRelease {
			t.Errorf("row %s is of release %d", s.name, s.since)
		}
		if NameOf(c) != s.name || EffectOf(c) != s.effect {
			t.Errorf("row %s makes a command named %s with effect %v", s.name, NameOf(c), EffectOf(c))
		}
		if reflect.TypeOf(c).Elem().Size() > 0 && c == s.make() { // what has no field may have one address
			t.Errorf("row %s makes the same command twice", s.name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows are\n%v\nwant\n%v", got, want)
	}
}

// strange is a command that no table has.
type strange struct{ Tick }

func TestUnknownCommandRestricts(t *testing.T) {
	if got := EffectOf(&strange{}); got != Restricts {
		t.Errorf("effect %v, want %v", got, Restricts)
	}
}

func TestEncodeEntryRefusesACommandOutsideTheTable(t *testing.T) {
	_, err := EncodeEntry(initialized(t).entry(), &strange{Tick{Hash: make([]byte, 32)}}, logKey())
	wantError(t, err, ErrInvalid, `unknown command "strange"`)
}

// TestNothingBeforeInit: until the first entry every command but one is refused.
func TestNothingBeforeInit(t *testing.T) {
	for _, s := range commands {
		t.Run(s.name, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.apply(w.entry(), s.make())
			if s.name == "InitCluster" {
				wantError(t, err, ErrInvalid, "cluster id is missing")
			} else {
				wantError(t, err, ErrNotInitialized, "cluster is not initialized")
			}
		})
	}
}
