package client

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestStreamStalls: an attempt may take as long as it moves, and no longer.
func TestStreamStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, err := streamOnce(t.Context(), &link{}, func(ctx context.Context, _ *link, alive func()) (bool, error) {
			for range 5 {
				time.Sleep(streamStall - time.Second)
				alive()
			}
			<-ctx.Done()
			return true, ctx.Err()
		})
		if want := 5*(streamStall-time.Second) + streamStall; !errors.Is(err, errStalled) || time.Since(began) != want {
			t.Errorf("%v after %s, want %s", err, time.Since(began), want)
		}
	})
}
