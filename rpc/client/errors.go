package client

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	errorDomain   = "quorumkms" // of google.rpc.ErrorInfo
	reasonPrefix  = "REASON_"
	nodesMetadata = "nodes"
	retryMetadata = "retry_after_ms"

	maxRetryAfter = time.Hour // what a node may say
)

// reason is the sentinel of a Reason.
type reason quorumkmsv1.Reason

func (r reason) Error() string {
	return "kms: " + strings.ToLower(strings.ReplaceAll(r.name(), "_", " "))
}

func (r reason) name() string {
	return strings.TrimPrefix(quorumkmsv1.Reason(r).String(), reasonPrefix)
}

// The sentinels, one for each Reason of the protocol: errors.Is tells whether a
// call failed for it.
var (
	ErrInvalid               error = reason(quorumkmsv1.Reason_REASON_INVALID)
	ErrMalformedCiphertext   error = reason(quorumkmsv1.Reason_REASON_MALFORMED_CIPHERTEXT)
	ErrInvalidCiphertext     error = reason(quorumkmsv1.Reason_REASON_INVALID_CIPHERTEXT)
	ErrInvalidSignature      error = reason(quorumkmsv1.Reason_REASON_INVALID_SIGNATURE)
	ErrInvalidMac            error = reason(quorumkmsv1.Reason_REASON_INVALID_MAC)
	ErrRequestIDReused       error = reason(quorumkmsv1.Reason_REASON_REQUEST_ID_REUSED)
	ErrNoCertificate         error = reason(quorumkmsv1.Reason_REASON_NO_CERTIFICATE)
	ErrDenied                error = reason(quorumkmsv1.Reason_REASON_DENIED)
	ErrPrincipalDisabled     error = reason(quorumkmsv1.Reason_REASON_PRINCIPAL_DISABLED)
	ErrNotFound              error = reason(quorumkmsv1.Reason_REASON_NOT_FOUND)
	ErrExists                error = reason(quorumkmsv1.Reason_REASON_EXISTS)
	ErrKeyDisabled           error = reason(quorumkmsv1.Reason_REASON_KEY_DISABLED)
	ErrKeyPendingDeletion    error = reason(quorumkmsv1.Reason_REASON_KEY_PENDING_DELETION)
	ErrKeyNotPendingDeletion error = reason(quorumkmsv1.Reason_REASON_KEY_NOT_PENDING_DELETION)
	ErrUnsupported           error = reason(quorumkmsv1.Reason_REASON_UNSUPPORTED)
	ErrNotInitialized        error = reason(quorumkmsv1.Reason_REASON_NOT_INITIALIZED)
	ErrAlreadyInitialized    error = reason(quorumkmsv1.Reason_REASON_ALREADY_INITIALIZED)
	ErrTicketRefused         error = reason(quorumkmsv1.Reason_REASON_TICKET_REFUSED)
	ErrMembershipRefused     error = reason(quorumkmsv1.Reason_REASON_MEMBERSHIP_REFUSED)
	ErrNotTrusted            error = reason(quorumkmsv1.Reason_REASON_NOT_TRUSTED)
	ErrKeyMaterialCorrupt    error = reason(quorumkmsv1.Reason_REASON_KEY_MATERIAL_CORRUPT)
	ErrDryRun                error = reason(quorumkmsv1.Reason_REASON_DRY_RUN)
	ErrKeyDecryptOnly        error = reason(quorumkmsv1.Reason_REASON_KEY_DECRYPT_ONLY)
	ErrKeyVersionDisabled    error = reason(quorumkmsv1.Reason_REASON_KEY_VERSION_DISABLED)
	ErrKeyVersionDestroyed   error = reason(quorumkmsv1.Reason_REASON_KEY_VERSION_DESTROYED)
	ErrKeyVersionCurrent     error = reason(quorumkmsv1.Reason_REASON_KEY_VERSION_CURRENT)
	ErrKeyProtected          error = reason(quorumkmsv1.Reason_REASON_KEY_PROTECTED)
	ErrRelease               error = reason(quorumkmsv1.Reason_REASON_RELEASE)
	ErrKeyInUse              error = reason(quorumkmsv1.Reason_REASON_KEY_IN_USE)
	ErrServiceManaged        error = reason(quorumkmsv1.Reason_REASON_KEY_SERVICE_MANAGED)
	ErrTenantFrozen          error = reason(quorumkmsv1.Reason_REASON_TENANT_FROZEN)
	ErrPolicyInvalid         error = reason(quorumkmsv1.Reason_REASON_POLICY_INVALID)
	ErrPolicyLockout         error = reason(quorumkmsv1.Reason_REASON_POLICY_LOCKOUT)
	ErrGenerationRefused     error = reason(quorumkmsv1.Reason_REASON_GENERATION_REFUSED)
	ErrMessagesExhausted     error = reason(quorumkmsv1.Reason_REASON_KEY_MESSAGES_EXHAUSTED)
	ErrMessagesNotReserved   error = reason(quorumkmsv1.Reason_REASON_MESSAGES_NOT_RESERVED)
	ErrKeyPendingImport      error = reason(quorumkmsv1.Reason_REASON_KEY_PENDING_IMPORT)
	ErrImportTokenRefused    error = reason(quorumkmsv1.Reason_REASON_IMPORT_TOKEN_REFUSED)
	ErrInvalidKeyMaterial    error = reason(quorumkmsv1.Reason_REASON_INVALID_KEY_MATERIAL)
	ErrKeyMaterialDiffers    error = reason(quorumkmsv1.Reason_REASON_KEY_MATERIAL_DIFFERS)
	ErrIdentityRefused       error = reason(quorumkmsv1.Reason_REASON_IDENTITY_REFUSED)
	ErrProfileRefused        error = reason(quorumkmsv1.Reason_REASON_PROFILE_REFUSED)
	ErrConflict              error = reason(quorumkmsv1.Reason_REASON_CONFLICT)
	ErrLimit                 error = reason(quorumkmsv1.Reason_REASON_LIMIT)
	ErrBusy                  error = reason(quorumkmsv1.Reason_REASON_BUSY)
	// ErrRateLimited: Error.RetryAfter says how long to wait. The client has waited and
	// tried again, as long as the call's time and its patience allowed.
	ErrRateLimited    error = reason(quorumkmsv1.Reason_REASON_RATE_LIMITED)
	ErrNoLeader       error = reason(quorumkmsv1.Reason_REASON_NO_LEADER)
	ErrNoLease        error = reason(quorumkmsv1.Reason_REASON_NO_LEASE)
	ErrHSMUnavailable error = reason(quorumkmsv1.Reason_REASON_HSM_UNAVAILABLE)
	// ErrOutcomeUnknown means: the mutation may have taken effect or not. It is also what
	// a mutation ends with that no node answered conclusively after a request had
	// been sent. Repeat it with the same request id.
	ErrOutcomeUnknown   error = reason(quorumkmsv1.Reason_REASON_OUTCOME_UNKNOWN)
	ErrBehind           error = reason(quorumkmsv1.Reason_REASON_BEHIND)
	ErrShuttingDown     error = reason(quorumkmsv1.Reason_REASON_SHUTTING_DOWN)
	ErrAuditUnavailable error = reason(quorumkmsv1.Reason_REASON_AUDIT_UNAVAILABLE)
	// ErrKeyNotOpened means: nothing was made; too few nodes' HSMs have opened the new key.
	ErrKeyNotOpened error = reason(quorumkmsv1.Reason_REASON_KEY_NOT_OPENED)
)

var (
	// ErrServerRefused means: what answers at an address did not prove to be a node of
	// the trust domain.
	ErrServerRefused = errors.New("client: server refused")
	// ErrClientRefused means: a node refused the handshake, as a rule for the client's
	// certificate.
	ErrClientRefused = errors.New("client: refused by the server")
	// ErrClosed means: the client has been closed.
	ErrClosed = errors.New("client: closed")
)

// Error is a call's failure as a node answered it, or, with the code Unavailable
// or DeadlineExceeded and no reason, that of reaching the node. errors.Is finds
// the sentinel of its reason. Where nodes refuse the client because its certificate
// has expired, the code is Unauthenticated and the text says so.
//
// A call that ran out of time wraps context.DeadlineExceeded beside the last
// Error there was, one that was cancelled context.Canceled.
type Error struct {
	Address string // of the node
	Code    codes.Code
	Reason  quorumkmsv1.Reason // REASON_UNSPECIFIED if the node gave none that this release knows
	Message string
	Nodes   []string // addresses of other nodes, where the answer named some
	// RetryAfter is how long a caller that is limited is to wait; zero if the node did not say.
	RetryAfter time.Duration

	cause error // ErrServerRefused, ErrClientRefused or nil
}

// Error implements error.
func (e *Error) Error() string {
	name := e.Code.String()
	if e.Reason != quorumkmsv1.Reason_REASON_UNSPECIFIED {
		name = reason(e.Reason).name()
	}
	return fmt.Sprintf("%s: %s: %s", e.Address, name, e.Message)
}

// Is reports whether target is the sentinel of the reason.
func (e *Error) Is(target error) bool {
	r, ok := target.(reason)
	return ok && quorumkmsv1.Reason(r) == e.Reason
}

// Unwrap returns what the connection failed of, if it was a refusal.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus makes status.Code work on the error.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// newError reads what gRPC returned for a call to address.
func newError(address string, err error) *Error {
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	e := &Error{Address: address, Code: s.Code(), Message: plain(s.Message())}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			e.Reason = quorumkmsv1.Reason(quorumkmsv1.Reason_value[reasonPrefix+info.GetReason()])
			e.Nodes = splitNodes(info.GetMetadata()[nodesMetadata])
			e.RetryAfter = parseRetryAfter(info.GetMetadata()[retryMetadata])
		}
	}
	return e
}

// plain takes the wrapping off what gRPC says of a connection that failed.
func plain(message string) string {
	quoted, ok := strings.CutPrefix(message, "connection error: desc = ")
	if !ok {
		return message
	}
	text, err := strconv.Unquote(quoted)
	if err != nil {
		return message
	}
	return strings.TrimPrefix(text, "transport: ")
}

func splitNodes(list string) []string {
	var nodes []string
	for a := range strings.SplitSeq(list, ",") {
		if a = strings.TrimSpace(a); a != "" && len(nodes) < MaxAddresses {
			nodes = append(nodes, a)
		}
	}
	return nodes
}

// parseRetryAfter reads milliseconds; what is none gives zero.
func parseRetryAfter(ms string) time.Duration {
	n, err := strconv.ParseUint(ms, 10, 63)
	if err != nil {
		return 0
	}
	return time.Duration(min(n, uint64(maxRetryAfter/time.Millisecond))) * time.Millisecond
}

// transient reports whether another node, or the same one later, may answer
// otherwise.
func (e *Error) transient() bool {
	switch e.Code {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	case codes.ResourceExhausted:
		return e.busy()
	case codes.FailedPrecondition:
		return e.noMember()
	default:
		return false
	}
}

// noMember reports whether the node belongs to no cluster, such as one that is being
// made anew.
func (e *Error) noMember() bool {
	return e.Reason == quorumkmsv1.Reason_REASON_NOT_INITIALIZED
}

func (e *Error) busy() bool { return e.Reason == quorumkmsv1.Reason_REASON_BUSY }

// limited reports whether the caller asks too often: another node would say the same.
func (e *Error) limited() bool { return e.Reason == quorumkmsv1.Reason_REASON_RATE_LIMITED }

// refused reports whether the nodes and the client do not accept each other, or the
// node belongs to no cluster: no repetition changes that.
func (e *Error) refused() bool { return e.cause != nil || e.noMember() }

// explained says why the nodes refuse the client where the client can tell: its
// certificate has expired, or is not valid yet.
func (e *Error) explained(files *reloader) *Error {
	why := files.outdated(time.Now())
	if why == "" {
		return e
	}
	told := *e
	told.Code, told.Message = codes.Unauthenticated, why
	return &told
}

// withoutEffect reports whether the node said that the call did nothing. What fails
// for the audit may have been done.
func (e *Error) withoutEffect() bool {
	switch e.Reason {
	case quorumkmsv1.Reason_REASON_NO_LEADER,
		quorumkmsv1.Reason_REASON_NO_LEASE,
		quorumkmsv1.Reason_REASON_HSM_UNAVAILABLE,
		quorumkmsv1.Reason_REASON_BEHIND,
		quorumkmsv1.Reason_REASON_SHUTTING_DOWN,
		quorumkmsv1.Reason_REASON_NOT_INITIALIZED,
		quorumkmsv1.Reason_REASON_BUSY,
		quorumkmsv1.Reason_REASON_RATE_LIMITED:
		return true
	default:
		return false
	}
}

// outOfTime is the failure of a call that ended with ctx; last may be nil.
func outOfTime(ctx context.Context, last *Error) error {
	if last == nil {
		return fmt.Errorf("client: %w", ctx.Err())
	}
	return fmt.Errorf("client: %w; last: %w", ctx.Err(), last)
}
