package fsm

import (
	"errors"
	"fmt"
	"testing"
)

// TestCodes pins the names of the sentinels on the wire, and that they survive it.
func TestCodes(t *testing.T) {
	want := map[string]error{
		"INVALID": ErrInvalid, "NOT_FOUND": ErrNotFound, "EXISTS": ErrExists, "DISABLED": ErrDisabled,
		"PENDING_DELETION": ErrPendingDeletion, "NOT_PENDING_DELETION": ErrNotPendingDeletion,
		"UNSUPPORTED": ErrUnsupported, "CONFLICT": ErrConflict, "LIMIT": ErrLimit,
		"REQUEST_REUSED": ErrRequestReused, "TICKET": ErrTicket, "MEMBER": ErrMember,
		"NOT_INITIALIZED": ErrNotInitialized, "RELEASE": ErrRelease, "HALTED": ErrHalted, "PRINCIPAL_DISABLED": ErrPrincipalDisabled,
		"DECRYPT_ONLY": ErrDecryptOnly, "VERSION_DISABLED": ErrVersionDisabled, "VERSION_DESTROYED": ErrVersionDestroyed,
		"VERSION_CURRENT": ErrVersionCurrent,
		"PROTECTED":       ErrProtected, "IN_USE": ErrInUse, "SERVICE_MANAGED": ErrServiceManaged, "FROZEN": ErrFrozen, "GENERATION": ErrGeneration, "MESSAGES": ErrMessages,
		"PENDING_IMPORT": ErrPendingImport, "MATERIAL": ErrMaterial, "IDENTITY": ErrIdentity,
	}
	if len(want) != len(coded) {
		t.Errorf("%d codes, want %d", len(coded), len(want))
	}
	for code, sentinel := range want {
		sent := fmt.Errorf("propose: %w", fmt.Errorf("%w: details", sentinel))
		if got := Code(sent); got != code {
			t.Errorf("code of %q is %q, want %q", sent, got, code)
		}
		received := FromCode(code, sent.Error())
		if received.Error() != sent.Error() {
			t.Errorf("%s: text %q became %q", code, sent, received)
		}
		for otherCode, other := range want {
			if errors.Is(received, other) != (otherCode == code) {
				t.Errorf("%s: received error is %q: %v", code, other, errors.Is(received, other))
			}
		}
	}
}

func TestUnknownCode(t *testing.T) {
	if got := Code(errors.New("disk full")); got != "" {
		t.Errorf("code of a foreign error is %q", got)
	}
	err := FromCode("NEWER_THAN_US", "some text")
	if err == nil || err.Error() != "some text" || Code(err) != "" {
		t.Errorf("unknown code gave %v with code %q", err, Code(err))
	}
}
