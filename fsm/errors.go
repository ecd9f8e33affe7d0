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
	ErrNotInitialized     = errors.New("cluster is not initialized")
)

// ErrHalted means: the machine met an entry that it must not apply (a broken MAC, an
// unknown command, a field this release does not know) and applies nothing more.
var ErrHalted = errors.New("state machine halted")

// coded is the one list of sentinels that travel between nodes, with their names
// on the wire.
var coded = []struct {
	code string
	err  error
}{
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
	{"NOT_INITIALIZED", ErrNotInitialized},
	{"HALTED", ErrHalted},
}

// Code names the sentinel that err wraps, for the wire; "" if there is none.
func Code(err error) string {
	for _, c := range coded {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return ""
}

// FromCode restores an error from its code and text, so that errors.Is holds on
// the node that forwarded the command. An unknown code gives an error that wraps
// no sentinel.
func FromCode(code, text string) error {
	for _, c := range coded {
		if c.code == code {
			return &remoteError{text: text, sentinel: c.err}
		}
	}
	return errors.New(text)
}

type remoteError struct {
	text     string
	sentinel error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.sentinel }
