package fsm

import (
	"bytes"
	"strings"
	"testing"
)

// TestCheckFindsFaults: every invariant, broken behind the commands' back.
func TestCheckFindsFaults(t *testing.T) {
	key := func(f func(k *Key)) func(w *world, t *tx) {
		return func(w *world, t *tx) { k := *w.key(1); f(&k); t.putKey(&k) }
	}
	member := func(f func(m *Member)) func(w *world, t *tx) {
		return func(w *world, t *tx) { old, _ := w.s.Member(nodeID("n2")); m := *old; f(&m); t.putMember(&m) }
	}
	changed := func(f func(v *KeyVersion)) func(w *world, t *tx) {
		return key(func(k *Key) { v := k.Versions[0]; f(&v); k.Versions = []KeyVersion{v} })
	}
	held := func(w *world, n uint64) *Grant { g, _ := w.s.Grant(grantID(n)); return g }
	third := func(f func(g *Grant)) func(w *world, t *tx) {
		return func(w *world, t *tx) {
			g := *held(w, 2)
			g.ID, g.Parent, g.Depth = grantID(3), ID{}, 0
			f(&g)
			t.putGrant(&g)
		}
	}
	for _, row := range []struct {
		text string
		edit func(w *world, t *tx)
	}{
		{"1 keys by id, 2 by tenant", func(w *world, t *tx) { t.s.keys.edit(t).Delete(keyItem{id: keyID(1)}) }},
		{"2 keys by id, 1 by tenant", func(w *world, t *tx) { t.s.keysByTenant.edit(t).Delete(w.key(1)) }},
		{"is indexed as", func(w *world, t *tx) { t.s.keys.edit(t).Set(keyItem{keyID(1), w.key(2)}) }},
		{"differs between the indexes", func(w *world, t *tx) { k := *w.key(1); t.s.keys.edit(t).Set(keyItem{k.ID, &k}) }},
		{"keys by id", key(func(k *Key) { k.Tenant = "acme" })},
		{`unknown tenant "default"`, func(w *world, t *tx) { t.s.tenants.edit(t).Delete(&Tenant{Name: DefaultTenant}) }},
		{"no version", key(func(k *Key) { k.Versions = nil })},
		{"version 1 follows 1", key(func(k *Key) { k.Versions = append(k.Versions[:1:1], k.Versions[0]) })},
		{`version 1 in state "" has a token of 0 bytes`, key(func(k *Key) { k.Versions = []KeyVersion{{Version: 1}} })},
		{"token of 8193 bytes", key(func(k *Key) { k.Versions = []KeyVersion{{Version: 1, Token: make([]byte, MaxToken+1)}} })},
		{"state \"DESTROYED\" has a token of 1 bytes", changed(func(v *KeyVersion) { v.State, v.Destroy, v.Token = VersionDestroyed, 5, []byte{1} })},
		{"state \"DESTROY_SCHEDULED\" with destruction at 0", changed(func(v *KeyVersion) { v.State = VersionDestroyScheduled })},
		{"state \"\" with destruction at 5", changed(func(v *KeyVersion) { v.Destroy = 5 })},
		{`unknown state "LATER"`, changed(func(v *KeyVersion) { v.State = "LATER" })},
		{"the current version 1 is in state DESTROY_SCHEDULED", changed(func(v *KeyVersion) { v.State, v.Destroy = VersionDestroyScheduled, 5 })},
		{`unknown state "LATER"`, key(func(k *Key) { k.State = "LATER" })},
		{"rotation each 0 s", key(func(k *Key) { k.Rotation = &Rotation{Next: 5} })},
		{"next at 0", key(func(k *Key) { k.Rotation = &Rotation{Period: 5} })},
		{"manager SERVICE of service \"\"", key(func(k *Key) { k.Manager = ManagerService })},
		{"manager CUSTOMER of service \"obs\"", key(func(k *Key) { k.Service = "obs" })},
		{"is not found as that of service ebs", key(func(k *Key) { k.Manager, k.Service = ManagerService, "ebs" })},
		{"is to be deleted: key is protected", key(func(k *Key) { k.State, k.Deletion, k.Protected = KeyPendingDeletion, 5, true })},
		{"protects r", key(func(k *Key) { k.State, k.Deletion = KeyPendingDeletion, 5 })},
		{"tags are not in order", key(func(k *Key) { k.Tags = []Tag{{"b", ""}, {"a", ""}} })},
		{"given twice", key(func(k *Key) { k.Tags = []Tag{{"a", ""}, {"a", ""}} })},
		{"51 tags given", key(func(k *Key) { k.Tags = tags(0, 51) })},
		{"with deletion date 0", key(func(k *Key) { k.State = KeyPendingDeletion })},
		{"state ENABLED with deletion date 5", key(func(k *Key) { k.Deletion = 5 })},
		{"8193 characters", key(func(k *Key) { k.Description = strings.Repeat("x", 8193) })},
		{"0 aliases by name, 1 by key", func(w *world, t *tx) { t.s.aliases.edit(t).Delete(&Alias{Tenant: DefaultTenant, Name: "alias/a"}) }},
		{"alias alias/a differs", func(w *world, t *tx) {
			t.s.aliases.edit(t).Set(&Alias{Tenant: DefaultTenant, Name: "alias/a", Key: keyID(1)})
		}},
		{"which is not there", func(w *world, t *tx) { t.putAlias(&Alias{Tenant: DefaultTenant, Name: "alias/b", Key: keyID(9)}) }},
		{"which is not there", func(w *world, t *tx) { t.putAlias(&Alias{Tenant: "acme", Name: "alias/b", Key: keyID(1)}) }},
		{"lacks the prefix", func(w *world, t *tx) { t.putAlias(&Alias{Tenant: DefaultTenant, Name: "b", Key: keyID(1)}) }},
		{"have the same name", member(func(m *Member) { m.Name = "n1" })},
		{"have the same peer address", member(func(m *Member) { m.PeerAddress = "n1:7000" })},
		{"no voter is active", func(w *world, t *tx) { m, _ := w.s.Member(firstNode); c := *m; c.Voter = false; t.putMember(&c) }},
		{"0 requests by id, 1 by order", func(w *world, t *tx) { t.s.requests.edit(t).Delete(&Request{Principal: admin, ID: "r1"}) }},
		{"request r1 differs", func(w *world, t *tx) { t.s.requests.edit(t).Set(&Request{Principal: admin, ID: "r1"}) }},
		{"was answered at 100, after", func(w *world, t *tx) {
			r := &Request{Principal: admin, ID: "r1", Index: 100}
			t.s.requests.edit(t).Set(r)
			t.s.requestOrder.edit(t).Clear()
			t.s.requestOrder.edit(t).Set(r)
		}},
		{"1 grants by id, 2 by key", func(w *world, t *tx) { t.s.grants.edit(t).Delete(&Grant{ID: grantID(2)}) }},
		{"2 grants by id, 2 by key, 1 by grantee", func(w *world, t *tx) { t.s.grantsByGrantee.edit(t).Delete(held(w, 1)) }},
		{"differs between the indexes", func(w *world, t *tx) { t.s.grantsByRetiring.edit(t).Delete(held(w, 1)) }},
		{"2 grants by name of 1", func(w *world, t *tx) { t.s.grantNames.edit(t).Set(&Grant{Key: keyID(1), Name: "more"}) }},
		{"2 by parent of 1", func(w *world, t *tx) { t.s.grantsByParent.edit(t).Set(&Grant{Parent: keyID(1), ID: keyID(1)}) }},
		{"differs between the indexes", func(w *world, t *tx) { g := *held(w, 1); t.s.grants.edit(t).Set(&g) }},
		{"differs between the indexes", func(w *world, t *tx) { g := *held(w, 1); t.s.grantNames.edit(t).Set(&g) }},
		{"differs between the indexes", func(w *world, t *tx) { g := *held(w, 1); t.s.grantsByRetiring.edit(t).Set(&g) }},
		{"differs between the indexes", func(w *world, t *tx) { g := *held(w, 2); t.s.grantsByParent.edit(t).Set(&g) }},
		{"of tenant acme is of key", third(func(g *Grant) { g.Tenant = "acme" })},
		{"which is not there", third(func(g *Grant) { g.Key = keyID(9) })},
		{"which is not there", third(func(g *Grant) { g.Parent = grantID(9) })},
		{"which is not there", third(func(g *Grant) { g.Key, g.Parent, g.Depth = keyID(2), grantID(1), 1 })},
		{"depth 1 without a parent", third(func(g *Grant) { g.Depth = 1 })},
		{"depth 2 follows 0", third(func(g *Grant) { g.Parent, g.Depth = grantID(1), 2 })},
		{"depth 0 follows 0", third(func(g *Grant) { g.Parent, g.Depth = g.ID, 0 })},
		{"does not allow Sign", third(func(g *Grant) { g.Parent, g.Depth, g.Operations = grantID(1), 1, []GrantOperation{GrantSign} })},
		{"at least as strict", third(func(g *Grant) { g.Parent, g.Depth, g.Constraints = grantID(1), 1, Constraints{} })},
		{"must not end later", third(func(g *Grant) { g.Parent, g.Depth, g.Expires = grantID(1), 1, 0 })},
		{"policy 2 of tenant default", func(w *world, t *tx) { n, _ := w.s.Tenant(DefaultTenant); c := *n; c.Policy = 2; t.putTenant(&c) }},
		{"policy 3 of tenant default", key(func(k *Key) { k.Policy = 3 })},
		{"policy 2 of tenant default", key(func(k *Key) { k.Policy = 2 })}, // it was deleted
		{`policy 1 is of tenant "acme"`, func(w *world, t *tx) { t.putPolicy(&Policy{Tenant: "acme", Number: 1}) }},
		{"policy 7 is of key", func(w *world, t *tx) { t.putPolicy(&Policy{Tenant: DefaultTenant, Key: keyID(9), Number: 7}) }},
		{`resource "r" is bound to key`, func(w *world, t *tx) { t.putBinding(&Binding{Key: keyID(9), Resource: "r"}) }},
		{"which is not there, was used", func(w *world, t *tx) { t.putUse(&LastUse{Key: keyID(9)}) }},
		{"and the index does not know", func(w *world, t *tx) { t.s.due.edit(t).Delete(w.s.Due(1<<62, 1)[0]) }},
		{"and the index does not know", func(w *world, t *tx) {
			k := *w.key(1)
			k.Rotation = &Rotation{5, 5}
			t.s.keys.edit(t).Set(keyItem{k.ID, &k})
			t.s.keysByTenant.edit(t).Set(&k)
		}},
		{"2 are due, the index knows 3", func(w *world, t *tx) { t.s.due.edit(t).Set(Due{At: 5, ID: keyID(1)}) }},
		{"are miscounted by 1", func(w *world, t *tx) { t.addTo(countGrants, keyID(1), -1) }},
		{"are miscounted by -1", func(w *world, t *tx) { t.addTo(countBindings, keyID(2), 1) }},
		{"keys/default", func(w *world, t *tx) { t.addTo(countKeys+DefaultTenant, ID{}, 1) }},
		{"disabled/", func(w *world, t *tx) { t.s.disabled.edit(t).Set(&DisabledPrincipal{Principal: user}) }},
	} {
		t.Run(row.text, func(t *testing.T) {
			w := twoKeys(t)
			w.ask("r1", "", &CreateAlias{alias("alias/a", 1)})
			w.do(ticketFor("n2"))
			w.do(admit("n2"))
			w.join("n3", false, MemberActive)
			w.do(edited(createGrant(1, 1), func(c *CreateGrant) {
				c.Name, c.Retiring, c.Expires, c.Constraints.Subset = "n", user, start+9, pairs("a")
				c.Operations = append(c.Operations, GrantCreateGrant)
			}))
			w.as(user, func() {
				w.do(edited(createGrant(2, 1), func(c *CreateGrant) { c.Parent, c.Expires, c.Constraints.Subset = grantID(1), start+9, pairs("a") }))
			})
			w.do(putPolicy(1, "p"))
			w.do(putPolicy(1, ""))
			w.do(bind(1, "r"))
			before := snapshotOf(t, w.s)
			old := w.s
			w.edit(func(t *tx) { row.edit(w, t) })
			err := w.s.Check()
			if err == nil || !strings.Contains(err.Error(), row.text) || strings.Contains(err.Error(), "%!") {
				t.Errorf("fault was found as %v", err)
			}
			if err := old.Check(); err != nil || !bytes.Equal(snapshotOf(t, old), before) {
				t.Errorf("the state before changed: %v", err)
			}
		})
	}
}
