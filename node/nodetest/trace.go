package nodetest

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// maxTrace bounds what is kept of one node's log, in bytes.
const maxTrace = 16 << 20

// Trace keeps what nodes log and what happens to them, in memory until a failure is
// saved.
type Trace struct {
	start time.Time

	mu     sync.Mutex
	files  map[string]*bytes.Buffer
	counts map[string]int
}

func newTrace() *Trace {
	return &Trace{start: time.Now(), files: map[string]*bytes.Buffer{}, counts: map[string]int{}}
}

// logger is where one node logs; times are virtual, since the start.
func (t *Trace) logger(name string) *slog.Logger {
	return slog.New(slog.NewTextHandler(traceFile{t, name}, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
				return slog.Duration("t", a.Value.Time().Sub(t.start))
			}
			return a
		},
	}))
}

type traceFile struct {
	trace *Trace
	name  string
}

// Write implements io.Writer.
func (f traceFile) Write(b []byte) (int, error) {
	f.trace.mu.Lock()
	defer f.trace.mu.Unlock()
	buffer := f.trace.files[f.name]
	if buffer == nil {
		buffer = new(bytes.Buffer)
		f.trace.files[f.name] = buffer
	}
	if buffer.Len() < maxTrace {
		buffer.Write(b)
	}
	return len(b), nil
}

// Event notes what is done to the cluster, and counts it by its kind.
func (t *Trace) Event(kind, format string, args ...any) {
	line := fmt.Sprintf("%12s  %-12s %s\n", time.Since(t.start).Round(time.Microsecond), kind, fmt.Sprintf(format, args...))
	t.mu.Lock()
	t.counts[kind]++
	t.mu.Unlock()
	_, _ = traceFile{t, "events"}.Write([]byte(line)) // a buffer
}

// Counts are how often each kind of event happened.
func (t *Trace) Counts() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[string]int, len(t.counts))
	for k, n := range t.counts {
		out[k] = n
	}
	return out
}

// Save writes every log to a directory.
func (t *Trace) Save(dir string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, b := range t.files {
		path := filepath.Join(dir, strings.ReplaceAll(name, "/", "_")+".log")
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return nil
}
