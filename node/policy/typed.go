package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// typed adds where an expression has wrong types, and returns what the validator says
// of it. The validator tells no positions: so the smallest expressions that it refuses
// are looked for, each put to it alone behind the guards that stand before it.
func (c *checker) typed(p *place, boolean bool, guards ast.IsNode) []string {
	said := c.judge(p.node, boolean, guards)
	if len(said) == 0 {
		return nil
	}
	var below []string
	for i, k := range p.kids {
		b := false
		switch p.node.(type) {
		case ast.NodeTypeAnd, ast.NodeTypeOr, ast.NodeTypeNot:
			b = true
		case ast.NodeTypeIfThenElse:
			b = i == 0 || boolean
		}
		below = append(below, c.typed(k, b, c.guarded(p, i, guards))...)
	}
	for _, s := range said {
		if !slices.Contains(below, s) {
			c.add(p.at, "%s", plain(s))
		}
	}
	return said
}

// guarded is what holds where a kid of p is evaluated.
func (c *checker) guarded(p *place, i int, guards ast.IsNode) ast.IsNode {
	if i == 0 {
		return guards
	}
	first := p.kids[0].node
	switch p.node.(type) {
	case ast.NodeTypeAnd:
	case ast.NodeTypeOr:
		first = ast.Not(ast.NewNode(first)).AsIsNode()
	case ast.NodeTypeIfThenElse:
		if i == 2 {
			first = ast.Not(ast.NewNode(first)).AsIsNode()
		}
	default:
		return guards
	}
	if len(c.judge(p.kids[0].node, true, guards)) > 0 {
		return guards // what is wrong itself guards nothing
	}
	return and(guards, first)
}

func and(guards, n ast.IsNode) ast.IsNode {
	if guards == nil {
		return n
	}
	return ast.NewNode(guards).And(ast.NewNode(n)).AsIsNode()
}

// judge is what the validator says of an expression behind guards. One that need not be
// boolean is compared with itself.
func (c *checker) judge(n ast.IsNode, boolean bool, guards ast.IsNode) []string {
	if !boolean {
		n = ast.NewNode(n).Equal(ast.NewNode(n)).AsIsNode()
	}
	one := *c.policy
	one.Conditions = []ast.ConditionType{{Condition: ast.ConditionWhen, Body: and(guards, n)}}
	return messages(&one)
}

// messages is what the validator says, each once, without what checker.own finds.
func messages(p *ast.Policy) []string {
	err := theModel().validator.Policy("", p)
	if err == nil {
		return nil
	}
	all := []error{err}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		all = joined.Unwrap()
	}
	var out []string
	for _, e := range all {
		if s := e.Error(); !strings.HasPrefix(s, "unrecognized ") {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// sampled is the policy for one action of each kind of resource instead of all in its
// scope: types depend on nothing else of an action, unless a condition names actions.
// The validator takes every pair of class and action by itself, some hundreds.
func sampled(p *ast.Policy) *ast.Policy {
	for _, cond := range p.Conditions {
		named := false
		ast.Inspect(ast.NewNode(cond.Body), func(n ast.IsNode) bool {
			switch n := n.(type) {
			case ast.NodeTypeVariable:
				named = named || n.Name == "action"
			case ast.NodeValue:
				e, ok := n.Value.(cedar.EntityUID)
				named = named || ok && e.Type == typeAction
			}
			return !named
		})
		if named {
			return p
		}
	}
	var sample []cedar.EntityUID
	var have []On
	for _, a := range actions {
		if inScope(p.Action, a) && !slices.Contains(have, a.On) {
			have = append(have, a.On)
			sample = append(sample, theModel().entities[a.Name].UID)
		}
	}
	out := *p
	out.Action = ast.Scope{}.InSet(sample)
	return &out
}

func inScope(scope ast.IsActionScopeNode, a Action) bool {
	var named []cedar.EntityUID
	switch s := scope.(type) {
	case ast.ScopeTypeAll:
		return true
	case ast.ScopeTypeEq:
		named = []cedar.EntityUID{s.Entity}
	case ast.ScopeTypeIn:
		named = []cedar.EntityUID{s.Entity}
	case ast.ScopeTypeInSet:
		named = s.Entities
	}
	return slices.ContainsFunc(named, func(e cedar.EntityUID) bool {
		return string(e.ID) == a.Name || string(e.ID) == string(a.Group)
	})
}

var (
	noAttribute    = regexp.MustCompile("^attribute `(.+)` on entity type `(.+)` not found$")
	noContext      = regexp.MustCompile("^attribute `(.+)` in context for .+ not found$")
	maybeAttribute = regexp.MustCompile("access to optional attribute `(.+)` on entity type `(.+)`$")
	maybeContext   = regexp.MustCompile("access to optional attribute `(.+)` in context for ")
	maybeTag       = regexp.MustCompile("(?s)access to tag `(.+)` on entity type `.+`$")
	wrongType      = regexp.MustCompile("^unexpected type: expected (.+) but saw (.+)$")
	inside         = strings.NewReplacer("__cedar::internal::AnyEntity", "an entity", "__cedar::internal::OpenRecord{}", "a record",
		"__cedar::internal::True", "Bool", "__cedar::internal::False", "Bool", "__cedar::internal::", "", "`", "")
)

// plain says what the validator said to somebody who does not know it.
func plain(said string) string {
	m := theModel()
	if f := noAttribute.FindStringSubmatch(said); f != nil {
		if slices.Contains(m.known, f[1]) {
			return fmt.Sprintf("%s has no attribute %q: ask for another type first, with is", f[2], f[1])
		}
		return fmt.Sprintf("%s has no attribute %q%s", f[2], f[1], meant(f[1], m.attributes[f[2]]))
	}
	if f := noContext.FindStringSubmatch(said); f != nil {
		return fmt.Sprintf("context has no attribute %q%s", f[1], meant(f[1], m.attributes["context"]))
	}
	if f := maybeAttribute.FindStringSubmatch(said); f != nil {
		return fmt.Sprintf("%s may have no %s: ask first, … has %s && …", f[2], f[1], f[1])
	}
	if f := maybeContext.FindStringSubmatch(said); f != nil {
		return fmt.Sprintf("context may have no %s: ask first, context has %s && …", f[1], f[1])
	}
	if f := maybeTag.FindStringSubmatch(said); f != nil {
		return fmt.Sprintf("there may be no tag %s: ask first, ….hasTag(%s) && …", f[1], f[1])
	}
	if f := wrongType.FindStringSubmatch(said); f != nil {
		return inside.Replace(fmt.Sprintf("expected %s, found %s", f[1], f[2]))
	}
	return inside.Replace(said)
}
