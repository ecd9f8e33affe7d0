package kms

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/policy"
)

const (
	// maxLoaded bounds the revisions of policies that are kept loaded.
	maxLoaded = 4096
	// maxDecided bounds the decisions that are remembered.
	maxDecided = 8192
)

// policies decides by the policies that stand in a state. Revisions are loaded once, also
// when many ask for one at the same time: a
// record of the state never changes, so what was parsed from it stays right. A decision
// is remembered only where nothing but the records it was made from can change it: the
// policies, the key, the principal and the operation, and no statement looks at the
// context.
type policies struct {
	standard *policy.Set // of tenants that have none

	mu      sync.RWMutex
	loaded  map[*fsm.Policy]func() *policy.Set // loads at its first call; nil: it cannot be read
	decided map[decided]verdict
}

// decided names a decision by the records that it was made from.
type decided struct {
	tenant    *fsm.Policy
	key       *fsm.Policy
	record    *fsm.Key // carries tags; its revision is raised with its aliases
	ofTenant  string
	principal string
	operation string
}

type verdict struct {
	effect policy.Effect
	by     string
}

func newPolicies() *policies {
	standard, err := policy.Parse(policy.DefaultText)
	if err != nil {
		panic(fmt.Sprintf("kms: the default policy does not parse: %v", err)) // a test parses it
	}
	return &policies{standard: standard, loaded: map[*fsm.Policy]func() *policy.Set{}, decided: map[decided]verdict{}}
}

// decide tells what a tenant's policy and a key's say, and which statement did.
func (p *policies) decide(st *fsm.State, t *fsm.Tenant, k *fsm.Key, q question, now time.Time) (policy.Effect, string) {
	var own, ofKey *fsm.Policy
	if t.Policy != 0 {
		own, _ = st.Policy(t.Name, fsm.ID{}, t.Policy)
	}
	if k != nil && k.Policy != 0 {
		ofKey, _ = st.Policy(t.Name, k.ID, k.Policy)
	}
	if own == nil && ofKey == nil {
		return standard(q)
	}
	sets := p.sets(own, ofKey, q.operation)
	if i := slices.IndexFunc(sets, func(n policy.Named) bool { return n.Set == nil }); i >= 0 {
		return unreadable(st, sets[:i], sets[i].Name, k, q, now)
	}
	name := decided{own, ofKey, k, t.Name, q.caller.Principal, q.operation}
	remember := true
	for _, s := range sets {
		remember = remember && !s.Set.UsesContext()
	}
	if remember {
		p.mu.RLock()
		v, known := p.decided[name]
		p.mu.RUnlock()
		if known {
			return v.effect, v.by
		}
	}
	effect, by := ask(st, sets, k, q, now)
	if remember {
		p.mu.Lock()
		defer p.mu.Unlock()
		makeRoom(p.decided, maxDecided)
		p.decided[name] = verdict{effect, by}
	}
	return effect, by
}

// standard is what policy.DefaultText says, without asking Cedar: most tenants have no
// other, and cryptography waits for it. A test compares both.
func standard(q question) (policy.Effect, string) {
	const by = "default policy"
	own := !q.caller.foreign(q.tenant)
	switch {
	case own && q.caller.Class == ClassUser && (q.needs == mayUse || q.needs == mayRead),
		own && q.caller.Class == ClassAdmin && q.needs != mayUse && q.needs != mayOperate,
		own && q.caller.Class == ClassAuditor && q.needs == mayRead:
		return policy.Permitted, by
	}
	return policy.Silent, by
}

// sets gives the policies parsed, the tenant's first: one that cannot be read has no set.
// Who may replace a policy is asked of texts that are checked anew: where a condition says
// what this release does not know, nobody could.
func (p *policies) sets(own, ofKey *fsm.Policy, operation string) []policy.Named {
	read := p.load
	if slices.Contains(replacing, operation) {
		read = checked
	}
	sets := make([]policy.Named, 1, 2)
	sets[0] = policy.Named{Name: "default policy", Set: p.standard}
	if own != nil {
		sets[0] = policy.Named{Name: "tenant policy", Set: read(own)}
	}
	if ofKey != nil {
		sets = append(sets, policy.Named{Name: "key policy", Set: read(ofKey)})
	}
	return sets
}

// replacing are the operations that put another policy in the place of one.
var replacing = []string{"PutTenantPolicy", "DeleteTenantPolicy", "PutKeyPolicy", "DeleteKeyPolicy"}

func checked(r *fsm.Policy) *policy.Set {
	set, err := policy.Parse(r.Text)
	if err != nil {
		return nil
	}
	return set
}

// unreadable decides where a policy cannot be read, as one that a later release has
// written: it forbids everything but to put another in its place or to delete it. That
// the policies before it decide; before the tenant's there is none, and its administrators
// may.
func unreadable(st *fsm.State, before []policy.Named, name string, k *fsm.Key, q question, now time.Time) (policy.Effect, string) {
	switch q.operation {
	case "PutKeyPolicy", "DeleteKeyPolicy":
		if len(before) > 0 {
			return ask(st, before, k, q, now)
		}
	case "PutTenantPolicy", "DeleteTenantPolicy":
		if q.caller.Class == ClassAdmin && !q.caller.foreign(q.tenant) {
			return policy.Permitted, "role, as the " + name + " cannot be read"
		}
	}
	return policy.Forbidden, "a " + name + " that this node cannot read"
}

// lasts is nil if the policies of a tenant, or of its key, let the caller put another,
// whatever the time, tags and aliases become. Where a key's does not forbid
// that, the tenant's can always permit it: the tenant's itself has to.
func (p *policies) lasts(st *fsm.State, t *fsm.Tenant, k *fsm.Key, q question, now time.Time) error {
	var own, ofKey *fsm.Policy
	if k == nil {
		own, _ = st.Policy(t.Name, fsm.ID{}, t.Policy)
	} else if ofKey, _ = st.Policy(t.Name, k.ID, k.Policy); ofKey == nil {
		return nil
	}
	sets := p.sets(own, ofKey, q.operation)
	if k != nil {
		sets = sets[1:]
	}
	r := request(st, k, q, now)
	const changes = "the time, tags or aliases"
	switch d := policy.Lasting(r, sets...); {
	case d.Effect == policy.Forbidden:
		return fmt.Errorf("%s can come to forbid it, by %s: leave the administrator out with unless { principal == KMS::Admin::%q }", cause(d), changes, q.caller.Principal)
	case k == nil && d.Effect != policy.Permitted:
		return fmt.Errorf("%s permits it only as long as %s are right: add permit (principal == KMS::Admin::%q, action == KMS::Action::%q, resource);",
			cause(policy.Decide(r, sets...)), changes, q.caller.Principal, q.operation)
	}
	return nil
}

// load reads a revision, once. It was validated when it was proposed; one that this
// release cannot read all the same gives nil.
func (p *policies) load(r *fsm.Policy) *policy.Set {
	p.mu.RLock()
	set, known := p.loaded[r]
	p.mu.RUnlock()
	if known {
		return set()
	}
	p.mu.Lock()
	if set, known = p.loaded[r]; !known {
		set = sync.OnceValue(func() *policy.Set {
			set, err := policy.Load(r.Text)
			if err != nil {
				return nil
			}
			return set
		})
		makeRoom(p.loaded, maxLoaded)
		p.loaded[r] = set
	}
	p.mu.Unlock()
	return set()
}

// makeRoom takes something out of a full memory, whatever it is: what is used comes back.
func makeRoom[K comparable, V any](m map[K]V, most int) {
	for k := range m {
		if len(m) < most {
			return
		}
		delete(m, k)
	}
}

// request is a question as Cedar's policies are asked.
func request(st *fsm.State, k *fsm.Key, q question, now time.Time) policy.Request {
	r := policy.Request{
		Principal: policy.Principal{URI: q.caller.Principal, Class: string(q.caller.Class), Tenant: q.caller.Tenant, Name: q.caller.Name},
		Action:    q.operation, Tenant: q.tenant, Time: time.Unix(0, max(now.UnixNano(), st.Now())),
	}
	for _, pair := range q.context {
		r.Context = append(r.Context, policy.Tag(pair))
	}
	if q.caller.Class == ClassService {
		r.SourceService = q.caller.Name
	}
	if k != nil {
		r.Key = &policy.Key{ID: k.ID.String(), Tenant: k.Tenant, Spec: string(k.Spec), Usage: string(k.Usage), Manager: string(k.Manager)}
		for _, a := range st.AliasesOf(k.ID) {
			r.Key.Aliases = append(r.Key.Aliases, a.Name)
		}
		for _, t := range k.Tags {
			r.Key.Tags = append(r.Key.Tags, policy.Tag(t))
		}
	}
	return r
}

// ask has Cedar decide.
func ask(st *fsm.State, sets []policy.Named, k *fsm.Key, q question, now time.Time) (policy.Effect, string) {
	d := policy.Decide(request(st, k, q, now), sets...)
	return d.Effect, cause(d)
}

// cause names the statements that made a decision.
func cause(d policy.Decision) string {
	var by []string
	for _, s := range d.By {
		by = append(by, fmt.Sprintf("%s: %s (line %d)", s.Policy, s.ID, s.Line))
	}
	for _, f := range d.Failed {
		if d.Effect == policy.Forbidden {
			by = append(by, fmt.Sprintf("%s: %s cannot be evaluated: %s", f.Statement.Policy, f.Statement.ID, f.Reason))
		}
	}
	if len(by) == 0 {
		return "no statement of a policy"
	}
	return strings.Join(by, ", ")
}
