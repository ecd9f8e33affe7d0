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
	mayUse        permission = iota // cryptography
	mayAdminister                   // keys, aliases, tags
	mayRead                         // metadata
	mayOperate                      // the cluster
)

// allow is the one table of which class may do what to a tenant's keys. It
// returns the acting tenant and the rule that allowed.
func (c Call) allow(p permission) (tenant, rule string, err error) {
	if c.Tenant != "" && !fsm.ValidName(c.Tenant) {
		return "", "syntax", invalid("tenant %.80q is no tenant's name", c.Tenant)
	}
	if len(c.RequestID) > fsm.MaxRequestID {
		return "", "syntax", invalid("request id has %d bytes, at most %d", len(c.RequestID), fsm.MaxRequestID)
	}
	if c.Consistency != "" && c.Consistency != ConsistencyLease && c.Consistency != ConsistencyQuorum {
		return "", "syntax", invalid("consistency %.80q: must be %s or %s", c.Consistency, ConsistencyLease, ConsistencyQuorum)
	}
	tenant = c.Caller.Tenant
	switch {
	case tenant == "" && c.Tenant == "":
		tenant = fsm.DefaultTenant
	case tenant == "":
		tenant = c.Tenant
	case c.Tenant != "" && c.Tenant != tenant:
		return tenant, "tenant", fmt.Errorf("%w: %s belongs to tenant %s and cannot act for tenant %s", ErrDenied, c.Caller.Principal, tenant, c.Tenant)
	}
	allowed := false
	switch c.Caller.Class {
	case ClassUser:
		allowed = p == mayUse || p == mayRead
	case ClassAdmin:
		allowed = p == mayAdminister || p == mayRead
	case ClassAuditor:
		allowed = p == mayRead
	case ClassService:
		return tenant, "class", fmt.Errorf("%w: a service acts for a tenant through a grant or its own service key only", ErrDenied)
	case ClassOperator:
		allowed = p == mayOperate
	case ClassNode:
	}
	if !allowed {
		return tenant, "class", fmt.Errorf("%w: the class %s may not %s", ErrDenied, c.Caller.Class, p)
	}
	return tenant, "class", nil
}

func (p permission) String() string {
	switch p {
	case mayUse:
		return "use keys (key users may)"
	case mayAdminister:
		return "administer keys (key administrators may)"
	case mayOperate:
		return "operate the cluster (operators may)"
	case mayRead:
		return "read keys' metadata (key users, key administrators and auditors may)"
	}
	return "do this"
}
