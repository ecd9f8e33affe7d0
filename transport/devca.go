package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The files of a development CA in its directory.
const (
	DevCACert = "ca.pem"
	DevCAKey  = "ca-key.pem"
)

const (
	devCALife = 10 * 365 * 24 * time.Hour
	// issueSkew is how long before its issue a certificate is valid already, for
	// machines whose clocks lag.
	issueSkew  = time.Minute
	serialBits = 128
)

// DevCA is a certificate authority for development, tests and demonstrations
// only: its key lies in a file in clear, it keeps no record of what it issued,
// and it cannot revoke. In production use the organisation's own CA.
type DevCA struct {
	cert *x509.Certificate
	pem  []byte
	key  *ecdsa.PrivateKey
	td   string
}

// NewDevCA makes a CA for trustDomain in dir, which it creates if need be: an
// ECDSA P-256 key (mode 0600) and a certificate for ten years. It overwrites
// nothing: where either file exists the error wraps os.ErrExist.
func NewDevCA(dir, trustDomain string) error {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil || td.Name() != trustDomain {
		return fmt.Errorf("development CA: trust domain %q: want a name such as kms.example.org", trustDomain)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "QuorumKMS development CA of " + trustDomain},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             time.Now().Add(-issueSkew),
		NotAfter:              time.Now().Add(devCALife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	certPEM, keyPEM, err := sign(template, nil, nil)
	if err != nil {
		return fmt.Errorf("development CA: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("development CA: %w", err)
	}
	if err := writePair(filepath.Join(dir, DevCACert), certPEM, filepath.Join(dir, DevCAKey), keyPEM); err != nil {
		return fmt.Errorf("development CA: %w", err)
	}
	return nil
}

// LoadDevCA reads the CA that NewDevCA made in dir.
func LoadDevCA(dir string) (*DevCA, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, DevCACert), filepath.Join(dir, DevCAKey))
	if err != nil {
		return nil, fmt.Errorf("development CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA || len(pair.Leaf.URIs) != 1 {
		return nil, fmt.Errorf("development CA: %s was not made by this program", filepath.Join(dir, DevCACert))
	}
	td, err := spiffeid.TrustDomainFromURI(pair.Leaf.URIs[0])
	if err != nil {
		return nil, fmt.Errorf("development CA: %w", err)
	}
	return &DevCA{cert: pair.Leaf, pem: encodeCert(pair.Leaf.Raw), key: key, td: td.Name()}, nil
}

// TrustDomain is the trust domain the CA issues for.
func (ca *DevCA) TrustDomain() string { return ca.td }

// CertPEM is the CA's certificate.
func (ca *DevCA) CertPEM() []byte { return append([]byte(nil), ca.pem...) }

// Issue makes a key (ECDSA P-256) and a certificate for an identity of the CA's
// trust domain, valid from a minute ago until ttl from now, which must not be
// after the CA's own end. The identity is its only URI SAN; hosts become DNS and IP SANs. Nodes may
// use it as server and client, all others as client only.
func (ca *DevCA) Issue(id Identity, hosts []string, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	template, err := ca.template(id, hosts, ttl)
	if err != nil {
		return nil, nil, err
	}
	return sign(template, ca.cert, ca.key)
}

// IssueFiles is Issue into the Cert and Key files; the key has mode 0600. It
// overwrites nothing: where either exists the error wraps os.ErrExist.
func (ca *DevCA) IssueFiles(files Files, id Identity, hosts []string, ttl time.Duration) error {
	certPEM, keyPEM, err := ca.Issue(id, hosts, ttl)
	if err != nil {
		return err
	}
	return writePair(files.Cert, certPEM, files.Key, keyPEM)
}

// RenewFiles is IssueFiles in place of what the files hold, if anything. Each is
// replaced as a whole, one after the other.
func (ca *DevCA) RenewFiles(files Files, id Identity, hosts []string, ttl time.Duration) error {
	next := Files{Cert: files.Cert + ".new", Key: files.Key + ".new"}
	for _, left := range []string{next.Cert, next.Key} {
		if err := os.Remove(left); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := ca.IssueFiles(next, id, hosts, ttl); err != nil {
		return err
	}
	return errors.Join(os.Rename(next.Key, files.Key), os.Rename(next.Cert, files.Cert))
}

func (ca *DevCA) template(id Identity, hosts []string, ttl time.Duration) (*x509.Certificate, error) {
	if parsed, err := ParseIdentity(id.String()); err != nil {
		return nil, err
	} else if parsed != id {
		return nil, fmt.Errorf("%w: tenant %q, class %q, name %q do not belong together", ErrIdentity, id.Tenant, id.Class, id.Name)
	}
	if id.TrustDomain != ca.td {
		return nil, fmt.Errorf("%w: %s is not of the CA's trust domain %s", ErrIdentity, id, ca.td)
	}
	notAfter := time.Now().Add(ttl)
	if ttl <= 0 || notAfter.After(ca.cert.NotAfter) {
		return nil, fmt.Errorf("lifetime %v: want more than 0 and an end before the CA's, %s", ttl, ca.cert.NotAfter.Format(time.RFC3339))
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: id.Name},
		URIs:                  []*url.URL{uri},
		NotBefore:             time.Now().Add(-issueSkew),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if id.Class == ClassNode {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, host)
		}
	}
	return t, nil
}

// sign makes a key and a certificate for it with a random serial; without a
// parent it signs itself.
func sign(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits)); err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return encodeCert(der), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// writePair creates both files, the key with mode 0600, and overwrites nothing.
func writePair(certFile string, certPEM []byte, keyFile string, keyPEM []byte) error {
	if err := create(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	if err := create(certFile, certPEM, 0o644); err != nil {
		return errors.Join(err, os.Remove(keyFile))
	}
	return nil
}

func create(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
