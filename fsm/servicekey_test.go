package fsm

import (
	"reflect"
	"strings"
	"testing"
)

func serviceKey(n uint64) *CreateServiceKey {
	return &CreateServiceKey{ID: keyID(n), Tenant: DefaultTenant, Service: "obs", Generation: 1, Token: []byte("token 1")}
}

// served is a world with key 1 of a customer and key 2 of service obs.
func served(t failer) *world {
	w := oneKey(t)
	w.do(serviceKey(2))
	return w
}

func TestServiceKey(t *testing.T) {
	w := oneKey(t)
	if _, ok := w.s.ServiceKey(DefaultTenant, "obs"); ok {
		t.Error("a service has a key before one was made")
	}
	if got := w.do(serviceKey(2)); got != (Result{Index: 3, ID: keyID(2).String(), Version: 1}) {
		t.Errorf("result %+v", got)
	}
	want := &Key{
		ID: keyID(2), Tenant: DefaultTenant, Description: "default key of service obs", State: "ENABLED", Usage: "ENCRYPT_DECRYPT", Spec: "SYMMETRIC",
		Origin: "KMS", Manager: "SERVICE", Service: "obs", Created: start, Revision: 3,
		Versions: []KeyVersion{{Version: 1, Generation: 1, Created: start, Cause: "CREATED", Token: []byte("token 1")}},
	}
	if got, ok := w.s.ServiceKey(DefaultTenant, "obs"); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("key is %+v, want %+v", got, want)
	}
	wantAlias(t, w, Alias{Tenant: DefaultTenant, Name: "alias/service/obs", Key: keyID(2), Created: start, Updated: start, Revision: 3})
	w.refuse(serviceKey(3), ErrExists, keyID(2).String()+" of service obs")
	w.do(&SetTenantQuota{DefaultTenant, 2})
	w.refuse(serviceKey(3), ErrExists, keyID(2).String()+" of service obs") // whoever was slower takes that one
	w.refuse(edited(serviceKey(3), func(c *CreateServiceKey) { c.Service = "ebs" }), ErrLimit, "its quota is 2")
	w.do(&SetTenantQuota{DefaultTenant, 0})
	w.do(edited(serviceKey(3), func(c *CreateServiceKey) { c.Service = "ebs" }))
	w.do(createTenant("acme"))
	w.do(edited(serviceKey(4), func(c *CreateServiceKey) { c.Tenant = "acme" }))
	for tenant, n := range map[string]uint64{DefaultTenant: 2, "acme": 4} {
		if k, ok := w.s.ServiceKey(tenant, "obs"); !ok || k.ID != keyID(n) {
			t.Errorf("the key of %s is %+v", tenant, k)
		}
	}
}

func TestServiceKeyRefused(t *testing.T) {
	key := func(f func(*CreateServiceKey)) *CreateServiceKey { return edited(serviceKey(2), f) }
	testAccepted(t, oneKey, []accepted{{"the longest name", key(func(c *CreateServiceKey) { c.Service = strings.Repeat("s", 64) })}})
	testRefusals(t, oneKey, []refusal{
		{"no id", key(func(c *CreateServiceKey) { c.ID = ID{} }), ErrInvalid, "key id is missing"},
		{"id taken", serviceKey(1), ErrExists, keyID(1).String()},
		{"no service", key(func(c *CreateServiceKey) { c.Service = "" }), ErrInvalid, `service ""`},
		{"a long name", key(func(c *CreateServiceKey) { c.Service = strings.Repeat("s", 65) }), ErrInvalid, "is no service's name"},
		{"a name that no alias has", key(func(c *CreateServiceKey) { c.Service = "a.b" }), ErrInvalid, `alias "alias/service/a.b"`},
		{"no tenant", key(func(c *CreateServiceKey) { c.Tenant = "acme" }), ErrNotFound, `tenant "acme"`},
		{"no token", key(func(c *CreateServiceKey) { c.Token = nil }), ErrInvalid, "token of 0 bytes"},
		{"other generation", key(func(c *CreateServiceKey) { c.Generation = 2 }), ErrConflict, "generation 1 is active, not 2"},
	})
}

// TestServiceKeyIsNotTheTenants: a tenant may rotate it, and enable what a restore has
// disabled, and nothing else.
func TestServiceKeyIsNotTheTenants(t *testing.T) {
	may := map[string]bool{"RotateKey": true, "RotateKeyOnSchedule": true, "EnableKeyRotation": true, "DisableKeyRotation": true, "EnableKey": true, "BindResource": true}
	for name := range keyChanges(ref(2)) {
		t.Run(name, func(t *testing.T) {
			w := served(t)
			w.do(createKey(3))
			w.do(&CreateAlias{alias("alias/other", 3)})
			w.do(rotateKey(2, 2))
			w.do(rotateKey(2, 3))
			w.do(&EnableKeyRotation{ref(2), 90 * day})
			c := keyChanges(ref(2))[name]
			switch {
			case may[name]:
				w.do(c)
			case name == "CancelKeyDeletion" || name == "DeleteKey":
				w.refuse(c, ErrNotPendingDeletion, keyID(2).String())
			case name == "DestroyKeyVersions":
				w.refuse(c, ErrConflict, "no version of key")
			default:
				w.refuse(c, ErrServiceManaged, keyID(2).String()+" belongs to service obs")
			}
		})
	}
	w := served(t)
	w.refuse(putPolicy(2, "x"), ErrServiceManaged, keyID(2).String()+" belongs to service obs")
	w.refuse(deleteAlias("alias/service/obs"), ErrInvalid, "is reserved")
	w.refuse(&UpdateAlias{alias("alias/service/obs", 1)}, ErrInvalid, "is reserved")
	w.do(edited(restoreCluster(1), func(c *RestoreCluster) { c.DisableKeys = true }))
	if got := w.key(2).State; got != KeyDisabled {
		t.Errorf("restored, the service's key is %s", got)
	}
	w.do(&EnableKey{ref(2)})
}
