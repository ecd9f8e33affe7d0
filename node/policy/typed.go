package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// guard is what holds where an expression is evaluated.
type guard struct {
	node       ast.IsNode // nil: nothing is known
	size, asks int
}

// typed adds where an expression has wrong types, and returns what the validator says
// of it. The validator tells no positions: so the smallest expressions that it refuses
// are looked for, each put to it alone behind the guards that stand before it.
func (c *checker) typed(p *place, boolean bool, g guard) []string {
	said := c.judge(p, boolean, g)
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
		below = append(below, c.typed(k, b, c.guarded(p, i, g))...)
	}
	for _, s := range said {
		if !slices.Contains(below, s) {
			c.add(p.at, "%s", plain(s))
		}
	}
	return said
}

// guarded is what holds where a kid of p is evaluated.
func (c *checker) guarded(p *place, i int, g guard) guard {
	if i == 0 {
		return g
	}
	first := p.kids[0]
	node := first.node
	switch p.node.(type) {
	case ast.NodeTypeAnd:
	case ast.NodeTypeOr:
		node = ast.Not(ast.NewNode(node)).AsIsNode()
	case ast.NodeTypeIfThenElse:
		if i == 2 {
			node = ast.Not(ast.NewNode(node)).AsIsNode()
		}
	default:
		return g
	}
	if len(c.judge(first, true, g)) > 0 {
		return g // what is wrong itself guards nothing
	}
	return guard{node: g.and(node), size: g.size + first.size, asks: g.asks + first.asks}
}

func (g guard) and(n ast.IsNode) ast.IsNode {
	if g.node == nil {
		return n
	}
	return ast.NewNode(g.node).And(ast.NewNode(n)).AsIsNode()
}

// judge is what the validator says of an expression behind guards. One that need not be
// boolean is compared with itself. When the work is used up it says nothing, and what is
// wrong is shown at a larger expression.
func (c *checker) judge(p *place, boolean bool, g guard) []string {
	if c.work.search -= c.cost(p.size+g.size, p.asks+g.asks); c.work.search < 0 {
		return nil
	}
	n := p.node
	if !boolean {
		n = ast.NewNode(n).Equal(ast.NewNode(n)).AsIsNode()
	}
	one := *c.policy
	one.Conditions = []ast.ConditionType{{Condition: ast.ConditionWhen, Body: g.and(n)}}
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

func (c *checker) cost(size, asks int) int { return c.envs * (size + asks*asks) }

// sample narrows the policy to one action of each kind instead of all in its scope. The
// validator takes every pair of class and action by itself, some hundreds, but types
// depend on nothing of an action but its resources and, where a condition says that the
// action is in a group or a set, whether it is.
func (c *checker) sample() {
	var named []cedar.EntityUID
	for _, cond := range c.policy.Conditions {
		ast.Inspect(ast.NewNode(cond.Body), func(n ast.IsNode) bool {
			if v, ok := n.(ast.NodeValue); ok {
				if e, ok := v.Value.(cedar.EntityUID); ok && e.Type == typeAction && !slices.Contains(named, e) {
					named = append(named, e)
				}
			}
			return true
		})
	}
	principals := len(classes)
	switch c.policy.Principal.(type) {
	case ast.ScopeTypeEq, ast.ScopeTypeIs, ast.ScopeTypeIsIn:
		principals = 1
	}
	var sample []cedar.EntityUID
	have := map[string]bool{}
	for _, a := range actions {
		kind := []byte{byte(a.On)}
		for _, e := range named {
			kind = strconv.AppendBool(kind, a.is(e))
		}
		if a.inScope(c.policy.Action) && !have[string(kind)] {
			have[string(kind)] = true
			sample = append(sample, theModel().entities[a.Name].UID)
			c.envs += principals * len(a.resources())
		}
	}
	narrow := *c.policy
	narrow.Action = ast.Scope{}.InSet(sample)
	c.policy = &narrow
}

// is tells whether the action is the entity or in it.
func (a Action) is(e cedar.EntityUID) bool {
	return string(e.ID) == a.Name || string(e.ID) == string(a.Group)
}

func (a Action) inScope(scope ast.IsActionScopeNode) bool {
	switch s := scope.(type) {
	case ast.ScopeTypeAll:
		return true
	case ast.ScopeTypeEq:
		return a.is(s.Entity)
	case ast.ScopeTypeIn:
		return a.is(s.Entity)
	case ast.ScopeTypeInSet:
		return slices.ContainsFunc(s.Entities, a.is)
	}
	return false
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
		return fmt.Sprintf("%s has no attribute %q%s", f[2], f[1], Meant(f[1], m.attributes[f[2]]))
	}
	if f := noContext.FindStringSubmatch(said); f != nil {
		return fmt.Sprintf("context has no attribute %q%s", f[1], Meant(f[1], m.attributes["context"]))
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
