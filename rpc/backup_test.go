package rpc

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestMoving: a stream goes on as long as it moves, and ends when it stalls, when its
// caller is gone, and with what its work ends with.
func TestMoving(t *testing.T) {
	failure := errors.New("no")
	blocked := func(ctx context.Context, _ func()) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for _, row := range []struct {
		name  string
		f     func(ctx context.Context, alive func()) error
		want  error
		after time.Duration
	}{
		{"done", func(context.Context, func()) error { return nil }, nil, 0},
		{"failed", func(context.Context, func()) error { return failure }, failure, 0},
		{"stalled", blocked, errStalled, streamStall},
		{"slow", func(_ context.Context, alive func()) error {
			for range 10 {
				time.Sleep(streamStall - time.Second)
				alive()
			}
			return nil
		}, nil, 10 * (streamStall - time.Second)},
		{"slow, then stalled", func(ctx context.Context, alive func()) error {
			time.Sleep(streamStall - time.Second)
			alive()
			return blocked(ctx, alive)
		}, errStalled, 2*streamStall - time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				if err := moving(t.Context(), row.f); !errors.Is(err, row.want) || time.Since(began) != row.after {
					t.Errorf("%v after %s, want %v after %s", err, time.Since(began), row.want, row.after)
				}
			})
		})
	}
	t.Run("its caller goes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := moving(ctx, blocked); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errStalled) {
				t.Errorf("%v", err)
			}
		})
	})
	t.Run("it panics", func(t *testing.T) {
		defer func() {
			if p := recover(); p != "oops" {
				t.Errorf("recovered %v", p)
			}
		}()
		err := moving(t.Context(), func(context.Context, func()) error { panic("oops") })
		t.Errorf("it went on with %v", err)
	})
}
