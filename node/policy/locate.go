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
	p := &place{node: n}
	kid := func(n ast.IsNode) *place {
		k := r.place(n)
		p.kids = append(p.kids, k)
		return k
	}
	// left is of nodes that begin with an expression.
	left := func(n ast.IsNode) { p.start = kid(n).start; p.at = p.start }
	self := func(t token) { p.start, p.at = t, t }
	switch n := n.(type) {
	case ast.NodeValue:
		self(r.value(n))
	case ast.NodeTypeVariable:
		self(r.word(string(n.Name)))
	case ast.NodeTypeNot:
		self(r.word("!"))
		kid(n.Arg)
	case ast.NodeTypeNegate:
		self(r.word("-"))
		kid(n.Arg)
	case ast.NodeTypeIfThenElse:
		self(r.word("if"))
		kid(n.If)
		kid(n.Then)
		kid(n.Else)
	case ast.NodeTypeAnd:
		left(n.Left)
		if !r.chain(p, n.Right) {
			kid(n.Right)
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
		r.word("is")
		p.at = r.path()
	case ast.NodeTypeIsIn:
		left(n.Left)
		r.word("is")
		p.at = r.path()
		kid(n.Entity)
	case ast.NodeTypeSet:
		self(r.word("["))
		for _, e := range n.Elements {
			kid(e)
		}
	case ast.NodeTypeRecord:
		self(r.word("{"))
		for _, e := range n.Elements {
			r.seek(func(i int) bool { return r.tokens[i].kind == kindName || r.tokens[i].kind == kindString })
			kid(e.Value)
		}
	case ast.NodeTypeExtensionCall:
		r.call(p, n)
	default:
		if a, b, method, ok := binary(n); ok {
			left(a)
			if method != "" {
				p.at = r.word(method)
			}
			kid(b)
		}
	}
	p.size = 1
	switch n.(type) {
	case ast.NodeTypeHas, ast.NodeTypeHasTag:
		p.asks++
	}
	for _, k := range p.kids {
		p.size += k.size
		p.asks += k.asks
		p.depth = max(p.depth, k.depth)
	}
	p.depth++
	return p
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

// call takes a function, or a method of an extension type.
func (r *reader) call(p *place, n ast.NodeTypeExtensionCall) {
	args := n.Args
	if function(string(n.Name)) {
		p.start = r.word(string(n.Name))
		p.at = p.start
	} else if len(args) > 0 {
		first := r.place(args[0])
		p.kids = append(p.kids, first)
		p.start, p.at, args = first.start, r.word(string(n.Name)), args[1:]
	}
	for _, a := range args {
		p.kids = append(p.kids, r.place(a))
	}
}

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
