package fsm

import "errors"

// The sentinels every error of a command wraps.
var (
	ErrInvalid            = errors.New("invalid argument")
	ErrNotFound           = errors.New("not found")
	ErrExists             = errors.New("already exists")
	ErrDisabled           = errors.New("key is disabled")
	ErrPendingDeletion    = errors.New("key is pending deletion")
	ErrNotPendingDeletion = errors.New("key is not pending deletion")
	ErrUnsupported        = errors.New("not supported for this kind of key")
	ErrConflict           = errors.New("changed meanwhile")
	ErrLimit              = errors.New("limit reached")
	ErrRequestReused      = errors.New("request id was used for another request")
	ErrTicket             = errors.New("join ticket refused")
	ErrMember             = errors.New("membership refused")
	ErrIdentity           = errors.New("node identity refused")
	ErrNotInitialized     = errors.New("cluster is not initialized")
	ErrRelease            = errors.New("the cluster's release forbids it")
	ErrDecryptOnly        = errors.New("key only decrypts")
	ErrVersionDisabled    = errors.New("key version is disabled")
	ErrVersionDestroyed   = errors.New("key version is destroyed")
	ErrVersionCurrent     = errors.New("key version is the current one")
	ErrProtected          = errors.New("key is protected against deletion")
	ErrInUse              = errors.New("key is in use")
	ErrServiceManaged     = errors.New("key is managed by a service")
	ErrFrozen             = errors.New("tenant is frozen")
	ErrPrincipalDisabled  = errors.New("principal is disabled")
	ErrGeneration         = errors.New("domain key generation refused")
	ErrMessages           = errors.New("key version has encrypted all messages that it may")
	ErrPendingImport      = errors.New("key is pending import")
	ErrMaterial           = errors.New("other key material than was imported before")
)

// ErrHalted means: the machine met an entry that it must not apply (a broken MAC, an
// unknown command, a field this release does not know) and applies nothing more.
var ErrHalted = errors.New("state machine halted")

// Codes is a list of sentinels with their names on the wire.
type Codes []struct {
	Code string
	Err  error
}

// Of names the first sentinel of the list that err wraps; "" if there is none.
func (c Codes) Of(err error) string {
	for _, row := range c {
		if errors.Is(err, row.Err) {
			return row.Code
		}
	}
	return ""
}

// Restore makes an error with a text that wraps the sentinel of a code, so that
// errors.Is holds on the other side of the wire; nil if the list lacks the code.
func (c Codes) Restore(code, text string) error {
	for _, row := range c {
		if row.Code == code {
			return &remoteError{text: text, sentinel: row.Err}
		}
	}
	return nil
}

type remoteError struct {
	text     string
	sentinel error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.sentinel }

var coded = Codes{
	{"INVALID", ErrInvalid},
	{"NOT_FOUND", ErrNotFound},
	{"EXISTS", ErrExists},
	{"DISABLED", ErrDisabled},
	{"PENDING_DELETION", ErrPendingDeletion},
	{"NOT_PENDING_DELETION", ErrNotPendingDeletion},
	{"UNSUPPORTED", ErrUnsupported},
	{"CONFLICT", ErrConflict},
	{"LIMIT", ErrLimit},
	{"REQUEST_REUSED", ErrRequestReused},
	{"TICKET", ErrTicket},
	{"MEMBER", ErrMember},
	{"IDENTITY", ErrIdentity},
	{"NOT_INITIALIZED", ErrNotInitialized},
	{"RELEASE", ErrRelease},
	{"HALTED", ErrHalted},
	{"DECRYPT_ONLY", ErrDecryptOnly},
	{"VERSION_DISABLED", ErrVersionDisabled},
	{"VERSION_DESTROYED", ErrVersionDestroyed},
	{"VERSION_CURRENT", ErrVersionCurrent},
	{"PROTECTED", ErrProtected},
	{"IN_USE", ErrInUse},
	{"SERVICE_MANAGED", ErrServiceManaged},
	{"FROZEN", ErrFrozen},
	{"PRINCIPAL_DISABLED", ErrPrincipalDisabled},
	{"GENERATION", ErrGeneration},
	{"MESSAGES", ErrMessages},
	{"PENDING_IMPORT", ErrPendingImport},
	{"MATERIAL", ErrMaterial},
}

// Code names the sentinel of this package that err wraps; "" if there is none.
func Code(err error) string { return coded.Of(err) }

// FromCode restores an error from its code and text. An unknown code gives an error
// that wraps no sentinel.
func FromCode(code, text string) error {
	if err := coded.Restore(code, text); err != nil {
		return err
	}
	return errors.New(text)
}
