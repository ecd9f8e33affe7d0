package policy

import (
	"fmt"
	"slices"
)

// Group is the kind of an action, and an action of its own that a policy can name:
// action in KMS::Action::"use".
type Group string

// The groups.
const (
	Use        Group = "use"        // cryptography with a key
	Administer Group = "administer" // changes of keys, grants, policies and the tenant
	Read       Group = "read"       // what is known of them
)

// On says what an action's resource is.
type On uint8

// The resources of an action.
const (
	OnKey    On = 1 << iota // a KMS::Key
	OnTenant                // a KMS::Tenant
	OnBoth   = OnKey | OnTenant
)

// Action is one operation that a policy decides on.
type Action struct {
	Name  string // the operation's name in the protocol
	Group Group
	On    On
}

// Actions are all actions, by group.
func Actions() []Action { return slices.Clone(actions) }

// Find finds an action by its name; where there is none, the error says which may be meant.
func Find(name string) (Action, error) {
	i := slices.IndexFunc(actions, func(a Action) bool { return a.Name == name })
	if i >= 0 {
		return actions[i], nil
	}
	names := make([]string, len(actions))
	for i, a := range actions {
		names[i] = a.Name
	}
	return Action{}, fmt.Errorf("unknown operation %.80q%s", name, Meant(name, names))
}

// actions is the only list of actions: the schema is generated from it.
var actions = []Action{
	{"Encrypt", Use, OnKey},
	{"Decrypt", Use, OnKey},
	{"ReEncryptFrom", Use, OnKey},
	{"ReEncryptTo", Use, OnKey},
	{"GenerateDataKey", Use, OnKey},
	{"GenerateDataKeyWithoutPlaintext", Use, OnKey},
	{"GenerateDataKeyPair", Use, OnKey},
	{"GenerateDataKeyPairWithoutPlaintext", Use, OnKey},
	{"GenerateRandom", Use, OnTenant},
	{"Sign", Use, OnKey},
	{"Verify", Use, OnKey},
	{"GenerateMac", Use, OnKey},
	{"VerifyMac", Use, OnKey},
	{"GetPublicKey", Use, OnKey},
	{"BindResource", Use, OnKey},
	{"ReleaseResource", Use, OnKey},

	{"CreateKey", Administer, OnTenant},
	{"EnableKey", Administer, OnKey},
	{"DisableKey", Administer, OnKey},
	{"SetKeyDecryptOnly", Administer, OnKey},
	{"UpdateKeyDescription", Administer, OnKey},
	{"ScheduleKeyDeletion", Administer, OnKey},
	{"CancelKeyDeletion", Administer, OnKey},
	{"SetDeletionProtection", Administer, OnKey},
	{"SetRequiredContext", Administer, OnKey},
	{"TagResource", Administer, OnKey},
	{"UntagResource", Administer, OnKey},
	{"CreateAlias", Administer, OnBoth},
	{"UpdateAlias", Administer, OnKey},
	{"DeleteAlias", Administer, OnKey},
	{"EnableKeyRotation", Administer, OnKey},
	{"DisableKeyRotation", Administer, OnKey},
	{"RotateKeyOnDemand", Administer, OnKey},
	{"GetParametersForImport", Administer, OnKey},
	{"ImportKeyMaterial", Administer, OnKey},
	{"DeleteImportedKeyMaterial", Administer, OnKey},
	{"EnableKeyVersion", Administer, OnKey},
	{"DisableKeyVersion", Administer, OnKey},
	{"ScheduleKeyVersionDestruction", Administer, OnKey},
	{"CancelKeyVersionDestruction", Administer, OnKey},
	{"PutKeyPolicy", Administer, OnKey},
	{"DeleteKeyPolicy", Administer, OnKey},
	{"PutTenantPolicy", Administer, OnTenant},
	{"DeleteTenantPolicy", Administer, OnTenant},
	{"CreateGrant", Administer, OnKey},
	{"RevokeGrant", Administer, OnKey},
	{"RetireGrant", Administer, OnKey},
	{"ForceReleaseResource", Administer, OnKey},
	{"DisablePrincipal", Administer, OnTenant},
	{"EnablePrincipal", Administer, OnTenant},
	{"FreezeTenant", Administer, OnTenant},
	{"ThawTenant", Administer, OnTenant},

	{"DescribeKey", Read, OnKey},
	{"ListKeys", Read, OnTenant},
	{"ListAliases", Read, OnBoth},
	{"ListResourceTags", Read, OnKey},
	{"ListKeyRotations", Read, OnKey},
	{"GetKeyRotationStatus", Read, OnKey},
	{"ListKeyVersions", Read, OnKey},
	{"ListGrants", Read, OnBoth},
	{"ListRetirableGrants", Read, OnTenant},
	{"GetKeyPolicy", Read, OnKey},
	{"GetTenantPolicy", Read, OnTenant},
	{"ListPolicyRevisions", Read, OnBoth},
	{"ExplainPolicy", Read, OnBoth},
	{"ValidatePolicy", Read, OnTenant},
	{"ListResources", Read, OnBoth},
	{"ListPrincipals", Read, OnTenant},
	{"DescribeTenant", Read, OnTenant},
}

var groups = []Group{Use, Administer, Read}
