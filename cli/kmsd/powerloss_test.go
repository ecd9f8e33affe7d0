//go:build linux && chaos

package main

import (
	"context"
	"math/rand/v2"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

// How long clients work before the power goes.
const workMin, workMax = 5 * time.Second, 10 * time.Second

// TestPowerLoss takes the power away from all nodes at once in the middle of work,
// ROUNDS times (3): each goes on with what had reached its disk; its token lies there
// too. What was acknowledged must be there, and what was restricted stay so.
func TestPowerLoss(t *testing.T) {
	if !sandboxed(t) {
		return
	}
	rounds := setting(t, "ROUNDS", 3, strconv.Atoi)
	seed := setting(t, "SEED", rand.Uint64N(1_000_000), parseSeed)
	dice := rand.New(rand.NewPCG(seed, 0))
	l := underLoad(t, seed, ".", func(*trial, context.Context) {}, func(ctx context.Context, l *trial) {
		for round := 1; round <= rounds && ctx.Err() == nil; round++ {
			sleep(ctx, workMin+time.Duration(dice.Int64N(int64(workMax-workMin))))
			say(l.began, "round %d of %d: the power goes; acknowledged are %s", round, rounds, l.acknowledged())
			losePower(l.hosts...)()
			l.converge(ctx)
		}
	})
	if !t.Failed() {
		say(l.began, "after %d losses of power nothing is missing of %s", rounds, l.acknowledged())
	}
	l.needs([]need{
		{"keys created", l.counted("CreateKey", "ok"), 10 * rounds},
		{"restrictions", len(history.Summarize(l.record.History()).Restrictions), 10 * rounds},
	})
}

// losePower stops machines; they go on, when the function is called that it returns,
// with what was on their disks when the last of them stopped: so no disk is older
// than what another node had heard of it.
func losePower(machines ...*machine) (restore func()) {
	for _, m := range machines {
		m.mayNotStart()
		m.send(syscall.SIGSTOP)
	}
	for _, m := range machines {
		m.disk.snapshot()
	}
	for _, m := range machines {
		m.kill()
		m.disk.restore()
	}
	return func() {
		for _, m := range machines {
			m.mayStart()
		}
	}
}
