//go:build linux && chaos

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/node/nodetest/history"
)

// converge waits until every node serves and all have the same state, while the
// clients go on.
func (l *trial) converge(ctx context.Context) {
	for _, m := range l.hosts {
		l.eventually(m.name+" serves again", func() bool {
			v := m.seen.Load()
			return ctx.Err() != nil || v != nil && time.Since(v.at) < useLimit && v.GetServing()
		}, m.process)
	}
	first := l.hosts[0]
	for _, m := range l.hosts[1:] {
		l.eventually(first.name+" and "+m.name+" are at the same index", func() bool {
			a, b := first.seen.Load(), m.seen.Load()
			if ctx.Err() != nil {
				return true
			}
			if a.GetAppliedIndex() != b.GetAppliedIndex() {
				return false
			}
			if !bytes.Equal(a.GetRunningHash(), b.GetRunningHash()) {
				l.mistake("at %d %s and %s have different hashes", a.GetAppliedIndex(), a.GetNodeName(), b.GetNodeName())
			}
			return true
		}, first.process, m.process)
	}
	say(l.began, "every node serves, with the same state")
}

// final reads every key and opens every data key on every node.
func (l *trial) final(ctx context.Context) {
	index := l.latest(l.nodes[0])
	states := map[string]history.Value{}
	for _, o := range l.record.History().Operations {
		if o.Kind == history.Create && o.Outcome == history.OK {
			states[o.Key] = ""
		}
	}
	for _, p := range l.nodes {
		auditor := l.caller(auditorID, p)
		for key := range states {
			_ = auditor.call(ctx, "DescribeKey", history.Final, key, callLimit, func(ctx context.Context) (answer, error) {
				a, err := describe(ctx, auditor, key, index)
				states[key] = a.value
				return a, err
			})
		}
		l.openAll(ctx, p, states)
	}
	say(l.began, "%d acknowledged keys and %d data keys were looked for on every node", len(states), len(l.blobs)+len(l.steady))
}

const (
	openers  = 8  // at a time
	maxWrong = 20 // that are shown; all are kept
)

// openAll opens every data key on one node: those under enabled keys, and no other.
func (l *trial) openAll(ctx context.Context, p *process, states map[string]history.Value) {
	todo := make(chan sealed)
	var wait sync.WaitGroup
	for range openers {
		c := l.caller(userID, p)
		wait.Go(func() {
			for s := range todo {
				err := l.open(ctx, c, s, callLimit)
				if enabled := states[s.key] == history.Enabled; enabled != (err == nil) {
					l.mistake("%s, at the end: a data key under %s, which is %s: %v", p.name, s.key, states[s.key], err)
				}
			}
		})
	}
	for _, s := range append(l.blobs, l.steady...) {
		todo <- s
	}
	close(todo)
	wait.Wait()
}

// acknowledged says how much was.
func (l *trial) acknowledged() string {
	restrictions := 0
	for _, o := range l.record.History().Operations {
		if o.Kind.Restricts() && o.Outcome == history.OK {
			restrictions++
		}
	}
	return fmt.Sprintf("%d keys, %d data keys, %d restrictions", l.counted("CreateKey", "ok"), l.counted("GenerateDataKey", "ok"), restrictions)
}

// judge applies the rules to everything that was seen.
func (l *trial) judge() {
	for _, v := range history.Check(l.record.History(), history.Rules{Slack: callLimit}) {
		l.wrong = append(l.wrong, v.String())
	}
	for _, w := range l.wrong[:min(len(l.wrong), maxWrong)] {
		l.t.Error(w)
	}
	if more := len(l.wrong) - maxWrong; more > 0 {
		l.t.Errorf("and %d more", more)
	}
}

// need is something that must have happened for a verdict to mean anything.
type need struct {
	what         string
	got, atLeast int
}

func (l *trial) needs(all []need) {
	for _, n := range all {
		if n.got < n.atLeast {
			l.t.Errorf("vacuous: %s: %d, want at least %d", n.what, n.got, n.atLeast)
		}
	}
}

// keep saves what there is to learn from a failure, or, with KEEP, from any run.
func (l *trial) keep(seed uint64, interrupted bool) {
	if (!l.t.Failed() || interrupted) && os.Getenv("KEEP") == "" {
		return
	}
	target := map[string]string{"TestChaos": "chaos", "TestPowerLoss": "powerloss"}[l.t.Name()]
	dir, err := os.MkdirTemp(os.Getenv(asSandbox), fmt.Sprintf("quorumkms-%s-%d-", target, seed))
	must(l.t, err)
	save := func(name string, f func(*os.File) error) {
		out, err := os.Create(filepath.Join(dir, name))
		must(l.t, err)
		must(l.t, f(out))
		must(l.t, out.Close())
	}
	save("history.jsonl", func(f *os.File) error { return l.record.History().Save(f) })
	save("wrong.txt", func(f *os.File) error {
		_, err := fmt.Fprintf(f, "SEED=%d NODES=%d\n%s\n", seed, len(l.nodes), strings.Join(l.wrong, "\n"))
		return err
	})
	for _, p := range l.nodes {
		save(p.name+".log", func(f *os.File) error {
			_, err := f.WriteString(p.history())
			return err
		})
	}
	say(l.began, "history, logs and what is wrong are in %s; the same faults again: SEED=%d NODES=%d make %s", dir, seed, len(l.nodes), target)
}
