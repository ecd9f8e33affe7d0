package policy

import (
	"slices"

	cedar "github.com/cedar-policy/cedar-go"
	public "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// Lasting is Decide whatever changes while the policies stand: the time, and a key's tags
// and aliases. A permit counts only if it applies with any of them, and a forbid if it does
// with some. What a principal, an action and a resource are does not change, and the
// request's encryption context and service are taken as they are.
func Lasting(r Request, sets ...Named) Decision {
	lasting := make([]Named, len(sets))
	for i, n := range sets {
		lasting[i] = Named{Name: n.Name, Set: n.Set.lasting()}
	}
	return Decide(r, lasting...)
}

// lasting is the set with each permit made as narrow, and each forbid as wide, as what
// its conditions ask of changing things can make it.
func (s *Set) lasting() *Set {
	if s == nil {
		return nil
	}
	out := &Set{statements: s.statements, ids: s.ids, context: s.context}
	for _, p := range s.policies {
		statement := *(*ast.Policy)(p.AST())
		statement.Conditions = worst(statement.Conditions, p.Effect() == cedar.Forbid)
		out.policies = append(out.policies, cedar.NewPolicyFromAST((*public.Policy)(&statement)))
	}
	return out
}

// worst bounds conditions: applies says which way. A statement that can fail at what
// changes counts as failing: that makes a permit void, and a forbid forbid.
func worst(conditions []ast.ConditionType, applies bool) []ast.ConditionType {
	out := make([]ast.ConditionType, len(conditions))
	for i, c := range conditions {
		if changes(c.Body) && fails(c.Body) {
			return []ast.ConditionType{{Condition: ast.ConditionWhen, Body: ast.Boolean(cedar.Boolean(applies)).AsIsNode()}}
		}
		out[i] = ast.ConditionType{Condition: c.Condition, Body: bound(c.Body, applies == (c.Condition == ast.ConditionWhen))}
	}
	return out
}

// bound is a boolean expression with everything in it that can change replaced, so that
// it is true, or false, whenever the original can be.
func bound(n ast.IsNode, to bool) ast.IsNode {
	if !changes(n) {
		return n
	}
	both := func(a, b ast.IsNode) (ast.Node, ast.Node) {
		return ast.NewNode(bound(a, to)), ast.NewNode(bound(b, to))
	}
	switch n := n.(type) {
	case ast.NodeTypeAnd:
		a, b := both(n.Left, n.Right)
		return a.And(b).AsIsNode()
	case ast.NodeTypeOr:
		a, b := both(n.Left, n.Right)
		return a.Or(b).AsIsNode()
	case ast.NodeTypeNot:
		return ast.Not(ast.NewNode(bound(n.Arg, !to))).AsIsNode()
	case ast.NodeTypeIfThenElse:
		a, b := both(n.Then, n.Else)
		switch {
		case !changes(n.If):
			return ast.IfThenElse(ast.NewNode(n.If), a, b).AsIsNode()
		case to:
			return a.Or(b).AsIsNode()
		}
		return a.And(b).AsIsNode()
	}
	return ast.Boolean(cedar.Boolean(to)).AsIsNode()
}

// changes tells whether the value of an expression can change while the policy stands.
func changes(n ast.IsNode) (found bool) {
	ofRequest := func(n ast.IsNode) bool {
		v, ok := n.(ast.NodeTypeVariable)
		return ok && v.Name == "context"
	}
	tagsChange := func(of ast.IsNode) bool {
		a, ok := of.(ast.NodeTypeAccess)
		return !ok || !ofRequest(a.Arg)
	}
	ast.Inspect(ast.NewNode(n), func(n ast.IsNode) bool {
		switch n := n.(type) {
		case ast.NodeTypeHas:
			return !found && !ofRequest(n.Arg)
		case ast.NodeTypeAccess:
			found = found || n.Value == attrTime || n.Value == attrAliases
			return !found && !ofRequest(n.Arg)
		case ast.NodeTypeHasTag:
			found = found || tagsChange(n.Left)
		case ast.NodeTypeGetTag:
			found = found || tagsChange(n.Left)
		default:
			found = found || ofRequest(n) // as a whole
		}
		return !found
	})
	return found
}

// fails tells whether evaluating an expression could fail, though it is well typed:
// numbers and times overflow.
func fails(n ast.IsNode) (found bool) {
	literals := []string{"datetime", "duration", "decimal", "ip"} // were read when the text was checked
	ast.Inspect(ast.NewNode(n), func(n ast.IsNode) bool {
		switch n := n.(type) {
		case ast.NodeTypeAdd, ast.NodeTypeSub, ast.NodeTypeMult, ast.NodeTypeNegate:
			found = true
		case ast.NodeTypeExtensionCall:
			found = found || !slices.Contains(literals, string(n.Name))
		}
		return !found
	})
	return found
}
