package policy

// DefaultText is the policy of a tenant that has none of its own. Auditors of the
// cluster, who have no tenant, read every tenant's.
const DefaultText = `@id("default-admins")
permit (
    principal is KMS::Admin,
    action in [KMS::Action::"administer", KMS::Action::"read", KMS::Action::"BindResource"],
    resource
) when { principal.tenant == resource.tenant };

@id("default-users")
permit (
    principal is KMS::User,
    action in [KMS::Action::"use", KMS::Action::"read"],
    resource
) when { principal.tenant == resource.tenant };

@id("default-auditors")
permit (
    principal is KMS::Auditor,
    action in KMS::Action::"read",
    resource
) unless { principal has tenant && principal.tenant != resource.tenant };
`
