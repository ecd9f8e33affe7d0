package client_test

import (
	"context"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// cryptoServer has the one call of its service that is a stream.
type cryptoServer struct {
	quorumkmsv1.UnimplementedCryptoServiceServer
	n *node
}

func (s cryptoServer) WatchRestrictions(stream quorumkmsv1.CryptoService_WatchRestrictionsServer) error {
	s.n.mu.Lock()
	w := s.n.watched
	s.n.mu.Unlock()
	if w == nil {
		return status.Error(codes.Unimplemented, "no watches here")
	}
	return w.serve(stream)
}

// watched is what a test node tells those who watch it.
type watched struct {
	mu      sync.Mutex
	index   uint64
	streams map[chan *quorumkmsv1.WatchRestrictionsResponse]struct{}
	silent  bool          // answers no pings
	over    chan struct{} // ends the streams
}

func newWatched() *watched {
	return &watched{index: 1, streams: map[chan *quorumkmsv1.WatchRestrictionsResponse]struct{}{}, over: make(chan struct{})}
}

// watchedNode runs a node that can be watched.
func (w *world) watchedNode(t *testing.T, name string, reply answer) *node {
	n := w.node(t, name, reply)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.watched = newWatched()
	return n
}

func tokenAt(index uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte("0123456789abcdef"), 0, 0, 0, 1), index)
}

func (w *watched) serve(stream quorumkmsv1.CryptoService_WatchRestrictionsServer) error {
	tell := make(chan *quorumkmsv1.WatchRestrictionsResponse, 16)
	w.mu.Lock()
	w.streams[tell] = struct{}{}
	over := w.over
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.streams, tell)
	}()
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			w.mu.Lock()
			if !w.silent {
				tell <- &quorumkmsv1.WatchRestrictionsResponse{Pong: m.GetPing(), Tenant: "default", IndexToken: tokenAt(w.index)}
			}
			w.mu.Unlock()
		}
	}()
	for {
		select {
		case m := <-tell:
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-over:
			return reasonError(codes.Unavailable, quorumkmsv1.Reason_REASON_NO_LEASE)
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// restrict tells of a restriction; without keys, of everything. It returns its index token.
func (w *watched) restrict(keys ...string) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.index++
	for tell := range w.streams {
		tell <- &quorumkmsv1.WatchRestrictionsResponse{Everything: len(keys) == 0, KeyIds: keys, Tenant: "default", IndexToken: tokenAt(w.index)}
	}
	return tokenAt(w.index)
}

func (w *watched) quiet(silent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = silent
}

// end ends the streams there are, and the node answers no more pings of later ones.
func (w *watched) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = true
	close(w.over)
	w.over = make(chan struct{})
}

// eventually waits for what comes in the course of things.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !holds() {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}
