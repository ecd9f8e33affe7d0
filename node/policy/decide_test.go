package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

func parseOne(text string) (*ast.Policy, error) {
	var p cedar.Policy
	if err := p.UnmarshalCedar([]byte(text)); err != nil {
		return nil, err
	}
	return (*ast.Policy)(p.AST()), nil
}

var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// request is of a principal of the class in the tenant acme, on its key or on itself.
func request(class, action string) Request {
	r := Request{
		Principal: Principal{URI: "spiffe://kms.example/tenant/acme/" + class + "/bob", Class: class, Tenant: "acme", Name: "bob"},
		Action:    action, Tenant: "acme", Time: noon,
	}
	if class == "service" || class == "operator" {
		r.Principal.Tenant = ""
	}
	if theModel().on[action]&OnKey != 0 {
		r.Key = &Key{
			ID: key1, Tenant: "acme", Spec: "AES_256", Usage: "ENCRYPT_DECRYPT", Manager: "CUSTOMER",
			Aliases: []string{"alias/photos", "alias/old"}, Tags: []Tag{{"env", "prod"}, {"team", "blue"}},
		}
	}
	return r
}

func set(t testing.TB, text string) *Set {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDecide(t *testing.T) {
	const everybody = "permit(principal, action, resource);"
	forbid := func(condition string) string {
		return "forbid(principal, action, resource is KMS::Key) when { " + condition + " };"
	}
	on := func(change func(r *Request)) Request {
		r := request("user", "Decrypt")
		change(&r)
		return r
	}
	plain := request("user", "Decrypt")
	bucket := func(v string) Request { return on(func(r *Request) { r.Context = []Tag{{"bucket", v}} }) }
	at := func(hour int) Request {
		return on(func(r *Request) { r.Time = time.Date(2026, 5, 4, hour, 30, 0, 0, time.UTC) })
	}
	const inBucket = `context.encryption_context.hasTag("bucket") && context.encryption_context.getTag("bucket") == "b1"`
	const office = `context.time.toTime() >= duration("8h") && context.time.toTime() < duration("17h")`
	const overflows = `context.time.toTime().toMilliseconds() * 9223372036854775807 > 0`
	for _, c := range []struct {
		name    string
		request Request
		texts   []string // of the policies p1, p2 …
		want    Effect
		by      string // the statements
		failed  int
	}{
		{"nothing said", plain, nil, Silent, "", 0},
		{"nothing applies", plain, []string{`permit(principal is KMS::Admin, action, resource);`}, Silent, "", 0},
		{"permit", plain, []string{everybody}, Permitted, "p1, statement 1 (line 1)", 0},
		{
			"all that permit", plain,
			[]string{everybody + "\n@id(\"two\")" + everybody, everybody},
			Permitted,
			"p1, statement 1 (line 1); p1, two (line 2); p2, statement 1 (line 1)", 0,
		},
		{"forbid beats permit", plain, []string{everybody + "\nforbid(principal, action, resource);"}, Forbidden, "p1, statement 2 (line 2)", 0},
		{"forbid beats permit in another", plain, []string{"\n\n@id(\"no\") forbid(principal, action, resource);", everybody}, Forbidden, "p1, no (line 3)", 0},
		{"forbid after permit", plain, []string{everybody, everybody + "forbid(principal, action, resource);"}, Forbidden, "p2, statement 2 (line 1)", 0},
		{"forbid alone", plain, []string{"forbid(principal, action, resource);"}, Forbidden, "p1, statement 1 (line 1)", 0},

		{"principal", plain, []string{`permit(principal == KMS::User::"spiffe://kms.example/tenant/acme/user/bob", action, resource);`}, Permitted, "p1, statement 1 (line 1)", 0},
		{"same URI, another class", plain, []string{`permit(principal == KMS::Admin::"spiffe://kms.example/tenant/acme/user/bob", action, resource);`}, Silent, "", 0},
		{"principal's tenant", plain, []string{`permit(principal in KMS::Tenant::"acme", action, resource);`}, Permitted, "p1, statement 1 (line 1)", 0},
		{"another tenant", plain, []string{`permit(principal in KMS::Tenant::"other", action, resource);`}, Silent, "", 0},
		{"name", plain, []string{when(`principal.name == "bob"`)}, Permitted, "p1, statement 1 (line 1)", 0},
		{"group", plain, []string{`permit(principal, action in KMS::Action::"use", resource);`}, Permitted, "p1, statement 1 (line 1)", 0},
		{"another group", plain, []string{`permit(principal, action in [KMS::Action::"read", KMS::Action::"administer"], resource);`}, Silent, "", 0},
		{"key", plain, []string{`permit(principal, action, resource == KMS::Key::"` + key1 + `");`}, Permitted, "p1, statement 1 (line 1)", 0},
		{"key's tenant", plain, []string{`permit(principal, action, resource in KMS::Tenant::"acme");`}, Permitted, "p1, statement 1 (line 1)", 0},
		{"tenant", request("admin", "CreateKey"), []string{`permit(principal, action, resource in KMS::Tenant::"acme");`}, Permitted, "p1, statement 1 (line 1)", 0},
		{"spec", plain, []string{when(`resource.spec == "AES_256" && resource.usage == "ENCRYPT_DECRYPT" && resource.manager == "CUSTOMER"`)}, Permitted, "p1, statement 1 (line 1)", 0},
		{"tag", plain, []string{when(`resource.hasTag("env") && resource.getTag("env") == "prod"`)}, Permitted, "p1, statement 1 (line 1)", 0},
		{"another tag", plain, []string{when(`resource.hasTag("env") && resource.getTag("env") == "test"`)}, Silent, "", 0},
		{"no tags", on(func(r *Request) { r.Key.Tags = nil }), []string{when(`resource.hasTag("env") && resource.getTag("env") == "prod"`)}, Silent, "", 0},
		{"alias", plain, []string{when(`resource.aliases.contains("alias/photos")`)}, Permitted, "p1, statement 1 (line 1)", 0},
		{"no alias", on(func(r *Request) { r.Key.Aliases = nil }), []string{when(`resource.aliases.contains("alias/photos")`)}, Silent, "", 0},

		{"bucket", bucket("b1"), []string{when(inBucket)}, Permitted, "p1, statement 1 (line 1)", 0},
		{"another bucket", bucket("b2"), []string{when(inBucket)}, Silent, "", 0},
		{"no bucket", plain, []string{when(inBucket)}, Silent, "", 0},
		{"bucket in the second", bucket("b1"), []string{everybody, forbid(inBucket)}, Forbidden, "p2, statement 1 (line 1)", 0},
		{"in the office", at(16), []string{when(office)}, Permitted, "p1, statement 1 (line 1)", 0},
		{"at home", at(17), []string{when(office)}, Silent, "", 0},
		{"too late", at(16), []string{when(`context.time < datetime("2026-05-04T16:30:00Z")`)}, Silent, "", 0},
		{"by the service", on(func(r *Request) { r.SourceService = "obs" }), []string{when(`context has source_service && context.source_service == "obs"`)}, Permitted, "p1, statement 1 (line 1)", 0},
		{"by itself", plain, []string{when(`context has source_service && context.source_service == "obs"`)}, Silent, "", 0},
		{"only by itself", on(func(r *Request) { r.SourceService = "obs" }), []string{everybody + forbid(`context has source_service`)}, Forbidden, "p1, statement 2 (line 1)", 0},

		{"permit that fails", plain, []string{when(overflows)}, Silent, "", 1},
		{"permit that fails beside another", plain, []string{when(overflows) + everybody}, Permitted, "p1, statement 2 (line 3)", 1},
		{"forbid that fails", plain, []string{everybody, forbid(overflows)}, Forbidden, "p2, statement 1 (line 1)", 1},
		{"forbid that fails, in the same policy", plain, []string{everybody + "\n" + forbid(overflows)}, Forbidden, "p1, statement 2 (line 2)", 1},
		{"forbid of others does not fail", plain, []string{everybody + `forbid(principal is KMS::Admin, action, resource) when { ` + overflows + ` };`}, Permitted, "p1, statement 1 (line 1)", 0},

		{"unknown class", on(func(r *Request) { r.Principal.Class = "node" }), []string{everybody}, Forbidden, "", 1},
		{"unknown action", on(func(r *Request) { r.Action = "Fly" }), []string{everybody}, Forbidden, "", 1},
		{"a group is no action", on(func(r *Request) { r.Action = "use" }), []string{everybody}, Forbidden, "", 1},
		{"no key", on(func(r *Request) { r.Key = nil }), []string{everybody}, Forbidden, "", 1},
		{"key for the tenant's action", on(func(r *Request) { r.Action = "CreateKey" }), []string{everybody}, Forbidden, "", 1},
		{"user without tenant", on(func(r *Request) { r.Principal.Tenant = "" }), []string{everybody}, Forbidden, "", 1},
		{"service with tenant", on(func(r *Request) { r.Principal.Class = "service" }), []string{everybody}, Forbidden, "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			sets := []Named{{Name: "none"}} // a policy that is not there
			for i, text := range c.texts {
				sets = append(sets, Named{Name: fmt.Sprintf("p%d", i+1), Set: set(t, text)})
			}
			d := Decide(c.request, sets...)
			var by []string
			for _, s := range d.By {
				by = append(by, s.String())
			}
			if got := strings.Join(by, "; "); d.Effect != c.want || got != c.by || len(d.Failed) != c.failed {
				t.Errorf("%s by %q, failed %v; want %s by %q", d.Effect, got, d.Failed, c.want, c.by)
			}
		})
	}
}

// TestDefault: who may what where no policy was put, for every class and action, in the
// own tenant and in another.
func TestDefault(t *testing.T) {
	may := map[string][]Group{
		"admin":           {Administer, Read},
		"user":            {Use, Read},
		"auditor":         {Read},
		"service":         nil,
		"operator":        nil,
		"cluster auditor": {Read},
	}
	s := set(t, DefaultText)
	for class, groups := range may {
		for _, a := range Actions() {
			for _, tenant := range []string{"acme", "other"} {
				r := request(class, a.Name)
				if class == "cluster auditor" {
					r.Principal.Class, r.Principal.Tenant = "auditor", ""
				}
				r.Tenant = tenant
				if r.Key != nil {
					r.Key.Tenant = tenant
				}
				want := Silent
				allowed := slices.Contains(groups, a.Group) || class == "admin" && a.Name == "BindResource"
				if allowed && (tenant == "acme" || class == "cluster auditor") {
					want = Permitted
				}
				targets := []Request{r}
				if a.On == OnBoth {
					r.Key = nil
					targets = append(targets, r)
				}
				for _, r := range targets {
					if d := Decide(r, Named{"default", s}); d.Effect != want || len(d.Failed) > 0 {
						t.Errorf("%s, %s, tenant %s: %+v, want %s", class, a.Name, tenant, d, want)
					}
				}
			}
		}
	}
}

// TestNeutral: what has no context in it is decided without regard to it.
func TestNeutral(t *testing.T) {
	s := set(t, DefaultText)
	r := request("user", "Decrypt")
	want := Decide(r, Named{"default", s})
	r.Context, r.SourceService, r.Time = []Tag{{"a", "b"}}, "obs", time.Time{}
	if got := Decide(r, Named{"default", s}); got.Effect != want.Effect || !slices.Equal(got.By, want.By) {
		t.Errorf("%+v, %+v", got, want)
	}
}

func statements(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `permit(principal == KMS::User::"spiffe://kms.example/tenant/acme/user/u%d", action in KMS::Action::"use", resource)
when { context.encryption_context.hasTag("bucket") && context.encryption_context.getTag("bucket") == "b%d" };
`, i, i)
	}
	return b.String()
}

func BenchmarkDecide(b *testing.B) {
	bench := func(name, text string, r Request) {
		b.Run(name, func(b *testing.B) {
			s := set(b, text)
			b.ReportAllocs()
			for b.Loop() {
				Decide(r, Named{"tenant policy", s})
			}
		})
	}
	r := request("user", "Decrypt")
	r.Context = []Tag{{"bucket", "b0"}, {"object", "o"}}
	r.Principal.URI = "spiffe://kms.example/tenant/acme/user/u0"
	bench("default", DefaultText, r)
	for _, n := range []int{1, 10, 100} {
		bench(fmt.Sprintf("statements=%d", n), statements(n), r)
	}
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("statements=%d", n), func(b *testing.B) {
			text := statements(n)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
