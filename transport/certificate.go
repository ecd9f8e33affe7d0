package transport

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"
)

// warnBefore is how long before its end a certificate that lives long is warned of;
// one that lives shorter is in its last third.
const warnBefore = 30 * 24 * time.Hour

// Certificate is what there is to tell of a certificate.
type Certificate struct{ x *x509.Certificate }

// Subject is the SPIFFE id of a principal, or the name of a CA.
func (c Certificate) Subject() string {
	if id, err := IdentityOf(c.x); err == nil && !c.x.IsCA {
		return id.String()
	}
	return c.x.Subject.String()
}

// Issuer is the name of the CA that issued it.
func (c Certificate) Issuer() string { return c.x.Issuer.String() }

// KeyHash is SHA-256 of its SubjectPublicKeyInfo.
func (c Certificate) KeyHash() []byte {
	sum := sha256.Sum256(c.x.RawSubjectPublicKeyInfo)
	return sum[:]
}

// NotBefore is when it becomes valid.
func (c Certificate) NotBefore() time.Time { return c.x.NotBefore }

// NotAfter is when it expires.
func (c Certificate) NotAfter() time.Time { return c.x.NotAfter }

// Warning says that its end is near, or past: from 30 days before, or a third of its
// life if that is shorter. Otherwise it is empty.
func (c Certificate) Warning(now time.Time) string {
	left, at := c.x.NotAfter.Sub(now), c.x.NotAfter.UTC().Format(time.RFC3339)
	switch life := c.x.NotAfter.Sub(c.x.NotBefore); {
	case left <= 0:
		return fmt.Sprintf("the certificate of %s expired at %s", c.Subject(), at)
	case left < min(warnBefore, life/3):
		return fmt.Sprintf("the certificate of %s expires in %s, at %s", c.Subject(), rounded(left), at)
	}
	return ""
}

func rounded(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
	return fmt.Sprintf("%d seconds", d/time.Second)
}
