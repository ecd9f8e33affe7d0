package fsm

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// update writes the golden files of the newest release anew. Never use it when that
// release is out: clusters hold logs and snapshots like these.
var update = flag.Bool("update", false, "write the golden log, hashes and snapshot of the newest release")

// goldenScripts give the golden files of each release: the first is that of release 1.
var goldenScripts = []func(t failer) *world{goldenScript, goldenUpgrade}

func goldenFile(release, what string) string {
	return filepath.Join("testdata", "golden", release+"."+what)
}

// goldenScript is the fixed log of release 1: every command, right, refused and
// repeated, with texts, sizes and numbers at their edges.
func goldenScript(t failer) *world {
	w := newWorld(t)
	w.refuse(createKey(1), ErrNotInitialized, "")
	w.do(firstInit())
	w.refuse(firstInit(), ErrExists, "")
	w.do(&Tick{HashIndex: w.s.Index(), Hash: w.s.Hash()})
	w.refuse(&Tick{HashIndex: 1<<64 - 1}, ErrInvalid, "")
	goldenKeys(w)
	goldenNames(w)
	goldenMembers(w)
	w.clock -= 3600 * second // a leader whose clock is behind
	w.do(&Tick{HashIndex: w.s.Index(), Hash: w.s.Hash()})
	return w
}

// firstInit is initCluster as release 1 knew it.
func firstInit() *InitCluster {
	return edited(initCluster(), func(c *InitCluster) { c.Release, c.NoRecovery = 0, false })
}

// goldenUpgrade is the fixed log of release 2: a cluster of release 1 that is raised,
// and then every command that is new.
func goldenUpgrade(t failer) *world {
	w := goldenUpgraded(t)
	goldenRecoveries(w)
	goldenGenerations(w)
	goldenResident(w)
	goldenRecipients(w)
	goldenAuditHeads(w)
	return w
}

// goldenUpgraded is that log up to its recoveries, which disable all keys.
func goldenUpgraded(t failer) *world {
	w := newWorld(t)
	w.do(firstInit())
	w.refuse(initCluster(), ErrExists, "")
	w.join("n2", true, MemberActive)
	w.join("n3", true, MemberGone)
	w.refuse(&RaiseRelease{Release: 1}, ErrInvalid, "")
	w.refuse(&RaiseRelease{Release: 2}, ErrRelease, "")
	w.refuse(&RaiseRelease{2, []string{firstNode, nodeID("n3")}}, ErrRelease, "n2")
	w.ask("raise", "2", &RaiseRelease{2, []string{nodeID("n2"), firstNode}})
	w.ask("raise", "2", &RaiseRelease{2, []string{}})
	w.do(&RaiseRelease{Release: 2})
	goldenVotes(w)
	goldenInvitations(w)
	goldenTenants(w)
	goldenStates(w)
	goldenVersions(w)
	goldenSchedules(w)
	goldenSpecs(w)
	goldenImports(w)
	goldenGrants(w)
	goldenPolicies(w)
	goldenUses(w)
	goldenDeletions(w)
	return w
}

func goldenTenants(w *world) {
	w.ask("tenant", "acme", edited(createTenant("acme"), func(c *CreateTenant) { c.MaxKeys = 2 }))
	w.ask("tenant", "acme", createTenant("other"))
	w.refuse(createTenant("acme"), ErrExists, "")
	w.refuse(createTenant("A"), ErrInvalid, "")
	w.do(createTenant(strings.Repeat("z", 64)))
	for n := uint64(11); n <= 19; n++ {
		w.do(createKey(n))
	}
	w.do(edited(createKey(21), func(c *CreateKey) { c.Tenant = "acme" }))
	w.do(edited(serviceKey(22), func(c *CreateServiceKey) { c.Tenant = "acme" }))
	w.refuse(edited(createKey(23), func(c *CreateKey) { c.Tenant = "acme" }), ErrLimit, "")
	w.refuse(edited(serviceKey(23), func(c *CreateServiceKey) { c.Tenant = "acme" }), ErrExists, "")
	w.refuse(edited(serviceKey(23), func(c *CreateServiceKey) { c.Service = "a.b" }), ErrInvalid, "")
	w.refuse(&DisableKey{KeyRef{ID: keyID(22), Tenant: "acme"}}, ErrServiceManaged, "")
	w.do(&RotateKey{KeyRef: KeyRef{ID: keyID(22), Tenant: "acme"}, Version: 2, Generation: 1, Cause: CauseOnDemand, Token: []byte{1}})
	w.do(&SetTenantQuota{"acme", 0})
	w.do(&SetTenantQuota{"acme", MaxKeys})
	w.refuse(&SetTenantQuota{"acme", -1}, ErrInvalid, "")
	w.refuse(&SetTenantQuota{"nobody", 1}, ErrNotFound, "")
	w.do(&FreezeTenant{"acme", true})
	w.do(&FreezeTenant{"acme", false})
	w.do(&ThawTenant{"acme", true})
	w.do(&FreezeTenant{DefaultTenant, true})
	w.do(&ThawTenant{DefaultTenant, true})
	w.refuse(&FreezeTenant{"nobody", true}, ErrNotFound, "")
	w.refuse(&ThawTenant{"", false}, ErrNotFound, "")
	for _, tenant := range []string{"", "acme"} {
		w.do(&DisablePrincipal{user, tenant})
		w.do(&DisablePrincipal{user, tenant})
		w.do(&DisablePrincipal{"spiffe://kms.example/tenant/acme/user/gone", tenant})
	}
	w.as(user, func() { w.refuse(&EnablePrincipal{user, ""}, ErrPrincipalDisabled, user) })
	for _, tenant := range []string{"", "acme"} {
		w.do(&EnablePrincipal{user, tenant})
	}
	w.refuse(&EnablePrincipal{user, ""}, ErrNotFound, "")
	w.refuse(&DisablePrincipal{"uma", ""}, ErrInvalid, "")
}

func goldenStates(w *world) {
	w.ask("decrypt only", "11", &SetKeyDecryptOnly{ref(11)})
	w.ask("decrypt only", "11", &Repeat{})
	w.refuse(rotateKey(11, 2), ErrDecryptOnly, "")
	w.do(&SetKeyDecryptOnly{KeyRef{keyID(11), DefaultTenant, w.key(11).Revision}})
	w.do(&DisableKey{ref(11)})
	w.refuse(&SetKeyDecryptOnly{ref(11)}, ErrDisabled, "")
	w.do(&EnableKey{ref(11)})
	w.do(&SetKeyDecryptOnly{ref(11)})
	w.do(&SetRequiredContext{ref(11), []string{"tenant", "<&>", "\u2028"}})
	w.do(&SetRequiredContext{ref(12), nil})
	w.refuse(&SetRequiredContext{ref(12), []string{"a", "a"}}, ErrInvalid, "")
	w.do(&SetDeletionProtection{ref(11), true})
	w.do(&SetDeletionProtection{ref(12), true})
	w.do(&SetDeletionProtection{ref(12), false})
	w.refuse(&ScheduleKeyDeletion{ref(11), 7}, ErrProtected, "")
}

func goldenVersions(w *world) {
	w.do(&CreateAlias{alias("alias/moved", 13)})
	w.do(&MoveAlias{alias("alias/moved", 14), KeyRef{keyID(13), DefaultTenant, w.key(13).Revision}})
	w.refuse(&MoveAlias{alias("alias/moved", 15), ref(13)}, ErrConflict, "")
	w.ask("move", "", &MoveAlias{alias("alias/moved", 14), ref(14)})
	w.do(rotateKey(13, 2))
	w.do(rotateKey(13, 3))
	w.do(&DisableKeyVersion{version(13, 1)})
	w.do(&DisableKeyVersion{version(13, 3)})
	w.do(&EnableKeyVersion{version(13, 3)})
	w.refuse(&ScheduleKeyVersionDestruction{version(13, 3), 7}, ErrVersionCurrent, "")
	w.refuse(&ScheduleKeyVersionDestruction{version(13, 1), 31}, ErrInvalid, "")
	w.ask("destroy", "13", &ScheduleKeyVersionDestruction{version(13, 1), 7})
	w.do(&ScheduleKeyVersionDestruction{version(13, 2), 30})
	w.refuse(&ScheduleKeyVersionDestruction{version(13, 2), 7}, ErrVersionDisabled, "")
	w.refuse(&SetDeletionProtection{ref(13), true}, ErrVersionDisabled, "")
	w.refuse(&EnableKeyVersion{version(13, 2)}, ErrVersionDisabled, "")
	w.do(&CancelKeyVersionDestruction{version(13, 2)})
	w.refuse(&CancelKeyVersionDestruction{version(13, 2)}, ErrNotPendingDeletion, "")
	w.do(&ScheduleKeyVersionDestruction{version(13, 2), 30})
	at := w.key(13).Version(1).Destroy
	w.refuse(&DestroyKeyVersions{ref(13), at - 1}, ErrConflict, "")
	w.do(&DestroyKeyVersions{ref(13), at + 1})
	w.refuse(&DisableKeyVersion{version(13, 1)}, ErrVersionDestroyed, "")
	w.refuse(&DisableKeyVersion{version(13, 9)}, ErrNotFound, "")
}

func goldenSchedules(w *world) {
	w.do(&EnableKeyRotation{ref(14), 60})
	w.do(&EnableKeyRotation{ref(14), 2560 * day})
	w.do(&EnableKeyRotation{ref(14), 2560 * day})
	w.refuse(&EnableKeyRotation{ref(14), 59}, ErrInvalid, "")
	due := w.key(14).Rotation.Next
	w.refuse(onSchedule(14, 2, due, due-1), ErrInvalid, "")
	w.do(onSchedule(14, 2, due, due))
	w.refuse(onSchedule(14, 3, due, due), ErrConflict, "")
	due = w.key(14).Rotation.Next
	w.do(onSchedule(14, 3, due, due+3*2560*day))
	w.do(&EnableKeyRotation{ref(15), 90 * day})
	w.do(&DisableKeyRotation{ref(15)})
	w.do(&DisableKeyRotation{ref(15)})
	w.refuse(&DisableKeyRotation{ref(11)}, ErrDecryptOnly, "")
}

func goldenSpecs(w *world) {
	w.ask("create", "pair", edited(keyOfSpec(31, SpecRSA4096, UsageEncryptDecrypt), func(c *CreateKeyOfSpec) {
		c.Description, c.Tags, c.Public = "<&>\u2028", []Tag{{"b", "2"}, {"a", "<"}}, bytes.Repeat([]byte{0xfb, 0xff}, MaxPublicKey/2)
	}))
	w.ask("create", "pair", &Repeat{})
	for n, spec := range []KeySpec{SpecHMAC256, SpecHMAC384, SpecHMAC512, SpecRSA2048, SpecRSA3072, SpecP256, SpecP384} {
		w.do(keyOfSpec(uint64(32+n), spec, spec.Usages()[0]))
	}
	w.refuse(keyOfSpec(39, SpecP256, UsageMac), ErrInvalid, "")
	w.refuse(keyOfSpec(39, SpecSymmetric, UsageEncryptDecrypt), ErrInvalid, "")
	w.refuse(keyOfSpec(31, SpecP256, UsageSignVerify), ErrExists, "")
	w.refuse(rotateKey(31, 2), ErrUnsupported, "")
	w.refuse(&EnableKeyRotation{ref(32), 60}, ErrUnsupported, "")
	w.refuse(&SetRequiredContext{ref(33), []string{"a"}}, ErrUnsupported, "")
	w.refuse(edited(createGrant(30, 33), func(c *CreateGrant) { c.Constraints.Subset = []Tag{{"a", "b"}} }), ErrUnsupported, "")
	w.refuse(edited(createGrant(30, 33), func(c *CreateGrant) { c.Operations = []GrantOperation{GrantSign} }), ErrUnsupported, "")
	w.do(edited(createGrant(30, 33), func(c *CreateGrant) { c.Operations = []GrantOperation{GrantVerifyMac, GrantGenerateMac} }))
	w.do(&SetKeyDecryptOnly{ref(34)})
	w.do(&DisableKeyVersion{version(35, 1)})
	w.do(&ScheduleKeyDeletion{ref(36), 7})
}

func goldenImports(w *world) {
	now := w.s.Now() / second
	w.ask("external", "41", edited(externalKey(41, SpecSymmetric), func(c *CreateExternalKey) {
		c.Description, c.Tags = "<&>\u2028", []Tag{{"b", "2"}, {"a", "<"}}
	}))
	w.do(externalKey(42, SpecHMAC512))
	w.refuse(externalKey(43, SpecP256), ErrUnsupported, "")
	w.refuse(createGrant(41, 41), ErrPendingImport, "")
	w.ask("import", "41", edited(material(41, 1), func(c *ImportKeyMaterial) { c.Expires, c.Description = now+MaxImportSeconds, "<v>\u2028" }))
	w.do(material(42, 1))
	w.refuse(material(11, 1), ErrUnsupported, "")
	w.refuse(edited(material(41, 1), func(c *ImportKeyMaterial) { c.Check[0]++ }), ErrMaterial, "")
	w.do(material(41, 2))
	w.refuse(material(41, 3), ErrExists, "")
	w.refuse(material(42, 2), ErrUnsupported, "")
	w.do(&RotateToImported{ref(41), 2})
	w.refuse(&RotateToImported{ref(41), 2}, ErrUnsupported, "")
	w.refuse(&EnableKeyRotation{ref(41), 60}, ErrUnsupported, "")
	w.refuse(rotateKey(41, 3), ErrUnsupported, "")
	w.ask("delete material", "41", &DeleteKeyMaterial{version(41, 1)})
	w.do(&DeleteKeyMaterial{version(41, 1)})
	w.refuse(&DisableKey{ref(41)}, ErrPendingImport, "")
	w.do(&DisableAwaitedKey{ref(41)})
	w.do(edited(material(41, 1), func(c *ImportKeyMaterial) { c.Expires = now + 100 }))
	w.refuse(&ExpireKeyMaterial{ref(41), now + 99}, ErrConflict, "")
	w.do(&ExpireKeyMaterial{ref(41), now + 100})
	w.do(material(41, 1))
	w.do(edited(material(41, 3), func(c *ImportKeyMaterial) { c.Expires = now + 1000 }))
	w.do(&ScheduleKeyDeletion{ref(42), 7})
	w.do(&DeleteKeyMaterial{version(42, 1)})
}

func goldenGrants(w *world) {
	now := w.s.Now() / second
	w.ask("grant", "1", edited(createGrant(1, 15), func(c *CreateGrant) {
		c.Name, c.Retiring, c.Expires = "<n>\u2028", other, now+50
		c.Operations = []GrantOperation{GrantReEncryptFrom, GrantCreateGrant, GrantDecrypt, GrantRetireGrant}
		c.Constraints.Subset = []Tag{{"b", "<&>"}, {"a", ""}}
	}))
	w.ask("grant", "1", createGrant(9, 15))
	w.refuse(edited(createGrant(2, 15), func(c *CreateGrant) { c.Name = "<n>\u2028" }), ErrExists, "")
	w.as(user, func() {
		for n := uint64(2); n <= 4; n++ {
			w.do(edited(createGrant(n, 15), func(c *CreateGrant) {
				c.Parent, c.Expires, c.Constraints.Equals = grantID(1), now+int64(10*n), []Tag{{"b", "<&>"}, {"a", ""}}
				c.Operations = append(c.Operations, GrantCreateGrant)
			}))
		}
		w.do(edited(createGrant(5, 15), func(c *CreateGrant) {
			c.Parent, c.Expires, c.Constraints.Equals = grantID(3), now+30, []Tag{{"b", "<&>"}, {"a", ""}}
		}))
		w.refuseLate(edited(createGrant(6, 15), func(c *CreateGrant) { c.Parent, c.Expires = grantID(1), now+50 }), ErrInvalid, "as strict")
		w.refuse(edited(createGrant(6, 15), func(c *CreateGrant) { c.Parent = grantID(9) }), ErrNotFound, "")
	})
	w.do(edited(createGrant(6, 15), func(c *CreateGrant) {
		c.Grantee, c.Service, c.Name = storage, true, strings.Repeat("n", MaxGrantName)
		c.Constraints.Equals = []Tag{{"resource", "r"}, {"tenant", DefaultTenant}}
	}))
	w.refuse(edited(createGrant(7, 15), func(c *CreateGrant) { c.Service = true }), ErrInvalid, "")
	w.refuse(edited(createGrant(7, 11), func(c *CreateGrant) { c.Operations = []GrantOperation{GrantEncrypt} }), ErrDecryptOnly, "")
	w.do(createGrant(7, 11))
	w.do(&RevokeGrant{grantRef(3, 15)}) // 5 goes with it
	w.refuse(&RevokeGrant{grantRef(5, 15)}, ErrNotFound, "")
	w.as(other, func() { w.do(&RetireGrant{grantRef(2, 15)}) })
	w.refuse(&ExpireGrant{grantRef(4, 15), now + 39}, ErrConflict, "")
	w.do(&ExpireGrant{grantRef(4, 15), now + 40})
	w.refuse(&RetireGrant{grantRef(4, 15)}, ErrNotFound, "")
	w.refuse(&RevokeGrant{GrantRef{}}, ErrInvalid, "")
}

func goldenPolicies(w *world) {
	w.ask("policy", "16", expecting(putPolicy(16, "permit(principal, action, resource); // <&>\u2028"), 0))
	w.refuse(expecting(putPolicy(16, "x"), 0), ErrConflict, "")
	w.do(edited(putPolicy(18, "x"), func(c *PutPolicy) { c.ExpectKey = w.key(18).Revision }))
	w.refuse(edited(putPolicy(18, "x"), func(c *PutPolicy) { c.ExpectKey = 1 }), ErrConflict, "")
	w.refuse(putPolicy(16, strings.Repeat("x", MaxPolicyText+1)), ErrInvalid, "")
	w.refuse(&PutPolicy{Tenant: "acme", Key: keyID(22), Text: "x"}, ErrServiceManaged, "")
	for n := range uint32(MaxPolicyHistory + 1) {
		w.do(expecting(putPolicy(0, fmt.Sprintf("text %d", n)), n))
	}
	w.do(putPolicy(0, ""))
	w.do(putPolicy(17, ""))
	w.do(putPolicy(16, "second"))
}

func goldenUses(w *world) {
	now := w.s.Now() / second
	w.do(&RecordUse{[]Use{{keyID(15), 1, now}, {keyID(13), 3, now - 5}, {keyID(13), 2, now - 9}, {keyID(99), 1, now}, {keyID(15), 1, now - 1}, {keyID(13), 0, now}}})
	w.do(&RecordUse{[]Use{{keyID(13), 3, 1<<63 - 1}, {keyID(13), 2, -1}}})
	w.refuse(&RecordUse{}, ErrInvalid, "")
	w.as(storage, func() {
		w.do(bind(16, "bucket/<a>"))
		w.do(bind(16, strings.Repeat("r", MaxResource)))
		w.do(bind(16, "bucket/<a>"))
	})
	w.refuse(bind(16, ""), ErrInvalid, "")
	w.refuse(&ScheduleKeyDeletion{ref(16), 7}, ErrInUse, "")
	w.refuse(&ReleaseResource{ref(16), "bucket/<a>", admin}, ErrNotFound, "")
	w.do(&ReleaseResource{ref(16), "bucket/<a>", storage})
	w.do(bind(17, "volume/1"))
	w.do(release(17, "volume/1"))
}

func goldenDeletions(w *world) {
	w.do(&CreateAlias{alias("alias/gone", 15)})
	w.refuse(&DeleteKey{ref(15), 1 << 40}, ErrNotPendingDeletion, "")
	w.ask("schedule", "15", &ScheduleKeyDeletion{ref(15), 7})
	at := w.key(15).Deletion
	w.refuse(&DeleteKey{ref(15), at - 1}, ErrConflict, "")
	w.do(&DeleteKey{KeyRef{keyID(15), DefaultTenant, w.key(15).Revision}, at})
	w.refuse(&DeleteKey{ref(15), at}, ErrNotFound, "")
	w.do(&ScheduleKeyDeletion{ref(18), 7})
	w.do(&ScheduleKeyDeletion{ref(19), 30})
	w.clock += 8 * day * second
}

func goldenInvitations(w *world) {
	w.do(invite("m7", identityOf("m7")))
	w.refuse(edited(admit("m7"), func(c *AdmitNode) { c.Identity = []byte("another") }), ErrIdentity, "")
	w.refuse(edited(admit("m7"), func(c *AdmitNode) { c.Identity = []byte("identity of n4") }), ErrIdentity, "")
	w.do(admit("m7"))
	w.do(invite("m8", nil))
	w.refuse(admit("m8"), ErrIdentity, "")
	w.do(requestOf("m8"))
	w.do(requestOf("m8"))
	w.refuse(edited(requestOf("m8"), func(c *RequestJoin) { c.Identity = []byte("another") }), ErrIdentity, "")
	w.refuse(&ApproveJoin{"m8", identityOf("m7")}, ErrIdentity, "")
	w.clock += 3500 * second
	w.ask("approve", "m8", &ApproveJoin{"m8", identityOf("m8")})
	w.do(admit("m8"))
	w.do(&RemoveNode{nodeID("m8")})
	w.do(&RetireNode{nodeID("m8")})
	w.do(invite("m8", nil))
	w.do(edited(requestOf("m8"), func(c *RequestJoin) { c.ID = "m8-00000002" }))
	w.do(invite("m9", nil))
	w.do(&RejectJoin{"m9"})
	w.refuse(&RejectJoin{"m9"}, ErrNotFound, "")
}

func goldenVotes(w *world) {
	w.join("n4", false, MemberActive)
	w.join("n5", true, MemberAdmitted)
	w.do(&SetVoter{nodeID("n4"), false})
	w.ask("promote", "n4", &SetVoter{nodeID("n4"), true})
	w.ask("promote", "n4", &SetVoter{nodeID("n4"), true})
	w.do(&SetVoter{firstNode, false})
	w.do(&SetVoter{nodeID("n2"), false})
	w.refuse(&SetVoter{nodeID("n4"), false}, ErrMember, "")
	w.refuse(&SetVoter{nodeID("n5"), false}, ErrMember, "")
	w.refuse(&SetVoter{nodeID("n9"), true}, ErrNotFound, "")
	w.do(&RemoveNode{nodeID("n2")})
	w.refuse(&SetVoter{nodeID("n2"), true}, ErrMember, "")
}

func goldenKeys(w *world) {
	w.clock += 1_234_567_890
	w.ask("create-1", "a", edited(createKey(1), func(c *CreateKey) {
		c.Description = "volumes <of> & \"the\" \\ archive\u2028 \u00e4\u65e5\U0001F600\x00\b\t\n\v\f\r\x1f\x7f\ufffd"
		c.Tags = []Tag{{"zone", "b"}, {"app", ""}, {"Zone", "<a&b>"}}
		c.Token = bytes.Repeat([]byte{0xfb, 0xff}, 100)
	}))
	w.ask("create-1", "a", createKey(2))
	w.ask("create-1", "a", &Repeat{})
	w.refuse(&Repeat{}, ErrNotFound, "")
	w.do(edited(createKey(2), func(c *CreateKey) { c.ID = ID(bytes.Repeat([]byte{0xab}, 16)) }))
	for n := uint64(2); n <= 5; n++ {
		w.clock += second / 2
		w.do(createKey(n))
	}
	_, err := w.apply(w.request("create-1", "b"), createKey(9))
	wantError(w.t, err, ErrRequestReused, "")
	w.refuse(createKey(1), ErrExists, "")
	w.do(&UpdateKeyDescription{ref(2), "second"})
	w.do(&UpdateKeyDescription{KeyRef{keyID(2), DefaultTenant, w.s.Index()}, ""})
	w.refuse(&UpdateKeyDescription{KeyRef{keyID(2), DefaultTenant, 1}, "x"}, ErrConflict, "")
	w.do(&DisableKey{ref(3)})
	w.do(&EnableKey{ref(2)})
	w.do(&DisableKey{ref(2)})
	w.do(&EnableKey{ref(2)})
	w.refuse(rotateKey(3, 2), ErrDisabled, "")
	w.ask("rotate", "1", rotateKey(1, 2))
	w.do(rotateKey(1, 3))
	w.refuse(rotateKey(1, 3), ErrConflict, "")
	w.do(&ScheduleKeyDeletion{ref(4), 7})
	w.ask("schedule", "30 days", &ScheduleKeyDeletion{ref(3), 30})
	w.refuse(&EnableKey{ref(3)}, ErrPendingDeletion, "")
	w.do(&CancelKeyDeletion{ref(3)})
	w.refuse(&CancelKeyDeletion{ref(3)}, ErrNotPendingDeletion, "")
}

func goldenNames(w *world) {
	w.do(&TagKey{ref(2), tags(0, 50)})
	w.refuse(&TagKey{ref(2), tags(50, 1)}, ErrLimit, "")
	w.do(&TagKey{ref(1), []Tag{{"zone", "c"}, {"\u00e4", "<"}}})
	w.do(&UntagKey{ref(1), []string{"app", "never there"}})
	w.do(&UntagKey{ref(1), []string{"Zone", "zone", "\u00e4"}})
	for _, name := range []string{"alias/db", "alias/a-z_A-Z/0:9", "alias/gone"} {
		w.do(&CreateAlias{alias(name, 1)})
	}
	w.refuse(&CreateAlias{alias("alias/db", 2)}, ErrExists, "")
	w.refuse(&CreateAlias{alias("alias/service/obs", 2)}, ErrInvalid, "")
	w.clock += second
	w.do(&UpdateAlias{alias("alias/db", 5)})
	w.do(&UpdateAlias{alias("alias/db", 5)})
	w.refuse(&DeleteAlias{DefaultTenant, "alias/gone", w.key(1).Revision - 1}, ErrConflict, "")
	w.ask("delete-alias", "", &DeleteAlias{DefaultTenant, "alias/gone", w.key(1).Revision})
	w.refuse(deleteAlias("alias/gone"), ErrNotFound, "")
	w.do(deleteAlias("alias/a-z_A-Z/0:9"))
	w.refuse(&DisableKey{KeyRef{ID: keyID(1), Tenant: "acme"}}, ErrNotFound, "")
}

func goldenMembers(w *world) {
	w.refuse(&RemoveNode{firstNode}, ErrMember, "")
	w.do(edited(ticketFor("late"), func(c *CreateTicket) { c.Seconds = 1 }))
	w.clock += second
	w.refuse(admit("late"), ErrTicket, "")
	w.join("n2", true, MemberActive)
	w.join("n3", false, MemberGone)
	w.join("n4", true, MemberLeaving)
	w.join("n5", true, MemberAdmitted)
	w.do(admit("n5"))
	w.do(edited(admit("n2"), func(c *AdmitNode) { c.ClientAddress = "n2b:7001" }))
	w.refuse(edited(admit("n2"), func(c *AdmitNode) { c.Identity = []byte("identity of n3") }), ErrMember, "")
	w.do(ticketFor("n6"))
	w.refuse(edited(admit("n3"), func(c *AdmitNode) { c.Ticket = "ticket-n6" }), ErrMember, "")
	w.refuse(&RetireNode{nodeID("n2")}, ErrMember, "")
	w.refuse(&UpdateMember{ID: nodeID("n2"), PeerAddress: "n2b:7000", ClientAddress: "x"}, ErrMember, "")
	w.proposer = nodeID("n2")
	w.ask("update", "n2", &UpdateMember{ID: nodeID("n2"), PeerAddress: "[2001:db8::2]:7000", ClientAddress: "n2.example:7001"})
	w.refuse(&UpdateMember{ID: nodeID("n2"), PeerAddress: "n1:7000", ClientAddress: "x"}, ErrMember, "")
	w.proposer = firstNode
	w.refuse(&ActivateNode{"n9"}, ErrNotFound, "")
	w.do(&RemoveNode{firstNode})
}

// replay applies a golden log, an entry a line, and gives a line for each entry:
// index, running hash, and the answer or the code of the refusal.
func replay(t *testing.T, log []byte) (*State, string) {
	t.Helper()
	w := newWorld(t)
	var lines strings.Builder
	for raw := range bytes.Lines(log) {
		raw = bytes.TrimSuffix(raw, []byte("\n"))
		if err := logKey().VerifyEntry(raw); err != nil {
			t.Fatal(err)
		}
		result, err := w.append(w.s.Index()+1, 1, raw)
		answer := Code(err)
		if err == nil {
			b, err := json.Marshal(result)
			if err != nil {
				t.Fatal(err)
			}
			answer = string(b)
		}
		fmt.Fprintf(&lines, "%d %s %s\n", w.s.Index(), hex.EncodeToString(w.s.Hash()), answer)
	}
	return w.s, lines.String()
}

func golden(t *testing.T, release, what string) []byte {
	t.Helper()
	b, err := os.ReadFile(goldenFile(release, what))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGoldenEncoding: the script of each release still gives the log, the hashes and
// the snapshot that were written when it came out.
func TestGoldenEncoding(t *testing.T) {
	if len(goldenScripts) != NewestRelease {
		t.Fatalf("%d golden scripts for %d releases", len(goldenScripts), NewestRelease)
	}
	for i, script := range goldenScripts {
		release := fmt.Sprintf("v%d", FirstRelease+i)
		w := script(t)
		var log []byte
		for _, l := range w.log {
			if bytes.ContainsRune(l.Data, '\n') {
				t.Fatalf("%s: entry %d has a line end", release, l.Index)
			}
			log = append(append(log, l.Data...), '\n')
		}
		s, hashes := replay(t, log)
		files := map[string][]byte{"log": log, "hashes": []byte(hashes), "snapshot": snapshotOf(t, s)}
		for what, b := range files {
			if *update && i == len(goldenScripts)-1 {
				if err := os.WriteFile(goldenFile(release, what), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			wantSame(t, goldenFile(release, what), b, golden(t, release, what))
		}
	}
}

func wantSame(t *testing.T, name string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	t.Errorf("%s differs from byte %d on:\n%q\nwant\n%q", name, i, got[i:min(len(got), i+200)], want[i:min(len(want), i+200)])
}

// TestGoldenLogs: this release reads the log of every release, comes to the same
// hash after every entry and to the same snapshot, and goes on from it.
func TestGoldenLogs(t *testing.T) {
	logs, err := filepath.Glob(goldenFile("*", "log"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("golden logs %v: %v", logs, err)
	}
	used := map[string]bool{}
	for _, path := range logs {
		release := strings.TrimSuffix(filepath.Base(path), ".log")
		log := golden(t, release, "log")
		s, hashes := replay(t, log)
		wantSame(t, release+".hashes", []byte(hashes), golden(t, release, "hashes"))
		snapshot := golden(t, release, "snapshot")
		wantSame(t, release+".snapshot", snapshotOf(t, s), snapshot)
		restored, err := ReadSnapshot(bytes.NewReader(snapshot), logKey())
		if err != nil {
			t.Fatalf("%s: %v", release, err)
		}
		wantTwins(t, s, restored)
		for raw := range bytes.Lines(log) {
			var entry struct{ Command string }
			if err := json.Unmarshal(raw, &entry); err != nil {
				t.Fatal(err)
			}
			used[entry.Command] = true
		}
	}
	for _, s := range commands {
		if !used[s.name] {
			t.Errorf("no golden log has the command %s", strconv.Quote(s.name))
		}
	}
}

// wantTwins: two states that are the same go on alike.
func wantTwins(t *testing.T, a, b *State) {
	t.Helper()
	x, y := &world{t: t, s: a, clock: a.Now()}, &world{t: t, s: b, clock: b.Now()}
	for _, w := range []*world{x, y} {
		active, _ := w.s.ActiveGeneration()
		w.do(edited(createKey(1<<40), func(c *CreateKey) { c.Generation = active.Number }))
		w.do(&CreateAlias{alias("alias/twin", 1<<40)})
		w.do(edited(rotateKey(1<<40, w.s.NextVersion(w.key(1<<40))), func(c *RotateKey) { c.Generation = active.Number }))
		w.ask("twin", "", &DisableKey{ref(1 << 40)})
		if w.s.Cluster().Release == FirstRelease {
			continue
		}
		w.do(&EnableKey{ref(1 << 40)})
		w.do(&EnableKeyRotation{ref(1 << 40), period})
		w.do(edited(createGrant(90, 1<<40), func(c *CreateGrant) { c.Name, c.Expires, c.Retiring = "twin", 1<<40, other }))
		w.do(&RevokeGrant{grantRef(90, 1<<40)})
		w.do(putPolicy(1<<40, "twin"))
		w.do(bind(1<<40, "twin"))
		w.do(&DisablePrincipal{"spiffe://twin", ""})
		w.do(&RecordUse{[]Use{{keyID(1 << 40), 1, 5}}})
	}
	if !bytes.Equal(x.s.Hash(), y.s.Hash()) {
		t.Error("the two states go on with different hashes")
	}
	wantSame(t, "snapshot", snapshotOf(t, x.s), snapshotOf(t, y.s))
}
