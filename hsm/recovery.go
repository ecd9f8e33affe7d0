package hsm

import (
	"context"
	"fmt"
	"regexp"
)

// Recoverer keeps recovery keys, of the recovery recipients whose private half is in a token.
// Unlike a transfer key such a key is there for good: copies of the domain key are made for it
// for years, and each of them is opened whenever that is tried or needed. It opens no transfer,
// and no transfer key opens a copy.
type Recoverer interface {
	// EnsureRecoveryKey finds the recovery key of a name, and makes it if there is none.
	// ErrRefused if ValidRecoveryName refuses the name; ErrUnsupported if the token makes
	// no keys of that size.
	EnsureRecoveryKey(ctx context.Context, name string) (k RecoveryKey, made bool, err error)
	// RecoveryKeys lists the recovery keys in the partition, by name.
	RecoveryKeys(ctx context.Context) ([]RecoveryKey, error)
	// ImportRecovery takes a copy in that was made for one of the recovery keys
	// (ExportRecovery), and checks it as Import does; want.More means nothing. The copy is
	// opened anew, whatever the partition holds, and what it opens to is used in place of
	// that from then on. It ends with Close, and with the loss of the token: nothing is
	// stored, and no log or generation that is stored is changed. The recovery key stays.
	// ErrRefused if there is no key that the copy is for; ErrExists if the generation was
	// taken in already.
	ImportRecovery(ctx context.Context, message []byte, want ImportExpectation) (Generation, error)
}

// RecoveryKey is the public half of a recovery key that a partition keeps.
type RecoveryKey struct {
	Name     string
	SPKI     []byte // DER SubjectPublicKeyInfo, RSA-4096
	OAEPHash uint8  // OAEPSHA1 or OAEPSHA256: with which copies are to be made
}

// MaxRecoveryName is the length of a recovery key's name, in bytes.
const MaxRecoveryName = 64

var validRecoveryName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// ValidRecoveryName refuses what is no name of a recovery key. ErrRefused.
func ValidRecoveryName(name string) error {
	if len(name) > MaxRecoveryName || !validRecoveryName.MatchString(name) {
		return fmt.Errorf("%w: recovery key %.80q: want a name of 1 to %d of a to z, 0 to 9 and -, not at its ends", ErrRefused, name, MaxRecoveryName)
	}
	return nil
}
