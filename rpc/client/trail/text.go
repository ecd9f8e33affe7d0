package trail

import (
	"fmt"
	"strings"
	"time"
)

// Text is a report for people: what is proved, or what was found. name is the node's.
func (r Report) Text(name string) []string {
	who := name
	if r.Node != "" && r.Node != name {
		who = fmt.Sprintf("%s (%s)", name, r.Node)
	}
	proved := "nothing is proved by a checkpoint"
	if r.Proved > 0 {
		proved = fmt.Sprintf("proved up to record %d, of %s, by %s", r.Proved, r.ProvedAt.UTC().Format(time.DateTime)+" UTC", r.ProvedBy)
	}
	if f := r.Finding; f != nil {
		records := fmt.Sprintf("records %d to %d", f.First, f.Last)
		if f.First == f.Last {
			records = fmt.Sprintf("record %d", f.First)
		}
		return []string{fmt.Sprintf("%s: %s, %s: %s", who, f.Kind, records, f.Text), "  " + proved}
	}
	whole := "are whole"
	if len(r.Sealed) > 0 {
		whole = "are there, some of them sealed"
	}
	text := fmt.Sprintf("%s: records %d to %d %s; %s; compared with %d checkpoints", who, r.First, r.Last, whole, proved, r.Heads)
	if r.Heads == 1 {
		text = strings.TrimSuffix(text, "s")
	}
	if r.Last == 0 {
		text = who + ": there are no records"
	}
	out := []string{text}
	for _, s := range r.Sealed {
		out = append(out, fmt.Sprintf("  records %d to %d are sealed and WERE NOT READ: the hash of what was signed is proved; that the file holds that, only opening it shows (kmsctl audit open)", s.First, s.Last))
	}
	switch {
	case r.First > 1 && r.Removal == 0:
		out = append(out, fmt.Sprintf("  records before %d are not there: a record that says that they were removed because of their age may be among those that are sealed", r.First))
	case r.First > 1:
		out = append(out, fmt.Sprintf("  records before %d are not there: record %d says that they were removed because of their age", r.First, r.Removal))
	}
	if behind := r.Last - min(r.Proved, r.Last); behind > 0 {
		out = append(out, fmt.Sprintf("  the last %d records are not signed yet", behind))
	}
	if r.Torn > 0 {
		out = append(out, fmt.Sprintf("  %d bytes of an unfinished record follow", r.Torn))
	}
	return out
}
