package policy

import (
	"fmt"
	"strconv"
	"time"

	cedar "github.com/cedar-policy/cedar-go"
)

// Principal is who asks.
type Principal struct {
	URI    string // the SPIFFE URI
	Class  string // user, admin, auditor, service, operator or node
	Tenant string // empty: of the cluster
	Name   string // the last part of the URI
}

// Tag is a pair of strings.
type Tag struct{ Key, Value string }

// Key is the key that is asked for.
type Key struct {
	ID, Tenant, Spec, Usage string
	Manager                 string // CUSTOMER or SERVICE
	Aliases                 []string
	Tags                    []Tag
}

// Request is what is decided on.
type Request struct {
	Principal     Principal
	Action        string
	Tenant        string // the resource if Key is nil
	Key           *Key
	Context       []Tag  // the encryption context
	SourceService string // the service that acts for the tenant, if one does
	Time          time.Time
}

// Named is a set and what it is called where a decision is explained.
type Named struct {
	Name string
	Set  *Set
}

// Effect is what policies say.
type Effect uint8

// The effects.
const (
	Silent    Effect = iota // nothing: no statement applies
	Permitted               // a permit applies and no forbid
	Forbidden               // a forbid applies, or could not be evaluated
)

// String is the effect in lower case.
func (e Effect) String() string {
	switch e {
	case Silent:
		return "silent"
	case Permitted:
		return "permitted"
	case Forbidden:
		return "forbidden"
	}
	return strconv.Itoa(int(e))
}

// Decision is what the policies say, and why.
type Decision struct {
	Effect Effect
	By     []Statement // the statements that made the effect: all that forbid, or all that permit
	Failed []Failure   // what could not be evaluated
}

// Failure is a statement that could not be evaluated, or, without one, a request that
// is none of the schema's.
type Failure struct {
	Statement Statement
	Reason    string
}

// Decide evaluates all sets together: a forbid in any of them wins, else a permit in
// any permits. A permit that cannot be evaluated (a number overflows, say) does not
// permit. A forbid that cannot be evaluated forbids: Cedar would leave it out, and a
// restriction must not vanish by an error. A request that the schema does not know, by
// its class, action or resource, is forbidden.
func Decide(r Request, sets ...Named) (d Decision) {
	q, err := newQuery(&r, sets)
	if err != nil {
		return Decision{Effect: Forbidden, Failed: []Failure{{Reason: err.Error()}}}
	}
	defer func() {
		if p := recover(); p != nil { // of the library: a statement must not end the node
			d = Decision{Effect: Forbidden, Failed: []Failure{{Reason: fmt.Sprintf("evaluation failed: %v", p)}}}
		}
	}()
	for _, n := range sets {
		if n.Set == nil {
			continue
		}
		allowed, diagnostic := cedar.Authorize(all{n.Set}, q, q.request)
		for _, e := range diagnostic.Errors {
			s := n.statement(e.PolicyID)
			d.Failed = append(d.Failed, Failure{Statement: s, Reason: e.Message})
			if s.Forbid {
				d.add(Forbidden, s)
			}
		}
		effect := Forbidden
		if allowed == cedar.Allow {
			effect = Permitted
		}
		for _, reason := range diagnostic.Reasons {
			d.add(effect, n.statement(reason.PolicyID))
		}
	}
	return d
}

// add takes in a statement that applies: a stronger effect makes the others' by
// irrelevant.
func (d *Decision) add(e Effect, s Statement) {
	if e > d.Effect {
		d.Effect, d.By = e, nil
	}
	if e == d.Effect {
		d.By = append(d.By, s)
	}
}

func (n Named) statement(id cedar.PolicyID) Statement {
	i, _ := strconv.Atoi(string(id)) // by Set.add
	s := n.Set.statements[i]
	s.Policy = n.Name
	return s
}

// query is a request in Cedar's terms. It makes an entity when a statement first looks
// at it.
type query struct {
	*Request
	class   class
	action  cedar.Entity
	request cedar.Request
	context cedar.EntityUID

	principal, resource, tags cedar.Entity // zero until they are asked for
}

func newQuery(r *Request, sets []Named) (*query, error) {
	c, ok := classOf(r.Principal.Class)
	if !ok {
		return nil, fmt.Errorf("unknown class %q", r.Principal.Class)
	}
	m := theModel()
	action, ok := m.entities[r.Action]
	if !ok {
		return nil, fmt.Errorf("unknown action %q", r.Action)
	}
	q := &query{Request: r, class: c, action: action}
	q.context = cedar.NewEntityUID(typeContext, "")
	q.request.Principal = cedar.NewEntityUID(c.typ, cedar.String(r.Principal.URI))
	q.request.Action = action.UID
	on := OnTenant
	q.request.Resource = cedar.NewEntityUID(typeTenant, cedar.String(r.Tenant))
	if r.Key != nil {
		on = OnKey
		q.request.Resource = cedar.NewEntityUID(typeKey, cedar.String(r.Key.ID))
	}
	switch tenant := r.Principal.Tenant != ""; {
	case m.on[r.Action]&on == 0:
		return nil, fmt.Errorf("%s is no action on a %s", r.Action, local(q.request.Resource.Type))
	case tenant && c.tenant == never, !tenant && c.tenant == always:
		return nil, fmt.Errorf("principal of class %s with the tenant %q", c.name, r.Principal.Tenant)
	}
	for _, n := range sets {
		if n.Set.UsesContext() {
			q.request.Context = q.record()
			break
		}
	}
	return q, nil
}

func (q *query) record() cedar.Record {
	m := cedar.RecordMap{attrEncryption: q.context, attrTime: cedar.NewDatetime(q.Time)}
	if q.SourceService != "" {
		m[attrService] = cedar.String(q.SourceService)
	}
	return cedar.NewRecord(m)
}

// Get is for Cedar: an entity of the request.
func (q *query) Get(uid cedar.EntityUID) (cedar.Entity, bool) {
	switch uid {
	case q.request.Action:
		return q.action, true
	case q.request.Principal:
		if q.principal.UID.IsZero() {
			q.principal = q.asPrincipal()
		}
		return q.principal, true
	case q.request.Resource:
		if q.resource.UID.IsZero() {
			q.resource = q.asResource()
		}
		return q.resource, true
	case q.context:
		if q.tags.UID.IsZero() {
			q.tags = cedar.Entity{UID: uid, Tags: pairs(q.Context)}
		}
		return q.tags, true
	}
	return cedar.Entity{}, false
}

func (q *query) asPrincipal() cedar.Entity {
	p := q.Principal
	e := cedar.Entity{UID: q.request.Principal}
	attributes := cedar.RecordMap{attrName: cedar.String(p.Name)}
	if p.Tenant != "" {
		attributes[attrTenant] = cedar.String(p.Tenant)
		e.Parents = cedar.NewEntityUIDSet(cedar.NewEntityUID(typeTenant, cedar.String(p.Tenant)))
	}
	e.Attributes = cedar.NewRecord(attributes)
	return e
}

func (q *query) asResource() cedar.Entity {
	k := q.Key
	if k == nil {
		return cedar.Entity{
			UID: q.request.Resource, Attributes: cedar.NewRecord(cedar.RecordMap{attrTenant: cedar.String(q.Tenant)}),
		}
	}
	aliases := make([]cedar.Value, len(k.Aliases))
	for i, a := range k.Aliases {
		aliases[i] = cedar.String(a)
	}
	return cedar.Entity{
		UID:     q.request.Resource,
		Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID(typeTenant, cedar.String(k.Tenant))),
		Attributes: cedar.NewRecord(cedar.RecordMap{
			attrTenant: cedar.String(k.Tenant), attrSpec: cedar.String(k.Spec), attrUsage: cedar.String(k.Usage),
			attrManager: cedar.String(k.Manager), attrAliases: cedar.NewSet(aliases...),
		}),
		Tags: pairs(k.Tags),
	}
}

func pairs(tags []Tag) cedar.Record {
	if len(tags) == 0 {
		return cedar.Record{}
	}
	m := make(cedar.RecordMap, len(tags))
	for _, t := range tags {
		m[cedar.String(t.Key)] = cedar.String(t.Value)
	}
	return cedar.NewRecord(m)
}
