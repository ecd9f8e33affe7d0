package kms

import (
	"fmt"

	"github.com/quorumkms/quorumkms/fsm"
)

// Class is the class of a caller, from its certificate.
type Class string

// The classes of callers.
const (
	ClassNode     Class = "node"
	ClassOperator Class = "operator"
	ClassAdmin    Class = "admin" // key administrator of a tenant
	ClassUser     Class = "user"  // key user of a tenant
	ClassAuditor  Class = "auditor"
	ClassService  Class = "service"
)

// Caller is who calls; all of it comes from the certificate and the connection.
type Caller struct {
	Principal string // SPIFFE URI
	Class     Class
	Tenant    string // empty for classes that belong to no tenant
	Name      string
	Source    string // network address
	// itself tells that it is this node, for its own audit trail: no certificate says that.
	itself bool
}

// Call is what every call has in common.
type Call struct {
	Caller     Caller
	Tenant     string // acting tenant as asked for; empty: the caller's own
	RequestID  string // of mutations
	DryRun     bool
	IndexToken []byte
	// Consistency is empty or ConsistencyLease, or ConsistencyQuorum.
	Consistency string
}

// How a call makes sure that the state it is answered from is fresh.
const (
	ConsistencyLease  = "lease"  // by this node's lease: no round trip
	ConsistencyQuorum = "quorum" // by a tick that is committed for it: no clock is believed
)

// permission groups the calls that the classes may make.
type permission int

const (
	mayUse        permission = iota // cryptography, and the registration of resources
	mayAdminister                   // keys, aliases, tags, policies, grants
	mayRead                         // metadata
	mayOperate                      // the cluster
	mayDelegate                     // create and retire grants: who holds one, too
	mayGovern                       // a tenant and its principals: its administrators, and operators
	mayAudit                        // the audit trail's records
	maySeeTrails                    // how far the nodes' audit trails are, and what is remembered of them
)

// roles is the one table of what each class may ever do. Policies and grants choose
// within it; nothing goes beyond it.
var roles = map[Class][]permission{
	ClassUser:     {mayUse, mayRead, mayDelegate},
	ClassAdmin:    {mayAdminister, mayRead, mayDelegate, mayGovern},
	ClassAuditor:  {mayRead, mayAudit, maySeeTrails},
	ClassService:  {mayUse, mayRead, mayDelegate},
	ClassOperator: {mayOperate, mayGovern, maySeeTrails},
}

// may tells whether a class may ever do what needs a permission.
func (c Class) may(p permission) error {
	for _, has := range roles[c] {
		if has == p {
			return nil
		}
	}
	return fmt.Errorf("%w: the class %s may not %s", ErrDenied, c, p)
}

// may tells whether a caller may ever do what needs a permission: its class may, or it is this
// node, which uses keys for its audit trail.
func (c Caller) may(p permission) error {
	if c.itself && p == mayUse {
		return nil
	}
	return c.Class.may(p)
}

func (p permission) String() string {
	switch p {
	case mayUse:
		return "use keys (key users and services may)"
	case mayAdminister:
		return "administer keys (key administrators may)"
	case mayOperate:
		return "operate the cluster (operators may)"
	case mayRead:
		return "read keys' metadata (key users, key administrators, services and auditors may)"
	case mayDelegate:
		return "deal with grants (key administrators may, and who holds one)"
	case mayGovern:
		return "govern a tenant (its key administrators and operators may)"
	case mayAudit:
		return "read the audit trail (auditors may)"
	case maySeeTrails:
		return "see what is remembered of the audit trails (auditors and operators may)"
	}
	return "do this"
}

// allReading tells whether the caller reads what all tenants have.
func (c Caller) allReading() bool { return c.Class == ClassAuditor && c.Tenant == "" }

// SeesAll tells whether the caller may know what concerns any tenant: names of principals and
// keys in what the node tells of itself.
func (c Caller) SeesAll() bool { return c.Class == ClassOperator || c.allReading() }

// foreign tells whether the caller acts for a tenant that is not its own. Then only a
// grant or a service's own key helps it, and what is not there and what it may not have
// look alike.
func (c Caller) foreign(tenant string) bool { return c.Tenant != tenant && !c.allReading() }

// syntax checks what every call carries.
func (c Call) syntax() error {
	switch {
	case c.Tenant != "" && !fsm.ValidName(c.Tenant):
		return invalid("tenant %.80q is no tenant's name", c.Tenant)
	case len(c.RequestID) > fsm.MaxRequestID:
		return invalid("request id has %d bytes, at most %d", len(c.RequestID), fsm.MaxRequestID)
	case c.Consistency != "" && c.Consistency != ConsistencyLease && c.Consistency != ConsistencyQuorum:
		return invalid("consistency %.80q: must be %s or %s", c.Consistency, ConsistencyLease, ConsistencyQuorum)
	}
	return nil
}

// acting is the tenant that the call is for, as long as its key names none: the one asked
// for, or the caller's own.
func (c Call) acting() string {
	switch {
	case c.Tenant != "":
		return c.Tenant
	case c.Caller.Tenant != "":
		return c.Caller.Tenant
	}
	return fsm.DefaultTenant
}
