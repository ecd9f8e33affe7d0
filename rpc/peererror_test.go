package rpc

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/node/cluster"
	peerpb "github.com/quorumkms/quorumkms/rpc/peerv1"
)

// TestPeerErrorsArePlain: what failed between two nodes is told without gRPC's wrapping, and
// keeps its code.
func TestPeerErrorsArePlain(t *testing.T) {
	for _, row := range []struct {
		err  error
		text string
		code codes.Code
	}{
		{status.Error(codes.PermissionDenied, "kms-4 is no member"), "kms-4 is no member", codes.PermissionDenied},
		{status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.3:7400: connect: connection refused"`), "Error while dialing: dial tcp 10.0.0.3:7400: connect: connection refused", codes.Unavailable},
		{status.Error(codes.Unavailable, "connection error: desc = unquoted"), "connection error: desc = unquoted", codes.Unavailable},
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded"), "no answer in time", codes.DeadlineExceeded},
		{status.Error(codes.Unimplemented, ""), "Unimplemented", codes.Unimplemented},
	} {
		err := fmt.Errorf("from kms-2: %w", told(row.err))
		if err.Error() != "from kms-2: "+row.text || status.Code(err) != row.code {
			t.Errorf("%v (%s)", err, status.Code(err))
		}
	}
	for _, err := range []error{nil, io.EOF, cluster.ErrJoin} {
		if got := told(err); !errors.Is(got, err) {
			t.Errorf("%v became %v", err, got)
		}
	}
}

// TestPeerConnectionsTell: every call of another node, and every conversation with one.
func TestPeerConnectionsTell(t *testing.T) {
	conn, err := (&Peers{}).dial("127.0.0.1:1", &tls.Config{MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	c := peerpb.NewPeerServiceClient(conn)
	_, call := c.Domain(t.Context(), &peerpb.DomainRequest{})
	stream, open := c.Join(t.Context())
	if open == nil {
		_, open = stream.Recv()
	}
	for what, err := range map[string]error{"a call": call, "a conversation": open} {
		if err == nil || strings.Contains(err.Error(), "rpc error") || status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v (%s)", what, err, status.Code(err))
		}
	}
}

// TestOpenResults: a member of an earlier version does not say that a problem may pass.
func TestOpenResults(t *testing.T) {
	for _, row := range []struct {
		passing []bool
		want    []cluster.OpenResult
	}{
		{nil, []cluster.OpenResult{{}, {Problem: "lost"}}},
		{[]bool{false, true}, []cluster.OpenResult{{}, {Problem: "lost", Passing: true}}},
		{[]bool{true}, []cluster.OpenResult{{Passing: true}, {Problem: "lost"}}},
	} {
		if got := openResults(&peerpb.OpenResponse{Problems: []string{"", "lost"}, Passing: row.passing}); !reflect.DeepEqual(got, row.want) {
			t.Errorf("%v: %+v", row.passing, got)
		}
	}
}
