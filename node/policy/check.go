package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// checker judges one statement against the schema.
type checker struct {
	policy   *ast.Policy
	tokens   []token
	work     *work
	envs     int // how many pairs the validator takes
	problems []Problem
}

// work is what is left of the limits.
type work struct{ judge, search int }

// check finds what is wrong with the statement.
func (c *checker) check() {
	r := &reader{tokens: c.tokens}
	resource := c.scope(r)
	if len(c.problems) > 0 {
		return
	}
	bare := *c.policy
	bare.Conditions = nil
	if len(messages(&bare)) > 0 {
		c.add(resource, "none of the actions is one on this resource: %s", c.applies())
		return
	}
	var conditions []*place
	for _, cond := range c.policy.Conditions {
		r.seek(func(i int) bool { return r.tokens[i].text == "when" || r.tokens[i].text == "unless" })
		p := r.place(cond.Body)
		if p.depth > MaxDepth {
			c.add(p.start, "expressions are nested deeper than %d: name alternatives in a set, as in x in [a, b, c]", MaxDepth)
			return
		}
		c.own(p)
		conditions = append(conditions, p)
	}
	c.sample()
	for _, p := range conditions {
		if c.work.judge -= c.cost(p.size, p.asks); c.work.judge < 0 {
			c.add(p.start, "the text takes too long to check: ask for fewer attributes and tags, name actions in the scope")
			return
		}
	}
	whole := messages(c.policy)
	if len(whole) == 0 {
		return
	}
	for _, p := range conditions {
		c.typed(p, true, guard{})
	}
	if len(c.problems) == 0 {
		c.add(c.tokens[0], "%s", strings.Join(whole, "; ")) // where is not known
	}
}

func (c *checker) add(at token, format string, args ...any) {
	c.problems = append(c.problems, at.problem(format, args...))
}

// scope checks what stands in the statement's brackets and returns where its resource
// is named.
func (c *checker) scope(r *reader) (resource token) {
	r.word("(")
	r.word("principal")
	switch s := c.policy.Principal.(type) {
	case ast.ScopeTypeEq:
		c.entity(r.path(), s.Entity, isPrincipal, "no principal")
	case ast.ScopeTypeIn:
		c.entity(r.path(), s.Entity, func(t cedar.EntityType) bool { return isPrincipal(t) || t == typeTenant }, "no principal or tenant")
	case ast.ScopeTypeIs:
		c.is(r.path(), s.Type, isPrincipal, "no principal")
	case ast.ScopeTypeIsIn:
		c.is(r.path(), s.Type, isPrincipal, "no principal")
		c.entity(r.path(), s.Entity, func(t cedar.EntityType) bool { return t == typeTenant }, "no tenant")
	}
	r.word("action")
	isAction := func(t cedar.EntityType) bool { return t == typeAction }
	switch s := c.policy.Action.(type) {
	case ast.ScopeTypeEq:
		c.entity(r.path(), s.Entity, isAction, "no action")
	case ast.ScopeTypeIn:
		c.entity(r.path(), s.Entity, isAction, "no action")
	case ast.ScopeTypeInSet:
		at := r.word("[")
		if len(s.Entities) == 0 {
			c.add(at, "the list of actions is empty")
		}
		for _, e := range s.Entities {
			c.entity(r.path(), e, isAction, "no action")
		}
	}
	resource = r.word("resource")
	isResource := func(t cedar.EntityType) bool { return t == typeKey || t == typeTenant }
	switch s := c.policy.Resource.(type) {
	case ast.ScopeTypeEq:
		resource = r.path()
		c.entity(resource, s.Entity, isResource, "no resource")
	case ast.ScopeTypeIn:
		resource = r.path()
		c.entity(resource, s.Entity, isResource, "no resource")
	case ast.ScopeTypeIs:
		resource = r.path()
		c.is(resource, s.Type, isResource, "no resource")
	case ast.ScopeTypeIsIn:
		resource = r.path()
		c.is(resource, s.Type, isResource, "no resource")
		c.entity(r.path(), s.Entity, func(t cedar.EntityType) bool { return t == typeTenant }, "no tenant")
	}
	return resource
}

// applies says what the resource of the statement's actions would be.
func (c *checker) applies() string {
	var named []cedar.EntityUID
	switch s := c.policy.Action.(type) {
	case ast.ScopeTypeEq:
		named = []cedar.EntityUID{s.Entity}
	case ast.ScopeTypeIn:
		named = []cedar.EntityUID{s.Entity}
	case ast.ScopeTypeInSet:
		named = s.Entities
	}
	for _, a := range actions {
		if slices.ContainsFunc(named, func(e cedar.EntityUID) bool { return string(e.ID) == a.Name }) {
			return fmt.Sprintf("%s is on a %s", a.Name, strings.Trim(fmt.Sprint(a.resources()), "[]"))
		}
	}
	return "principal and resource do not go together"
}

// is checks a type that is named.
func (c *checker) is(at token, t cedar.EntityType, fits func(cedar.EntityType) bool, otherwise string) bool {
	known := entityTypes()
	switch {
	case fits(t):
		return true
	case t == typeAction, t == typeContext, slices.Contains(known, string(t)):
		c.add(at, "%s is %s", t, otherwise)
	default:
		c.add(at, "unknown type %s%s", t, meantType(string(t), append(known, string(typeAction))))
	}
	return false
}

// meantType compares the names without their namespaces first.
func meantType(name string, known []string) string {
	last := name[strings.LastIndexByte(name, ':')+1:]
	for _, k := range known {
		if strings.EqualFold(last, string(local(cedar.EntityType(k)))) {
			return fmt.Sprintf(": did you mean %s?", k)
		}
	}
	return Meant(namespace+"::"+last, known)
}

var keyID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// entity checks an entity that is named: its type, and an id that could be one.
func (c *checker) entity(at token, e cedar.EntityUID, fits func(cedar.EntityType) bool, otherwise string) {
	if !c.is(at, e.Type, fits, otherwise) {
		return
	}
	id, m := string(e.ID), theModel()
	switch {
	case e.Type == typeAction && !slices.Contains(m.names, id):
		c.add(at, "unknown action %q%s", id, Meant(id, m.names))
	case isPrincipal(e.Type) && !strings.HasPrefix(id, "spiffe://"):
		c.add(at, "the id of a %s is its SPIFFE URI, spiffe://…", local(e.Type))
	case e.Type == typeKey && !keyID.MatchString(id):
		c.add(at, "the id of a Key is its UUID in lower case")
	case e.Type == typeTenant && id == "":
		c.add(at, "the id of a Tenant is its name")
	}
}

// own finds what Cedar's validator lets pass: a type or attribute that nothing has
// makes a condition false without a word, and the attributes of anything but the
// request's own entities cannot be known.
func (c *checker) own(p *place) {
	every := func(t cedar.EntityType) bool {
		return t != typeContext && (t == typeAction || slices.Contains(entityTypes(), string(t)))
	}
	var of ast.IsNode
	switch n := p.node.(type) {
	case ast.NodeValue:
		if e, ok := n.Value.(cedar.EntityUID); ok {
			c.entity(p.start, e, every, "reached by context.encryption_context only")
		}
	case ast.NodeTypeIs:
		c.is(p.at, n.EntityType, every, "reached by context.encryption_context only")
	case ast.NodeTypeIsIn:
		c.is(p.at, n.EntityType, every, "reached by context.encryption_context only")
	case ast.NodeTypeHas:
		of = n.Arg
		who, known := "nothing", theModel().known
		if v, ok := n.Arg.(ast.NodeTypeVariable); ok {
			who, known = "no "+string(v.Name), theModel().attributes[string(v.Name)]
		}
		if !slices.Contains(known, string(n.Value)) {
			c.add(p.at, "%s has an attribute %q%s", who, n.Value, Meant(string(n.Value), known))
		}
	case ast.NodeTypeAccess:
		of = n.Arg
	case ast.NodeTypeHasTag:
		of = n.Left
		if v, ok := n.Left.(ast.NodeTypeVariable); ok && (v.Name == "principal" || v.Name == "action") {
			c.add(p.at, "no %s has tags: keys have, and context.encryption_context", v.Name)
		}
	case ast.NodeTypeGetTag:
		of = n.Left
	}
	if v, ok := of.(ast.NodeValue); ok {
		if e, ok := v.Value.(cedar.EntityUID); ok {
			c.add(p.at, "what %s has is not known to a request: ask principal, resource or context", e.Type)
		}
	}
	for _, k := range p.kids {
		c.own(k)
	}
}
