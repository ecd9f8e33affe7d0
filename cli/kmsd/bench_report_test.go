//go:build measure

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// benchResult is one line of bench/results.json. Ratio is value by floor; both are missing
// where a figure stands for itself.
type benchResult struct {
	Name  string   `json:"name"`
	Value float64  `json:"value"`
	Unit  string   `json:"unit"`
	Floor *float64 `json:"floor,omitempty"`
	Ratio *float64 `json:"ratio,omitempty"`
	// Wanted is what the ratio, or the value where there is none, must be: "<= 1.7".
	Wanted string `json:"wanted,omitempty"`
	Held   bool   `json:"held"`
}

type benchReport struct {
	Machine  map[string]string `json:"machine"`
	Versions map[string]string `json:"versions"`
	Results  []benchResult     `json:"results"`

	f *figures
}

func newBenchReport(version string) *benchReport {
	f := newFigures(version)
	return &benchReport{Machine: f.Machine, Versions: f.Versions, f: f}
}

// alone adds a figure without a floor.
func (r *benchReport) alone(name string, value float64, unit, wanted string) {
	r.put(benchResult{Name: name, Value: value, Unit: unit, Wanted: wanted, Held: holds(value, wanted)})
}

// against adds a figure beside its floor's.
func (r *benchReport) against(name string, value, floor float64, unit, wanted string) {
	ratio := value / floor
	r.put(benchResult{Name: name, Value: value, Unit: unit, Floor: &floor, Ratio: &ratio, Wanted: wanted, Held: holds(ratio, wanted)})
}

func (r *benchReport) put(x benchResult) {
	r.Results = append(r.Results, x)
	fmt.Printf("%6.1fs  %-36s %10s %s%s\n", time.Since(r.f.began).Seconds(), x.Name, readable(x.Value), x.Unit, x.beside())
}

func (x benchResult) beside() string {
	if x.Ratio == nil {
		return ""
	}
	return fmt.Sprintf(", floor %s, ratio %.2f", readable(*x.Floor), *x.Ratio)
}

// holds tells whether a value is what was wanted.
func holds(value float64, wanted string) bool {
	var bound float64
	switch {
	case wanted == "":
		return true
	case strings.HasPrefix(wanted, "<= "):
		_, err := fmt.Sscanf(wanted, "<= %g", &bound)
		return err == nil && value <= bound
	default:
		_, err := fmt.Sscanf(wanted, ">= %g", &bound)
		return err == nil && value >= bound
	}
}

// end prints the table and writes the file.
func (r *benchReport) end(t *testing.T, path string) {
	t.Helper()
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tvalue\tunit\tfloor\tratio\twanted\t\t")
	for _, x := range r.Results {
		floor, ratio, held := "", "", ""
		if x.Ratio != nil {
			floor, ratio = readable(*x.Floor), fmt.Sprintf("%.2f", *x.Ratio)
		}
		if !x.Held {
			held = "MISSED"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", x.Name, readable(x.Value), x.Unit, floor, ratio, x.Wanted, held)
	}
	must(t, w.Flush())
	took := time.Since(r.f.began).Round(time.Second)
	r.Machine["duration"] = took.String()
	fmt.Printf("\nmedians, in %s\n", took)
	if path == "" {
		return
	}
	text, err := json.MarshalIndent(r, "", "  ")
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, append(text, '\n'), 0o644))
}

func median(all []float64) float64 {
	slices.Sort(all)
	if len(all) == 0 {
		return 0
	}
	return all[len(all)/2]
}
