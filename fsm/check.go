package fsm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Check verifies the invariants of the state: the first one broken is named. It
// reads everything and is meant for tests, restores and repair.
func (s *State) Check() error {
	for _, check := range []func() error{s.checkKeys, s.checkGenerations, s.checkRecovery, s.checkAliases, s.checkMembers, s.checkRequests, s.checkGrants, s.checkPolicies, s.checkDue, s.checkAuditHeads} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (s *State) checkKeys() error {
	if a, b := s.keys.len(), s.keysByTenant.len(); a != b {
		return fmt.Errorf("%d keys by id, %d by tenant", a, b)
	}
	for _, item := range s.keys.all() {
		k := item.key
		if item.id != k.ID {
			return fmt.Errorf("key %s is indexed as %s", k.ID, item.id)
		}
		if same, ok := s.keysByTenant.tree.Get(k); !ok || same != k {
			return fmt.Errorf("key %s differs between the indexes", k.ID)
		}
		if _, ok := s.Tenant(k.Tenant); !ok {
			return fmt.Errorf("key %s belongs to the unknown tenant %q", k.ID, k.Tenant)
		}
		if err := k.check(); err != nil {
			return fmt.Errorf("key %s: %w", k.ID, err)
		}
		if k.State == KeyPendingDeletion {
			if err := s.deletable(k); err != nil {
				return fmt.Errorf("key %s is to be deleted: %w", k.ID, err)
			}
		}
		if k.Service != "" {
			if same, ok := s.ServiceKey(k.Tenant, k.Service); !ok || same != k {
				return fmt.Errorf("key %s is not found as that of service %s", k.ID, k.Service)
			}
		}
	}
	return nil
}

func (k *Key) check() error {
	if len(k.Versions) == 0 {
		return fmt.Errorf("no version")
	}
	if err := k.checkVersions(); err != nil {
		return err
	}
	if v := k.going(); v != nil && k.Protected {
		return fmt.Errorf("it is protected, and version %d is to be destroyed", v.Version)
	}
	if err := k.checkKind(); err != nil {
		return err
	}
	if err := k.checkMessages(); err != nil {
		return err
	}
	if v := k.Current(); v.Destroy != 0 {
		return fmt.Errorf("the current version %d is in state %s", v.Version, v.State)
	}
	if k.Rotation != nil && k.Origin == OriginExternal {
		return fmt.Errorf("of origin %s, it is rotated by itself", k.Origin)
	}
	if _, known := forbidden[k.State]; !known || k.State == KeyPendingImport {
		return fmt.Errorf("unknown state %q", k.State)
	}
	if r := k.Rotation; r != nil && (r.Period <= 0 || r.Next <= 0) {
		return fmt.Errorf("rotation each %d s, next at %d", r.Period, r.Next)
	}
	if (k.Manager == ManagerService) != (k.Service != "") {
		return fmt.Errorf("manager %s of service %q", k.Manager, k.Service)
	}
	tags, err := normalTags(k.Tags)
	if err != nil {
		return err
	}
	if !slices.Equal(tags, k.Tags) {
		return fmt.Errorf("tags are not in order")
	}
	if (k.State == KeyPendingDeletion) != (k.Deletion != 0) {
		return fmt.Errorf("state %s with deletion date %d", k.State, k.Deletion)
	}
	return validDescription(k.Description)
}

func (k *Key) checkVersions() error {
	for i, v := range k.Versions {
		if i > 0 && v.Version <= k.Versions[i-1].Version {
			return fmt.Errorf("version %d follows %d", v.Version, k.Versions[i-1].Version)
		}
		if err := v.Usable(); errors.Is(err, ErrUnsupported) {
			return err
		}
		if err := k.checkImport(i); err != nil {
			return err
		}
		if destroyed := v.State == VersionDestroyed; destroyed != (v.Token == nil) && (destroyed || v.Import == nil) {
			return fmt.Errorf("version %d in state %q has a token of %d bytes", v.Version, v.State, len(v.Token))
		}
		if v.Token != nil {
			if err := validToken(v.Token); err != nil {
				return err
			}
		}
		if (v.State == VersionDestroyScheduled || v.State == VersionDestroyed) != (v.Destroy != 0) {
			return fmt.Errorf("version %d in state %q with destruction at %d", v.Version, v.State, v.Destroy)
		}
	}
	return nil
}

// checkGenerations: one wraps new keys, at most one waits to, and every token can be opened.
func (s *State) checkGenerations() error {
	states := map[uint32]GenerationState{}
	count := map[GenerationState]int{}
	last := Generation{}
	for _, g := range s.cluster.Generations {
		if err := g.check(); err != nil {
			return fmt.Errorf("generation %d: %w", g.Number, err)
		}
		if g.Number <= last.Number || last.State == GenerationProposed {
			return fmt.Errorf("generation %d follows %d, which is %s", g.Number, last.Number, last.State)
		}
		for _, node := range g.Installed {
			if _, ok := s.Member(node); !ok {
				return fmt.Errorf("generation %d is installed on %s, which was never a member", g.Number, node)
			}
		}
		last, states[g.Number] = g, g.State
		count[g.State]++
	}
	if n := count[GenerationActive]; s.Initialized() && n != 1 {
		return fmt.Errorf("%d domain key generations are active", n)
	}
	for _, item := range s.keys.all() {
		for _, v := range item.key.Versions {
			if state := states[v.Generation]; v.Token != nil && state != GenerationActive && state != GenerationDecryptOnly {
				return fmt.Errorf("key %s: version %d is wrapped under generation %d, which is %q", item.id, v.Version, v.Generation, state)
			}
		}
	}
	return nil
}

func (g Generation) check() error {
	switch g.State {
	case GenerationProposed, GenerationActive, GenerationDecryptOnly:
		if !slices.IsSorted(g.Installed) || len(slices.Compact(slices.Clone(g.Installed))) != len(g.Installed) {
			return fmt.Errorf("installed on %q", g.Installed)
		}
		return validChecks(g.Checks)
	case GenerationRetired:
		if len(g.Checks)+len(g.Installed)+len(g.Recipients) != 0 {
			return fmt.Errorf("retired, with %d check values, %d nodes and %d recipients", len(g.Checks), len(g.Installed), len(g.Recipients))
		}
		return nil
	}
	return fmt.Errorf("unknown state %q", g.State)
}

func (s *State) checkAliases() error {
	if a, b := s.aliases.len(), s.aliasesByKey.len(); a != b {
		return fmt.Errorf("%d aliases by name, %d by key", a, b)
	}
	for _, a := range s.aliases.all() {
		if same, ok := s.aliasesByKey.tree.Get(a); !ok || same != a {
			return fmt.Errorf("alias %s differs between the indexes", a.Name)
		}
		k, ok := s.Key(a.Key)
		if !ok || k.Tenant != a.Tenant {
			return fmt.Errorf("alias %s of tenant %s names key %s, which is not there", a.Name, a.Tenant, a.Key)
		}
		if !strings.HasPrefix(a.Name, AliasPrefix) {
			return fmt.Errorf("alias %q lacks the prefix", a.Name)
		}
	}
	return nil
}

func (s *State) checkMembers() error {
	names, addresses := map[string]string{}, map[string]string{}
	voters := 0
	for _, m := range s.Members() {
		if !m.Alive() {
			continue
		}
		if other, taken := names[m.Name]; taken {
			return fmt.Errorf("nodes %s and %s have the same name", other, m.ID)
		}
		if other, taken := addresses[m.PeerAddress]; taken {
			return fmt.Errorf("nodes %s and %s have the same peer address", other, m.ID)
		}
		names[m.Name], addresses[m.PeerAddress] = m.ID, m.ID
		if m.State == MemberActive && m.Voter {
			voters++
		}
	}
	if s.Initialized() && voters == 0 {
		return fmt.Errorf("no voter is active")
	}
	return nil
}

func (s *State) checkRequests() error {
	if a, b := s.requests.len(), s.requestOrder.len(); a != b {
		return fmt.Errorf("%d requests by id, %d by order", a, b)
	}
	for _, r := range s.requests.all() {
		if same, ok := s.requestOrder.tree.Get(r); !ok || same != r {
			return fmt.Errorf("request %s differs between the indexes", r.ID)
		}
		if r.Index > s.index {
			return fmt.Errorf("request %s was answered at %d, after %d", r.ID, r.Index, s.index)
		}
	}
	return nil
}

func (s *State) checkGrants() error {
	if a, b, c, d := s.grants.len(), s.grantsByKey.len(), s.grantsByGrantee.len(), s.grantsByResource.len(); a != b || a != c || a != d {
		return fmt.Errorf("%d grants by id, %d by key, %d by grantee, %d by resource", a, b, c, d)
	}
	named, retirable, following := 0, 0, 0
	for _, g := range s.grants.all() {
		k, ok := s.Key(g.Key)
		if !ok || k.Tenant != g.Tenant {
			return fmt.Errorf("grant %s of tenant %s is of key %s, which is not there", g.ID, g.Tenant, g.Key)
		}
		indexes := []table[*Grant]{s.grantsByKey, s.grantsByGrantee}
		if g.Name != "" {
			named++
			indexes = append(indexes, s.grantNames)
		}
		if g.Retiring != "" {
			retirable++
			indexes = append(indexes, s.grantsByRetiring)
		}
		if g.Parent != (ID{}) {
			following++
			indexes = append(indexes, s.grantsByParent)
		}
		for _, index := range indexes {
			if same, ok := index.tree.Get(g); !ok || same != g {
				return fmt.Errorf("grant %s differs between the indexes", g.ID)
			}
		}
		if same, ok := s.grantsByResource.tree.Get(byResource(g)); !ok || same.grant != g {
			return fmt.Errorf("grant %s is not found by its resource", g.ID)
		}
		if err := s.checkParent(g); err != nil {
			return fmt.Errorf("grant %s: %w", g.ID, err)
		}
	}
	if a, b, c := s.grantNames.len(), s.grantsByRetiring.len(), s.grantsByParent.len(); a != named || b != retirable || c != following {
		return fmt.Errorf("%d grants by name of %d, %d by retiring principal of %d, %d by parent of %d", a, named, b, retirable, c, following)
	}
	return nil
}

// checkParent: the depth grows from parent to child, so that no grant follows from itself.
func (s *State) checkParent(g *Grant) error {
	if g.Parent == (ID{}) {
		if g.Depth != 0 {
			return fmt.Errorf("depth %d without a parent", g.Depth)
		}
		return nil
	}
	parent, ok := s.Grant(g.Parent)
	if !ok || parent.Key != g.Key {
		return fmt.Errorf("it follows from %s, which is not there", g.Parent)
	}
	if g.Depth != parent.Depth+1 || g.Depth > MaxGrantDepth {
		return fmt.Errorf("depth %d follows %d", g.Depth, parent.Depth)
	}
	return g.narrower(parent)
}

func (s *State) checkPolicies() error {
	present := func(tenant string, key ID, number uint32) error {
		if number == 0 {
			return nil
		}
		if p, ok := s.Policy(tenant, key, number); !ok || p.Text == "" {
			return fmt.Errorf("policy %d of tenant %s, key %s, is not there", number, tenant, key)
		}
		return nil
	}
	for _, n := range s.tenants.all() {
		if err := present(n.Name, ID{}, n.Policy); err != nil {
			return err
		}
	}
	for _, item := range s.keys.all() {
		if err := present(item.key.Tenant, item.id, item.key.Policy); err != nil {
			return err
		}
	}
	for _, p := range s.policies.all() {
		if _, ok := s.Tenant(p.Tenant); !ok {
			return fmt.Errorf("policy %d is of tenant %q, which is not there", p.Number, p.Tenant)
		}
		if k, ok := s.Key(p.Key); p.Key != (ID{}) && (!ok || k.Tenant != p.Tenant) {
			return fmt.Errorf("policy %d is of key %s, which is not there", p.Number, p.Key)
		}
	}
	for _, b := range s.bindings.all() {
		if _, ok := s.Key(b.Key); !ok {
			return fmt.Errorf("resource %q is bound to key %s, which is not there", b.Resource, b.Key)
		}
	}
	for _, u := range s.uses.all() {
		if _, ok := s.Key(u.Key); !ok {
			return fmt.Errorf("key %s, which is not there, was used", u.Key)
		}
	}
	return nil
}

// checkDue compares the index of what is due, and the counts, with the records.
func (s *State) checkDue() error {
	due := 0
	expect := func(d Due, has bool) error {
		if !has {
			return nil
		}
		due++
		if _, ok := s.due.tree.Get(d); !ok {
			return fmt.Errorf("%s is due at %d, and the index does not know", d.ID, d.At)
		}
		return nil
	}
	for _, item := range s.keys.all() {
		if err := expect(item.key.due()); err != nil {
			return err
		}
	}
	for _, g := range s.grants.all() {
		if err := expect(g.due()); err != nil {
			return err
		}
	}
	if n := s.due.len(); n != due {
		return fmt.Errorf("%d are due, the index knows %d", due, n)
	}
	for c, n := range s.checkCounts() {
		if n != 0 {
			return fmt.Errorf("%s %s are miscounted by %d", c.what, c.of, n)
		}
	}
	return nil
}
