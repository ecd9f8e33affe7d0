package policy

import (
	"testing"
	"time"
)

// TestLasting: what lasts is permitted whatever the time, the tags and the aliases are.
func TestLasting(t *testing.T) {
	const all = "permit (principal, action, resource);\n"
	const overflows = `context.time.toTime().toMilliseconds() * 9223372036854775807 > 0`
	const later = `context.time < datetime("2026-05-04T13:00:00Z")`
	permit := func(conditions string) string { return "permit (principal, action, resource) " + conditions + ";\n" }
	forbid := func(conditions string) string {
		return all + "forbid (principal, action, resource is KMS::Key) " + conditions + ";\n"
	}
	when := func(condition string) string { return "when { " + condition + " }" }
	unless := func(condition string) string { return "unless { " + condition + " }" }
	const key = `resource is KMS::Key && `
	const bob, eve = `principal.name == "bob"`, `principal.name == "eve"`
	for _, c := range []struct {
		name, text string
		want       Effect
	}{
		{"default", DefaultText, Permitted},
		{"unconditional", all, Permitted},
		{"a name", permit(when(bob)), Permitted},
		{"another name", permit(when(eve)), Silent},
		{"resource's nature", permit(when(key + `resource.usage == "ENCRYPT_DECRYPT"`)), Permitted},
		{"time", permit(when(later)), Silent},
		{"unless, time", permit(unless(`context.time >= datetime("2026-05-04T13:00:00Z")`)), Silent},
		{"time or a name", permit(when(later + " || " + bob)), Permitted},
		{"time and a name", permit(when(later + " && " + bob)), Silent},
		{"tag", permit(when(key + `resource.hasTag("env")`)), Silent},
		{"not a tag", permit(when(key + `!resource.hasTag("x")`)), Silent},
		{"alias", permit(when(key + `resource.aliases.contains("alias/photos")`)), Silent},
		{"encryption context", permit(unless(`context.encryption_context.hasTag("x")`)), Permitted},
		{"another encryption context", permit(when(`context.encryption_context.hasTag("x")`)), Silent},
		{"service", permit(unless(`context has source_service && context.source_service == "obs"`)), Permitted},
		{"encryption context and time", permit(unless(`context.encryption_context.hasTag("x")`) + " " + when(later)), Silent},
		{"if a name", permit(when(`if ` + bob + ` then true else ` + later)), Permitted},
		{"if time", permit(when(`if ` + later + ` then ` + bob + ` else ` + eve)), Silent},
		{"if time, either way", permit(when(`if ` + later + ` then ` + bob + ` else ` + `principal.name != "eve"`)), Permitted},
		{"what overflows before a name", permit(when(overflows + " || " + bob)), Silent},
		{"compared", permit(when(`(` + later + `) == true`)), Silent},

		{"forbid, tag", forbid(when(`resource.hasTag("x")`)), Forbidden},
		{"forbid, tag's value", forbid(when(`resource.hasTag("x") && resource.getTag("x") == "1"`)), Forbidden},
		{"forbid, time", forbid(when(`context.time > datetime("2027-01-01")`)), Forbidden},
		{"forbid, alias", forbid(when(`resource.aliases.contains("alias/x")`)), Forbidden},
		{"forbid, not an alias", forbid(unless(`resource.aliases.contains("alias/photos")`)), Forbidden},
		{"forbid others", forbid(when(`resource.hasTag("x") && ` + eve)), Permitted},
		{"forbid all but", forbid(when(`resource.hasTag("x")`) + " " + unless(bob)), Permitted},
		{"forbid other actions", forbid(when(`resource.hasTag("x")`) + " " + unless(`action == KMS::Action::"PutKeyPolicy"`)), Permitted},
		{"forbid, neither", forbid(when(`!(` + bob + ` || resource.hasTag("x"))`)), Permitted},
		{"forbid, what overflows before others", forbid(when(overflows) + " " + when(eve)), Forbidden},
		{"forbid in another scope", all + `forbid (principal is KMS::User, action, resource) when { context.time > datetime("2027-01-01") };`, Permitted},
	} {
		t.Run(c.name, func(t *testing.T) {
			named := Named{"p", set(t, c.text)}
			r := request("admin", "PutKeyPolicy")
			if got := Lasting(r, named); got.Effect != c.want {
				t.Fatalf("%s by %v, want %s", got.Effect, got.By, c.want)
			}
			if c.want != Permitted {
				return
			}
			for _, tags := range [][]Tag{nil, {{"env", "prod"}}, {{"x", "1"}}, {{"x", "2"}, {"env", ""}}} {
				for _, at := range []time.Time{noon, noon.AddDate(0, 0, 1), noon.AddDate(10, 0, 0)} {
					r.Key.Tags, r.Time, r.Key.Aliases = tags, at, []string{"alias/x"}[:len(tags)/2]
					if d := Decide(r, named); d.Effect != Permitted {
						t.Errorf("tags %v at %s: %s by %v", tags, at, d.Effect, d.By)
					}
				}
			}
		})
	}
	if d := Lasting(request("admin", "PutKeyPolicy"), Named{Name: "none"}); d.Effect != Silent {
		t.Errorf("no policy: %s", d.Effect)
	}
}
