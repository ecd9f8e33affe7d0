package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	// The pause after a round over all nodes, and after BUSY, doubles from
	// pauseMin to pauseMax; each is shortened at random by up to half.
	pauseMin = 50 * time.Millisecond
	pauseMax = 2 * time.Second
	// maxBusy is how many BUSY and RATE_LIMITED answers one call takes before it returns
	// the last.
	maxBusy = 4
)

// Invoke implements grpc.ClientConnInterface: the one path of every call, which
// the generated clients use. args is not changed.
func (c *Client) Invoke(ctx context.Context, method string, args, reply any, options ...grpc.CallOption) error {
	request, ok := args.(proto.Message)
	if !ok {
		return fmt.Errorf("client: %s: %T is no protocol message", method, args)
	}
	a := &call{client: c, method: method, reply: reply, options: options, timeout: c.config.Timeout}
	a.request, a.mutation = c.complete(request)
	if a.mutation || slow(request) {
		a.timeout = c.config.MutationTimeout
	}
	if _, ok := ctx.Deadline(); !ok {
		limit := c.config.Deadline
		if limit == 0 {
			limit = deadlineFactor * a.timeout
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	if c.config.Called == nil {
		return a.run(c.withHeaders(ctx))
	}
	began := time.Now()
	err := a.run(c.withHeaders(ctx))
	c.config.Called(Called{
		Method: method, Address: a.at, Duration: time.Since(began), Attempts: a.attempts, Hedged: a.hedged, HedgeWon: a.hedgeWon, Err: err,
	})
	return err
}

// slow tells whether a call without effect takes as long as a mutation: the nodes make RSA
// keys of 4,096 bits for it.
func slow(request proto.Message) bool {
	switch request.(type) {
	case *quorumkmsv1.GenerateDataKeyPairRequest, *quorumkmsv1.GenerateDataKeyPairWithoutPlaintextRequest, *quorumkmsv1.GetParametersForImportRequest:
		return true
	default:
		return false
	}
}

// complete returns a shallow copy of the request with what is the client's to
// fill in, and whether it is a mutation: those are the messages that have a
// request id.
func (c *Client) complete(request proto.Message) (completed proto.Message, mutation bool) {
	from := request.ProtoReflect()
	to := from.New()
	from.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		to.Set(field, v)
		return true
	})
	to.SetUnknown(from.GetUnknown())
	own := ownFields(from.Descriptor())
	if own.tenant != nil && c.config.Tenant != "" && !from.Has(own.tenant) {
		to.Set(own.tenant, protoreflect.ValueOfString(c.config.Tenant))
	}
	if token := c.indexToken(); own.token != nil && len(token) > 0 && !from.Has(own.token) {
		to.Set(own.token, protoreflect.ValueOfBytes(token))
	}
	if own.request != nil && !from.Has(own.request) {
		to.Set(own.request, protoreflect.ValueOfString(uuid.NewString()))
	}
	return to.Interface(), own.request != nil
}

// own are the fields of a kind of request that are the client's to fill in; nil: it has none.
type own struct{ tenant, token, request protoreflect.FieldDescriptor }

var ownOf sync.Map // protoreflect.FullName -> own: each kind of request is looked at once

func ownFields(d protoreflect.MessageDescriptor) own {
	if known, ok := ownOf.Load(d.FullName()); ok {
		return known.(own)
	}
	f := d.Fields()
	o := own{f.ByName("tenant"), f.ByName("index_token"), f.ByName("request_id")}
	ownOf.Store(d.FullName(), o)
	return o
}

// call is one call on its way through the nodes.
type call struct {
	client   *Client
	method   string
	request  proto.Message // the same in every attempt
	reply    any
	options  []grpc.CallOption
	mutation bool
	timeout  time.Duration // of an attempt

	busy   int    // BUSY and RATE_LIMITED answers so far
	unsure bool   // an attempt of a mutation may have taken effect
	last   *Error // of the last attempt, that excepted which ctx ended

	attempts         int
	at               string // address of the node that answered, or was tried last
	hedged, hedgeWon bool
}

func (a *call) run(ctx context.Context) error {
	for round := 0; ; round++ {
		nodes := a.nodes()
		hope := false
		for i := 0; i < len(nodes); i++ {
			e := nodes[i]
			if a.last != nil && a.client.config.Retrying != nil {
				a.client.config.Retrying(a.last.Address, a.last)
			}
			var err *Error
			if a.attempts == 0 {
				e, err = a.begin(ctx, nodes)
			} else {
				err = a.attempt(ctx, e, len(nodes))
			}
			a.at = e.address
			if err == nil {
				return nil
			}
			if ctx.Err() != nil || a.client.isClosed() {
				return a.fail(ctx)
			}
			switch {
			case err.limited():
				a.client.answered(e, nil)
				i-- // the same node, later
			case !err.transient():
				a.client.answered(e, nil)
				return err
			default:
				a.client.failed(e)
				a.client.learn(err.Nodes)
				hope = hope || !err.refused()
			}
			if !a.patient(ctx, err) {
				return a.fail(ctx)
			}
		}
		if !hope || !pause(ctx, round) {
			return a.fail(ctx)
		}
	}
}

// patient waits as long as a node that has too much to do asks for; false if that is too
// long, or was too often.
func (a *call) patient(ctx context.Context, err *Error) bool {
	if !err.limited() && !err.busy() {
		return true
	}
	a.busy++
	switch {
	case a.busy > maxBusy:
		return false
	case err.limited():
		return pauseFor(ctx, err.RetryAfter, a.busy-1)
	}
	return pause(ctx, a.busy-1)
}

// nodes returns where to try, in order. Init has one place only.
func (a *call) nodes() []*endpoint {
	nodes := a.client.order()
	if a.method == quorumkmsv1.ClusterService_Init_FullMethodName {
		first := a.client.config.Addresses[0]
		nodes = slices.DeleteFunc(nodes, func(e *endpoint) bool { return e.address != first })
	}
	return nodes
}

// attempt sends the call to e, one of n nodes. While there are others, no attempt
// uses up more than half of the time left.
func (a *call) attempt(ctx context.Context, e *endpoint, n int) *Error {
	a.attempts++
	limit := a.timeout
	if deadline, ok := ctx.Deadline(); ok && n > 1 {
		limit = min(limit, time.Until(deadline)/2)
	}
	attempt, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	l := e.take()
	defer e.give(l)
	var taker peer.Peer // stays empty if no connection took the request
	var failure *Error
	if n > 1 && !l.reach(attempt) {
		failure = &Error{Address: e.address, Code: codes.Unavailable, Message: "no connection yet"}
	} else {
		err := l.Invoke(attempt, a.method, a.request, a.reply, append(slices.Clip(a.options), grpc.Peer(&taker))...)
		if err == nil {
			a.client.answered(e, tokenOf(a.reply))
			return nil
		}
		failure = newError(e.address, err)
	}
	switch {
	case failure.Code == codes.DeadlineExceeded && attempt.Err() != nil:
		failure.Message = "no answer within " + limit.Round(time.Millisecond).String()
	case failure.Code == codes.Canceled && attempt.Err() == nil: // not by the caller: the connection went
		failure.Code = codes.Unavailable
	}
	open := failure.transient() || ctx.Err() != nil
	switch sent := taker.Addr != nil; {
	case !sent:
		if failure.cause = l.refusal(); failure.cause != nil && e.files.newer(l.age) {
			failure.cause = nil // the files have changed since: that refusal is not the last word
		}
	case a.mutation && open && !failure.withoutEffect():
		a.unsure = true
	}
	if a.last == nil || ctx.Err() == nil {
		a.last = failure
	}
	return failure
}

func tokenOf(reply any) []byte {
	if r, ok := reply.(interface{ GetIndexToken() []byte }); ok {
		return bytes.Clone(r.GetIndexToken())
	}
	return nil
}

// fail is how a call ends to which no node gave a final answer.
func (a *call) fail(ctx context.Context) error {
	var err error
	switch {
	case a.client.isClosed():
		err = ErrClosed
	case ctx.Err() != nil:
		err = outOfTime(ctx, a.last)
	case errors.Is(a.last, ErrClientRefused):
		err = a.last.explained(a.client.files)
	default:
		err = a.last
	}
	if a.unsure {
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return err
}

// pause waits out the nth pause, from 0 on. It reports whether time is left.
func pause(ctx context.Context, n int) bool {
	d := min(pauseMin<<min(n, 16), pauseMax)
	d -= rand.N(d / 2) //nolint:gosec // jitter is no secret
	return sleep(ctx, d)
}

// pauseFor waits out the pause that a node asked for, and a little more, so that callers
// that were told the same do not come at once; the nth pause if it asked for none. It
// does not begin to wait if the call would have no time left.
func pauseFor(ctx context.Context, asked time.Duration, n int) bool {
	if asked <= 0 {
		return pause(ctx, n)
	}
	asked += rand.N(asked/4 + 1) //nolint:gosec // jitter is no secret
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= asked {
		return false
	}
	return sleep(ctx, asked)
}

// sleep reports whether time is left afterwards.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
