package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
)

// syntax is what Cedar's parser refuses, statement by statement; whole is what it said
// of the text.
func syntax(text string, tokens []token, whole error) []Problem {
	var out []Problem
	for _, part := range split(tokens) {
		if p := syntaxOf(text, part); p != nil {
			out = append(out, *p)
		}
	}
	if len(out) == 0 {
		out = append(out, Problem{1, 1, whole.Error()})
	}
	return out
}

// fence stands behind a statement that is parsed alone. Cedar's parser mostly tells
// where the word behind the wrong one is: so there is one, also behind the last.
const fence = "\n#\n#"

// syntaxOf parses one statement where it stands; nil: it is one.
func syntaxOf(text string, part []token) *Problem {
	end := part[len(part)-1] // what stands behind the words, if anything is missing
	words := part
	if end.kind == kindEnd {
		words = part[:len(part)-1]
	}
	first, last := words[0], words[len(words)-1]
	padding := strings.Repeat("\n", first.line-1) + strings.Repeat(" ", first.column-1)
	var policy cedar.Policy
	err := policy.UnmarshalCedar([]byte(padding + text[first.offset:last.offset+len(last.text)] + fence))
	if err == nil {
		return nil
	}
	_, rest, ok := strings.Cut(err.Error(), "parse error at <input>:")
	var line, column int
	if _, scanErr := fmt.Sscanf(rest, "%d:%d", &line, &column); !ok || scanErr != nil {
		p := first.problem("%v", err) // none is known
		return &p
	}
	_, what, _ := strings.Cut(rest, ": ")
	at := slices.IndexFunc(words, func(t token) bool { return t.line == line && t.column == column })
	if at < 0 {
		at = len(words) + line - last.line - 1
	}
	word := func(i int) token {
		if i < len(words) {
			return words[max(i, 0)]
		}
		return end
	}
	p := reword(what, at, word)
	return &p
}

var (
	wanted = regexp.MustCompile(`^exact got .* want (.+)$`)
	listed = regexp.MustCompile(`^got .* want ,$`)
	called = regexp.MustCompile("^`?([A-Za-z0-9_:]+)`? (?:is not a|is a|expects) ")
	twice  = regexp.MustCompile(`^duplicate key: (.*)$`)
)

// reword says what Cedar's parser said at a word, at the word that it meant.
func reword(what string, at int, word func(i int) token) Problem {
	wrong := word(at - 1)
	switch {
	case wanted.MatchString(what):
		return wrong.problem("expected %q, found %s", wanted.FindStringSubmatch(what)[1], wrong.found())
	case listed.MatchString(what):
		return word(at).problem("expected a comma or the end of the list, found %s", word(at).found())
	case strings.HasPrefix(what, "unexpected effect"):
		return wrong.problem("expected permit or forbid, found %s", wrong.found())
	case strings.HasPrefix(what, "expected "):
		return wrong.problem("%s, found %s", strings.Replace(what, "ident", "a name", 1), wrong.found())
	case what == "invalid primary" && wrong.kind == kindName:
		return wrong.problem("unknown name %s%s", wrong.text, Meant(wrong.text, []string{"principal", "action", "resource", "context"}))
	case what == "invalid primary", what == "unexpected token":
		return wrong.problem("unexpected %s", wrong.found())
	}
	name := ""
	if m := called.FindStringSubmatch(what); m != nil {
		name = m[1][strings.LastIndexByte(m[1], ':')+1:]
	} else if m := twice.FindStringSubmatch(what); m != nil {
		name = m[1]
	}
	for i := at; i >= 0 && name != ""; i-- {
		if strings.Trim(word(i).text, `"`) == name {
			return word(i).problem("%s", strings.ReplaceAll(what, "`", ""))
		}
	}
	return wrong.problem("%s", what)
}
