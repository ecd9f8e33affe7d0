package client

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	// StaleAfter is how long a KeyCache, and a watched DataKeyPool, may serve what the cluster
	// does not allow any more, at the longest: it is counted from the sending of the last
	// question that a node answered.
	StaleAfter = 3 * time.Second
	// pingEvery is the pause between an answer and the next question.
	pingEvery = time.Second
	// watchRetry is the pause after a refusal, such as that of a node of an earlier release.
	watchRetry = 30 * time.Second
)

// errSilent ends a watch whose node does not answer.
var errSilent = errors.New("client: no answer to a watch's ping within " + StaleAfter.String())

// errRenewed ends a watch that was begun with other certificates than the client has now.
var errRenewed = errors.New("client: a watch goes on with the new certificates")

// keeper keeps what the cluster may restrict.
type keeper interface {
	// forget drops everything, or what is of the CMKs with these ids, and what is being
	// fetched.
	forget(everything bool, cmks []string)
}

// watcher is a client's one watch for restrictions, for all its keepers.
//
// Its clock is the client's: the node answers a ping when it has told of every restriction that
// it had applied when it read the ping, and it reads pings under a lease only. A restriction
// returns when every node with a lease has applied it. So of one that has returned, the client
// knows, or the last ping that was answered was sent before it returned.
//
// What is fetched at another node carries the watch's index token: no node answers it from a
// state that lacks a restriction that the keepers were told of.
type watcher struct {
	c      *Client
	ctx    context.Context //nolint:containedctx // the watch's own life
	cancel context.CancelFunc
	done   chan struct{}
	began  time.Time
	until  atomic.Int64 // what is kept may be served up to then, in ns since began
	tenant atomic.Value // string: whose keys are watched

	mu      sync.Mutex
	keepers map[keeper]struct{}
	err     error // why there is no watch; nil while there is
}

// join has the client's watch tell a keeper what to forget; the first begins it.
func (c *Client) join(k keeper) (*watcher, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	w := c.watch
	if w == nil {
		w = &watcher{c: c, done: make(chan struct{}), began: time.Now(), keepers: map[keeper]struct{}{}, err: errNotYet}
		w.ctx, w.cancel = context.WithCancel(c.ctx)
		c.watch = w
		c.wait.Go(w.run)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keepers[k] = struct{}{}
	return w, nil
}

var errNotYet = errors.New("client: no node has answered the watch yet")

// leave ends what join began; the last ends the watch.
func (w *watcher) leave(k keeper) {
	if w.left(k) {
		w.cancel()
		<-w.done
	}
}

func (w *watcher) left(k keeper) (last bool) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.keepers, k)
	if len(w.keepers) > 0 || w.c.watch != w {
		return false
	}
	w.c.watch = nil
	return true
}

// live tells whether what is kept may be served.
func (w *watcher) live() bool { return int64(time.Since(w.began)) < w.until.Load() }

// cmk is what a data key's CMK is called when it is restricted; empty if that is not watched.
func (w *watcher) cmk(k DataKey) string {
	tenant, _ := w.tenant.Load().(string)
	return k.cmk(tenant)
}

// state is nil while the watch stands, or why not.
func (w *watcher) state() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && !w.live() {
		return errNotYet
	}
	return w.err
}

func (w *watcher) run() {
	defer close(w.done)
	for n := 0; w.ctx.Err() == nil; n++ {
		began := time.Now()
		err := w.c.stream(w.ctx, w.attempt)
		if time.Since(began) > watchRetry {
			n = 0
		}
		var e *Error
		if errors.As(err, &e) && !e.transient() {
			sleep(w.ctx, watchRetry)
		} else {
			pause(w.ctx, n)
		}
	}
}

// attempt watches at one node until it fails.
func (w *watcher) attempt(ctx context.Context, conn *link, alive func()) (begun bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(StaleAfter, func() { cancel(errSilent) })
	defer silence.Stop()
	err = w.follow(ctx, conn, func() {
		alive()
		silence.Reset(StaleAfter)
		if w.c.files.age() != conn.age {
			cancel(errRenewed)
		}
	})
	switch {
	case errors.Is(context.Cause(ctx), errRenewed):
		begun, err = true, status.Error(codes.Unavailable, errRenewed.Error()) // no fault of the node's
	case errors.Is(context.Cause(ctx), errSilent):
		err = status.Error(codes.Unavailable, errSilent.Error())
	case errors.Is(err, io.EOF):
		err = status.Error(codes.Unavailable, "the node ended the watch")
	}
	w.until.Store(0)
	w.tell(newError(strings.TrimPrefix(conn.Target(), directly), err), true, nil)
	return begun, err // another node may take over, however far this one was
}

func (w *watcher) follow(ctx context.Context, conn *link, heard func()) error {
	ctx, cancel := context.WithCancel(ctx)
	var pinging sync.WaitGroup
	defer pinging.Wait()
	defer cancel()
	s, err := quorumkmsv1.NewCryptoServiceClient(conn).WatchRestrictions(ctx)
	if err != nil {
		return err
	}
	var sent atomic.Int64 // when the last ping was, in ns since began
	answered := make(chan struct{}, 1)
	send := func(m *quorumkmsv1.WatchRestrictionsRequest) error {
		sent.Store(int64(time.Since(w.began)))
		return s.Send(m)
	}
	n := uint64(1) // the ping that is to be answered
	if err := send(&quorumkmsv1.WatchRestrictionsRequest{Ping: n, Tenant: w.c.config.Tenant, IndexToken: w.c.indexToken()}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	pinging.Go(func() {
		for ping := uint64(2); ; ping++ {
			select {
			case <-answered:
			case <-ctx.Done():
				return
			}
			if !sleep(ctx, pingEvery) || send(&quorumkmsv1.WatchRestrictionsRequest{Ping: ping}) != nil {
				return // Recv says why
			}
		}
	})
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		w.c.saw(m.GetIndexToken()) // before anything is fetched again
		w.tenant.Store(m.GetTenant())
		w.tell(nil, m.GetEverything(), m.GetKeyIds())
		if m.GetPong() != n {
			continue
		}
		w.until.Store(sent.Load() + int64(StaleAfter))
		heard()
		n++
		select {
		case answered <- struct{}{}:
		default: // an answer to a ping that was not sent yet
		}
	}
}

// tell hands on what is to be forgotten, and notes how the watch stands.
func (w *watcher) tell(err error, everything bool, cmks []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	if !everything && len(cmks) == 0 {
		return
	}
	for k := range w.keepers {
		k.forget(everything, cmks)
	}
}
