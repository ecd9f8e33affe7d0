package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func others() []string { return []string{"b:1", "c:1"} }

// reasonOf takes a status apart as a client does.
func reasonOf(t *testing.T, err error) (codes.Code, string, string, string) {
	t.Helper()
	s := status.Convert(err)
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return s.Code(), info.GetReason(), info.GetMetadata()["nodes"], s.Message()
		}
	}
	return s.Code(), "", "", s.Message()
}

func TestErrors(t *testing.T) {
	lost := status.Error(codes.PermissionDenied, "between nodes")
	for name, c := range map[string]struct {
		err    error
		code   codes.Code
		reason string
		nodes  string
		text   string
	}{
		"disabled":       {fmt.Errorf("%w: k", fsm.ErrDisabled), codes.FailedPrecondition, "KEY_DISABLED", "", "key is disabled: k"},
		"conflict":       {fsm.ErrConflict, codes.Aborted, "CONFLICT", "", ""},
		"no lease":       {cluster.ErrNoLease, codes.Unavailable, "NO_LEASE", "b:1,c:1", ""},
		"streams":        {errSeats, codes.ResourceExhausted, "BUSY", "", ""},
		"busy":           {hsm.ErrBusy, codes.ResourceExhausted, "BUSY", "", ""},
		"corrupt":        {hsm.ErrCorrupt, codes.FailedPrecondition, "KEY_MATERIAL_CORRUPT", "", ""},
		"nobody":         {errNoCertificate, codes.Unauthenticated, "NO_CERTIFICATE", "", ""},
		"denied":         {kms.ErrDenied, codes.PermissionDenied, "DENIED", "", ""},
		"unknown":        {errors.New("the PIN is 1234"), codes.Internal, "", "", "internal error"},
		"deadline":       {context.DeadlineExceeded, codes.DeadlineExceeded, "", "", ""},
		"sealed records": {fmt.Errorf("segment 3: %w: key is disabled", trail.ErrSealed), codes.FailedPrecondition, "AUDIT_UNAVAILABLE", "", "key is disabled"},
		"restored":       {cluster.FromCode("DISABLED", "key is disabled: x"), codes.FailedPrecondition, "KEY_DISABLED", "", "key is disabled: x"},
		"one uniform":    {fmt.Errorf("%w: version 3 of key x", kms.ErrCiphertext), codes.InvalidArgument, "INVALID_CIPHERTEXT", "", kms.ErrCiphertext.Error()},
		"outcome, inner": {fmt.Errorf("%w: %w", cluster.ErrOutcomeUnknown, lost), codes.Unavailable, "OUTCOME_UNKNOWN", "b:1,c:1", ""},
		"doubt, leader":  {fmt.Errorf("%w: %w", cluster.ErrOutcomeUnknown, cluster.ErrNoLeader), codes.Unavailable, "OUTCOME_UNKNOWN", "b:1,c:1", ""},
	} {
		code, reason, nodes, text := reasonOf(t, toStatus(c.err, others))
		if code != c.code || reason != c.reason || nodes != c.nodes || !strings.Contains(text, c.text) {
			t.Errorf("%s: %v %s nodes %q text %q", name, code, reason, nodes, text)
		}
		if strings.Contains(text, "1234") || c.text == kms.ErrCiphertext.Error() && text != c.text {
			t.Errorf("%s: the text tells too much: %q", name, text)
		}
	}
}

// TestReasons: every row of the table has a reason that the protocol names, and
// every reason that a server can give has a row.
func TestReasons(t *testing.T) {
	seen := map[pb.Reason]bool{}
	for _, row := range table {
		seen[row.reason] = true
	}
	for n, name := range pb.Reason_name {
		if r := pb.Reason(n); r != pb.Reason_REASON_UNSPECIFIED && !seen[r] {
			t.Errorf("%s is in the protocol and in no row", name)
		}
	}
}

func TestPacer(t *testing.T) {
	var p pacer
	at := time.Unix(1000, 0)
	if missed, due := p.due(at); !due || missed != 0 {
		t.Fatal("the first is not let through")
	}
	for range 3 {
		if _, due := p.due(at.Add(anonymousEvery / 2)); due {
			t.Fatal("two within the time")
		}
	}
	if missed, due := p.due(at.Add(anonymousEvery)); !due || missed != 3 {
		t.Fatalf("%d missed, due %v", missed, due)
	}
}

// TestPanicBecomesAnError: a call that panics is answered, and says nothing of why.
func TestPanicBecomesAnError(t *testing.T) {
	s := &Server{config: Config{Log: slog.New(slog.DiscardHandler)}}
	_, err := s.errors(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/x/Y"}, func(context.Context, any) (any, error) {
		panic("secret")
	})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("call: %v", err)
	}
	err = s.streamErrors(nil, nil, &grpc.StreamServerInfo{FullMethod: "/x/Z"}, func(any, grpc.ServerStream) error { panic("secret") })
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("stream: %v", err)
	}
}
