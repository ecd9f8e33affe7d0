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
		{"wrapped key token of 0 bytes", key(func(k *Key) { k.Versions = []KeyVersion{{Version: 1}} })},
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
	} {
		t.Run(row.text, func(t *testing.T) {
			w := twoKeys(t)
			w.ask("r1", "", &CreateAlias{alias("alias/a", 1)})
			w.do(ticketFor("n2"))
			w.do(admit("n2"))
			w.join("n3", false, MemberActive)
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
