package audit

import (
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
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

// TestEncoding: a record is what encoding/json makes of it, whatever is in it; no field is
// forgotten.
func TestEncoding(t *testing.T) {
	strange := []string{"", "plain", `"quoted\"`, "<&>", "é\u2028\u2029", "\x00\x1f\x7f\n\t", "bad \xff utf-8", strings.Repeat("x", 300)}
	check := func(e Event) {
		t.Helper()
		want, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		got := placed(nil, e.Time, e.Sequence, e.Node, e.encode(nil), e.Previous)
		if string(got) != string(want)+"\n" {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	check(Event{})
	for i := range reflect.TypeFor[Event]().NumField() {
		for _, text := range strange {
			var e Event
			switch f := reflect.ValueOf(&e).Elem().Field(i); {
			case f.Kind() == reflect.String:
				f.SetString(text)
			case f.Kind() == reflect.Bool:
				f.SetBool(true)
			case f.CanUint():
				f.SetUint(uint64(len(text)))
			case f.Kind() == reflect.Map:
				f.Set(reflect.ValueOf(map[string]string{"b": text, "a": "", text: text}))
			case f.Type() == reflect.TypeFor[time.Time]():
				f.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, len(text)*1000, time.UTC)))
			default:
				t.Fatalf("field %d is of a kind that nobody has thought of: %s", i, f.Type())
			}
			check(e)
		}
	}
}

// TestRecordedTogether: what many record at once is one trail, in which each call's records
// stay together, across the ends of segments.
func TestRecordedTogether(t *testing.T) {
	const calls, together, rounds = 16, 50, 100
	l := open(t, t.TempDir())
	var work sync.WaitGroup
	for c := range calls {
		work.Go(func() {
			for r := range rounds {
				all := make([]Event, together)
				for i := range all {
					all[i] = Event{Name: "E", Principal: strconv.Itoa(c), Target: strconv.Itoa(r*together + i), Result: Success}
				}
				if err := l.RecordAll(all); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	dir := l.config.Dir
	shut(t, l)
	next, among := map[string]int{}, 0
	for i, e := range read(t, dir) {
		if e.Sequence != uint64(i+1) || e.Target != strconv.Itoa(next[e.Principal]) {
			t.Fatalf("record %d is %d, %s of %s", i+1, e.Sequence, e.Target, e.Principal)
		}
		next[e.Principal]++
		if among++; among < together && next[e.Principal]%together != among {
			t.Fatalf("record %d is among those of another call", i+1)
		}
		among %= together
	}
	if len(next) != calls || l.tree.Size() != calls*together*rounds || l.tree.Size() < trail.SegmentRecords {
		t.Fatalf("%d calls, %d records", len(next), l.tree.Size())
	}
}
