// Package policy decides by Cedar policies who may do what with which key: it parses a
// text, checks it against the schema, and evaluates what it says of a request.
//
// Read policy.go (a text becomes a [Set]), decide.go (a [Request] becomes a [Decision]),
// then action.go and schema.go (what can be named). How problems get their line and
// column stands in locate.go and typed.go.
//
// # For authors of policies
//
// A text is a number of statements, permit or forbid. A request is permitted if a permit
// applies and no forbid does, in the tenant's policy and the key's taken together. Name
// statements with @id("…"): the name stands in the audit record and in explanations.
// Templates are not taken. Syntax: https://docs.cedarpolicy.com.
//
// Principals are, by class, KMS::User, KMS::Admin, KMS::Auditor, KMS::Service and
// KMS::Operator. The id is the SPIFFE URI. Users, admins and auditors are in
// KMS::Tenant::"<tenant>"; auditors of the cluster are in none.
//
// Nodes, which seal their audit trails with a key if they hold a grant of it, are of no type
// that can be named: what forbids everybody forbids them. Ask principal.name, or the
// encryption context's purpose, audit-trail.
//
//	principal.name    the last part of the URI
//	principal.tenant  users and admins; for auditors ask "principal has tenant" first
//
// Resources are KMS::Key, by UUID and in its KMS::Tenant, or the KMS::Tenant itself.
// "resource in KMS::Tenant::"t"" is both; "resource is KMS::Key" makes what keys have
// accessible.
//
//	resource.tenant   the tenant's name; of keys and tenants
//	resource.spec     as SYMMETRIC, HMAC_256, RSA_2048, ECC_NIST_P256
//	resource.usage    ENCRYPT_DECRYPT, SIGN_VERIFY or GENERATE_VERIFY_MAC
//	resource.manager  CUSTOMER or SERVICE
//	resource.aliases  a set: resource.aliases.contains("alias/photos")
//	tags              resource.hasTag("env") && resource.getTag("env") == "prod"
//
// Actions are KMS::Action::"<name>"; "action in KMS::Action::"use"" names a group. The
// resource is a key; of those marked * the tenant; of those marked + either. Use:
//
//	Encrypt Decrypt ReEncryptFrom ReEncryptTo GenerateDataKey
//	GenerateDataKeyWithoutPlaintext GenerateDataKeyPair
//	GenerateDataKeyPairWithoutPlaintext GenerateRandom* Sign Verify GenerateMac
//	VerifyMac GetPublicKey BindResource ReleaseResource
//
// Administer:
//
//	CreateKey* EnableKey DisableKey SetKeyDecryptOnly UpdateKeyDescription
//	ScheduleKeyDeletion CancelKeyDeletion SetDeletionProtection SetRequiredContext
//	TagResource UntagResource CreateAlias+ UpdateAlias DeleteAlias EnableKeyRotation
//	DisableKeyRotation RotateKeyOnDemand EnableKeyVersion DisableKeyVersion
//	ScheduleKeyVersionDestruction CancelKeyVersionDestruction PutKeyPolicy
//	DeleteKeyPolicy PutTenantPolicy* DeleteTenantPolicy* CreateGrant RevokeGrant
//	RetireGrant ForceReleaseResource DisablePrincipal* EnablePrincipal* FreezeTenant*
//	ThawTenant* GetParametersForImport ImportKeyMaterial DeleteImportedKeyMaterial
//
// Read:
//
//	DescribeKey ListKeys* ListAliases+ ListResourceTags ListKeyRotations
//	GetKeyRotationStatus ListKeyVersions ListGrants+ ListRetirableGrants* GetKeyPolicy
//	GetTenantPolicy* ListPolicyRevisions+ ExplainPolicy+ ValidatePolicy*
//	ListResources+ ListPrincipals* DescribeTenant*
//
// The context is the request's own. Strings of it are to be asked for first, with hasTag
// or has: what may be missing cannot be read otherwise.
//
//	context.encryption_context  .hasTag("bucket") && ….getTag("bucket") == "photos"
//	context.source_service      the service that calls, by its name; of users and all others none
//	context.time                a datetime, in UTC
//
// Policies decide for the tenant's own principals. Callers of no tenant or of another one,
// services and other tenants' users, use a key by a grant, or a service by its own key: a
// permit does nothing for them, and a forbid is final.
//
// A tenant's text replaces the default one (default.go): begin with that. Whoever may put a
// text must still be able to when time has passed and tags and aliases have changed, see
// Lasting.
//
// A restriction must not vanish by mistake. So a name that nothing has is refused when
// the policy is proposed, also behind has; and a forbid that cannot be evaluated, where a
// number overflows, forbids.
//
// A user decrypts what belongs to one bucket:
//
//	@id("photos-reader")
//	permit (
//	    principal == KMS::User::"spiffe://kms.example/tenant/acme/user/viewer",
//	    action == KMS::Action::"Decrypt",
//	    resource
//	) when {
//	    context.encryption_context.hasTag("bucket") &&
//	    context.encryption_context.getTag("bucket") == "photos"
//	};
//
// Nobody deletes a production key, whatever else is permitted:
//
//	@id("keep-production")
//	forbid (
//	    principal,
//	    action in [KMS::Action::"ScheduleKeyDeletion", KMS::Action::"ScheduleKeyVersionDestruction"],
//	    resource is KMS::Key
//	) when { resource.hasTag("env") && resource.getTag("env") == "prod" };
//
// A contractor uses the tenant's keys until a day:
//
//	@id("contractor")
//	permit (
//	    principal == KMS::User::"spiffe://kms.example/tenant/acme/user/contractor",
//	    action in KMS::Action::"use",
//	    resource in KMS::Tenant::"acme"
//	) when { context.time < datetime("2027-01-01") };
//
// Services open nothing of the bucket that is closed, whatever they hold grants for, but
// the object store itself:
//
//	@id("closed-bucket")
//	forbid (
//	    principal is KMS::Service,
//	    action in KMS::Action::"use",
//	    resource in KMS::Tenant::"acme"
//	) when {
//	    context.encryption_context.hasTag("resource") &&
//	    context.encryption_context.getTag("resource") == "closed"
//	} unless { context has source_service && context.source_service == "obs" };
package policy
