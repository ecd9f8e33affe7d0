package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// loadLimit is what one call of the load may take, the SDK's repetitions included: an
// election on a slow machine is far within it.
const loadLimit = 45 * time.Second

// load is a cluster's clients at work: two SDK clients in several goroutines, all
// through a change of the cluster. Not one call may fail.
type load struct {
	c     *testCluster
	t     *testing.T
	doing atomic.Pointer[string]
	stop  context.CancelFunc
	work  sync.WaitGroup

	mu       sync.Mutex
	failed   []string
	calls    map[string]int
	slowest  map[string]time.Duration
	repeated map[string]int // attempts that failed and were made good by the SDK, by why
	keys     []string       // that were acknowledged
}

// startLoad begins to use the cluster through clients that are told of the nodes
// given only.
func (c *testCluster) startLoad(of ...*process) *load {
	c.t.Helper()
	ctx, stop := context.WithCancel(c.t.Context())
	l := &load{c: c, t: c.t, stop: stop, calls: map[string]int{}, slowest: map[string]time.Duration{}, repeated: map[string]int{}}
	l.during("at rest")
	admin, user := l.dial(adminID, of), l.dial(userID, of)
	key := c.createKey(ctx, of...)
	for range 3 {
		l.work.Go(func() { l.use(ctx, user, key) })
	}
	l.work.Go(func() { l.administer(ctx, admin, user) })
	c.t.Cleanup(func() {
		stop()
		l.work.Wait()
	})
	return l
}

func (l *load) dial(id string, of []*process) *client.Client {
	return l.c.connectSDK(id, of, func(config *client.Config) {
		config.Fixed, config.Refresh = false, time.Second
		config.Retrying = func(_ string, err error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.repeated[reasonOf(err)]++
		}
	})
}

func reasonOf(err error) string {
	e, ok := err.(*client.Error) //nolint:errorlint // what Retrying is given
	if !ok {
		return err.Error()
	}
	return fmt.Sprint(e.Code, " ", e.Reason)
}

// during says what happens from now on, for the report of a call that fails.
func (l *load) during(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	l.doing.Store(&what)
}

// call makes one call of the load.
func (l *load) call(ctx context.Context, kind string, f func(context.Context) error) bool {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadLimit)
	defer cancel()
	before, began := *l.doing.Load(), time.Now()
	err := f(limited)
	took := time.Since(began)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls[kind]++
	l.slowest[kind] = max(l.slowest[kind], took)
	if err != nil {
		l.failed = append(l.failed, fmt.Sprintf("%s, begun %s, ended %s, after %s: %v", kind, before, *l.doing.Load(), took.Round(time.Millisecond), err))
	}
	return err == nil
}

func (l *load) use(ctx context.Context, user *client.Client, key string) {
	for ctx.Err() == nil {
		var dek, blob, opened []byte
		ok := l.call(ctx, "GenerateDataKey", func(ctx context.Context) (err error) {
			dek, blob, err = user.GenerateDataKey(ctx, key, nil)
			return err
		}) && l.call(ctx, "Decrypt", func(ctx context.Context) (err error) {
			opened, err = user.DecryptDataKey(ctx, blob, nil)
			return err
		})
		if ok && !bytes.Equal(dek, opened) {
			l.t.Errorf("%s: a data key opened as another", *l.doing.Load())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (l *load) administer(ctx context.Context, admin, user *client.Client) {
	for i := 0; ctx.Err() == nil; i++ {
		var key string
		if !l.call(ctx, "CreateKey", func(ctx context.Context) error {
			r, err := admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{Description: fmt.Sprint("load ", i)})
			key = r.GetKey().GetKeyId()
			return err
		}) {
			continue
		}
		l.call(ctx, "DescribeKey", func(ctx context.Context) error {
			return second(admin.Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key}))
		})
		l.mu.Lock()
		l.keys = append(l.keys, key)
		l.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
}

// count is the number of calls of a kind that were answered.
func (l *load) count(kind string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls[kind]
}

// goesOn waits until every kind of call has been answered again: what happened is
// behind the clients.
func (l *load) goesOn() {
	l.t.Helper()
	for _, kind := range []string{"GenerateDataKey", "Decrypt", "CreateKey", "DescribeKey"} {
		n := l.count(kind)
		l.c.eventually(kind+" goes on "+*l.doing.Load(), func() bool { return l.count(kind) > n+2 })
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.failed {
		l.t.Error("failed: ", f)
	}
	if len(l.failed) > 0 {
		l.t.FailNow()
	}
}

// end stops the load; every key that was acknowledged must be there.
func (l *load) end(ctx context.Context, ask *process) {
	l.t.Helper()
	l.goesOn()
	l.stop()
	l.work.Wait()
	admin := l.c.dial(adminID, ask).Keys()
	index := l.c.latest(ask)
	for _, key := range l.keys {
		must(l.t, second(admin.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key, IndexToken: index})))
	}
	l.t.Logf("calls %v, slowest %v, repeated by the SDK %v", l.calls, l.slowest, l.repeated)
}
