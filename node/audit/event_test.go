package audit

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// TestEveryFieldIsToldOf: README's table has each field of a record once, and no other.
func TestEveryFieldIsToldOf(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(b), "| field | what it says |\n|---|---|\n")
	if !found {
		t.Fatal("README.md has no such table")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	told := map[string]int{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			t.Fatalf("line %q", line)
		}
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			told[name[1]]++
		}
	}
	for i := range reflect.TypeFor[Event]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[Event]().Field(i).Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		if told[name] != 1 {
			t.Errorf("%s is told of %d times", name, told[name])
		}
		delete(told, name)
	}
	for name := range told {
		t.Errorf("there is no field %s", name)
	}
}
