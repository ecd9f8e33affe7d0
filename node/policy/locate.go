package policy

import (
	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// place is an expression and where it stands.
type place struct {
	node  ast.IsNode
	start token // its first word
	at    token // the word that a problem of its own is shown at: an attribute, a method, else start
	kids  []*place
	size  int // how many expressions it is
	asks  int // how many of them are has or hasTag
	depth int // how many are in one another
}

// reader goes through a statement's tokens beside the tree that Cedar's parser made of
// them: the tree's leaves, attributes and methods stand in the text in the tree's order.
type reader struct {
	tokens []token
	next   int
}

// seek is the next token that fits; the reader stands behind it. Where none does, the
// tree is not of this text: the reader stays and says where it stands.
func (r *reader) seek(fits func(i int) bool) token {
	for i := r.next; i < len(r.tokens); i++ {
		if fits(i) {
			r.next = i + 1
			return r.tokens[i]
		}
	}
	return r.tokens[min(r.next, len(r.tokens)-1)]
}

func (r *reader) word(text string) token {
	return r.seek(func(i int) bool { return r.tokens[i].text == text })
}

func (r *reader) kind(k kind) token {
	return r.seek(func(i int) bool { return r.tokens[i].kind == k })
}

func (r *reader) peek(text string) bool {
	return r.next < len(r.tokens) && r.tokens[r.next].text == text
}

// path is a name with :: and maybe a string at its end: a type, an entity, a function.
func (r *reader) path() token {
	start := r.seek(func(i int) bool {
		t := r.tokens[i]
		return t.kind == kindName && t.text != "is" && t.text != "in"
	})
	for r.peek("::") {
		r.next += 2
	}
	return start
}

// attribute is the next name or string behind a dot, a bracket or has.
func (r *reader) attribute() token {
	r.seek(func(i int) bool { t := r.tokens[i].text; return t == "." || t == "[" || t == "has" })
	return r.seek(func(i int) bool { return r.tokens[i].kind == kindName || r.tokens[i].kind == kindString })
}

// place is the expression that comes next.
func (r *reader) place(n ast.IsNode) *place {
	p := &place{node: n, size: 1, depth: 1}
	if !r.leads(p) {
		r.follows(p)
	}
	switch n.(type) {
	case ast.NodeTypeHas, ast.NodeTypeHasTag:
		p.asks++
	}
	for _, k := range p.kids {
		p.size += k.size
		p.asks += k.asks
		p.depth = max(p.depth, k.depth+1)
	}
	return p
}

func (r *reader) kid(p *place, n ast.IsNode) *place {
	k := r.place(n)
	p.kids = append(p.kids, k)
	return k
}

// leads reads what begins with a word of its own; false: it is none of those.
func (r *reader) leads(p *place) bool {
	self := func(t token) { p.start, p.at = t, t }
	switch n := p.node.(type) {
	case ast.NodeValue:
		self(r.value(n))
	case ast.NodeTypeVariable:
		self(r.word(string(n.Name)))
	case ast.NodeTypeNot:
		self(r.word("!"))
		r.kid(p, n.Arg)
	case ast.NodeTypeNegate:
		self(r.word("-"))
		r.kid(p, n.Arg)
	case ast.NodeTypeIfThenElse:
		self(r.word("if"))
		r.kid(p, n.If)
		r.kid(p, n.Then)
		r.kid(p, n.Else)
	case ast.NodeTypeSet:
		self(r.word("["))
		for _, e := range n.Elements {
			r.kid(p, e)
		}
	case ast.NodeTypeRecord:
		self(r.word("{"))
		for _, e := range n.Elements {
			r.seek(func(i int) bool { return r.tokens[i].kind == kindName || r.tokens[i].kind == kindString })
			r.kid(p, e.Value)
		}
	case ast.NodeTypeExtensionCall:
		args := n.Args
		if function(string(n.Name)) {
			self(r.word(string(n.Name)))
		} else if len(args) > 0 {
			p.start, p.at, args = r.kid(p, args[0]).start, r.word(string(n.Name)), args[1:]
		}
		for _, a := range args {
			r.kid(p, a)
		}
	default:
		return false
	}
	return true
}

// follows reads what begins with an expression.
func (r *reader) follows(p *place) {
	left := func(n ast.IsNode) { p.start = r.kid(p, n).start; p.at = p.start }
	switch n := p.node.(type) {
	case ast.NodeTypeAnd:
		left(n.Left)
		if !r.chain(p, n.Right) {
			r.kid(p, n.Right)
		}
	case ast.NodeTypeHas:
		left(n.Arg)
		p.at = r.attribute()
	case ast.NodeTypeAccess:
		left(n.Arg)
		p.at = r.attribute()
	case ast.NodeTypeIsEmpty:
		left(n.Arg)
		p.at = r.word("isEmpty")
	case ast.NodeTypeLike:
		left(n.Arg)
		r.word("like")
		r.kind(kindString)
	case ast.NodeTypeIs:
		left(n.Left)
		p.at = r.path()
	case ast.NodeTypeIsIn:
		left(n.Left)
		p.at = r.path()
		r.kid(p, n.Entity)
	default:
		if a, b, method, ok := binary(n); ok {
			left(a)
			if method != "" {
				p.at = r.word(method)
			}
			r.kid(p, b)
		}
	}
}

// chain takes the rest of `x has a.b.c`, which the parser makes `x has a && x.a has b
// && …` of, without tokens for what it repeats.
func (r *reader) chain(p *place, right ast.IsNode) bool {
	has, ok := right.(ast.NodeTypeHas)
	if !ok || !r.peek(".") {
		return false
	}
	at := r.attribute()
	p.kids = append(p.kids, &place{node: has, start: p.start, at: at, size: 1, asks: 1, depth: 1})
	return true
}

// function tells a function from a method.
func function(name string) bool {
	switch name {
	case "ip", "decimal", "datetime", "duration":
		return true
	}
	return false
}

func (r *reader) value(n ast.NodeValue) token {
	switch v := n.Value.(type) {
	case cedar.EntityUID:
		return r.path()
	case cedar.Long:
		t := r.kind(kindNumber)
		if v < 0 && r.next >= 2 {
			return r.tokens[r.next-2] // its sign
		}
		return t
	case cedar.Boolean:
		return r.word(v.String())
	default:
		return r.kind(kindString)
	}
}

// binary is what a node of two expressions has, and the method that it is written as.
func binary(n ast.IsNode) (left, right ast.IsNode, method string, ok bool) {
	switch n := n.(type) {
	case ast.NodeTypeOr:
		return n.Left, n.Right, "", true
	case ast.NodeTypeEquals:
		return n.Left, n.Right, "", true
	case ast.NodeTypeNotEquals:
		return n.Left, n.Right, "", true
	case ast.NodeTypeLessThan:
		return n.Left, n.Right, "", true
	case ast.NodeTypeLessThanOrEqual:
		return n.Left, n.Right, "", true
	case ast.NodeTypeGreaterThan:
		return n.Left, n.Right, "", true
	case ast.NodeTypeGreaterThanOrEqual:
		return n.Left, n.Right, "", true
	case ast.NodeTypeAdd:
		return n.Left, n.Right, "", true
	case ast.NodeTypeSub:
		return n.Left, n.Right, "", true
	case ast.NodeTypeMult:
		return n.Left, n.Right, "", true
	case ast.NodeTypeIn:
		return n.Left, n.Right, "", true
	case ast.NodeTypeContains:
		return n.Left, n.Right, "contains", true
	case ast.NodeTypeContainsAll:
		return n.Left, n.Right, "containsAll", true
	case ast.NodeTypeContainsAny:
		return n.Left, n.Right, "containsAny", true
	case ast.NodeTypeHasTag:
		return n.Left, n.Right, "hasTag", true
	case ast.NodeTypeGetTag:
		return n.Left, n.Right, "getTag", true
	}
	return nil, nil, "", false
}
