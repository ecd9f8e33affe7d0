package transport

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ErrIdentity means: a certificate or URI does not name exactly one principal of the
// forms this package knows.
var ErrIdentity = errors.New("identity refused")

const (
	// maxURI is the longest SPIFFE ID in bytes (SPIFFE-ID, section 2.3).
	maxURI = 2048
	// maxTrustDomain is the longest trust domain name in bytes (SPIFFE-ID, section 2.1).
	maxTrustDomain = 255
	// maxName is the longest name of a principal or tenant in bytes.
	maxName = 64

	identityForms = "/node/<id>, /operator/<name>, /tenant/<t>/admin|user|auditor/<name>, /auditor/<name> or /service/<name>"
)

// Class is what kind of principal an identity is; it follows from the path of
// the SPIFFE URI alone.
type Class string

// The classes of principals.
const (
	ClassNode     Class = "node"     // /node/<id>: a member of the cluster
	ClassOperator Class = "operator" // /operator/<name>: membership, backup, domain
	ClassAdmin    Class = "admin"    // /tenant/<t>/admin/<name>: key administrator
	ClassUser     Class = "user"     // /tenant/<t>/user/<name>: key user
	ClassAuditor  Class = "auditor"  // /tenant/<t>/auditor/<name>, or /auditor/<name> for all tenants
	ClassService  Class = "service"  // /service/<name>: storage service
)

// Identity is one principal. Tenant is set for admin and user, may be set for
// auditor, and is empty otherwise. Identities are comparable.
type Identity struct {
	TrustDomain string
	Tenant      string
	Name        string
	Class       Class
}

// String is the SPIFFE URI. It parses back to the same value for every identity
// that this package returned.
func (i Identity) String() string {
	if i.Tenant != "" {
		return "spiffe://" + i.TrustDomain + "/tenant/" + i.Tenant + "/" + string(i.Class) + "/" + i.Name
	}
	return "spiffe://" + i.TrustDomain + "/" + string(i.Class) + "/" + i.Name
}

// IdentityOf reads the identity of a certificate: its only URI SAN. The common
// name and DNS names are ignored. It does not verify the certificate. Every
// error wraps ErrIdentity.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 {
		return Identity{}, fmt.Errorf("%w: certificate has %d URI SANs, want exactly one SPIFFE ID", ErrIdentity, len(cert.URIs))
	}
	return ParseIdentity(cert.URIs[0].String())
}

// ParseIdentity parses a SPIFFE URI of one of the forms of Class. Names and
// tenants are 1 to 64 of [a-z0-9._-], the first a letter or digit. Every error
// wraps ErrIdentity.
func ParseIdentity(uri string) (Identity, error) {
	if len(uri) > maxURI {
		return Identity{}, fmt.Errorf("%w: URI of %d bytes, at most %d", ErrIdentity, len(uri), maxURI)
	}
	id, err := spiffeid.FromString(uri)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %q: %w", ErrIdentity, uri, err)
	}
	if len(id.TrustDomain().Name()) > maxTrustDomain {
		return Identity{}, fmt.Errorf("%w: %q: trust domain longer than %d bytes", ErrIdentity, uri, maxTrustDomain)
	}
	out, ok := fromPath(id.Path())
	if !ok {
		return Identity{}, fmt.Errorf("%w: %q: the path must be %s", ErrIdentity, uri, identityForms)
	}
	out.TrustDomain = id.TrustDomain().Name()
	for _, name := range []string{out.Name, out.Tenant} {
		if name != "" && !validName(name) {
			return Identity{}, fmt.Errorf("%w: %q: name %q: want 1 to %d of [a-z0-9._-] beginning with a letter or digit", ErrIdentity, uri, name, maxName)
		}
	}
	return out, nil
}

// fromPath splits a valid SPIFFE path, whose segments are never empty.
func fromPath(path string) (Identity, bool) {
	s := strings.Split(path, "/")
	switch {
	case len(s) == 3:
		id := Identity{Class: Class(s[1]), Name: s[2]}
		switch id.Class {
		case ClassNode, ClassOperator, ClassAuditor, ClassService:
			return id, true
		case ClassAdmin, ClassUser: // only within a tenant
		}
	case len(s) == 5 && s[1] == "tenant":
		id := Identity{Tenant: s[2], Class: Class(s[3]), Name: s[4]}
		switch id.Class {
		case ClassAdmin, ClassUser, ClassAuditor:
			return id, true
		case ClassNode, ClassOperator, ClassService: // only outside tenants
		}
	}
	return Identity{}, false
}

func validName(s string) bool {
	if len(s) > maxName {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return s != ""
}

// OnlyNodes accepts identities of class node: the usual rule of what a server of
// the node listener allows and of what a client expects.
func OnlyNodes(id Identity) error {
	if id.Class != ClassNode {
		return fmt.Errorf("%s is of class %s, want %s", id, id.Class, ClassNode)
	}
	return nil
}

// nodesAnd accepts the nodes that allow (nil: all) accepts.
func nodesAnd(allow func(Identity) error) func(Identity) error {
	return func(id Identity) error {
		if err := OnlyNodes(id); err != nil || allow == nil {
			return err
		}
		return allow(id)
	}
}
