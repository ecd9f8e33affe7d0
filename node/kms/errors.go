package kms

import (
	"errors"
	"fmt"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/policy"
)

// The sentinels of this package. Those of fsm and hsm pass through it.
var (
	// ErrDenied means: the caller may not.
	ErrDenied = errors.New("permission denied")
	// ErrMalformed means: what was given as a ciphertext is none.
	ErrMalformed = errors.New("malformed ciphertext")
	// ErrCiphertext is the one answer to every ciphertext that does not open.
	ErrCiphertext = errors.New("ciphertext does not verify: it was altered, or the encryption context is not the one it was made with")
	// ErrImportToken means: an import token is not the key's, was altered, or is too old.
	ErrImportToken = errors.New("import token refused: get new parameters for the import")
	// ErrKeyMaterial is the one answer to all material that cannot be taken in.
	ErrKeyMaterial = errors.New("the key material does not unwrap: it is not of the key's size, was altered, or was wrapped otherwise than the import token says")
	// ErrSignature means: a signature is not the key's of the message.
	ErrSignature = errors.New("the signature does not verify: it, the message or the algorithm is another one")
	// ErrMac means: a MAC is not the key's of the message.
	ErrMac = errors.New("the MAC does not verify: it or the message is another one")
	// ErrPolicy means: a policy text is not good; it names line and column.
	ErrPolicy = policy.ErrPolicy
	// ErrLockout means: with that policy nobody could change it again.
	ErrLockout = errors.New("the policy would lock its administrators out")
	// ErrDryRun means: a dry run that would have succeeded.
	ErrDryRun = errors.New("dry run: the call would have succeeded")
	// ErrReservation means: this node has encrypted as many messages under a key of
	// protection level HSM_RESIDENT as it had reserved, and could not reserve more.
	ErrReservation = errors.New("this node may encrypt no more messages under the key before the cluster's leader has counted them")
	// ErrBehind means: the node's state has not reached the caller's index token.
	ErrBehind = errors.New("this node is behind what the caller has seen")
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", fsm.ErrInvalid, fmt.Sprintf(format, args...))
}
