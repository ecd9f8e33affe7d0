package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestBatchAnswer: an item's error is told as a call's is; a batch that nothing came of for the node's sake
// fails, so that another node is asked.
func TestBatchAnswer(t *testing.T) {
	disabled, secret := fmt.Errorf("%w: k", fsm.ErrDisabled), errors.New("the PIN is 1234")
	for name, c := range map[string]struct {
		items []error
		want  error
	}{
		"all well":                     {[]error{nil, nil}, nil},
		"one is refused":               {[]error{nil, disabled}, nil},
		"all are refused":              {[]error{disabled, kms.ErrDenied}, nil},
		"the HSM failed for one":       {[]error{nil, hsm.ErrUnavailable}, nil},
		"and the other is refused":     {[]error{hsm.ErrUnavailable, disabled}, hsm.ErrUnavailable},
		"the HSM has too much to do":   {[]error{disabled, hsm.ErrBusy}, hsm.ErrBusy},
		"no time left":                 {[]error{context.DeadlineExceeded}, context.DeadlineExceeded},
		"what callers are not told":    {[]error{nil, secret}, nil},
		"which is no reason to repeat": {[]error{secret}, nil},
	} {
		var log bytes.Buffer
		s := &cryptoServer{log: slog.New(slog.NewTextHandler(&log, nil))}
		all := make([]kms.Result[kms.Opened], len(c.items))
		for i, err := range c.items {
			all[i].Err = err
		}
		seen := map[int]*pb.ItemError{}
		if err := answer(s, all, func(i int, _ *kms.Opened, e *pb.ItemError) { seen[i] = e }); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		for i, err := range c.items {
			code, reason, _, text := reasonOf(t, toStatus(err, nil))
			e, ok := seen[i]
			if !ok || codes.Code(e.GetCode()) != code || e.GetMessage() != text || strings.TrimPrefix(e.GetReason().String(), "REASON_") != reason && (reason != "" || e.GetReason() != 0) {
				t.Errorf("%s, item %d: %v; a call has %s %s %q", name, i, e, code, reason, text)
			}
		}
		if told := strings.Contains(log.String(), "1234"); told != (c.items[len(c.items)-1] == secret) {
			t.Errorf("%s: the log has %s", name, log.String())
		}
	}
}
