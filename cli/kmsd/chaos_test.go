//go:build linux && chaos

package main

import (
	"testing"
	"time"
)

func TestChaos(t *testing.T) {
	if !sandboxed(t) {
		return
	}
	ctx := interruptible(t)
	r := newRig(t, nodes(t), "data")
	r.begin()
	say(r.began, "begun")
	r.supervise(ctx)
	time.Sleep(5*time.Second)
}
