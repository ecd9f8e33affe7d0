package cluster

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes Raft's log on to slog.
func raftLogger(to *slog.Logger, clock Clock) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Debug, Output: io.Discard})
	l.RegisterSink(&slogSink{to: to.With("component", "raft"), clock: clock, said: map[string]saying{}})
	return l
}

const (
	// sayEvery is how often one complaint about one other node is passed on: Raft has
	// several a second of a node that is down.
	sayEvery = time.Minute
	// maxSayings bounds the complaints remembered.
	maxSayings = 256
)

type slogSink struct {
	to    *slog.Logger
	clock Clock

	mu   sync.Mutex
	said map[string]saying
}

// saying is a complaint about a node.
type saying struct {
	last   time.Duration // on the clock, when it was passed on
	unsaid int           // how often it was not, since
}

// Accept implements hclog.SinkAdapter.
func (s *slogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	l := slog.LevelDebug
	switch level {
	case hclog.Warn:
		l = slog.LevelWarn
	case hclog.Error:
		l = slog.LevelError
	case hclog.NoLevel, hclog.Trace, hclog.Debug, hclog.Info, hclog.Off:
	}
	if node, ok := about(args); ok && l > slog.LevelDebug {
		unsaid, due := s.due(msg + " " + node)
		if !due {
			return
		}
		if unsaid > 0 {
			args = append(args[:len(args):len(args)], "not_logged_since_the_last", unsaid)
		}
	}
	s.to.Log(context.Background(), l, msg, args...)
}

// about is the other node that a line of Raft's log names.
func about(args []any) (node string, ok bool) {
	for i := 0; i+1 < len(args); i += 2 {
		switch args[i] {
		case "peer", "id", "target":
			return fmt.Sprint(args[i+1]), true
		}
	}
	return "", false
}

func (s *slogSink) due(what string) (unsaid int, due bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	x, known := s.said[what]
	if known && now-x.last < sayEvery {
		x.unsaid++
		s.said[what] = x
		return 0, false
	}
	if !known && len(s.said) >= maxSayings {
		clear(s.said)
	}
	s.said[what] = saying{last: now}
	return x.unsaid, true
}
