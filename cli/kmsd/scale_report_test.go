//go:build measure

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// figure is one line of bench/scale.json.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Keys  int     `json:"keys"`
}

// figures is what a run has measured.
type figures struct {
	Machine  map[string]string `json:"machine"`
	Versions map[string]string `json:"versions"`
	Results  []figure          `json:"results"`

	began time.Time
	busy  time.Duration // of all processors, when it began
}

func newFigures(version string) *figures {
	f := &figures{began: time.Now(), busy: processorsBusy(), Versions: map[string]string{"quorumkms": version, "go": runtime.Version()}}
	f.Machine = map[string]string{
		"processor": procField("/proc/cpuinfo", "model name"), "processors": strconv.Itoa(runtime.NumCPU()),
		"memory": procField("/proc/meminfo", "MemTotal"), "kernel": firstLine("/proc/sys/kernel/osrelease"),
		"date": time.Now().UTC().Format(time.DateOnly),
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "github.com/hashicorp/raft", "github.com/tidwall/btree", "go.etcd.io/bbolt", "google.golang.org/grpc":
				f.Versions[m.Path] = m.Version
			}
		}
	}
	return f
}

func (f *figures) add(keys int, name string, value float64, unit string) {
	f.Results = append(f.Results, figure{name, value, unit, keys})
	f.progress(keys, "%-58s %12s %s", name, readable(value), unit)
}

// latencies adds the percentiles of a set of times.
func (f *figures) latencies(keys int, name string, all []time.Duration, unit time.Duration) {
	name, units := strings.TrimSpace(name), map[time.Duration]string{time.Microsecond: "us", time.Millisecond: "ms"}
	slices.Sort(all)
	for _, p := range []struct {
		name string
		at   float64
	}{{"p50", 0.5}, {"p99", 0.99}, {"max", 1}} {
		f.add(keys, name+" "+p.name, float64(percentile(all, p.at))/float64(unit), units[unit])
	}
}

// percentile of a sorted set.
func percentile(all []time.Duration, p float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	return all[min(len(all)-1, int(p*float64(len(all))))]
}

// progress tells the person who waits what goes on.
func (f *figures) progress(keys int, format string, args ...any) {
	fmt.Printf("%6.1fs %9d keys  %s\n", time.Since(f.began).Seconds(), keys, fmt.Sprintf(format, args...))
}

// end writes the table and the file.
func (f *figures) end(t *testing.T, path string) {
	t.Helper()
	total := time.Since(f.began)
	// Of children only those count that were waited for: all of them, by now.
	others := processorsBusy() - f.busy - processorOf(syscall.RUSAGE_SELF) - processorOf(syscall.RUSAGE_CHILDREN)
	f.Machine["duration"] = total.Round(time.Second).String()
	f.Machine["processor_time_of_others"] = fmt.Sprintf("%.0f %%", 100*max(0, others.Seconds())/(total.Seconds()*float64(runtime.NumCPU())))
	var sizes []int
	values := map[string]map[int]float64{}
	var order []figure
	for _, r := range f.Results {
		if values[r.Name] == nil {
			values[r.Name] = map[int]float64{}
			order = append(order, r)
		}
		values[r.Name][r.Keys] = r.Value
		if !slices.Contains(sizes, r.Keys) {
			sizes = append(sizes, r.Keys)
		}
	}
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\t")
	for _, n := range sizes {
		fmt.Fprintf(w, "%d keys\t", n)
	}
	fmt.Fprintln(w, "unit\t")
	for _, r := range order {
		fmt.Fprintf(w, "%s\t", r.Name)
		for _, n := range sizes {
			text := "-"
			if v, ok := values[r.Name][n]; ok {
				text = readable(v)
			}
			fmt.Fprintf(w, "%s\t", text)
		}
		fmt.Fprintf(w, "%s\t\n", r.Unit)
	}
	must(t, w.Flush())
	fmt.Printf("\n%s, others used %s of the processors meanwhile\n", total.Round(time.Second), f.Machine["processor_time_of_others"])
	f.write(t, path)
}

// write writes the file: after each size, so that a run that is ended leaves what it has.
func (f *figures) write(t *testing.T, path string) {
	t.Helper()
	if path == "" {
		return
	}
	b, err := json.MarshalIndent(f, "", "  ")
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, append(b, '\n'), 0o644))
}

func readable(v float64) string {
	switch {
	case v >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
}

func firstLine(path string) string {
	b, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// procField is the value of the first line of that name in a file of /proc.
func procField(path, name string) string {
	b, _ := os.ReadFile(path)
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// processorsBusy is how long the machine's processors have worked since it was started.
func processorsBusy() (busy time.Duration) {
	for i, field := range strings.Fields(firstLine("/proc/stat")) {
		if n, err := strconv.ParseInt(field, 10, 64); err == nil && i <= 8 && i != 4 && i != 5 { // not idle, not waiting
			busy += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return busy
}

func processorOf(who int) time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(who, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap is the size of what lives on the heap, in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
