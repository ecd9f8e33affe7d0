package policy

import (
	"fmt"
	"iter"
	"strconv"
	"strings"
	"unicode/utf8"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// Limits of a policy text.
const (
	MaxText       = 32 << 10 // bytes
	MaxStatements = 100      // every one is evaluated in every decision
	MaxWords      = 2000     // names, literals and signs in a statement
	MaxNesting    = 32       // brackets in one another
	MaxDepth      = 200      // expressions in one another: && and the like count once for each
	MaxPath       = 8        // attributes of attributes

	// The validator's work for a text: for each class and action that it takes one by
	// one, the expressions and the square of how many ask has or hasTag; a step is up to
	// half a microsecond.
	maxWork   = 400_000 // to judge a text
	maxSearch = 400_000 // to find where it is wrong
)

// Set is the statements of one text, checked. It never changes and may be used by
// many at once; the zero value and nil have no statement.
type Set struct {
	statements []Statement
	policies   []*cedar.Policy
	ids        []cedar.PolicyID // the statements' indexes
	context    bool
}

// Statement is one permit or forbid of a text.
type Statement struct {
	Policy string // Named.Name, empty outside a Decision
	ID     string // the annotation @id, or "statement N" from 1
	Line   int    // from 1
	Forbid bool
	Text   string // as it was written
}

// String is policy, id and line.
func (s Statement) String() string {
	where := fmt.Sprintf("%s (line %d)", s.ID, s.Line)
	if s.Policy == "" {
		return where
	}
	return s.Policy + ", " + where
}

// Statements are all statements in the text's order.
func (s *Set) Statements() []Statement {
	if s == nil {
		return nil
	}
	return append([]Statement(nil), s.statements...)
}

// UsesContext tells whether a decision can depend on the request's context: the
// encryption context, the source service or the time. Where none of the sets does, a
// decision holds for the same principal, action and state of the key.
func (s *Set) UsesContext() bool { return s != nil && s.context }

// all yields the policies with their ids, for Cedar.
type all struct{ *Set }

func (a all) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for i, p := range a.policies {
			if !yield(a.ids[i], p) {
				return
			}
		}
	}
}

// Parse reads a text and checks it against the schema, strictly. What it refuses is an
// *Error, which wraps ErrPolicy and lists what is wrong and where; a statement whose
// scope is wrong is looked at no further.
func Parse(text string) (*Set, error) { return parse(text, true) }

// Load reads a text that Parse has taken, and does not check the conditions against the
// schema again: that is most of the work. What another release's schema let in and cannot be
// evaluated does not permit, and forbids; a scope that this one does not know is refused.
func Load(text string) (*Set, error) { return parse(text, false) }

func parse(text string, check bool) (set *Set, err error) {
	if p := unreadable(text); p != nil {
		return nil, refuse(*p)
	}
	tokens, p := scan(text)
	if p != nil {
		return nil, refuse(*p)
	}
	if p := shape(tokens); p != nil {
		return nil, refuse(*p)
	}
	defer func() {
		if r := recover(); r != nil { // of the library: the text is a client's
			set, err = nil, refuse(Problem{1, 1, fmt.Sprintf("the text cannot be judged: %v", r)})
		}
	}()
	list, err := cedar.NewPolicyListFromBytes("", []byte(text))
	if err != nil {
		return nil, refuse(syntax(text, tokens, err)...)
	}
	parts := split(tokens)
	if len(parts) != len(list) {
		return nil, refuse(Problem{1, 1, "the text cannot be told into statements"})
	}
	set = &Set{}
	var problems []Problem
	left := &work{judge: maxWork, search: maxSearch}
	for i, policy := range list {
		c := checker{policy: (*ast.Policy)(policy.AST()), tokens: parts[i], work: left}
		if check {
			c.check()
		} else {
			c.scope(&reader{tokens: parts[i]})
		}
		problems = append(problems, c.problems...)
		problems = append(problems, set.add(policy, text, parts[i])...)
	}
	if len(problems) > 0 {
		return nil, refuse(problems...)
	}
	return set, nil
}

// add takes a statement in; its id must be its own.
func (s *Set) add(policy *cedar.Policy, text string, tokens []token) []Problem {
	first, last := tokens[0], tokens[len(tokens)-1]
	n := len(s.statements)
	st := Statement{
		ID: fmt.Sprintf("statement %d", n+1), Line: first.line, Forbid: policy.Effect() == cedar.Forbid,
		Text: text[first.offset : last.offset+len(last.text)],
	}
	id, ok := policy.Annotations()["id"]
	if ok {
		st.ID = string(id)
	}
	var problems []Problem
	if st.ID == "" {
		problems = append(problems, first.problem("@id is empty"))
	}
	for _, other := range s.statements {
		if other.ID == st.ID {
			problems = append(problems, first.problem("the id %q is that of the statement in line %d", st.ID, other.Line))
			break
		}
	}
	s.statements = append(s.statements, st)
	s.policies = append(s.policies, policy)
	s.ids = append(s.ids, cedar.PolicyID(strconv.Itoa(n)))
	for _, c := range policy.AST().Conditions {
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			v, ok := n.(ast.NodeTypeVariable)
			s.context = s.context || ok && v.Name == "context"
			return !s.context
		})
	}
	return problems
}

// unreadable is what is wrong with a text before its words are looked at.
func unreadable(text string) *Problem {
	if len(text) > MaxText {
		return &Problem{1, 1, fmt.Sprintf("the text has %d bytes, at most %d", len(text), MaxText)}
	}
	for i, r := range text {
		var what string
		switch {
		case r == 0:
			what = "a NUL character"
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], string(utf8.RuneError)):
			what = "not valid UTF-8"
		default:
			continue
		}
		line := text[strings.LastIndexByte(text[:i], '\n')+1 : i]
		return &Problem{strings.Count(text[:i], "\n") + 1, utf8.RuneCountInString(line) + 1, what}
	}
	return nil
}

// shape is what is wrong with a text before its meaning is looked at.
func shape(tokens []token) *Problem {
	statements, depth, words, path := 0, 0, 0, 0
	for _, t := range tokens {
		if words++; words > MaxWords {
			p := t.problem("the statement has more than %d words", MaxWords)
			return &p
		}
		if t.text == "." {
			path++
		} else if t.kind != kindName {
			path = 0
		}
		if path > MaxPath {
			p := t.problem("more than %d attributes of attributes", MaxPath)
			return &p
		}
		switch t.text {
		case "(", "[", "{":
			if depth++; depth > MaxNesting {
				p := t.problem("brackets are nested deeper than %d", MaxNesting)
				return &p
			}
		case ")", "]", "}":
			depth--
		case ";":
			words = 0
			if statements++; statements > MaxStatements {
				p := t.problem("more than %d statements", MaxStatements)
				return &p
			}
		}
	}
	if len(tokens) == 1 {
		p := Problem{1, 1, "the text has no statement: a policy without one permits nothing, remove it instead"}
		return &p
	}
	return nil
}

// split cuts the tokens behind each semicolon; the end is in no part, unless what
// stands before it has none.
func split(tokens []token) [][]token {
	var parts [][]token
	start := 0
	for i, t := range tokens {
		if t.text == ";" || t.kind == kindEnd && i > start {
			parts = append(parts, tokens[start:i+1])
			start = i + 1
		}
	}
	return parts
}
