package kms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/policy"
)

// explained is what a state of affairs is explained and called with.
type explained struct {
	*env
	key, other string
	blob       []byte
	grants     map[string]string // that a principal would retire
	pairs      []Pair
}

const (
	rita = "acme/user/rita" // holds a grant that she may retire
	reta = "acme/user/reta" // may retire another's grant
	zoe  = "acme/user/zoe"  // has nothing
)

// calls make the calls of each action without effect. What has no call yet is not there.
var calls = map[string]func(ctx context.Context, x *explained, c Call) error{
	"Encrypt": func(ctx context.Context, x *explained, c Call) error {
		return third(x.Encrypt(ctx, c, x.key, []byte("plain"), x.pairs, ""))
	},
	"Decrypt": func(ctx context.Context, x *explained, c Call) error {
		return third(x.Decrypt(ctx, c, x.blob, "", x.pairs, ""))
	},
	"ReEncryptFrom": func(_ context.Context, x *explained, c Call) error {
		header, h, err := parseSource(x.blob, x.pairs)
		x.ok(err)
		return third(x.findSource(x.log.State(), c, header, h, "", question{caller: c.Caller, needs: mayUse, operation: "ReEncryptFrom", context: x.pairs}))
	},
	"ReEncryptTo": func(_ context.Context, x *explained, c Call) error {
		ref, err := parseReference(x.log.State(), c, x.key)
		x.ok(err)
		return third(x.find(x.log.State(), ref, question{caller: c.Caller, needs: mayUse, operation: "ReEncryptTo", context: x.pairs}, fsm.OpSeal, 0))
	},
	"GenerateDataKey": func(ctx context.Context, x *explained, c Call) error {
		return third(x.GenerateDataKey(ctx, c, x.key, 16, x.pairs))
	},
	"GenerateDataKeyWithoutPlaintext": func(ctx context.Context, x *explained, c Call) error {
		return third(x.GenerateDataKeyWithoutPlaintext(ctx, c, x.key, 16, x.pairs))
	},
	"GenerateRandom": func(ctx context.Context, x *explained, c Call) error { return third(x.GenerateRandom(ctx, c, 8)) },
	"BindResource": func(ctx context.Context, x *explained, c Call) error {
		return last(x.BindResource(ctx, c, x.key, "b", 0))
	},
	"ReleaseResource": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ReleaseResource(ctx, c, x.key, "b", 0))
	},
	"CreateKey": func(ctx context.Context, x *explained, c Call) error {
		return last(x.CreateKey(ctx, c, KeyParams{Usage: fsm.UsageEncryptDecrypt, Spec: fsm.SpecSymmetric}))
	},
	"EnableKey":  func(ctx context.Context, x *explained, c Call) error { return last(x.EnableKey(ctx, c, x.key, 0)) },
	"DisableKey": func(ctx context.Context, x *explained, c Call) error { return last(x.DisableKey(ctx, c, x.key, 0)) },
	"SetKeyDecryptOnly": func(ctx context.Context, x *explained, c Call) error {
		return last(x.SetKeyDecryptOnly(ctx, c, x.key, 0))
	},
	"UpdateKeyDescription": func(ctx context.Context, x *explained, c Call) error {
		return last(x.UpdateKeyDescription(ctx, c, x.key, "d", 0))
	},
	"ScheduleKeyDeletion": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ScheduleKeyDeletion(ctx, c, x.key, 7, 0))
	},
	"CancelKeyDeletion": func(ctx context.Context, x *explained, c Call) error {
		return last(x.CancelKeyDeletion(ctx, c, x.key, 0))
	},
	"SetDeletionProtection": func(ctx context.Context, x *explained, c Call) error {
		return last(x.SetDeletionProtection(ctx, c, x.key, false, 0))
	},
	"SetRequiredContext": func(ctx context.Context, x *explained, c Call) error {
		return last(x.SetRequiredContext(ctx, c, x.key, []string{"a"}, 0))
	},
	"TagResource": func(ctx context.Context, x *explained, c Call) error {
		return last(x.TagResource(ctx, c, x.key, []fsm.Tag{{Key: "a"}}, 0))
	},
	"UntagResource": func(ctx context.Context, x *explained, c Call) error {
		return last(x.UntagResource(ctx, c, x.key, []string{"a"}, 0))
	},
	"CreateAlias": func(ctx context.Context, x *explained, c Call) error {
		return last(x.CreateAlias(ctx, c, "alias/new", x.key, 0))
	},
	"UpdateAlias": func(ctx context.Context, x *explained, c Call) error {
		return last(x.UpdateAlias(ctx, c, "alias/other", x.key, 0))
	},
	"DeleteAlias": func(ctx context.Context, x *explained, c Call) error {
		return last(x.DeleteAlias(ctx, c, x.log.State().AliasesOf(uuid.MustParse(x.key))[0].Name, 0))
	},
	"EnableKeyRotation": func(ctx context.Context, x *explained, c Call) error {
		return last(x.EnableKeyRotation(ctx, c, x.key, 0, 0))
	},
	"DisableKeyRotation": func(ctx context.Context, x *explained, c Call) error {
		return last(x.DisableKeyRotation(ctx, c, x.key, 0))
	},
	"RotateKeyOnDemand": func(ctx context.Context, x *explained, c Call) error {
		return last(x.RotateKeyOnDemand(ctx, c, x.key, 0))
	},
	"GetParametersForImport": func(ctx context.Context, x *explained, c Call) error {
		return last(x.GetParametersForImport(ctx, c, x.key, 2048, ""))
	},
	"ImportKeyMaterial": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ImportKeyMaterial(ctx, c, x.key, Material{Token: []byte{1}, Wrapped: []byte{1}}, 0))
	},
	"DeleteImportedKeyMaterial": func(ctx context.Context, x *explained, c Call) error {
		return last(x.DeleteImportedKeyMaterial(ctx, c, x.key, 0, 0))
	},
	"EnableKeyVersion": func(ctx context.Context, x *explained, c Call) error {
		return last(x.EnableKeyVersion(ctx, c, x.key, 1, 0))
	},
	"DisableKeyVersion": func(ctx context.Context, x *explained, c Call) error {
		return last(x.DisableKeyVersion(ctx, c, x.key, 1, 0))
	},
	"ScheduleKeyVersionDestruction": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ScheduleKeyVersionDestruction(ctx, c, x.key, 1, 7, 0))
	},
	"CancelKeyVersionDestruction": func(ctx context.Context, x *explained, c Call) error {
		return last(x.CancelKeyVersionDestruction(ctx, c, x.key, 2, 0))
	},
	"PutKeyPolicy": func(ctx context.Context, x *explained, c Call) error {
		return last(x.PutPolicy(ctx, c, x.key, everybody, nil))
	},
	"DeleteKeyPolicy": func(ctx context.Context, x *explained, c Call) error {
		return last(x.PutPolicy(ctx, c, x.key, "", nil))
	},
	"PutTenantPolicy": func(ctx context.Context, x *explained, c Call) error {
		return last(x.PutPolicy(ctx, c, "", everybody, nil))
	},
	"DeleteTenantPolicy": func(ctx context.Context, x *explained, c Call) error {
		return last(x.PutPolicy(ctx, c, "", "", nil))
	},
	"CreateGrant": func(ctx context.Context, x *explained, c Call) error {
		return last(x.CreateGrant(ctx, c, x.key, GrantParams{Grantee: who(zoe), Operations: ops(fsm.GrantCreateGrant)}))
	},
	"RevokeGrant": func(ctx context.Context, x *explained, c Call) error {
		return third(x.RevokeGrant(ctx, c, x.key, x.grantFor(c)))
	},
	"RetireGrant": func(ctx context.Context, x *explained, c Call) error {
		return third(x.RetireGrant(ctx, c, x.key, x.grantFor(c)))
	},
	"ForceReleaseResource": func(ctx context.Context, x *explained, c Call) error {
		if c.Caller.Class != ClassAdmin {
			return ErrDenied // it releases what is its own
		}
		return last(x.ReleaseResource(ctx, c, x.key, "b", 0))
	},
	"DisablePrincipal": func(ctx context.Context, x *explained, c Call) error {
		return third(x.DisablePrincipal(ctx, c, who("default/user/zed")))
	},
	"EnablePrincipal": func(ctx context.Context, x *explained, c Call) error {
		return third(x.EnablePrincipal(ctx, c, who("default/user/off")))
	},
	"FreezeTenant": func(ctx context.Context, x *explained, c Call) error { return third(x.FreezeTenant(ctx, c, "default")) },
	"ThawTenant":   func(ctx context.Context, x *explained, c Call) error { return third(x.ThawTenant(ctx, c, "default")) },
	"DescribeKey":  func(ctx context.Context, x *explained, c Call) error { return last(x.DescribeKey(ctx, c, x.key)) },
	"ListKeys":     func(ctx context.Context, x *explained, c Call) error { return last(x.ListKeys(ctx, c, 0, "")) },
	"ListAliases": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ListAliases(ctx, c, x.key, 0, ""))
	},
	"ListResourceTags": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ListResourceTags(ctx, c, x.key, 0, ""))
	},
	"ListKeyRotations": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ListKeyRotations(ctx, c, x.key, 0, ""))
	},
	"GetKeyRotationStatus": func(ctx context.Context, x *explained, c Call) error {
		return last(x.GetKeyRotationStatus(ctx, c, x.key))
	},
	"ListKeyVersions": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ListKeyVersions(ctx, c, x.key, 0, ""))
	},
	"ListGrants": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ListGrants(ctx, c, x.key, "", "", 0, ""))
	},
	"ListRetirableGrants": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ListRetirableGrants(ctx, c, "", 0, ""))
	},
	"GetKeyPolicy":    func(ctx context.Context, x *explained, c Call) error { return last(x.GetPolicy(ctx, c, x.key, 0)) },
	"GetTenantPolicy": func(ctx context.Context, x *explained, c Call) error { return last(x.GetPolicy(ctx, c, "", 0)) },
	"ListPolicyRevisions": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ListPolicyRevisions(ctx, c, x.key))
	},
	"ExplainPolicy": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ExplainPolicy(ctx, c, x.key, who(uma), "Encrypt", nil))
	},
	"ValidatePolicy": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ValidatePolicy(ctx, c, everybody))
	},
	"ListResources": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ListResources(ctx, c, x.key, 0, ""))
	},
	"ListPrincipals": func(ctx context.Context, x *explained, c Call) error {
		return last(x.ListDisabledPrincipals(ctx, c, 0, ""))
	},
	"DescribeTenant": func(ctx context.Context, x *explained, c Call) error {
		return last(x.DescribeTenant(ctx, c, "default"))
	},
}

func third[T any](_ T, err error) error        { return err }
func last[T, U any](_ T, _ U, err error) error { return err }

func (x *explained) grantFor(c Call) string {
	if id, ok := x.grants[c.Caller.Principal]; ok {
		return id
	}
	return cmp.Or(x.grants[who(una)], uuid.NewString())
}

// explainable is a key in a state, with all that there can be about it.
func explainable(t *testing.T, state, text string) *explained {
	x := &explained{env: newEnv(t), pairs: acting("default", "b"), grants: map[string]string{}}
	x.key, x.other = x.env.key("default"), x.env.key("default")
	sealer := as(uma)
	if state == "of a service" {
		sealer = in(obs, "default")
		x.ok(x.encrypts(sealer, "", x.pairs...))
		own, _ := x.log.State().ServiceKey("default", "obs")
		x.key = own.ID.String()
	} else {
		x.grants[who(una)] = x.give(x.key, GrantParams{Grantee: who(una), Operations: ops(fsm.GrantDecrypt, fsm.GrantReEncryptFrom, fsm.GrantCreateGrant, fsm.GrantDescribeKey)})
		x.grants[who(reta)] = x.give(x.key, GrantParams{Grantee: who(obs), Retiring: who(reta), Operations: ops(fsm.GrantEncrypt, fsm.GrantDecrypt), Constraints: fsm.Constraints{Subset: tagsOf(x.pairs)}})
		x.grants[who(rita)] = x.give(x.key, GrantParams{Grantee: who(rita), Operations: ops(fsm.GrantRetireGrant, fsm.GrantEncrypt)})
		x.do(&fsm.CreateAlias{AliasTarget: fsm.AliasTarget{Tenant: "default", Name: "alias/its", Key: uuid.MustParse(x.key)}})
	}
	x.blob = x.sealed(sealer, x.key, x.pairs...)
	for range 2 {
		x.ok(last(x.RotateKeyOnDemand(t.Context(), as(ada), x.key, 0)))
	}
	if state != "of a service" && state != "protected" && state != "in use" {
		x.ok(last(x.ScheduleKeyVersionDestruction(t.Context(), as(ada), x.key, 2, 7, 0)))
	}
	x.do(&fsm.CreateAlias{AliasTarget: fsm.AliasTarget{Tenant: "default", Name: "alias/other", Key: uuid.MustParse(x.other)}})
	for _, by := range []string{"", "default"} {
		x.do(&fsm.DisablePrincipal{Principal: who("default/user/off"), Tenant: by})
	}
	if text != "" {
		x.put("", text)
	}
	ref := fsm.KeyRef{ID: uuid.MustParse(x.key), Tenant: "default"}
	switch state {
	case "disabled":
		x.do(&fsm.DisableKey{KeyRef: ref})
	case "pending deletion":
		x.do(&fsm.ScheduleKeyDeletion{KeyRef: ref, Days: 7})
	case "decrypt only":
		x.do(&fsm.SetKeyDecryptOnly{KeyRef: ref})
	case "protected":
		x.do(&fsm.SetDeletionProtection{KeyRef: ref, On: true})
	case "in use":
		x.do(&fsm.BindResource{KeyRef: ref, Resource: "r"})
	case "without its current version":
		x.do(&fsm.DisableKeyVersion{VersionRef: fsm.VersionRef{KeyRef: ref, Version: 3}})
	case "frozen":
		x.do(&fsm.FreezeTenant{Name: "default", ByOperator: true})
	case "full":
		x.do(&fsm.SetTenantQuota{Name: "default", MaxKeys: 1})
	}
	return x
}

// TestExplanationsAreTrue: every action is explained as its call ends, for every class and
// in every state.
func TestExplanationsAreTrue(t *testing.T) {
	without := []string{"GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext", "Sign", "Verify", "GenerateMac", "VerifyMac", "GetPublicKey"}
	const choosy = everybody + `forbid (principal is KMS::User, action == KMS::Action::"Decrypt", resource);
		forbid (principal is KMS::Admin, action in [KMS::Action::"DisableKey", KMS::Action::"RetireGrant"], resource);`
	states := []string{"enabled", "disabled", "pending deletion", "decrypt only", "protected", "in use", "without its current version", "frozen", "full", "of a service"}
	for _, state := range states {
		for name, text := range map[string]string{"default": "", "choosy": choosy} {
			t.Run(state+", "+name, func(t *testing.T) {
				x := explainable(t, state, text)
				for _, short := range []string{ada, uma, "default/user/off", tom, abel, una, rita, reta, zoe, "acme/auditor/amy", olga, cleo, obs, vol} {
					for _, a := range policy.Actions() {
						call, ok := calls[a.Name]
						if !ok {
							if !slices.Contains(without, a.Name) {
								t.Fatalf("%s is not called", a.Name)
							}
							continue
						}
						x.compare(short, a, call)
					}
				}
			})
		}
	}
}

func (x *explained) compare(short string, a policy.Action, call func(context.Context, *explained, Call) error) {
	x.t.Helper()
	c := in(short, "default")
	c.DryRun = true
	err := call(x.t.Context(), x, c)
	// What is not there is nothing that decides: a policy of the key's own, a resource of the caller's.
	nothing := errors.Is(err, fsm.ErrNotFound) && slices.Contains([]string{"GetKeyPolicy", "ReleaseResource", "ForceReleaseResource", "RevokeGrant", "RetireGrant"}, a.Name)
	allowed := err == nil || errors.Is(err, ErrDryRun) || nothing
	key := x.key
	if a.On&policy.OnKey == 0 {
		key = ""
	}
	st := x.log.State()
	var k *fsm.Key
	if key != "" {
		k = x.stored(key)
	}
	got := x.explain(st, asked(caller(short), "default", a, x.pairs), k)
	if got.Allowed != allowed || got.Allowed != (got.Reason == "") {
		x.t.Errorf("%s by %s is explained as %+v, but the call says %v", a.Name, short, got, err)
	}
}

// TestExplainGrants: each grant of the principal is named with what is against it.
func TestExplainGrants(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	give := func(c fsm.Constraints, operations ...fsm.GrantOperation) string {
		return e.give(key, GrantParams{Grantee: who(una), Operations: operations, Constraints: c})
	}
	one := []fsm.Tag{{Key: "bucket", Value: "b"}}
	want := map[string]string{
		give(fsm.Constraints{}, fsm.GrantEncrypt):            "it is not for Decrypt",
		give(fsm.Constraints{Equals: one}, fsm.GrantDecrypt): "bucket=b and nothing else",
		give(fsm.Constraints{Subset: one}, fsm.GrantDecrypt): "with bucket=b",
		give(fsm.Constraints{}, fsm.GrantCreateGrant):        "it is not for Decrypt",
		give(fsm.Constraints{Subset: one}, fsm.GrantEncrypt): "it is not for Decrypt",
	}
	explain := func(pairs ...Pair) Explanation {
		x, _, err := e.ExplainPolicy(t.Context(), as(ada), key, who(una), "Decrypt", pairs)
		e.ok(err)
		return x
	}
	x := explain(Pair{"bucket", "c"})
	if x.Allowed || !strings.Contains(x.Reason, "no grant allows Decrypt") {
		t.Errorf("%+v", x)
	}
	all := strings.Join(x.Steps, "\n")
	for id, says := range want {
		if i := strings.Index(all, "grant "+id); i < 0 || !strings.Contains(strings.SplitN(all[i:], "\n", 2)[0], says) {
			t.Errorf("grant %s: want %q in\n%s", id, says, all)
		}
	}
	if x := explain(Pair{"bucket", "b"}); !x.Allowed || !strings.Contains(strings.Join(x.Steps, "\n"), "allows it") {
		t.Errorf("%+v", x)
	}
	for range maxExplained {
		give(fsm.Constraints{}, fsm.GrantEncrypt)
	}
	if x := explain(); len(x.Steps) > maxExplained+4 || !strings.Contains(strings.Join(x.Steps, "\n"), fmt.Sprintf("more than these %d", maxExplained)) {
		t.Errorf("%d steps: %q", len(x.Steps), x.Steps)
	}
	// The tenant is told what forbids, the principal of another is not.
	e.put(key, `@id("no-una") forbid (principal == KMS::User::"`+who(una)+`", action, resource);`)
	if x := explain(Pair{"bucket", "b"}); x.Allowed || !strings.Contains(x.Reason, "no-una") {
		t.Errorf("%+v", x)
	}
	err := e.encrypts(as(una), e.arn("default", key))
	e.refused(err, ErrDenied, "no grant of yours allows it with this encryption context")
	if strings.Contains(err.Error(), "no-una") {
		t.Errorf("the other tenant is told %v", err)
	}
}

// TestExplainReEncrypt: what ReEncryptFrom amounts to is said also where nothing allows it.
func TestExplainReEncrypt(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	for _, short := range []string{uma, zoe} {
		x, _, err := e.ExplainPolicy(t.Context(), as(ada), key, who(short), "ReEncryptFrom", nil)
		e.ok(err)
		if !strings.Contains(strings.Join(x.Steps, "\n"), "amounts to Decrypt") {
			t.Errorf("%s: %q", short, x.Steps)
		}
	}
	_, _, err := e.ExplainPolicy(t.Context(), as(ada), key, who(uma), "ReEncrypt", nil)
	e.refused(err, fsm.ErrInvalid, "did you mean ReEncryptFrom or ReEncryptTo?")
	_, _, err = e.ExplainPolicy(t.Context(), as(ada), key, who(uma), "decrypt", nil)
	e.refused(err, fsm.ErrInvalid, "did you mean Decrypt?")
}
