package transport

import (
	"crypto/x509"
	"errors"
	"net/url"
	"strings"
	"testing"
)

func TestParseIdentity(t *testing.T) {
	long := strings.Repeat("n", maxName)
	for uri, want := range map[string]Identity{
		"spiffe://kms.test/node/n1-0a.b_c":             {TrustDomain: "kms.test", Class: ClassNode, Name: "n1-0a.b_c"},
		"spiffe://kms.test/operator/ops":               {TrustDomain: "kms.test", Class: ClassOperator, Name: "ops"},
		"spiffe://kms.test/tenant/acme/admin/eve":      {TrustDomain: "kms.test", Tenant: "acme", Class: ClassAdmin, Name: "eve"},
		"spiffe://kms.test/tenant/acme/user/0":         {TrustDomain: "kms.test", Tenant: "acme", Class: ClassUser, Name: "0"},
		"spiffe://kms.test/tenant/a/auditor/x":         {TrustDomain: "kms.test", Tenant: "a", Class: ClassAuditor, Name: "x"},
		"spiffe://kms.test/auditor/x":                  {TrustDomain: "kms.test", Class: ClassAuditor, Name: "x"},
		"spiffe://kms.test/service/block":              {TrustDomain: "kms.test", Class: ClassService, Name: "block"},
		"spiffe://kms.test/tenant/tenant/user/" + long: {TrustDomain: "kms.test", Tenant: "tenant", Class: ClassUser, Name: long},
	} {
		got, err := ParseIdentity(uri)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", uri, got, err, want)
		}
		if got.String() != uri {
			t.Errorf("%s: prints as %s", uri, got)
		}
	}
}

func TestParseIdentityRefuses(t *testing.T) {
	for _, uri := range []string{
		"", "kms.test/node/n1", "https://kms.test/node/n1", "SPIFFE://kms.test/node/n1",
		"spiffe://", "spiffe:///node/n1", "spiffe://kms.test", "spiffe://kms.test/", "spiffe://KMS.test/node/n1",
		"spiffe://kms.test:443/node/n1", "spiffe://u@kms.test/node/n1", "spiffe://kms.test/node/n1?x", "spiffe://kms.test/node/n1#x",
		"spiffe://kms.test/node", "spiffe://kms.test/node/", "spiffe://kms.test/node//n1", "spiffe://kms.test/node/n1/", "spiffe://kms.test/node/n1/x",
		"spiffe://kms.test/node/N1", "spiffe://kms.test/node/-n", "spiffe://kms.test/node/.n", "spiffe://kms.test/node/_n",
		"spiffe://kms.test/node/n%31", "spiffe://kms.test/node/n 1", "spiffe://kms.test/node/né", "spiffe://kms.test/node/n\x00",
		"spiffe://kms.test/node/..", "spiffe://kms.test/./node/n1",
		"spiffe://kms.test/Node/n1", "spiffe://kms.test/nodes/n1", "spiffe://kms.test/admin/a", "spiffe://kms.test/user/u", "spiffe://kms.test/tenant/t1",
		"spiffe://kms.test/tenant/t1/admin", "spiffe://kms.test/tenant/t1/node/n1", "spiffe://kms.test/tenant/t1/operator/o",
		"spiffe://kms.test/tenant/t1/service/s", "spiffe://kms.test/tenant/T1/user/u", "spiffe://kms.test/tenant/t1/user/u/x", "spiffe://kms.test/tenants/t1/user/u",
		"spiffe://kms.test/node/" + strings.Repeat("n", maxName+1),
		"spiffe://kms.test/tenant/" + strings.Repeat("t", maxName+1) + "/user/u",
		"spiffe://" + strings.Repeat("d", maxTrustDomain+1) + "/node/n1",
		"spiffe://kms.test/node/" + strings.Repeat("n", maxURI),
	} {
		if got, err := ParseIdentity(uri); !errors.Is(err, ErrIdentity) || got != (Identity{}) {
			t.Errorf("%q: got %+v, %v; want ErrIdentity", uri, got, err)
		}
	}
	_, err := ParseIdentity("spiffe://kms.test/admin/a")
	if err == nil || !strings.Contains(err.Error(), "/tenant/<t>/admin|user|auditor/<name>") {
		t.Errorf("the refusal does not say what would be right: %v", err)
	}
}

func TestIdentityOf(t *testing.T) {
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	node := uri("spiffe://kms.test/node/n1")
	for name, tc := range map[string]struct {
		uris []*url.URL
		ok   bool
	}{
		"one":                      {[]*url.URL{node}, true},
		"none":                     {nil, false},
		"two":                      {[]*url.URL{node, uri("spiffe://kms.test/node/n2")}, false},
		"the same twice":           {[]*url.URL{node, node}, false},
		"one and a foreign scheme": {[]*url.URL{node, uri("https://kms.test/")}, false},
		"only a foreign scheme":    {[]*url.URL{uri("https://kms.test/node/n1")}, false},
		"an escaped name":          {[]*url.URL{uri("spiffe://kms.test/node/n%31")}, false},
		"a query":                  {[]*url.URL{uri("spiffe://kms.test/node/n1?")}, false},
	} {
		got, err := IdentityOf(&x509.Certificate{URIs: tc.uris})
		if tc.ok && (err != nil || got.Name != "n1") || !tc.ok && !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	for _, s := range []string{
		"spiffe://kms.test/node/n1", "spiffe://kms.test/tenant/acme/admin/eve", "spiffe://kms.test/auditor/x",
		"spiffe://kms.test/tenant//user/u", "spiffe://kms.test/tenant/t1/node/n1", "spiffe://kms.test/node/..", "spiffe:/", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := ParseIdentity(uri)
		if err != nil {
			if !errors.Is(err, ErrIdentity) || id != (Identity{}) {
				t.Fatalf("%q: %+v, %v", uri, id, err)
			}
			return
		}
		if id.String() != uri {
			t.Fatalf("%q prints as %q", uri, id)
		}
		inTenant := id.Class == ClassAdmin || id.Class == ClassUser
		if id.Tenant == "" && inTenant || id.Tenant != "" && !inTenant && id.Class != ClassAuditor {
			t.Fatalf("%q: class %s with tenant %q", uri, id.Class, id.Tenant)
		}
	})
}
