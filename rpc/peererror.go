package rpc

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// peerError is a call of another node that failed, in words for people: other nodes' troubles
// are told in answers, and in the log. Its status stays what it was.
type peerError struct{ s *status.Status }

// GRPCStatus makes package status find the code.
func (e peerError) GRPCStatus() *status.Status { return e.s }

// Error takes the wrapping off what gRPC says of a connection that failed.
func (e peerError) Error() string {
	if e.s.Code() == codes.DeadlineExceeded {
		return "no answer in time"
	}
	text := e.s.Message()
	if quoted, ok := strings.CutPrefix(text, "connection error: desc = "); ok {
		if inner, err := strconv.Unquote(quoted); err == nil {
			text = strings.TrimPrefix(inner, "transport: ")
		}
	}
	if text == "" {
		return e.s.Code().String()
	}
	return text
}

// told puts an error of gRPC's into words; others stay.
func told(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	return peerError{s}
}

func tellingCalls(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	return told(invoke(ctx, method, request, reply, conn, options...))
}

func tellingStreams(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, conn, method, options...)
	if err != nil {
		return nil, told(err)
	}
	return tellingStream{s}, nil
}

type tellingStream struct{ grpc.ClientStream }

func (s tellingStream) SendMsg(m any) error { return told(s.ClientStream.SendMsg(m)) }

func (s tellingStream) RecvMsg(m any) error { return told(s.ClientStream.RecvMsg(m)) }
