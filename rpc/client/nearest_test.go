package client

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestNearest: the nearest node is preferred, and noise moves nobody.
func TestNearest(t *testing.T) {
	a, b := &endpoint{address: "a"}, &endpoint{address: "b"}
	c := &Client{config: Config{Nearest: true}, endpoints: []*endpoint{a, b}}
	const ms = time.Millisecond
	for i, row := range []struct {
		a, b time.Duration // measured; 0: not healthy
		want *endpoint     // in use afterwards
	}{
		{0, 0, nil},
		{5 * ms, 4 * ms, b},    // the first look
		{4 * ms, 4 * ms, b},    //
		{3 * ms, 4 * ms, b},    // smoothed: 4.3 and 4
		{ms, 5 * ms, b},        // one look is not enough: 3.5 and 4.25
		{ms, 5 * ms, a},        // 2.9 and 4.4
		{100 * ms, ms, b},      // 27 and 3.6
		{3 * ms, 0, a},         // b is not healthy
		{30 * ms, 0, a},        //
		{30 * ms, 100 * ms, a}, // b is 27
		{20 * ms, 20 * ms, a},  // within a quarter
		{0, 20 * ms, b},        // a is not healthy
		{0, 0, b},              // nobody is: as it is
	} {
		if e := c.nearest(c.endpoints, []time.Duration{row.a, row.b}); e != nil {
			c.use(e)
		}
		if c.inUse != row.want {
			t.Fatalf("look %d: %v in use, round trips %s and %s", i, c.inUse, a.roundTrip, b.roundTrip)
		}
	}
}

// TestNearestHardly: microseconds are no reason to change.
func TestNearestHardly(t *testing.T) {
	a, b := &endpoint{address: "a"}, &endpoint{address: "b"}
	c := &Client{config: Config{Nearest: true}, endpoints: []*endpoint{a, b}, inUse: a}
	if e := c.nearest(c.endpoints, []time.Duration{150 * time.Microsecond, 60 * time.Microsecond}); e != nil {
		t.Errorf("changes to %s", e.address)
	}
	if nodes := c.order(); nodes[0] != a {
		t.Error("the node in use is not the first")
	}
	c.inUse = nil
	if nodes := c.order(); nodes[0] != b {
		t.Error("the nearest node is not the first")
	}
}

// TestLate: a call is late after the 99th percentile of its method's, and so many are hedged.
func TestLate(t *testing.T) {
	var h hedges
	for i := range hedgeWindow {
		if late := h.begin("m"); (late == 0) != (i < hedgeLeast) {
			t.Fatalf("call %d is late after %s", i, late)
		}
		h.end("m", time.Duration(i)*time.Millisecond)
	}
	if late := h.begin("m"); late != 253*time.Millisecond {
		t.Errorf("late after %s", late)
	}
	for range hedgeWindow {
		h.end("m", time.Microsecond)
	}
	if late := h.begin("m"); late != hedgeFloor {
		t.Errorf("fast ones are late after %s", late)
	}
	if late := h.begin("other"); late != 0 {
		t.Errorf("an unknown method is late after %s", late)
	}
	n := 0
	for h.may() {
		n++
	}
	if n != hedgeBurst {
		t.Errorf("%d hedged at once", n)
	}
	for range 100 {
		h.begin("m")
		if h.may() {
			n++
		}
	}
	if n < hedgeBurst+4 || n > hedgeBurst+5 {
		t.Errorf("%d hedged of 100 more", n)
	}
}

// TestWipe: of an answer that nobody gets, all bytes.
func TestWipe(t *testing.T) {
	secret := []byte("secret")
	for _, m := range []proto.Message{
		&quorumkmsv1.DecryptResponse{Plaintext: secret, KeyId: "k"},
		&quorumkmsv1.DecryptRequest{Recipient: &quorumkmsv1.Recipient{PublicKey: secret}},
		&quorumkmsv1.DescribeTrailsResponse{Proof: [][]byte{nil, secret}},
		&quorumkmsv1.DescribeTrailsResponse{Trails: []*quorumkmsv1.Trail{{}, {Checkpoint: secret}}},
	} {
		copy(secret, "secret")
		wipe(m.ProtoReflect())
		if string(secret) != "\x00\x00\x00\x00\x00\x00" {
			t.Errorf("%v: %q is left", m, secret)
		}
	}
}
