package rpc

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/node/kms/limit"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
	"github.com/quorumkms/quorumkms/rpc/client/recovery"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// errorDomain is ErrorInfo's domain.
const errorDomain = "quorumkms"

var errNoCertificate = errors.New("no client certificate: this service knows callers by their certificates only")

// table is the one table from sentinels to codes and reasons. The first row that
// fits is taken, so what is more specific stands higher.
var table = []struct {
	err    error
	code   codes.Code
	reason pb.Reason
}{
	{errNoCertificate, codes.Unauthenticated, pb.Reason_REASON_NO_CERTIFICATE},
	{kms.ErrDryRun, codes.FailedPrecondition, pb.Reason_REASON_DRY_RUN},
	{audit.ErrUnavailable, codes.Unavailable, pb.Reason_REASON_AUDIT_UNAVAILABLE},
	{errSeats, codes.ResourceExhausted, pb.Reason_REASON_BUSY},
	{audit.ErrMoved, codes.ResourceExhausted, pb.Reason_REASON_BUSY},
	{trail.ErrSealed, codes.FailedPrecondition, pb.Reason_REASON_AUDIT_UNAVAILABLE},
	{trail.ErrTrail, codes.Unavailable, pb.Reason_REASON_AUDIT_UNAVAILABLE},
	{kms.ErrMalformed, codes.InvalidArgument, pb.Reason_REASON_MALFORMED_CIPHERTEXT},
	{kms.ErrCiphertext, codes.InvalidArgument, pb.Reason_REASON_INVALID_CIPHERTEXT},
	{kms.ErrImportToken, codes.FailedPrecondition, pb.Reason_REASON_IMPORT_TOKEN_REFUSED},
	{kms.ErrKeyMaterial, codes.InvalidArgument, pb.Reason_REASON_INVALID_KEY_MATERIAL},
	{kms.ErrSignature, codes.InvalidArgument, pb.Reason_REASON_INVALID_SIGNATURE},
	{kms.ErrMac, codes.InvalidArgument, pb.Reason_REASON_INVALID_MAC},
	{limit.ErrExceeded, codes.ResourceExhausted, pb.Reason_REASON_RATE_LIMITED},
	{kms.ErrPolicy, codes.InvalidArgument, pb.Reason_REASON_POLICY_INVALID},
	{kms.ErrLockout, codes.FailedPrecondition, pb.Reason_REASON_POLICY_LOCKOUT},
	{fsm.ErrPrincipalDisabled, codes.PermissionDenied, pb.Reason_REASON_PRINCIPAL_DISABLED},
	{kms.ErrDenied, codes.PermissionDenied, pb.Reason_REASON_DENIED},
	{kms.ErrReservation, codes.Unavailable, pb.Reason_REASON_MESSAGES_NOT_RESERVED},
	{kms.ErrBehind, codes.Unavailable, pb.Reason_REASON_BEHIND},

	{cluster.ErrUnopened, codes.Unavailable, pb.Reason_REASON_KEY_NOT_OPENED},
	{cluster.ErrOutcomeUnknown, codes.Unavailable, pb.Reason_REASON_OUTCOME_UNKNOWN},
	{cluster.ErrNoLease, codes.Unavailable, pb.Reason_REASON_NO_LEASE},
	{cluster.ErrDiverged, codes.Unavailable, pb.Reason_REASON_NO_LEASE},
	{cluster.ErrRemoved, codes.Unavailable, pb.Reason_REASON_NO_LEASE},
	{cluster.ErrNoLeader, codes.Unavailable, pb.Reason_REASON_NO_LEADER},
	{cluster.ErrBusy, codes.ResourceExhausted, pb.Reason_REASON_BUSY},
	{cluster.ErrShutdown, codes.Unavailable, pb.Reason_REASON_SHUTTING_DOWN},
	{cluster.ErrInitialized, codes.FailedPrecondition, pb.Reason_REASON_ALREADY_INITIALIZED},
	{cluster.ErrProfile, codes.FailedPrecondition, pb.Reason_REASON_PROFILE_REFUSED},
	{fsm.ErrIdentity, codes.FailedPrecondition, pb.Reason_REASON_IDENTITY_REFUSED},
	{cluster.ErrRecovery, codes.FailedPrecondition, pb.Reason_REASON_MEMBERSHIP_REFUSED},
	{cluster.ErrJoin, codes.FailedPrecondition, pb.Reason_REASON_MEMBERSHIP_REFUSED},

	{archive.ErrBusy, codes.ResourceExhausted, pb.Reason_REASON_BUSY},
	{backup.ErrRefused, codes.InvalidArgument, pb.Reason_REASON_INVALID},
	{recovery.ErrRefused, codes.InvalidArgument, pb.Reason_REASON_INVALID},
	{archive.ErrJournal, codes.InvalidArgument, pb.Reason_REASON_INVALID},
	{fsm.ErrSnapshot, codes.InvalidArgument, pb.Reason_REASON_INVALID},

	{hsm.ErrWrongAnswer, codes.Unavailable, pb.Reason_REASON_HSM_UNAVAILABLE},
	{hsm.ErrCorrupt, codes.FailedPrecondition, pb.Reason_REASON_KEY_MATERIAL_CORRUPT},
	{hsm.ErrUnsupported, codes.FailedPrecondition, pb.Reason_REASON_UNSUPPORTED},
	{hsm.ErrBusy, codes.ResourceExhausted, pb.Reason_REASON_BUSY},
	{hsm.ErrNotTrusted, codes.FailedPrecondition, pb.Reason_REASON_NOT_TRUSTED},
	{hsm.ErrUnavailable, codes.Unavailable, pb.Reason_REASON_HSM_UNAVAILABLE},
	{hsm.ErrStale, codes.Unavailable, pb.Reason_REASON_HSM_UNAVAILABLE},
	{hsm.ErrNotFound, codes.Unavailable, pb.Reason_REASON_HSM_UNAVAILABLE},
	{hsm.ErrPIN, codes.Unavailable, pb.Reason_REASON_HSM_UNAVAILABLE},

	{fsm.ErrRequestReused, codes.InvalidArgument, pb.Reason_REASON_REQUEST_ID_REUSED},
	{fsm.ErrInvalid, codes.InvalidArgument, pb.Reason_REASON_INVALID},
	{fsm.ErrNotFound, codes.NotFound, pb.Reason_REASON_NOT_FOUND},
	{fsm.ErrExists, codes.AlreadyExists, pb.Reason_REASON_EXISTS},
	{fsm.ErrDisabled, codes.FailedPrecondition, pb.Reason_REASON_KEY_DISABLED},
	{fsm.ErrPendingDeletion, codes.FailedPrecondition, pb.Reason_REASON_KEY_PENDING_DELETION},
	{fsm.ErrPendingImport, codes.FailedPrecondition, pb.Reason_REASON_KEY_PENDING_IMPORT},
	{fsm.ErrMaterial, codes.FailedPrecondition, pb.Reason_REASON_KEY_MATERIAL_DIFFERS},
	{fsm.ErrNotPendingDeletion, codes.FailedPrecondition, pb.Reason_REASON_KEY_NOT_PENDING_DELETION},
	{fsm.ErrDecryptOnly, codes.FailedPrecondition, pb.Reason_REASON_KEY_DECRYPT_ONLY},
	{fsm.ErrVersionDisabled, codes.FailedPrecondition, pb.Reason_REASON_KEY_VERSION_DISABLED},
	{fsm.ErrVersionDestroyed, codes.FailedPrecondition, pb.Reason_REASON_KEY_VERSION_DESTROYED},
	{fsm.ErrVersionCurrent, codes.FailedPrecondition, pb.Reason_REASON_KEY_VERSION_CURRENT},
	{fsm.ErrProtected, codes.FailedPrecondition, pb.Reason_REASON_KEY_PROTECTED},
	{fsm.ErrInUse, codes.FailedPrecondition, pb.Reason_REASON_KEY_IN_USE},
	{fsm.ErrServiceManaged, codes.FailedPrecondition, pb.Reason_REASON_KEY_SERVICE_MANAGED},
	{fsm.ErrFrozen, codes.FailedPrecondition, pb.Reason_REASON_TENANT_FROZEN},
	{fsm.ErrUnsupported, codes.FailedPrecondition, pb.Reason_REASON_UNSUPPORTED},
	{fsm.ErrConflict, codes.Aborted, pb.Reason_REASON_CONFLICT},
	{fsm.ErrLimit, codes.ResourceExhausted, pb.Reason_REASON_LIMIT},
	{fsm.ErrTicket, codes.FailedPrecondition, pb.Reason_REASON_TICKET_REFUSED},
	{fsm.ErrMember, codes.FailedPrecondition, pb.Reason_REASON_MEMBERSHIP_REFUSED},
	{fsm.ErrGeneration, codes.FailedPrecondition, pb.Reason_REASON_GENERATION_REFUSED},
	{fsm.ErrMessages, codes.FailedPrecondition, pb.Reason_REASON_KEY_MESSAGES_EXHAUSTED},
	{fsm.ErrNotInitialized, codes.FailedPrecondition, pb.Reason_REASON_NOT_INITIALIZED},
	{fsm.ErrRelease, codes.FailedPrecondition, pb.Reason_REASON_RELEASE},
	{fsm.ErrHalted, codes.Unavailable, pb.Reason_REASON_SHUTTING_DOWN},
}

// toStatus translates an error. Unknown errors become Internal with their text
// withheld; unavailable ones name the other nodes.
func toStatus(err error, others func() []string) error {
	if err == nil {
		return nil
	}
	code, reason, text := verdictOn(err)
	if reason == pb.Reason_REASON_UNSPECIFIED {
		return status.Error(code, text)
	}
	return withReason(code, reason, text, metadataOf(err, code, others))
}

// verdictOn is what a caller is told of an error.
func verdictOn(err error) (codes.Code, pb.Reason, string) {
	for _, row := range table {
		if !errors.Is(err, row.err) {
			continue
		}
		if row.err == kms.ErrCiphertext { //nolint:errorlint // the row, not the chain: one uniform text
			return row.code, row.reason, kms.ErrCiphertext.Error()
		}
		return row.code, row.reason, err.Error()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded, pb.Reason_REASON_UNSPECIFIED, "deadline exceeded"
	case errors.Is(err, context.Canceled):
		return codes.Canceled, pb.Reason_REASON_UNSPECIFIED, "cancelled by the caller"
	}
	return codes.Internal, pb.Reason_REASON_UNSPECIFIED, "internal error; the node's log says more"
}

// metadataOf is what a program may do about an error: other nodes' addresses, or how long
// to wait.
func metadataOf(err error, code codes.Code, others func() []string) map[string]string {
	if e, ok := errors.AsType[*limit.Exceeded](err); ok {
		return map[string]string{"retry_after_ms": strconv.FormatInt(e.RetryAfter.Milliseconds()+1, 10)}
	}
	if code == codes.Unavailable && others != nil {
		if nodes := others(); len(nodes) > 0 {
			return map[string]string{"nodes": strings.Join(nodes, ",")}
		}
	}
	return nil
}

func withReason(code codes.Code, reason pb.Reason, text string, metadata map[string]string) error {
	info := &errdetails.ErrorInfo{Domain: errorDomain, Reason: strings.TrimPrefix(reason.String(), "REASON_"), Metadata: metadata}
	s, err := status.New(code, text).WithDetails(info)
	if err != nil {
		return status.Error(code, text)
	}
	return s.Err()
}
