package rpc

import (
	"context"
	"time"

	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	// maxWatchers and maxWatchersEach bound a node's watches for restrictions: a client has
	// one for all its caches, a storage host some tens of clients.
	maxWatchers     = 2048
	maxWatchersEach = 128
	// watchStall is how long a watcher may send no ping; clients send one a second.
	watchStall = 15 * time.Second
	// pingPause is the least time between two pings that are read.
	pingPause = 100 * time.Millisecond
)

// WatchRestrictions tells a cache what to forget.
func (s *cryptoServer) WatchRestrictions(stream pb.CryptoService_WatchRestrictionsServer) error {
	return movingWithin(stream.Context(), watchStall, func(ctx context.Context, alive func()) error {
		first, err := stream.Recv()
		if err != nil {
			return err
		}
		alive()
		c := call(ctx, first)
		end, err := s.watchers.take(c.Caller.Principal)
		if err != nil {
			return s.kms.Refuse(kms.WatchRestrictions, c, err)
		}
		defer end()
		opening, cancel := context.WithTimeout(ctx, callTimeout)
		watch, told, err := s.kms.WatchRestrictions(opening, c)
		cancel()
		if err != nil {
			return err
		}
		x := watching{watch: watch, stream: stream, alive: alive, pings: make(chan uint64)}
		if err := x.send(told, first.GetPing()); err != nil {
			return err
		}
		go x.read(ctx)
		err = x.follow(ctx)
		if err == nil || ctx.Err() != nil { // it went on until the client had enough
			return err
		}
		return s.kms.Refuse(kms.WatchRestrictions, c, err)
	})
}

// watching is one watch.
type watching struct {
	watch  *kms.Watch
	stream pb.CryptoService_WatchRestrictionsServer
	alive  func()
	pings  chan uint64 // closed when the client sends no more
}

// read hands pings over until the stream ends, which the end of the handler is.
func (x *watching) read(ctx context.Context) {
	defer close(x.pings)
	for {
		m, err := x.stream.Recv()
		if err != nil {
			return
		}
		select {
		case x.pings <- m.GetPing():
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(pingPause): // HTTP/2's flow control holds up who sends more
		case <-ctx.Done():
			return
		}
	}
}

// follow tells what is restricted, and answers pings, until the client sends no more.
func (x *watching) follow(ctx context.Context) error {
	ping := uint64(0)
	for {
		changed := x.watch.Changed()
		told, err := x.watch.Next() // behind the channel, and behind the ping
		if err != nil {
			return err
		}
		if ping != 0 || told.Everything || len(told.KeyIDs) > 0 {
			if err := x.send(told, ping); err != nil {
				return err
			}
		}
		ping = 0
		select {
		case <-changed:
		case p, more := <-x.pings:
			if !more {
				return nil
			}
			x.alive()
			ping = p
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (x *watching) send(told kms.Restricted, pong uint64) error {
	return x.stream.Send(&pb.WatchRestrictionsResponse{
		Pong: pong, Everything: told.Everything, KeyIds: told.KeyIDs, Tenant: x.watch.Tenant, IndexToken: told.IndexToken,
	})
}
