package fsm

// What of a record is indexed where stands here, once: for entries, and for snapshots
// that are read. set and unset keep the indexes; put and drop also raise the record's
// revision and take it into the running hash.

// count is how many records belong to something.
type count struct {
	what string // one of what is counted, with a tenant's name, or of a key
	of   ID     // a key; zero: of a tenant
	n    int
}

const (
	countKeys     = "keys/"
	countDisabled = "disabled/" // by a tenant; without a name by the operators
	countGrants   = "grants"    // of a key
	countBindings = "bindings"  // of a key

	countTenantGrants   = "grants/"
	countTenantBindings = "bindings/"
	countPolicyText     = "policy text/" // bytes
)

func (t *tx) addTo(what string, of ID, n int) {
	c := count{what: what, of: of, n: t.s.count(what, of) + n}
	if tree := t.s.counts.edit(t); c.n == 0 {
		tree.Delete(c)
	} else {
		tree.Set(c)
	}
}

func (s *State) count(what string, of ID) int {
	c, _ := s.counts.tree.Get(count{what: what, of: of})
	return c.n
}

// moveDue replaces what is due of a record.
func (t *tx) moveDue(old Due, had bool, next Due, has bool) {
	if old == next && had == has {
		return
	}
	if had {
		t.s.due.edit(t).Delete(old)
	}
	if has {
		t.s.due.edit(t).Set(next)
	}
}

func (t *tx) setKey(k *Key) {
	next, has := k.due()
	if old, ok := t.s.Key(k.ID); ok {
		was, had := old.due()
		t.moveDue(was, had, next, has)
	} else {
		t.addTo(countKeys+k.Tenant, ID{}, 1)
		t.moveDue(Due{}, false, next, has)
	}
	t.s.keys.edit(t).Set(keyItem{k.ID, k})
	t.s.keysByTenant.edit(t).Set(k)
}

func (t *tx) putKey(k *Key) {
	k.Revision = t.s.index
	t.setKey(k)
	t.wrote(kindKey, false, k)
}

// keepKey stores what belongs to a key and is no change of it: the revision stays.
func (t *tx) keepKey(k *Key) {
	t.setKey(k)
	t.wrote(kindKey, false, k)
}

func (t *tx) dropKey(k *Key) {
	was, had := k.due()
	t.moveDue(was, had, Due{}, false)
	t.s.keys.edit(t).Delete(keyItem{id: k.ID})
	t.s.keysByTenant.edit(t).Delete(k)
	t.addTo(countKeys+k.Tenant, ID{}, -1)
	t.wrote(kindKey, true, k)
}

// touchKey raises a key's revision because of something that belongs to it.
func (t *tx) touchKey(id ID) {
	if old, ok := t.s.Key(id); ok {
		k := *old
		t.putKey(&k)
	}
}

func (t *tx) setAlias(a *Alias) {
	if old, ok := t.s.Alias(a.Tenant, a.Name); ok {
		t.s.aliasesByKey.edit(t).Delete(old)
	}
	t.s.aliases.edit(t).Set(a)
	t.s.aliasesByKey.edit(t).Set(a)
}

func (t *tx) putAlias(a *Alias) {
	a.Revision = t.s.index
	t.setAlias(a)
	t.wrote(kindAlias, false, a)
}

func (t *tx) dropAlias(a *Alias) {
	t.s.aliases.edit(t).Delete(a)
	t.s.aliasesByKey.edit(t).Delete(a)
	t.wrote(kindAlias, true, a)
}

func (t *tx) setGrant(g *Grant) {
	t.s.grants.edit(t).Set(g)
	t.s.grantsByKey.edit(t).Set(g)
	t.s.grantsByGrantee.edit(t).Set(g)
	t.s.grantsByResource.edit(t).Set(byResource(g))
	if g.Retiring != "" {
		t.s.grantsByRetiring.edit(t).Set(g)
	}
	if g.Parent != (ID{}) {
		t.s.grantsByParent.edit(t).Set(g)
	}
	if g.Name != "" {
		t.s.grantNames.edit(t).Set(g)
	}
	next, has := g.due()
	t.moveDue(Due{}, false, next, has)
	t.addTo(countGrants, g.Key, 1)
	t.addTo(countTenantGrants+g.Tenant, ID{}, 1)
}

func (t *tx) putGrant(g *Grant) {
	g.Revision = t.s.index
	t.setGrant(g)
	t.wrote(kindGrant, false, g)
}

func (t *tx) dropGrant(g *Grant) {
	t.s.grants.edit(t).Delete(g)
	t.s.grantsByKey.edit(t).Delete(g)
	t.s.grantsByGrantee.edit(t).Delete(g)
	t.s.grantsByResource.edit(t).Delete(byResource(g))
	t.s.grantsByRetiring.edit(t).Delete(g)
	t.s.grantsByParent.edit(t).Delete(g)
	if g.Name != "" {
		t.s.grantNames.edit(t).Delete(g)
	}
	was, had := g.due()
	t.moveDue(was, had, Due{}, false)
	t.addTo(countGrants, g.Key, -1)
	t.addTo(countTenantGrants+g.Tenant, ID{}, -1)
	t.wrote(kindGrant, true, g)
}

func (t *tx) setBinding(b *Binding) {
	if _, replaced := t.s.bindings.edit(t).Set(b); !replaced {
		t.countBinding(b, 1)
	}
}

func (t *tx) countBinding(b *Binding, n int) {
	t.addTo(countBindings, b.Key, n)
	if k, ok := t.s.Key(b.Key); ok { // it has no binding that is deleted, and snapshots have keys first
		t.addTo(countTenantBindings+k.Tenant, ID{}, n)
	}
}

func (t *tx) putBinding(b *Binding) {
	b.Revision = t.s.index
	t.setBinding(b)
	t.wrote(kindBinding, false, b)
}

func (t *tx) dropBinding(b *Binding) {
	t.s.bindings.edit(t).Delete(b)
	t.countBinding(b, -1)
	t.wrote(kindBinding, true, b)
}

func (t *tx) setPolicy(p *Policy) {
	t.s.policies.edit(t).Set(p)
	t.addTo(countPolicyText+p.Tenant, ID{}, len(p.Text))
}

func (t *tx) putPolicy(p *Policy) {
	p.Revision = t.s.index
	t.setPolicy(p)
	t.wrote(kindPolicy, false, p)
}

func (t *tx) dropPolicy(p *Policy) {
	t.s.policies.edit(t).Delete(p)
	t.addTo(countPolicyText+p.Tenant, ID{}, -len(p.Text))
	t.wrote(kindPolicy, true, p)
}

func (t *tx) putUse(u *LastUse) {
	t.s.uses.edit(t).Set(u)
	t.wrote(kindUse, false, u)
}

func (t *tx) dropUse(u *LastUse) {
	t.s.uses.edit(t).Delete(u)
	t.wrote(kindUse, true, u)
}

func (t *tx) putCopy(c *RecoveryCopy) {
	c.Revision = t.s.index
	t.s.copies.edit(t).Set(c)
	t.wrote(kindCopy, false, c)
}

func (t *tx) dropCopy(c *RecoveryCopy) {
	t.s.copies.edit(t).Delete(c)
	t.wrote(kindCopy, true, c)
}

func (t *tx) putAuditHead(h *AuditHead) {
	h.Revision = t.s.index
	t.s.auditHeads.edit(t).Set(h)
	t.wrote(kindAuditHead, false, h)
}

func (t *tx) setDisabled(d *DisabledPrincipal) {
	if _, replaced := t.s.disabled.edit(t).Set(d); !replaced {
		t.addTo(countDisabled+d.Tenant, ID{}, 1)
	}
}

func (t *tx) putDisabled(d *DisabledPrincipal) {
	d.Revision = t.s.index
	t.setDisabled(d)
	t.wrote(kindDisabled, false, d)
}

func (t *tx) dropDisabled(d *DisabledPrincipal) {
	t.s.disabled.edit(t).Delete(d)
	t.addTo(countDisabled+d.Tenant, ID{}, -1)
	t.wrote(kindDisabled, true, d)
}

func (t *tx) putCluster(c Cluster) {
	c.Revision = t.s.index
	t.s.cluster = c
	t.wrote(kindCluster, false, c)
}

func (t *tx) putTenant(n *Tenant) {
	n.Revision = t.s.index
	t.s.tenants.edit(t).Set(n)
	t.wrote(kindTenant, false, n)
}

func (t *tx) putMember(m *Member) {
	m.Revision = t.s.index
	t.s.members.edit(t).Set(m)
	t.wrote(kindMember, false, m)
}

func (t *tx) putTicket(k *Ticket) {
	k.Revision = t.s.index
	t.s.tickets.edit(t).Set(k)
	t.wrote(kindTicket, false, k)
}

func (t *tx) dropTicket(k *Ticket) {
	t.s.tickets.edit(t).Delete(k)
	t.wrote(kindTicket, true, k)
}

// checkCounts compares the counts with what there is.
func (s *State) checkCounts() map[count]int {
	found := map[count]int{}
	for _, item := range s.keys.all() {
		found[count{what: countKeys + item.key.Tenant}]++
	}
	for _, g := range s.grants.all() {
		found[count{what: countGrants, of: g.Key}]++
		found[count{what: countTenantGrants + g.Tenant}]++
	}
	for _, b := range s.bindings.all() {
		found[count{what: countBindings, of: b.Key}]++
		if k, ok := s.Key(b.Key); ok {
			found[count{what: countTenantBindings + k.Tenant}]++
		}
	}
	for _, p := range s.policies.all() {
		found[count{what: countPolicyText + p.Tenant}] += len(p.Text)
	}
	for _, d := range s.disabled.all() {
		found[count{what: countDisabled + d.Tenant}]++
	}
	for _, c := range s.counts.all() {
		found[count{what: c.what, of: c.of}] -= c.n
	}
	return found
}
