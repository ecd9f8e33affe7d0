package kms

import (
	"bytes"
	"testing"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

var ofSegment = []Pair{{"purpose", "audit-trail"}, {"segment", "3"}}

// TestTrailKey: a node uses a key for its audit trail if it holds a grant, as any caller, and
// nobody does with its certificate.
func TestTrailKey(t *testing.T) {
	e := newEnv(t)
	key := e.key("default")
	_, _, err := e.CreateAlias(t.Context(), as(ada), "alias/audit", key, 0)
	e.ok(err)
	make := func(key string) (Sealed, error) { return e.TrailDataKey(t.Context(), key, 32, ofSegment) }

	_, err = make("alias/audit")
	e.refused(err, ErrDenied, "alias/audit: ", "no grant allows GenerateDataKey to "+who(node)+" with this encryption context")
	if r := e.audit.last(); r.Name != "GenerateDataKey" || r.Principal != who(node) || r.Class != "node" || r.Result != audit.Denied || r.Context["segment"] != "3" {
		t.Errorf("recorded as %+v", r)
	}
	_, err = make("alias/none")
	e.refused(err, fsm.ErrNotFound, "alias/none")

	grant := e.give(key, GrantParams{Grantee: who(node), Operations: ops(fsm.GrantGenerateDataKey, fsm.GrantDecrypt), Constraints: fsm.Constraints{Subset: tagsOf(ofSegment[:1])}})
	made, err := make("alias/audit")
	e.ok(err)
	if r := e.audit.last(); r.Result != audit.Success || r.DecidedBy != "grant "+grant || r.KeyID != key || r.Tenant != "default" {
		t.Errorf("recorded as %+v", r)
	}
	opened, err := e.OpenTrailDataKey(t.Context(), made.Ciphertext, ofSegment)
	e.ok(err)
	if len(made.Plaintext) != 32 || !bytes.Equal(opened.Plaintext, made.Plaintext) {
		t.Error("another data key was opened")
	}
	_, err = e.OpenTrailDataKey(t.Context(), made.Ciphertext, []Pair{{"purpose", "audit-trail"}, {"segment", "4"}})
	e.refused(err, ErrCiphertext)
	_, err = e.OpenTrailDataKey(t.Context(), []byte("nonsense"), ofSegment)
	e.refused(err, ErrMalformed)

	_, err = e.GenerateDataKey(t.Context(), as(node), e.arn("default", key), 32, ofSegment)
	e.refused(err, ErrDenied, "class node")
	_, err = e.Encrypt(t.Context(), e.itself(""), key, []byte("x"), ofSegment, "")
	e.refused(err, ErrDenied, "audit trail alone")
	x, _, err := e.ExplainPolicy(t.Context(), as(ada), key, who(node), "Decrypt", ofSegment)
	e.ok(err)
	if !x.Allowed || x.DecidedBy != "grant "+grant {
		t.Errorf("explained as %+v", x)
	}

	// Policies that say nothing of nodes are none against them; what forbids everybody does.
	e.put("", onlyAdmins)
	_, err = make("alias/audit")
	e.ok(err)
	e.put(key, `@id("never") forbid (principal, action == KMS::Action::"Decrypt", resource);`)
	_, err = e.OpenTrailDataKey(t.Context(), made.Ciphertext, ofSegment)
	e.refused(err, ErrDenied, "key "+key+": ", "never")
	e.put(key, `forbid (principal, action in KMS::Action::"use", resource) unless { principal in KMS::Tenant::"default" ||
		context.encryption_context.hasTag("purpose") && context.encryption_context.getTag("purpose") == "audit-trail" };`)
	_, err = e.OpenTrailDataKey(t.Context(), made.Ciphertext, ofSegment)
	e.ok(err)

	_, _, err = e.DisableKey(t.Context(), as(ada), key, 0)
	e.ok(err)
	_, err = e.OpenTrailDataKey(t.Context(), made.Ciphertext, ofSegment)
	e.refused(err, fsm.ErrDisabled, key)
	_, _, err = e.EnableKey(t.Context(), as(ada), key, 0)
	e.ok(err)
	_, err = e.RevokeGrant(t.Context(), as(ada), key, grant)
	e.ok(err)
	_, err = e.OpenTrailDataKey(t.Context(), made.Ciphertext, ofSegment)
	e.refused(err, ErrDenied, "no grant allows Decrypt")
}

// TestTrailKeyOfATenant: a key of any tenant seals, named by its ARN.
func TestTrailKeyOfATenant(t *testing.T) {
	e := newEnv(t)
	key := e.key("acme")
	_, _, err := e.CreateGrant(t.Context(), as(abel), key, GrantParams{Grantee: who(node), Operations: ops(fsm.GrantGenerateDataKey, fsm.GrantDecrypt)})
	e.ok(err)
	made, err := e.TrailDataKey(t.Context(), e.arn("acme", key), 32, ofSegment)
	e.ok(err)
	opened, err := e.OpenTrailDataKey(t.Context(), made.Ciphertext, ofSegment)
	e.ok(err)
	if !bytes.Equal(opened.Plaintext, made.Plaintext) {
		t.Error("another data key was opened")
	}
	_, err = e.TrailDataKey(t.Context(), key, 32, ofSegment)
	e.refused(err, fsm.ErrNotFound)
}

func TestCheckReference(t *testing.T) {
	for text, want := range map[string]bool{
		"alias/audit": true, "6ba7b810-9dad-11d1-80b4-00c04fd430c8": true,
		"arn:quorumkms:kms:any:acme:alias/audit": true, "arn:quorumkms:kms:any:acme:key/6ba7b810-9dad-11d1-80b4-00c04fd430c8": true,
		"": false, "audit": false, "alias/": false, "arn:quorumkms:kms:any:acme": false, "arn:quorumkms:kms:any:ACME!:alias/audit": false,
	} {
		if err := CheckReference(text); (err == nil) != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}
