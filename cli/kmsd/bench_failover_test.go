//go:build measure

package main

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	failoverKills   = 3
	failoverCallers = 16 // of cryptography
	failoverWriters = 4
	failoverHealthy = 2 * time.Second // of load, before and after
)

// failover kills the leader under load, several times.
func (b *bench) failover() {
	r := b.start(3, 1)
	var failed, writesFailed int
	var own, others, gaps, writes []float64
	for range failoverKills {
		crypto := []*outage{newOutage(), newOutage(), newOutage()} // of those who prefer each node
		all, changes := newOutage(), newOutage()
		r.loadWhile(crypto, all, changes, func() {
			time.Sleep(failoverHealthy)
			leader := r.leader(r.nodes[0])
			for _, o := range append(crypto, all, changes) {
				o.watch()
			}
			leader.kill()
			r.eventually("keys are made again", func() bool { return changes.again(failoverWriters) })
			time.Sleep(failoverHealthy)
			leader.start()
			first := slices.Index(r.nodes, leader) // the dead node's callers come first
			crypto[0], crypto[first] = crypto[first], crypto[0]
		})
		failed, writesFailed = failed+all.failed, writesFailed+changes.failed
		own, others = append(own, ms(crypto[0].longest)), append(others, ms(max(crypto[1].longest, crypto[2].longest)))
		gaps, writes = append(gaps, ms(all.gap)), append(writes, ms(changes.gap))
		r.waitVoters(len(r.nodes))
		r.level(b.t.Context())
	}
	b.alone("failover.crypto-failures", float64(failed), "calls", "<= 0")
	// The longest call of those who used the dead leader, and of the others.
	b.spread("failover.crypto-pause", own)
	b.spread("failover.crypto-pause.others", others)
	b.spread("failover.crypto-gap", gaps) // no call of anybody ended
	b.alone("failover.write-failures", float64(writesFailed), "calls", "")
	b.spread("failover.write-pause", writes) // no write of anybody ended
}

// spread adds the median and the most of times in ms.
func (b *bench) spread(name string, all []float64) {
	b.alone(name, median(all), "ms", "")
	b.alone(name+".max", slices.Max(all), "ms", "")
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

// preferring are clients of all nodes, each of which prefers another.
func (r *benchRig) preferring(id string) (out []*client.Client) {
	r.t.Helper()
	for i := range r.nodes {
		out = append(out, r.connectSDK(id, slices.Concat(r.nodes[i:], r.nodes[:i]), func(*client.Config) {}))
	}
	return out
}

// loadWhile keeps callers busy while something happens, and waits for their last calls.
func (r *benchRig) loadWhile(crypto []*outage, all, changes *outage, happens func()) {
	r.t.Helper()
	users, admins := r.preferring(userID), r.preferring(adminID)
	ctx, stop := r.t.Context(), make(chan struct{})
	var work sync.WaitGroup
	repeat := func(call func() error, of ...*outage) {
		work.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					watched(call, of)
				}
			}
		})
	}
	for i := range failoverCallers {
		user := users[i%len(users)]
		var blob []byte
		repeat(func() (err error) {
			if blob == nil {
				_, blob, err = user.GenerateDataKey(ctx, r.keys[0], nil)
				return err
			}
			_, err = user.DecryptDataKey(ctx, blob, nil)
			blob = nil
			return err
		}, crypto[i%len(users)], all)
	}
	for i := range failoverWriters {
		admin := admins[i%len(admins)].Keys()
		repeat(func() error { return second(admin.CreateKey(ctx, &pb.CreateKeyRequest{})) }, changes)
	}
	happens()
	close(stop)
	work.Wait()
}

// outage is what callers of one kind see.
type outage struct {
	mu      sync.Mutex
	failed  int
	last    time.Time     // when a call succeeded
	watched time.Time     // since when gap and longest count
	begun   int           // calls that began then or later, and succeeded
	gap     time.Duration // longest time without a success
	longest time.Duration // call
}

func newOutage() *outage { return &outage{last: time.Now()} }

// watch counts from now on.
func (o *outage) watch() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watched, o.gap, o.longest, o.begun = time.Now(), 0, 0, 0
}

// again tells whether so many calls succeeded that began after watch.
func (o *outage) again(calls int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.begun >= calls
}

// watched makes a call and tells of it.
func watched(call func() error, of []*outage) {
	began := time.Now()
	err := call()
	if err != nil {
		fmt.Printf("a call failed after %s: %v\n", time.Since(began).Round(time.Millisecond), err)
	}
	for _, o := range of {
		o.ended(began, err)
	}
}

func (o *outage) ended(began time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	o.longest = max(o.longest, now.Sub(began))
	if err != nil {
		o.failed++
		return
	}
	o.gap, o.last = max(o.gap, now.Sub(o.last)), now
	if began.After(o.watched) {
		o.begun++
	}
}
