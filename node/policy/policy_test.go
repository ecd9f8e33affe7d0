package policy

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

const key1 = "11111111-2222-3333-4444-555555555555"

// when is a permit of everybody for decryption with a key under a condition, which
// begins at column 1 of line 2.
func when(condition string) string {
	return "permit(principal, action == KMS::Action::\"Decrypt\", resource is KMS::Key) when {\n" + condition + "\n};"
}

// TestRefused: each problem stands where it is.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{"1:1: the text has no statement: a policy without one permits nothing, remove it instead"}},
		{"comments only", "// nothing\n/* more\n */ \n", []string{"1:1: the text has no statement: a policy without one permits nothing, remove it instead"}},
		{"too long", strings.Repeat(" ", MaxText+1), []string{"1:1: the text has 32769 bytes, at most 32768"}},
		{"no UTF-8", "permit(principal,\nä\xff", []string{"2:2: not valid UTF-8"}},
		{"NUL", "// a\x00", []string{"1:5: a NUL character"}},
		{"too many", strings.Repeat("permit(principal,action,resource);\n", MaxStatements+1), []string{"101:34: more than 100 statements"}},
		{"template", "permit(principal == ?principal, action, resource);", []string{"1:21: templates are not taken: name the principal or resource instead of ?principal"}},
		{"template in resource", "permit(principal, action, resource in ?resource);", []string{"1:39: templates are not taken: name the principal or resource instead of ?resource"}},

		// Words.
		{"open comment", "permit(principal, action, resource);\n  /* more", []string{"2:3: the comment does not end"}},
		{"open string", "permit(principal, action, resource) when { \"a };\n", []string{"1:44: the string does not end on its line"}},
		{"open string at the end", "permit(principal, action, resource) when { \"a", []string{"1:44: the string does not end"}},
		{"escape", when(`resource.spec == "\q"`), []string{`2:18: the string has an unknown escape: "\\q"`}},
		{"star outside like", when(`resource.spec == "\*"`), []string{`2:18: the string has an unknown escape: "\\*"`}},
		{"surrogate", when(`resource.spec == "\u{d800}"`), []string{`2:18: the string has an unknown escape: "\\u"`}},
		{"number", when(`1 < 9223372036854775809`), []string{"2:5: the number is larger than 9223372036854775807"}},
		{"equals", when(`resource.spec = "a"`), []string{"2:15: unexpected '=': equality is =="}},
		{"stranger", when(`resource.spec == ´a´`), []string{"2:18: unexpected '´'"}},

		// Syntax: also several.
		{"comma", "permit(principal action, resource);", []string{`1:18: expected ",", found "action"`}},
		{"two", "permit(principal action, resource);\n permit(principal, action resource);\npermit(principal,action,resource);", []string{
			`1:18: expected ",", found "action"`, `2:27: expected ",", found "resource"`,
		}},
		{"effect", "allow(principal, action, resource);", []string{`1:1: expected permit or forbid, found "allow"`}},
		{"semicolons", "permit(principal, action, resource);;", []string{`1:37: expected permit or forbid, found ";"`}},
		{"no semicolon", "permit(principal, action, resource) // yes", []string{`1:43: expected ";", found the end of the text`}},
		{"open bracket", "permit(principal, action, resource", []string{`1:35: expected ")", found the end of the text`}},
		{"nothing named", "permit(principal ==, action, resource);", []string{`1:20: expected a name, found ","`}},
		{"keyword", "permit(principal == is, action, resource);", []string{`1:21: expected a name, found "is"`}},
		{"unknown name", when("resourse.spec == \"a\""), []string{"2:1: unknown name resourse: did you mean resource?"}},
		{"ends in expression", "permit(principal, action, resource) when {", []string{"1:43: unexpected the end of the text"}},
		{"list", "permit(principal, action in [KMS::Action::\"Sign\" KMS::Action::\"Verify\"], resource);", []string{
			`1:50: expected a comma or the end of the list, found "KMS"`,
		}},
		{"method", when(`resource.spec.startsWith("A")`), []string{"2:15: startsWith is not a method"}},
		{"arguments", when(`resource.aliases.contains("a", "b")`), []string{"2:18: contains expects one argument"}},
		{"function", when(`date("2027")`), []string{"2:1: date is not a function"}},
		{"double key", when(`{a: 1, a: 2} == {a: 1}`), []string{"2:8: duplicate key: a"}},
		{"double annotation", "@id(\"a\") @id(\"b\") permit(principal, action, resource);", []string{`1:11: duplicate annotation: @id`}},
		{"number where none may be", when(`- 9223372036854775808 < 9223372036854775808`), []string{"2:25: the number is larger than 9223372036854775807"}},

		// What is named in a scope.
		{"type", `permit(principal == KMS::Usr::"spiffe://a/b", action, resource);`, []string{"1:21: unknown type KMS::Usr: did you mean KMS::User?"}},
		{"namespace", `permit(principal is User, action, resource);`, []string{"1:21: unknown type User: did you mean KMS::User?"}},
		{"far type", `permit(principal is KMS::Elephant, action, resource);`, []string{
			"1:21: unknown type KMS::Elephant: there are KMS::User, KMS::Admin, KMS::Auditor, KMS::Service, KMS::Operator, KMS::Key, KMS::Tenant, KMS::Action",
		}},
		{"action", "permit(principal,\n\taction == KMS::Action::\"decrypt\", resource);", []string{`2:12: unknown action "decrypt": did you mean Decrypt?`}},
		{"slip", `permit(principal, action == KMS::Action::"GenerteDataKey", resource);`, []string{`1:29: unknown action "GenerteDataKey": did you mean GenerateDataKey?`}},
		{"far action", `permit(principal, action == KMS::Action::"Fly", resource);`, []string{`1:29: unknown action "Fly"`}},
		{"group", `permit(principal, action in KMS::Action::"admin", resource);`, []string{`1:29: unknown action "admin": did you mean administer?`}},
		{"actions", `permit(principal, action in [KMS::Action::"use", Action::"read", KMS::Action::"reed"], resource);`, []string{
			"1:50: unknown type Action: did you mean KMS::Action?", `1:66: unknown action "reed": did you mean read?`,
		}},
		{"no actions", `permit(principal, action in [], resource);`, []string{"1:29: the list of actions is empty"}},
		{"everything wrong", `permit(principal is KMS::Key, action == KMS::User::"a", resource in KMS::Admin::"b");`, []string{
			"1:21: KMS::Key is no principal", "1:41: KMS::User is no action", "1:69: KMS::Admin is no resource",
		}},
		{"user id", `permit(principal == KMS::User::"alice", action, resource);`, []string{"1:21: the id of a User is its SPIFFE URI, spiffe://…"}},
		{"key id", `permit(principal, action, resource == KMS::Key::"alias/a");`, []string{"1:39: the id of a Key is its UUID in lower case"}},
		{"tenant id", `permit(principal is KMS::User in KMS::Tenant::"", action, resource);`, []string{"1:34: the id of a Tenant is its name"}},
		{"in no tenant", `permit(principal is KMS::User in KMS::User::"spiffe://a", action, resource);`, []string{"1:34: KMS::User is no tenant"}},
		{"resource of another action", `permit(principal, action == KMS::Action::"CreateKey", resource is KMS::Key);`, []string{
			"1:67: none of the actions is one on this resource: CreateKey is on a KMS::Tenant",
		}},
		{"resource of other actions", `permit(principal, action in [KMS::Action::"Sign", KMS::Action::"Verify"], resource == KMS::Tenant::"t");`, []string{
			"1:87: none of the actions is one on this resource: Sign is on a KMS::Key",
		}},

		// Attributes and types.
		{"attribute", when(`resource.speck == "a"`), []string{`2:10: KMS::Key has no attribute "speck": did you mean spec?`}},
		{"attribute in brackets", when(`resource["speck"] == "a"`), []string{`2:10: KMS::Key has no attribute "speck": did you mean spec?`}},
		{"attribute of context", when(`context.tine == context.time`), []string{`2:9: context has no attribute "tine": did you mean time?`}},
		{"attribute behind has", when(`!(context has sourceservice)`), []string{`2:15: no context has an attribute "sourceservice": did you mean source_service?`}},
		{"attribute of others behind has", when(`principal has spec`), []string{`2:15: no principal has an attribute "spec": there are name, tenant`}},
		{"chain behind has", when(`context has encryption_context.bucket`), []string{`2:32: nothing has an attribute "bucket"`}},
		{"tags of principals", when(`principal.hasTag("a")`), []string{"2:11: no principal has tags: keys have, and context.encryption_context"}},
		{"of another type", `permit(principal, action, resource) when { resource.spec == "a" };`, []string{
			`1:53: KMS::Tenant has no attribute "spec": ask for another type first, with is`,
		}},
		{"optional", `permit(principal is KMS::Auditor, action, resource) when { principal.tenant == "a" };`, []string{
			"1:70: KMS::Auditor may have no tenant: ask first, … has tenant && …",
		}},
		{"optional context", when(`context.source_service == "obs"`), []string{"2:9: context may have no source_service: ask first, context has source_service && …"}},
		{"asked in vain", when(`context has source_service || context.source_service == "obs"`), []string{
			"2:39: context may have no source_service: ask first, context has source_service && …",
		}},
		{"tag", when(`resource.getTag("a") == "b"`), []string{`2:10: there may be no tag "a": ask first, ….hasTag("a") && …`}},
		{"another tag", when(`resource.hasTag("b") && resource.getTag("a") == "b"`), []string{`2:34: there may be no tag "a": ask first, ….hasTag("a") && …`}},
		{"encryption context", when(`context.encryption_context.getTag("a") == "b"`), []string{`2:28: there may be no tag "a": ask first, ….hasTag("a") && …`}},
		{"encryption context as record", when(`context.encryption_context.bucket == "b"`), []string{`2:28: KMS::EncryptionContext has no attribute "bucket"`}},
		{"encryption context by name", when(`KMS::EncryptionContext::"".hasTag("b")`), []string{
			"2:1: KMS::EncryptionContext is reached by context.encryption_context only",
			"2:28: what KMS::EncryptionContext has is not known to a request: ask principal, resource or context",
		}},
		{"another entity", when(`KMS::Key::"` + key1 + `".spec == "a"`), []string{"2:50: what KMS::Key has is not known to a request: ask principal, resource or context"}},
		{"type of comparison", when(`resource.spec == 5`), []string{"2:1: the types Long and String are not compatible"}},
		{"behind guards", when("resource.hasTag(\"a\") &&\n  (principal has tenant || resource.spec == \"x\") && (resource.getTag(\"a\") < 3)"), []string{
			"3:54: expected Long, found String",
		}},
		{"no condition", when(`resource.spec`), []string{"2:10: expected Bool, found String"}},
		{"no condition inside", when(`true && !(resource.spec == "a" && resource.usage)`), []string{"2:44: expected Bool, found String"}},
		{"set", when(`resource.aliases.contains(5)`), []string{"2:18: the types Long and String are not compatible"}},
		{"no set", when(`resource.spec.contains("A")`), []string{"2:15: expected Set<Any>, found String"}},
		{"empty set", when(`resource.aliases == []`), []string{"2:21: empty set literals are forbidden in policies"}},
		{"several", when("resource.aliases.contains(5) ||\nresource.aliases < 3 ||\n1 + \"a\" == 2 || (if principal.name then true else -resource.spec == 1)"), []string{
			"2:18: the types Long and String are not compatible", "3:1: expected Long, found Set<String>",
			"4:1: expected Long, found String", "4:31: expected Bool, found String", "4:51: expected Long, found String",
		}},
		{"date", when(`context.time > datetime("tomorrow")`), []string{`2:16: error during extension function argument validation: failed to parse as a datetime value: "tomorrow"`}},
		{"action in a condition", when(`action == KMS::Action::"Decrypted"`), []string{`2:11: unknown action "Decrypted": did you mean Decrypt?`}},
		{"type in a condition", when(`principal is KMS::Users`), []string{"2:14: unknown type KMS::Users: did you mean KMS::User?"}},
		{"second condition", "permit(principal, action, resource) when { true } unless {\n resource < 3 };", []string{
			"2:2: expected Long, found KMS::Key", "2:2: expected Long, found KMS::Tenant",
		}},
		{"all statements", when(`resource.speck == "a"`) + "\n" + when(`resource.spec == 5`), []string{
			`2:10: KMS::Key has no attribute "speck": did you mean spec?`, "5:1: the types Long and String are not compatible",
		}},
		{"same id", "@id(\"a\") permit(principal, action, resource);\n @id(\"a\") forbid(principal, action, resource);", []string{`2:2: the id "a" is that of the statement in line 1`}},
		{"empty id", "@id permit(principal, action, resource);", []string{"1:1: @id is empty"}},

		// Limits.
		{"words", when(strings.Repeat("!", MaxWords) + "true"), []string{"2:1981: the statement has more than 2000 words"}},
		{"nesting", when(strings.Repeat("(", MaxNesting) + "true" + strings.Repeat(")", MaxNesting)), []string{"2:32: brackets are nested deeper than 32"}},
		{"depth", when(strings.Repeat("!", MaxDepth) + "true"), []string{"2:1: expressions are nested deeper than 200: name alternatives in a set, as in x in [a, b, c]"}},
		{"path", when("context has " + strings.Repeat("a.", MaxPath+1) + "a"), []string{"2:30: more than 8 attributes of attributes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, err := Parse(c.text)
			var e *Error
			if !errors.Is(err, ErrPolicy) || !errors.As(err, &e) || set != nil {
				t.Fatalf("%v, %v", set, err)
			}
			var got []string
			for _, p := range e.Problems {
				got = append(got, p.String())
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(c.want, "\n\t"))
			}
		})
	}
}

// TestManyProblems: an error does not outgrow a message.
func TestManyProblems(t *testing.T) {
	_, err := Parse(strings.Repeat("permit(principal, action == KMS::Action::\"Fly\", resource);\n", 50))
	if !strings.HasSuffix(err.Error(), `20:29: unknown action "Fly"; and 30 more`) {
		t.Fatal(err)
	}
}

// TestCostly: texts that are small and slow to check are refused, or checked in time.
func TestCostly(t *testing.T) {
	var balanced func(a, b int) string
	balanced = func(a, b int) string {
		if b-a == 1 {
			return fmt.Sprintf(`resource.hasTag("%d")`, a)
		}
		m := (a + b) / 2
		return "(" + balanced(a, m) + " && " + balanced(m, b) + ")"
	}
	if _, err := Parse("permit(principal, action, resource) when { " + balanced(0, 190) + " };"); err == nil || !strings.Contains(err.Error(), "takes too long") {
		t.Error(err)
	}
	if _, err := Parse(strings.Repeat(when(balanced(0, 20)), 20)); err != nil {
		t.Error(err)
	}
	// Where the search gives up, what is wrong is still refused.
	if _, err := Parse(strings.Repeat(when(balanced(0, 30)+` && ["x"`+strings.Repeat(", 5", 300)+`].contains(5)`), 6)); !errors.Is(err, ErrPolicy) {
		t.Error(err)
	}
}

// TestSample: judged for some actions a statement is what it is for all.
func TestSample(t *testing.T) {
	scopes := []string{"action", `action == KMS::Action::"CreateKey"`, `action in KMS::Action::"read"`, `action in [KMS::Action::"use", KMS::Action::"CreateAlias"]`}
	for _, condition := range []string{
		`true`, `resource.tenant == "a"`, `resource.spec == "a"`, `resource is KMS::Key && resource.spec == "a"`, `principal.tenant == "a"`,
		`action in KMS::Action::"use" && resource.spec == "a"`, `action == KMS::Action::"Sign" && resource.spec == "a"`,
		`if action in [KMS::Action::"CreateKey", KMS::Action::"read"] then true else resource.spec == "a"`,
		`action in [KMS::Action::"administer", KMS::Action::"Encrypt"] || resource.spec == "a"`, `action in resource`, `action == resource`,
	} {
		for _, scope := range scopes {
			text := "permit(principal, " + scope + ", resource) when { " + condition + " };"
			tokens, p := scan(text)
			if p != nil {
				t.Fatal(p)
			}
			policy := parsed(t, text)
			c := checker{policy: policy, tokens: tokens, work: &work{judge: maxWork, search: maxSearch}}
			c.check()
			if got, want := len(c.problems) > 0, theModel().validator.Policy("", policy) != nil; got != want {
				t.Errorf("%s: refused %v, by all actions %v", text, got, want)
			}
			if c.envs > 50 {
				t.Errorf("%s: %d pairs", text, c.envs)
			}
		}
	}
}

func TestUsesContext(t *testing.T) {
	for text, want := range map[string]bool{
		DefaultText: false,
		`permit(principal, action, resource) when { resource.tenant == "context" };`:                                           false,
		`permit(principal, action, resource is KMS::Key) when { resource.hasTag("context") };`:                                 false,
		`permit(principal, action, resource) when { context has source_service };`:                                             true,
		`permit(principal, action, resource) unless { true && !(false || [1, 2].contains(context.time.toTime().toHours())) };`: true,
		`permit(principal, action, resource) when { if true then {a: context.encryption_context.hasTag("x")}.a else false };`:  true,
		"permit(principal, action, resource);\n" + when(`context.time > datetime("2027-01-01")`):                               true,
	} {
		s, err := Parse(text)
		if err != nil {
			t.Error(err)
		} else if s.UsesContext() != want {
			t.Errorf("%s: %v", text, !want)
		}
	}
	if (*Set)(nil).UsesContext() {
		t.Error("no set uses context")
	}
}

func TestStatements(t *testing.T) {
	s, err := Parse("// a\n@id(\"first\")\n  permit(principal, action, resource);\n\n forbid(principal, action, resource)\nwhen { false };")
	if err != nil {
		t.Fatal(err)
	}
	want := []Statement{
		{ID: "first", Line: 2, Text: "@id(\"first\")\n  permit(principal, action, resource);"},
		{ID: "statement 2", Line: 5, Forbid: true, Text: "forbid(principal, action, resource)\nwhen { false };"},
	}
	if got := s.Statements(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := (Statement{Policy: "key policy", ID: "statement 2", Line: 5}).String(); got != "key policy, statement 2 (line 5)" {
		t.Error(got)
	}
}

// TestDoc: the documentation's examples are policies, and it names every action.
func TestDoc(t *testing.T) {
	b, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	doc := regexp.MustCompile(`(?m)^//[ \t]?`).ReplaceAllString(string(b), "")
	examples := regexp.MustCompile(`(?s)@id\("[a-z].*?\n?};\n`).FindAllString(doc, -1)
	user := func(name string, pairs ...Tag) Request {
		r := request("user", "Decrypt")
		r.Principal.URI, r.Context = "spiffe://kms.example/tenant/acme/user/"+name, pairs
		return r
	}
	service := func(name string) Request {
		r := request("service", "Decrypt")
		r.Principal.Name, r.SourceService, r.Context = name, name, []Tag{{"resource", "closed"}}
		return r
	}
	late := user("contractor")
	late.Time = noon.AddDate(1, 0, 0)
	asked := []struct {
		does, too, not Request // what the example is for, and what it says nothing of
		effect         Effect
	}{
		{user("viewer", Tag{"bucket", "photos"}), user("viewer", Tag{"bucket", "photos"}), user("viewer"), Permitted},
		{request("admin", "ScheduleKeyDeletion"), request("admin", "ScheduleKeyVersionDestruction"), request("admin", "DisableKey"), Forbidden},
		{user("contractor"), user("contractor", Tag{"bucket", "photos"}), late, Permitted},
		{service("vol"), service("other"), service("obs"), Forbidden},
	}
	if len(examples) != len(asked) {
		t.Fatalf("%d examples", len(examples))
	}
	for i, e := range examples {
		s := set(t, e)
		for _, r := range []Request{asked[i].does, asked[i].too} {
			if d := Decide(r, Named{"p", s}); d.Effect != asked[i].effect {
				t.Errorf("%s\nis %s for %+v", e, d.Effect, r)
			}
		}
		if d := Decide(asked[i].not, Named{"p", s}); d.Effect != Silent {
			t.Errorf("%s\nis %s for %+v", e, d.Effect, asked[i].not)
		}
	}
	for _, a := range Actions() {
		name := a.Name + map[On]string{OnKey: "", OnTenant: `\*`, OnBoth: `\+`}[a.On]
		if !regexp.MustCompile(`(?m)(^| )` + name + `( |$)`).MatchString(doc) {
			t.Errorf("doc.go does not name %s as it is in the table", a.Name)
		}
	}
}

// TestActions: names are there once, and none is a group's.
func TestActions(t *testing.T) {
	seen := map[string]bool{}
	for _, g := range groups {
		seen[string(g)] = true
	}
	for _, a := range Actions() {
		if seen[a.Name] || !slices.Contains(groups, a.Group) || len(a.resources()) == 0 {
			t.Errorf("%+v", a)
		}
		seen[a.Name] = true
	}
}

func FuzzParse(f *testing.F) {
	f.Add(DefaultText)
	f.Add(when(`context has encryption_context && context.encryption_context.hasTag("a") && -1 < 2 && resource.spec like "A\*"`))
	f.Add(when(`if principal is KMS::User in KMS::Tenant::"t" then resource.aliases.contains("\u{41}") else !(1 + 2 == 3)`))
	f.Add("permit(principal == ?principal, action, resource);")
	f.Add("@id(\"x\") forbid(principal, action in [KMS::Action::\"use\"], resource) unless { {a: 1}[\"a\"] == 2 };")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, ErrPolicy) || len(e.Problems) == 0 {
				t.Fatal(err)
			}
			lines := strings.Split(text, "\n")
			for _, p := range e.Problems {
				if p.Line < 1 || p.Line > len(lines) || p.Column < 1 || p.Column > utf8.RuneCountInString(lines[p.Line-1])+1 {
					t.Fatalf("%s is not in the text", p)
				}
				if strings.Contains(p.Text, "cannot be") {
					t.Fatal(p)
				}
			}
			return
		}
		if len(s.Statements()) == 0 {
			t.Fatal("no statement")
		}
		Decide(request("user", "Decrypt"), Named{Name: "p", Set: s})
	})
}

func parsed(t *testing.T, text string) *ast.Policy {
	t.Helper()
	p, err := parseOne(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
