package node

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/quorumkms/quorumkms/node/policy"
)

// ConfigProblem is one thing that is wrong with a configuration file.
type ConfigProblem struct {
	Line int // 0: none that could be named
	Text string
}

// ConfigError is everything that is wrong with a configuration file, in the order of its
// lines. It is an ErrConfig.
type ConfigError struct {
	Path     string
	Problems []ConfigProblem
}

// Lines are the problems as file:line: text.
func (e *ConfigError) Lines() []string {
	var lines []string
	for _, p := range e.Problems {
		at := e.Path
		if p.Line > 0 {
			at += ":" + strconv.Itoa(p.Line)
		}
		lines = append(lines, at+": "+p.Text)
	}
	return lines
}

// Error implements error.
func (e *ConfigError) Error() string {
	return ErrConfig.Error() + ": " + strings.Join(e.Lines(), "; ")
}

// Unwrap gives ErrConfig.
func (e *ConfigError) Unwrap() error { return ErrConfig }

// file is a configuration file as it was read.
type file struct {
	path     string
	lines    map[string]int // of keys, such as backup.dir
	problems []ConfigProblem
	within   map[*yaml.Node]bool
	unread   bool // nothing of it could be read: what is missing says nothing
}

// readConfig reads a file: its problems are those of YAML, of fields that do not exist, and
// of values of the wrong kind.
func readConfig(path string) (Config, *file, error) {
	b, err := readBounded(path, maxConfigFile)
	if err != nil {
		return Config{}, nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	c := Config{Limits: defaultQuotas()} // not in complete: there a 0 could not be told from nothing
	f := &file{path: path, lines: map[string]int{}, within: map[*yaml.Node]bool{}}
	d := yaml.NewDecoder(bytes.NewReader(b))
	var document yaml.Node
	if err := d.Decode(&document); err != nil {
		if f.unread = !errors.Is(err, io.EOF); f.unread {
			f.add(err)
		}
		return c, f, nil
	}
	f.unread = document.Content[0].Kind != yaml.MappingNode
	f.walk(document.Content[0], reflect.TypeFor[Config](), "")
	if err := document.Decode(&c); err != nil {
		f.add(err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		f.problems = append(f.problems, ConfigProblem{Text: "there is more than one YAML document: only the first would be read"})
	}
	return c, f, nil
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): `)

// add takes up what YAML says: everything at once, where it can.
func (f *file) add(err error) {
	texts := []string{err.Error()}
	if all, ok := errors.AsType[*yaml.TypeError](err); ok {
		texts = all.Errors
	}
	for _, text := range texts {
		p := ConfigProblem{Text: text}
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			p.Line, _ = strconv.Atoi(m[1])
			p.Text = "yaml: " + strings.TrimPrefix(text, m[0])
		}
		f.problems = append(f.problems, p)
	}
}

// walk notes the lines of keys, and finds those that do not exist or are there twice: the
// second is left out, so that the rest can be looked at.
func (f *file) walk(n *yaml.Node, t reflect.Type, prefix string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice && !f.within[n] {
		f.within[n] = true
		defer delete(f.within, n)
		for i, item := range n.Content {
			f.walk(item, t.Elem(), fmt.Sprintf("%s[%d].", strings.TrimSuffix(prefix, "."), i))
		}
		return
	}
	if n.Kind != yaml.MappingNode || t.Kind() != reflect.Struct || f.within[n] { // YAML itself refuses what contains itself
		return
	}
	f.within[n] = true
	defer delete(f.within, n)
	fields := map[string]reflect.Type{}
	var known []string
	for i := range t.NumField() {
		name := yamlName(t.Field(i))
		fields[name], known = t.Field(i).Type, append(known, name)
	}
	var once []*yaml.Node
	defer func() { n.Content = once }()
	first := map[string]int{} // lines
	for pair := range slices.Chunk(n.Content, 2) {
		key, value := pair[0], pair[1]
		if line := first[key.Value]; line != 0 {
			f.problems = append(f.problems, ConfigProblem{key.Line, fmt.Sprintf("%s%s is there twice, first in line %d", prefix, key.Value, line)})
			continue
		}
		first[key.Value], once = key.Line, append(once, pair...)
		if key.Tag == "!!merge" {
			f.walk(value, t, prefix)
			continue
		}
		name := prefix + key.Value
		of, ok := fields[key.Value]
		if !ok {
			f.problems = append(f.problems, ConfigProblem{key.Line, fmt.Sprintf("unknown field %s%s", name, instead(key.Value, prefix, known))})
			continue
		}
		f.lines[name] = key.Line
		f.walk(value, of, name+".")
	}
}

// instead is what was meant with a field that does not exist: one that has its name
// elsewhere, or is like it here.
func instead(name, prefix string, known []string) string {
	for _, key := range configKeys() {
		if strings.HasSuffix(key, "."+name) {
			return ": did you mean " + key + "?"
		}
	}
	var whole []string
	for _, key := range known {
		whole = append(whole, prefix+key)
	}
	return policy.Meant(prefix+name, whole)
}

func yamlName(field reflect.StructField) string {
	return cmp.Or(field.Tag.Get("yaml"), strings.ToLower(field.Name))
}

// refuse is the error of the file's problems, and of those that Check found; nil: there are
// none.
func (f *file) refuse(found []string) error {
	problems := f.problems
	if f.unread {
		found = nil
	}
	for _, text := range found {
		problems = append(problems, ConfigProblem{f.lineOf(text), text})
	}
	if len(problems) == 0 {
		return nil
	}
	slices.SortStableFunc(problems, func(a, b ConfigProblem) int { return cmp.Compare(a.Line, b.Line) })
	return &ConfigError{f.path, slices.Compact(problems)}
}

// lineOf is the line of the key that a problem begins with, or of what that is part of.
func (f *file) lineOf(problem string) int {
	key, _, _ := strings.Cut(problem, " ")
	key = strings.TrimRight(key, ",:")
	for key != "" {
		if line, ok := f.lines[key]; ok {
			return line
		}
		key = key[:max(strings.LastIndexByte(key, '.'), 0)]
	}
	return 0
}

// configKeys are all keys of a configuration, such as backup.dir, in the order of Config.
func configKeys() []string {
	var keys []string
	eachKey(reflect.ValueOf(Config{}), "", func(key string, _ reflect.Value) { keys = append(keys, key) })
	return keys
}

// eachKey goes through the values of a configuration that are no parts themselves.
func eachKey(v reflect.Value, prefix string, f func(key string, value reflect.Value)) {
	for i := range v.NumField() {
		key := prefix + yamlName(v.Type().Field(i))
		if v.Field(i).Kind() == reflect.Struct {
			eachKey(v.Field(i), key+".", f)
			continue
		}
		f(key, v.Field(i))
	}
}

// changed are the keys whose values differ.
func changed(a, b Config) []string {
	values := map[string]any{}
	eachKey(reflect.ValueOf(a), "", func(key string, v reflect.Value) { values[key] = v.Interface() })
	var keys []string
	eachKey(reflect.ValueOf(b), "", func(key string, v reflect.Value) {
		if !reflect.DeepEqual(values[key], v.Interface()) {
			keys = append(keys, key)
		}
	})
	return keys
}
