package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestActions: help and completion name what policies know.
func TestActions(t *testing.T) {
	source, err := os.ReadFile("../../node/policy/action.go")
	if err != nil {
		t.Fatal(err)
	}
	marks := map[string]string{"OnKey": "", "OnTenant": "*", "OnBoth": "+"}
	want := map[string][]string{}
	for _, m := range regexp.MustCompile(`\{"(\w+)", (\w+), (\w+)\}`).FindAllStringSubmatch(string(source), -1) {
		group := strings.ToLower(m[2])
		want[group] = append(want[group], m[1]+marks[m[3]])
	}
	if len(want) != len(actionGroups) {
		t.Errorf("%d groups, want %d", len(actionGroups), len(want))
	}
	for _, g := range actionGroups {
		if !slices.Equal(g.actions, want[g.name]) {
			t.Errorf("group %s is\n%q, want\n%q", g.name, g.actions, want[g.name])
		}
	}
	for line := range strings.Lines(policyActions()) {
		if len(line) > 90 {
			t.Errorf("a line of help has %d bytes: %s", len(line), line)
		}
	}
}
