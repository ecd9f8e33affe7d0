package policy

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

// The entity types.
const (
	namespace = "KMS"

	typeAction  = cedar.EntityType(namespace + "::Action")
	typeKey     = cedar.EntityType(namespace + "::Key")
	typeTenant  = cedar.EntityType(namespace + "::Tenant")
	typeContext = cedar.EntityType(namespace + "::EncryptionContext")
)

// The attributes.
const (
	attrName    = cedar.String("name")
	attrTenant  = cedar.String("tenant")
	attrSpec    = cedar.String("spec")
	attrUsage   = cedar.String("usage")
	attrManager = cedar.String("manager")
	attrAliases = cedar.String("aliases")

	attrEncryption = cedar.String("encryption_context")
	attrService    = cedar.String("source_service")
	attrTime       = cedar.String("time")
)

// class is a kind of principal.
type class struct {
	name   string
	typ    cedar.EntityType
	tenant presence // of the attribute and of the parent
}

type presence uint8

const (
	never presence = iota
	maybe
	always
)

var classes = []class{
	{"user", namespace + "::User", always},
	{"admin", namespace + "::Admin", always},
	{"auditor", namespace + "::Auditor", maybe}, // those of the cluster have none
	{"service", namespace + "::Service", never},
	{"operator", namespace + "::Operator", never},
}

// ofNodes is the class of nodes, which use keys for their own audit trails, by grants. It is not
// in the schema: an earlier release would refuse a text that names it. What is said of everybody
// is said of them too.
var ofNodes = class{"node", namespace + "::Node", never}

func classOf(name string) (class, bool) {
	if name == ofNodes.name {
		return ofNodes, true
	}
	for _, c := range classes {
		if c.name == name {
			return c, true
		}
	}
	return class{}, false
}

func isPrincipal(t cedar.EntityType) bool {
	return slices.ContainsFunc(classes, func(c class) bool { return c.typ == t })
}

// local is a type's name without the namespace.
func local(t cedar.EntityType) ast.Ident {
	return ast.Ident(strings.TrimPrefix(string(t), namespace+"::"))
}

// entityTypes are all types but the actions', in the order of the documentation.
func entityTypes() []string {
	var out []string
	for _, c := range classes {
		out = append(out, string(c.typ))
	}
	return append(out, string(typeKey), string(typeTenant))
}

// model is the schema in the forms that are asked for. It never changes.
type model struct {
	validator  *validate.Validator
	attributes map[string][]string     // what an entity type or a variable can have
	known      []string                // every attribute of anything
	entities   map[string]cedar.Entity // the actions, by name
	on         map[string]On           // what their resources are
	names      []string                // of actions and groups
}

// theModel is made when it is first needed: it is the same in every process.
var theModel = sync.OnceValue(func() *model {
	m := &model{
		attributes: map[string][]string{}, entities: map[string]cedar.Entity{}, on: map[string]On{},
	}
	ns := ast.Namespace{Entities: entities(), Actions: ast.Actions{}}
	for name, e := range ns.Entities {
		t := namespace + "::" + string(name)
		m.describe(t, e.Shape)
		switch {
		case isPrincipal(cedar.EntityType(t)):
			m.describe("principal", e.Shape)
		case t == string(typeKey), t == string(typeTenant):
			m.describe("resource", e.Shape)
		}
	}
	m.describe("context", contextShape())
	for _, g := range groups {
		ns.Actions[types.String(g)] = ast.Action{}
		m.names = append(m.names, string(g))
	}
	for _, a := range actions {
		ns.Actions[types.String(a.Name)] = ast.Action{
			Parents:   []ast.ParentRef{ast.ParentRefFromID(types.String(a.Group))},
			AppliesTo: &ast.AppliesTo{Principals: principals(), Resources: a.resources(), Context: contextShape()},
		}
		m.names = append(m.names, a.Name)
		m.on[a.Name] = a.On
		m.entities[a.Name] = cedar.Entity{
			UID:     cedar.NewEntityUID(typeAction, types.String(a.Name)),
			Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID(typeAction, types.String(a.Group))),
		}
	}
	resolved, err := schema.NewSchemaFromAST(&ast.Schema{Namespaces: ast.Namespaces{namespace: ns}}).Resolve()
	if err != nil {
		panic(fmt.Sprintf("policy: the schema does not resolve: %v", err)) // a mistake in this file
	}
	m.validator = validate.New(resolved)
	return m
})

func (m *model) describe(of string, shape ast.RecordType) {
	for name := range shape {
		m.attributes[of] = append(m.attributes[of], string(name))
		m.known = append(m.known, string(name))
	}
	slices.Sort(m.attributes[of])
	m.attributes[of] = slices.Compact(m.attributes[of])
	slices.Sort(m.known)
	m.known = slices.Compact(m.known)
}

func entities() ast.Entities {
	required, optional := ast.Attribute{Type: ast.String()}, ast.Attribute{Type: ast.String(), Optional: true}
	tenants := []ast.EntityTypeRef{ast.EntityTypeRef(typeTenant)}
	out := ast.Entities{
		local(typeTenant):  {Shape: ast.RecordType{attrTenant: required}},
		local(typeContext): {Tags: ast.String()},
		local(typeKey): {
			ParentTypes: tenants,
			Shape: ast.RecordType{
				attrTenant: required, attrSpec: required, attrUsage: required, attrManager: required,
				attrAliases: {Type: ast.Set(ast.String())},
			},
			Tags: ast.String(),
		},
	}
	for _, c := range classes {
		e := ast.Entity{Shape: ast.RecordType{attrName: required}}
		switch c.tenant {
		case always:
			e.ParentTypes, e.Shape[attrTenant] = tenants, required
		case maybe:
			e.ParentTypes, e.Shape[attrTenant] = tenants, optional
		case never:
		}
		out[local(c.typ)] = e
	}
	return out
}

func contextShape() ast.RecordType {
	return ast.RecordType{
		attrEncryption: {Type: ast.EntityType(typeContext)},
		attrService:    {Type: ast.String(), Optional: true},
		attrTime:       {Type: ast.Datetime()},
	}
}

func principals() []ast.EntityTypeRef {
	var out []ast.EntityTypeRef
	for _, c := range classes {
		out = append(out, ast.EntityTypeRef(c.typ))
	}
	return out
}

func (a Action) resources() []ast.EntityTypeRef {
	var out []ast.EntityTypeRef
	if a.On&OnKey != 0 {
		out = append(out, ast.EntityTypeRef(typeKey))
	}
	if a.On&OnTenant != 0 {
		out = append(out, ast.EntityTypeRef(typeTenant))
	}
	return out
}
