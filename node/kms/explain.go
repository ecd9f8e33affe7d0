package kms

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/policy"
)

// maxExplained is how many grants an explanation lists.
const maxExplained = 20

// Explanation is how a call would be decided, and by what.
type Explanation struct {
	Allowed   bool
	DecidedBy string
	Reason    string // why not
	Steps     []string
}

// ExplainPolicy tells how a call of a principal would be decided, and by what.
func (s *Service) ExplainPolicy(ctx context.Context, c Call, key, principal, operation string, pairs []Pair) (Explanation, *fsm.State, error) {
	r := reading{name: "ExplainPolicy", call: c, needs: mayRead, target: operation + " by " + principal, context: pairs}
	if key != "" {
		r.key = &key
	}
	return read(ctx, s, r, func(st *fsm.State, tenant string, k *fsm.Key) (Explanation, error) {
		who, err := s.principal(principal)
		if err != nil {
			return Explanation{}, invalid("principal: %v", err)
		}
		who.itself = who.Class == ClassNode // it makes no other calls
		if _, err := contextHash(pairs); err != nil {
			return Explanation{}, err
		}
		action, err := policy.Find(operation)
		switch {
		case err != nil:
			return Explanation{}, invalid("%v", err)
		case k != nil && action.On&policy.OnKey == 0:
			return Explanation{}, invalid("%s is about the tenant: name no key", operation)
		case k == nil && action.On&policy.OnTenant == 0:
			return Explanation{}, invalid("%s is about a key: name one", operation)
		}
		return s.explain(st, asked(who, tenant, action, pairs), k), nil
	})
}

// asked is the question that a call asks.
func asked(who Caller, tenant string, a policy.Action, pairs []Pair) question {
	q := question{caller: who, tenant: tenant, needs: needed(who, a), operation: a.Name, context: pairs, algorithm: anyAlgorithm, explained: true}
	binds := a.Name == "BindResource" || a.Name == "ReleaseResource"
	switch {
	case a.Name == "ReleaseResource" && who.Class == ClassAdmin: // for whoever registered it
		q.needs, q.operation = mayAdminister, "ForceReleaseResource"
	case binds && who.Class == ClassService && !slices.ContainsFunc(pairs, func(p Pair) bool { return p.Key == fsm.ContextTenant }):
		q.context = append(slices.Clone(pairs), Pair{fsm.ContextTenant, tenant}) // the call says so by itself
	}
	return q
}

// needed is the permission that an action needs of a caller.
func needed(c Caller, a policy.Action) permission {
	switch {
	case a.Name == string(fsm.GrantCreateGrant) || a.Name == string(fsm.GrantRetireGrant):
		return mayDelegate
	case slices.Contains([]string{"FreezeTenant", "ThawTenant", "DisablePrincipal", "EnablePrincipal"}, a.Name):
		return mayGovern
	case a.Group == policy.Read && c.Class == ClassOperator && (a.Name == "DescribeTenant" || a.Name == "ListPrincipals"):
		return mayOperate
	case a.Group == policy.Read:
		return mayRead
	case a.Group == policy.Use && (c.Class != ClassAdmin || a.Name != "BindResource"):
		return mayUse
	}
	return mayAdminister
}

func (s *Service) explain(st *fsm.State, q question, k *fsm.Key) Explanation {
	rule, err := s.judge(st, q, k)
	x := Explanation{Allowed: err == nil, DecidedBy: rule}
	step := func(what string, err error) {
		if err != nil {
			what += ": " + err.Error()
		} else {
			what += ": nothing against it"
		}
		x.Steps = append(x.Steps, what)
	}
	step("principal", enabled(st, q.caller))
	step("role "+string(q.caller.Class), q.caller.may(q.needs))
	if t, ok := st.Tenant(q.tenant); ok {
		effect, by := s.policies.decide(st, t, k, q, s.now())
		x.Steps = append(x.Steps, fmt.Sprintf("policies: %s, %s", effect, by))
	}
	if k != nil {
		x.Steps = append(x.Steps, s.explainGrants(st, q, k)...)
	}
	if q.operation == string(fsm.GrantReEncryptFrom) {
		x.Steps = append(x.Steps, "ReEncryptFrom lets its holder move the plaintext under a key and context of its own: it amounts to Decrypt")
	}
	if q.operation == "ListRetirableGrants" {
		x.Steps = append(x.Steps, "everybody may list what it may retire itself; what others may, key administrators and auditors by policy")
	}
	if err == nil {
		if err = s.takes(st, q, k); err != nil {
			x.Allowed, x.DecidedBy = false, "state"
		}
		step("state of tenant, key, version and context", err)
	}
	if err != nil {
		x.Reason = err.Error()
	}
	return x
}

// judge is decide, and what calls decide before it or behind it.
func (s *Service) judge(st *fsm.State, q question, k *fsm.Key) (string, error) {
	switch {
	case q.caller.Class == ClassOperator && q.caller.Class.may(q.needs) == nil:
		return "role", enabled(st, q.caller)
	case q.operation == "GenerateRandom" && q.caller.Class.may(q.needs) == nil:
		return s.decideRandom(st, Call{Caller: q.caller, Tenant: q.tenant})
	case q.operation == "ListRetirableGrants" && q.caller.Class.may(q.needs) == nil:
		return "role", enabled(st, q.caller)
	}
	rule, err := s.decide(st, q, k)
	if err == nil || k == nil || q.operation != string(fsm.GrantRetireGrant) {
		return rule, err
	}
	for _, g := range st.GrantsOf(k.ID, fsm.ID{}, fsm.MaxGrants) {
		if q.ends = g.ID; retires(st, q, k, rule) {
			return "retiring principal", nil
		}
	}
	return rule, err
}

// explainGrants tells of each grant of the caller's for the key whether it allows what is
// asked, and why not.
func (s *Service) explainGrants(st *fsm.State, q question, k *fsm.Key) (steps []string) {
	context, at := tagsOf(q.context), s.wall(st)
	n := 0
	st.GrantsFor(q.caller.Principal, k.ID, func(g *fsm.Grant) bool {
		if n++; n > maxExplained {
			steps = append(steps, fmt.Sprintf("grants: there are more than these %d", maxExplained))
			return false
		}
		steps = append(steps, "grants: "+grantRule(g)+" "+q.against(g, context, at))
		return true
	})
	if n == 0 {
		return []string{"grants: it holds none of this key"}
	}
	return steps
}

// against tells whether a grant allows what is asked, and why not.
func (q question) against(g *fsm.Grant, context []fsm.Tag, at int64) string {
	op := fsm.GrantOperation(q.operation)
	switch {
	case q.within(g, context, at):
		return "allows it"
	case g.Expires != 0 && at >= g.Expires:
		return "has expired: " + time.Unix(g.Expires, 0).UTC().Format(time.RFC3339)
	case op != "BindResource" && op != "ReleaseResource" && !slices.Contains(g.Operations, op):
		return "does not: it is not for " + q.operation
	case len(g.Constraints.Equals) > 0:
		return "does not: it wants the encryption context " + pairsText(g.Constraints.Equals) + " and nothing else"
	case len(g.Constraints.Subset) > 0:
		return "does not: it wants an encryption context with " + pairsText(g.Constraints.Subset)
	}
	return "does not: it is for no use of the key"
}

func pairsText(tags []fsm.Tag) (text string) {
	for i, t := range tags {
		if i > 0 {
			text += ", "
		}
		text += t.Key + "=" + t.Value
	}
	return text
}

// takes is nil if the state of the tenant, the key and its versions lets a call be made
// that is permitted. What a call says besides, as the version that it names, is taken as
// what would be right.
func (s *Service) takes(st *fsm.State, q question, k *fsm.Key) error {
	switch {
	case k == nil && q.operation != "CreateKey":
		return nil
	case k != nil && q.needs == mayUse && q.operation != "BindResource" && q.operation != "ReleaseResource":
		return s.usable(st, q, k)
	}
	var err error
	for _, c := range s.commands(st, q, k) {
		if _, err = st.Try(c); err == nil {
			break
		}
	}
	return err
}

// usable asks as cryptographic calls do: whoever seals uses the current version, and
// whoever opens any that can be used.
func (s *Service) usable(st *fsm.State, q question, k *fsm.Key) error {
	t := target{service: s, q: q, op: fsm.OpOpen, version: k.Current().Version}
	if fsm.GrantOperation(q.operation).Seals() {
		t.op = fsm.OpSeal
	} else if i := slices.IndexFunc(k.Versions, func(v fsm.KeyVersion) bool { return v.Usable() == nil }); i >= 0 {
		t.version = k.Versions[i].Version
	}
	return t.usable(st, k)
}

// commands are what a call could have the state do: if it refuses all of them it refuses
// the call. No command: the state takes the call.
func (s *Service) commands(st *fsm.State, q question, k *fsm.Key) []fsm.Command {
	one := func(c fsm.Command) []fsm.Command { return []fsm.Command{c} }
	g, _ := st.ActiveGeneration() // none: the command is refused for that
	stand := []byte{0}
	if k == nil {
		return one(&fsm.CreateKey{ID: uuid.Max, Tenant: q.tenant, Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric, Version: 1, Generation: g.Number, Token: stand})
	}
	ref := fsm.KeyRef{ID: k.ID, Tenant: k.Tenant}
	switch q.operation {
	case "EnableKey":
		return one(&fsm.EnableKey{KeyRef: ref})
	case "DisableKey":
		return one(&fsm.DisableKey{KeyRef: ref})
	case "SetKeyDecryptOnly":
		return one(&fsm.SetKeyDecryptOnly{KeyRef: ref})
	case "ScheduleKeyDeletion":
		return one(&fsm.ScheduleKeyDeletion{KeyRef: ref, Days: fsm.DefaultDeletion})
	case "CancelKeyDeletion":
		return one(&fsm.CancelKeyDeletion{KeyRef: ref})
	case "EnableKeyRotation":
		return one(&fsm.EnableKeyRotation{KeyRef: ref, Period: fsm.DefaultRotationPeriod})
	case "DisableKeyRotation":
		return one(&fsm.DisableKeyRotation{KeyRef: ref})
	case "GetParametersForImport", "ImportKeyMaterial":
		return one(s.importCommand(st, k, ref, Material{}))
	case "DeleteImportedKeyMaterial":
		return one(&fsm.DeleteKeyMaterial{VersionRef: fsm.VersionRef{KeyRef: ref, Version: k.Current().Version}})
	case "RotateKeyOnDemand":
		if k.Origin == fsm.OriginExternal {
			return one(rotateToImported(st, k, ref))
		}
		return one(&fsm.RotateKey{KeyRef: ref, Version: st.NextVersion(k), Generation: g.Number, Cause: fsm.CauseOnDemand, Token: stand})
	case "PutKeyPolicy", "DeleteKeyPolicy":
		return one(&fsm.PutPolicy{Tenant: k.Tenant, Key: k.ID})
	case "BindResource":
		return one(&fsm.BindResource{KeyRef: ref, Resource: "-"})
	case "CreateGrant":
		return one(s.someGrant(st, q, k))
	case "DeleteAlias":
		if all := st.AliasesOf(k.ID); len(all) > 0 {
			return one(&fsm.DeleteAlias{Tenant: k.Tenant, Name: all[0].Name})
		}
		return nil
	case "UpdateKeyDescription", "TagResource", "UntagResource", "CreateAlias", "UpdateAlias", "SetDeletionProtection":
		return one(&fsm.UpdateKeyDescription{KeyRef: ref, Description: k.Description})
	case "SetRequiredContext":
		return one(&fsm.SetRequiredContext{KeyRef: ref, Keys: k.Required})
	}
	return onVersions(q.operation, ref, k)
}

// onVersions are the commands for a version of each kind that the key has.
func onVersions(operation string, ref fsm.KeyRef, k *fsm.Key) (out []fsm.Command) {
	type kind struct {
		state   fsm.VersionState
		current bool
	}
	seen := map[kind]bool{}
	for _, v := range k.Versions {
		of := kind{v.State, v.Version == k.Current().Version}
		if seen[of] {
			continue
		}
		seen[of] = true
		ref := fsm.VersionRef{KeyRef: ref, Version: v.Version}
		switch operation {
		case "EnableKeyVersion":
			out = append(out, &fsm.EnableKeyVersion{VersionRef: ref})
		case "DisableKeyVersion":
			out = append(out, &fsm.DisableKeyVersion{VersionRef: ref})
		case "ScheduleKeyVersionDestruction":
			out = append(out, &fsm.ScheduleKeyVersionDestruction{VersionRef: ref, Days: fsm.DefaultDeletion})
		case "CancelKeyVersionDestruction":
			out = append(out, &fsm.CancelKeyVersionDestruction{VersionRef: ref})
		}
	}
	return out
}

// someGrant is a grant that gives as little as one can, made by what lets the caller.
func (s *Service) someGrant(st *fsm.State, q question, k *fsm.Key) *fsm.CreateGrant {
	c := &fsm.CreateGrant{Grant: uuid.Max, Key: k.ID, Tenant: k.Tenant, Grantee: q.caller.Principal, Operations: []fsm.GrantOperation{fsm.GrantCreateGrant}}
	held := s.held(st, q.caller, k, fsm.GrantCreateGrant, "")
	if rule, err := s.decide(st, q, k); held != nil && err == nil && rule == grantRule(held) {
		c.Parent, c.Constraints, c.Expires = held.ID, held.Constraints, held.Expires
	}
	return c
}
