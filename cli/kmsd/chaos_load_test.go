//go:build linux && chaos

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/node/nodetest/history"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// trial is what clients do to a rig, and what they saw.
type trial struct {
	*rig
	record  *history.Recorder
	clients sync.WaitGroup
	stop    context.CancelFunc

	mu      sync.Mutex
	callers int
	counts  map[string]map[string]int // call -> how it ended -> times
	steady  []sealed                  // keys that stay enabled
	toggled []*target
	blobs   []sealed // data keys that were acknowledged
	wrong   []string // answers that must not be
	probes  map[string][]time.Duration
}

// target is a key whose state changes all the time, until its history is long
// enough to be hard to judge.
type target struct {
	sealed
	writes, unknown int
}

const (
	useLimit   = 500 * time.Millisecond // of a call to one node
	callLimit  = 20 * time.Second       // of a call to whichever node answers
	writeLimit = 30 * time.Second

	targets       = 6
	targetWrites  = 40 // writes of one key
	targetUnknown = 2  // of which may have an unknown outcome
	maxBlobs      = 4096
	maxSteady     = 1024
)

func newLoad(r *rig) *trial {
	return &trial{
		rig: r, record: history.NewRecorder(history.Since(r.began)),
		counts: map[string]map[string]int{}, probes: map[string][]time.Duration{},
	}
}

// caller is one client, and a session in the history.
type caller struct {
	*client.Client
	l    *trial
	id   int
	node string // which it asks; "any" if it takes the next when one fails
	dice *rand.Rand
}

func (l *trial) caller(id string, to ...*process) *caller {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.callers++
	node := "any"
	if len(to) == 1 {
		node = to[0].name
	}
	return &caller{l.dial(id, to...), l, l.callers, node, rand.New(rand.NewPCG(uint64(l.callers), 0))}
}

// pair is an administrator and a user that ask the i-th node first.
type pair struct{ admin, user *caller }

func (l *trial) pair(i int) pair {
	return pair{l.caller(adminID, l.rotated(i)...), l.caller(userID, l.rotated(i)...)}
}

// rotated are all nodes, the i-th first.
func (l *trial) rotated(i int) []*process {
	return slices.Concat(l.nodes[i:], l.nodes[:i])
}

// begin seals the first keys and starts the clients; they run until end is called,
// and then finish the call each is in.
func (l *trial) begin(ctx context.Context) {
	going, stop := context.WithCancel(ctx)
	l.stop = stop
	first := l.pair(0)
	for range targets {
		l.retarget(ctx, first, nil)
	}
	l.create(ctx, first)
	work := func(pause time.Duration, f func(context.Context)) {
		l.clients.Go(func() {
			for going.Err() == nil {
				f(ctx)
				sleep(going, pause)
			}
		})
	}
	for i, p := range l.nodes {
		user, rover, reader := l.caller(userID, p), l.caller(userID, l.rotated(i)...), l.caller(auditorID, p)
		work(10*time.Millisecond, func(ctx context.Context) { l.use(ctx, user, useLimit) })
		work(20*time.Millisecond, func(ctx context.Context) { l.use(ctx, rover, callLimit) })
		work(20*time.Millisecond, func(ctx context.Context) { l.read(ctx, reader) })
		probe := l.caller(userID, l.rotated(i)...)
		work(20*time.Millisecond, func(ctx context.Context) { l.probe(ctx, "cryptography "+p.name, probe) })
		toggler := l.pair(i)
		work(50*time.Millisecond, func(ctx context.Context) { l.toggle(ctx, toggler) })
	}
	maker := l.pair(0)
	work(100*time.Millisecond, func(ctx context.Context) { l.create(ctx, maker) })
	namer := l.newNamer()
	work(200*time.Millisecond, namer.rename)
	for i := range l.nodes {
		granter := l.newGranter(ctx, i)
		work(100*time.Millisecond, granter.step)
	}
	writer := l.caller(adminID, l.rotated(0)...)
	work(50*time.Millisecond, func(ctx context.Context) { l.probeWrites(ctx, writer) })
}

func (l *trial) end() {
	l.stop()
	l.clients.Wait()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// call makes one call and notes how it ended; kind is empty for what the history
// does not hold. under are the rights that it needs: a grant, and its principal's.
func (c *caller) call(ctx context.Context, name string, kind history.Kind, key string, limit time.Duration,
	f func(ctx context.Context) (answer, error), under ...string,
) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var noted history.Call
	if kind != "" {
		noted = c.l.record.Begin(history.Operation{Client: c.id, Node: c.node, Kind: kind, Key: key, Under: under})
	}
	a, err := f(ctx)
	if kind != "" {
		if a.key != "" {
			noted.Key(a.key)
		}
		noted.End(outcome(err), a.history(err, under))
	}
	c.l.count(name, err)
	return err
}

// answer is what a call's result tells the history.
type answer struct {
	token []byte
	value history.Value
	key   string // that was created
}

func (a answer) history(err error, under []string) history.Answer {
	out := history.Answer{Value: a.value}
	switch {
	case len(under) == 0:
	case errors.Is(err, client.ErrDenied):
		out.Lacks = under[0]
	case errors.Is(err, client.ErrPrincipalDisabled):
		out.Lacks = under[1]
	}
	if err != nil {
		out.Note = err.Error()
	}
	if n := len(a.token); n >= 8 {
		out.Index = binary.BigEndian.Uint64(a.token[n-8:])
	}
	return out
}

func outcome(err error) history.Outcome {
	switch {
	case err == nil:
		return history.OK
	case errors.Is(err, client.ErrOutcomeUnknown):
		return history.Unknown
	case errors.Is(err, client.ErrKeyDisabled), errors.Is(err, client.ErrKeyPendingDeletion), errors.Is(err, client.ErrKeyNotPendingDeletion),
		errors.Is(err, client.ErrDenied), errors.Is(err, client.ErrPrincipalDisabled):
		return history.Refused
	}
	return history.Failed // the client knows that nothing was done
}

// ending is how a call ended, in a word or two.
func ending(err error) string {
	var e *client.Error
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, client.ErrOutcomeUnknown):
		return "outcome unknown"
	case errors.As(err, &e) && e.Reason != pb.Reason_REASON_UNSPECIFIED:
		return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(e.Reason.String(), "REASON_")), "_", " ")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "no answer"
	case errors.As(err, &e):
		return "unreachable"
	}
	return err.Error()
}

func (l *trial) count(name string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts[name] == nil {
		l.counts[name] = map[string]int{}
	}
	l.counts[name][ending(err)]++
}

func (l *trial) counted(name string, ending string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for call, endings := range l.counts {
		if name == "" || call == name {
			n += endings[ending]
		}
	}
	return n
}

// mistake notes an answer that must not be.
func (l *trial) mistake(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = append(l.wrong, fmt.Sprintf("%s: ", time.Since(l.began).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

// pick is a key to use: most often one whose state changes.
func (l *trial) pick(dice *rand.Rand) sealed {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.steady) == 0 || dice.IntN(3) > 0 {
		return l.toggled[dice.IntN(len(l.toggled))].sealed
	}
	return l.steady[dice.IntN(len(l.steady))]
}

// use makes one cryptographic call.
func (l *trial) use(ctx context.Context, c *caller, limit time.Duration) {
	s := l.pick(c.dice)
	switch c.dice.IntN(3) {
	case 0:
		_ = l.seal(ctx, c, s.key, nil, limit)
	case 1:
		_ = c.call(ctx, "Encrypt", history.Use, s.key, limit, func(ctx context.Context) (answer, error) {
			r, err := c.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: s.key, Plaintext: []byte("chaos")})
			return answer{token: r.GetIndexToken()}, err
		})
	default:
		_ = l.open(ctx, c, s, limit)
	}
}

// seal generates a data key and remembers it; token is that of the key's creation, or
// nil.
func (l *trial) seal(ctx context.Context, c *caller, key string, token []byte, limit time.Duration) (made sealed) {
	_ = c.call(ctx, "GenerateDataKey", history.Use, key, limit, func(ctx context.Context) (answer, error) {
		r, err := c.Crypto().GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: key, Spec: pb.DataKeySpec_DATA_KEY_SPEC_AES_256, IndexToken: token})
		if err == nil {
			made = sealed{key: key, dek: r.GetPlaintext(), blob: r.GetCiphertext()}
		}
		return answer{token: r.GetIndexToken()}, err
	})
	if made.blob != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.blobs) < maxBlobs {
			l.blobs = append(l.blobs, made)
		} else {
			l.blobs[c.dice.IntN(maxBlobs)] = made
		}
	}
	return made
}

// open decrypts a data key and compares.
func (l *trial) open(ctx context.Context, c *caller, s sealed, limit time.Duration) error {
	return c.call(ctx, "Decrypt", history.Use, s.key, limit, func(ctx context.Context) (answer, error) {
		r, err := c.Crypto().Decrypt(ctx, &pb.DecryptRequest{Ciphertext: s.blob})
		if err == nil && !bytes.Equal(r.GetPlaintext(), s.dek) {
			l.mistake("%s opened a data key under %s to another one", c.node, s.key)
		}
		return answer{token: r.GetIndexToken()}, err
	})
}

func (l *trial) read(ctx context.Context, c *caller) {
	key := l.pick(c.dice).key
	_ = c.call(ctx, "DescribeKey", history.Read, key, useLimit, func(ctx context.Context) (answer, error) {
		return describe(ctx, c, key, nil)
	})
}

func describe(ctx context.Context, c *caller, key string, token []byte) (answer, error) {
	r, err := c.Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key, IndexToken: token})
	value := history.Value(strings.TrimPrefix(r.GetKey().GetState().String(), "KEY_STATE_"))
	if errors.Is(err, client.ErrNotFound) {
		return answer{value: history.Absent}, nil
	}
	return answer{token: r.GetIndexToken(), value: value}, err
}

// mint creates a key.
func (l *trial) mint(ctx context.Context, c *caller) (key string, token []byte) {
	_ = c.call(ctx, "CreateKey", history.Create, fmt.Sprintf("unanswered %p", &key), writeLimit, func(ctx context.Context) (answer, error) {
		r, err := c.Keys().CreateKey(ctx, &pb.CreateKeyRequest{Description: "chaos"})
		key, token = r.GetKey().GetKeyId(), r.GetIndexToken()
		return answer{token: token, key: key}, err
	})
	return key, token
}

// create makes a key that stays enabled, and seals a data key under it.
func (l *trial) create(ctx context.Context, who pair) {
	l.mu.Lock()
	full := len(l.steady) >= maxSteady
	l.mu.Unlock()
	if full {
		return
	}
	if key, token := l.mint(ctx, who.admin); key != "" {
		if s := l.seal(ctx, who.user, key, token, callLimit); s.blob != nil {
			l.mu.Lock()
			l.steady = append(l.steady, s)
			l.mu.Unlock()
		}
	}
}

// retarget puts a new key in the place of a target, or adds one.
func (l *trial) retarget(ctx context.Context, who pair, old *target) {
	for ctx.Err() == nil {
		key, token := l.mint(ctx, who.admin)
		if key == "" {
			continue
		}
		s := l.seal(ctx, who.user, key, token, callLimit)
		if s.blob == nil {
			continue
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if i := slices.Index(l.toggled, old); i >= 0 {
			l.toggled[i] = &target{sealed: s}
		} else if old == nil {
			l.toggled = append(l.toggled, &target{sealed: s})
		}
		return
	}
}

// toggle changes the state of a key.
func (l *trial) toggle(ctx context.Context, who pair) {
	c := who.admin
	l.mu.Lock()
	t := l.toggled[c.dice.IntN(len(l.toggled))]
	t.writes++
	worn := t.writes > targetWrites || t.unknown > targetUnknown
	l.mu.Unlock()
	if worn {
		l.retarget(ctx, who, t)
		return
	}
	err := l.change(ctx, c, t.key, []history.Kind{
		history.Disable, history.Disable, history.Disable, history.Disable, history.Enable, history.Enable,
		history.Enable, history.Enable, history.Enable, history.Schedule, history.Cancel, history.Cancel,
	}[c.dice.IntN(12)])
	if errors.Is(err, client.ErrOutcomeUnknown) {
		l.mu.Lock()
		t.unknown++
		l.mu.Unlock()
	}
}

func (l *trial) change(ctx context.Context, c *caller, key string, kind history.Kind) error {
	names := map[history.Kind]string{history.Enable: "EnableKey", history.Disable: "DisableKey", history.Schedule: "ScheduleKeyDeletion", history.Cancel: "CancelKeyDeletion"}
	return c.call(ctx, names[kind], kind, key, writeLimit, func(ctx context.Context) (a answer, err error) {
		var r interface{ GetIndexToken() []byte }
		switch kind {
		case history.Enable:
			r, err = c.Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: key})
		case history.Disable:
			r, err = c.Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})
		case history.Schedule:
			r, err = c.Keys().ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: key})
		default:
			r, err = c.Keys().CancelKeyDeletion(ctx, &pb.CancelKeyDeletionRequest{KeyId: key})
		}
		return answer{token: r.GetIndexToken()}, err
	})
}
