package client_test

import (
	"errors"
	"slices"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

var sentinels = map[quorumkmsv1.Reason]error{
	quorumkmsv1.Reason_REASON_INVALID:                  client.ErrInvalid,
	quorumkmsv1.Reason_REASON_MALFORMED_CIPHERTEXT:     client.ErrMalformedCiphertext,
	quorumkmsv1.Reason_REASON_INVALID_CIPHERTEXT:       client.ErrInvalidCiphertext,
	quorumkmsv1.Reason_REASON_REQUEST_ID_REUSED:        client.ErrRequestIDReused,
	quorumkmsv1.Reason_REASON_NO_CERTIFICATE:           client.ErrNoCertificate,
	quorumkmsv1.Reason_REASON_DENIED:                   client.ErrDenied,
	quorumkmsv1.Reason_REASON_NOT_FOUND:                client.ErrNotFound,
	quorumkmsv1.Reason_REASON_EXISTS:                   client.ErrExists,
	quorumkmsv1.Reason_REASON_KEY_DISABLED:             client.ErrKeyDisabled,
	quorumkmsv1.Reason_REASON_KEY_PENDING_DELETION:     client.ErrKeyPendingDeletion,
	quorumkmsv1.Reason_REASON_KEY_NOT_PENDING_DELETION: client.ErrKeyNotPendingDeletion,
	quorumkmsv1.Reason_REASON_UNSUPPORTED:              client.ErrUnsupported,
	quorumkmsv1.Reason_REASON_NOT_INITIALIZED:          client.ErrNotInitialized,
	quorumkmsv1.Reason_REASON_ALREADY_INITIALIZED:      client.ErrAlreadyInitialized,
	quorumkmsv1.Reason_REASON_TICKET_REFUSED:           client.ErrTicketRefused,
	quorumkmsv1.Reason_REASON_MEMBERSHIP_REFUSED:       client.ErrMembershipRefused,
	quorumkmsv1.Reason_REASON_NOT_TRUSTED:              client.ErrNotTrusted,
	quorumkmsv1.Reason_REASON_KEY_MATERIAL_CORRUPT:     client.ErrKeyMaterialCorrupt,
	quorumkmsv1.Reason_REASON_DRY_RUN:                  client.ErrDryRun,
	quorumkmsv1.Reason_REASON_RELEASE:                  client.ErrRelease,
	quorumkmsv1.Reason_REASON_CONFLICT:                 client.ErrConflict,
	quorumkmsv1.Reason_REASON_LIMIT:                    client.ErrLimit,
	quorumkmsv1.Reason_REASON_BUSY:                     client.ErrBusy,
	quorumkmsv1.Reason_REASON_NO_LEADER:                client.ErrNoLeader,
	quorumkmsv1.Reason_REASON_NO_LEASE:                 client.ErrNoLease,
	quorumkmsv1.Reason_REASON_HSM_UNAVAILABLE:          client.ErrHSMUnavailable,
	quorumkmsv1.Reason_REASON_OUTCOME_UNKNOWN:          client.ErrOutcomeUnknown,
	quorumkmsv1.Reason_REASON_BEHIND:                   client.ErrBehind,
	quorumkmsv1.Reason_REASON_SHUTTING_DOWN:            client.ErrShuttingDown,
	quorumkmsv1.Reason_REASON_AUDIT_UNAVAILABLE:        client.ErrAuditUnavailable,
	quorumkmsv1.Reason_REASON_KEY_NOT_OPENED:           client.ErrKeyNotOpened,
	quorumkmsv1.Reason_REASON_KEY_MESSAGES_EXHAUSTED:   client.ErrMessagesExhausted,
	quorumkmsv1.Reason_REASON_MESSAGES_NOT_RESERVED:    client.ErrMessagesNotReserved,
	quorumkmsv1.Reason_REASON_GENERATION_REFUSED:       client.ErrGenerationRefused,
	quorumkmsv1.Reason_REASON_IDENTITY_REFUSED:         client.ErrIdentityRefused,
	quorumkmsv1.Reason_REASON_PROFILE_REFUSED:          client.ErrProfileRefused,
	quorumkmsv1.Reason_REASON_PRINCIPAL_DISABLED:       client.ErrPrincipalDisabled,
	quorumkmsv1.Reason_REASON_KEY_DECRYPT_ONLY:         client.ErrKeyDecryptOnly,
	quorumkmsv1.Reason_REASON_KEY_VERSION_DISABLED:     client.ErrKeyVersionDisabled,
	quorumkmsv1.Reason_REASON_KEY_VERSION_DESTROYED:    client.ErrKeyVersionDestroyed,
	quorumkmsv1.Reason_REASON_KEY_VERSION_CURRENT:      client.ErrKeyVersionCurrent,
	quorumkmsv1.Reason_REASON_KEY_PROTECTED:            client.ErrKeyProtected,
	quorumkmsv1.Reason_REASON_KEY_IN_USE:               client.ErrKeyInUse,
	quorumkmsv1.Reason_REASON_KEY_SERVICE_MANAGED:      client.ErrServiceManaged,
	quorumkmsv1.Reason_REASON_TENANT_FROZEN:            client.ErrTenantFrozen,
	quorumkmsv1.Reason_REASON_INVALID_SIGNATURE:        client.ErrInvalidSignature,
	quorumkmsv1.Reason_REASON_INVALID_MAC:              client.ErrInvalidMac,
	quorumkmsv1.Reason_REASON_POLICY_INVALID:           client.ErrPolicyInvalid,
	quorumkmsv1.Reason_REASON_POLICY_LOCKOUT:           client.ErrPolicyLockout,
	quorumkmsv1.Reason_REASON_RATE_LIMITED:             client.ErrRateLimited,
	quorumkmsv1.Reason_REASON_KEY_PENDING_IMPORT:       client.ErrKeyPendingImport,
	quorumkmsv1.Reason_REASON_IMPORT_TOKEN_REFUSED:     client.ErrImportTokenRefused,
	quorumkmsv1.Reason_REASON_INVALID_KEY_MATERIAL:     client.ErrInvalidKeyMaterial,
	quorumkmsv1.Reason_REASON_KEY_MATERIAL_DIFFERS:     client.ErrKeyMaterialDiffers,
}

func TestEveryReasonHasItsSentinel(t *testing.T) {
	w := newWorld(t)
	for value, name := range quorumkmsv1.Reason_name {
		if value == 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			n := w.node(t, "n1", refuse(codes.FailedPrecondition, quorumkmsv1.Reason(value)))
			err := encrypt(patient(t), w.client(t, nil, n.address))
			for reason, sentinel := range sentinels {
				if errors.Is(err, sentinel) != (reason == quorumkmsv1.Reason(value)) {
					t.Errorf("error %v is %v: %t", err, sentinel, errors.Is(err, sentinel))
				}
			}
			if sentinels[quorumkmsv1.Reason(value)] == nil {
				t.Errorf("%s has no sentinel", name)
			}
		})
	}
}

func TestErrorIsRestored(t *testing.T) {
	w := newWorld(t)
	detailed := func(domain, reason, nodes string) error {
		s, err := status.New(codes.NotFound, "no such key").WithDetails(&errdetails.ErrorInfo{
			Domain: domain, Reason: reason, Metadata: map[string]string{"nodes": nodes},
		})
		if err != nil {
			t.Fatal(err)
		}
		return s.Err()
	}
	for name, test := range map[string]struct {
		sent error
		want client.Error
	}{
		"with nodes": {
			detailed("quorumkms", "NOT_FOUND", "a:1, b:2,"),
			client.Error{Reason: quorumkmsv1.Reason_REASON_NOT_FOUND, Nodes: []string{"a:1", "b:2"}},
		},
		"without nodes":               {detailed("quorumkms", "NOT_FOUND", ""), client.Error{Reason: quorumkmsv1.Reason_REASON_NOT_FOUND}},
		"reason of a later release":   {detailed("quorumkms", "NEVER_HEARD_OF", ""), client.Error{}},
		"reason of someone else":      {detailed("example.org", "NOT_FOUND", "a:1"), client.Error{}},
		"no details":                  {status.Error(codes.NotFound, "no such key"), client.Error{}},
		"name of the zero value":      {detailed("quorumkms", "UNSPECIFIED", ""), client.Error{}},
		"name with the enum's prefix": {detailed("quorumkms", "REASON_NOT_FOUND", ""), client.Error{}},
	} {
		t.Run(name, func(t *testing.T) {
			n := startNode(t, w.ca.ServerTLS(w.ca.Node(t, "n1")), refuseWith(test.sent))
			err := encrypt(patient(t), w.client(t, nil, n.address))
			got, ok := errors.AsType[*client.Error](err)
			if !ok {
				t.Fatalf("error %v", err)
			}
			if got.Address != n.address || got.Code != codes.NotFound || got.Message != "no such key" ||
				got.Reason != test.want.Reason || !slices.Equal(got.Nodes, test.want.Nodes) {
				t.Errorf("got %#v", got)
			}
			if status.Code(err) != codes.NotFound {
				t.Errorf("status code %v", status.Code(err))
			}
			if errors.Is(err, client.ErrNotFound) != (test.want.Reason != 0) {
				t.Errorf("is ErrNotFound: %t", errors.Is(err, client.ErrNotFound))
			}
		})
	}
}
