//go:build cgo

package p11

import (
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// code is the return value of a failed PKCS#11 call, or CKR_OK if err is none.
func code(err error) pkcs11.Error {
	rv, _ := errors.AsType[pkcs11.Error](err)
	return rv
}

// isLoss tells whether an error means that the token, or this process's login, or
// the handles of objects that are known to exist, are gone.
func isLoss(rv pkcs11.Error) bool {
	switch rv {
	case pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID,
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
		pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID, pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID:
		return true
	default:
		return false
	}
}

// isDoubtful tells whether an error says that the device fails, which tokens also say of what
// they refuse: NSS has no other answer for much that is wrong with its input. A call that its
// caller has made wrong must not take the token away from everybody, so the token is asked
// (Partition.doubted): whether it is there, and whether it answers what is known (doubt.go). A
// device that fails in earnest does not, and is lost then.
func isDoubtful(rv pkcs11.Error) bool { return rv == pkcs11.CKR_DEVICE_ERROR }

// isVague tells whether an error says nothing: the token may be gone or not.
func isVague(rv pkcs11.Error) bool {
	return rv == pkcs11.CKR_GENERAL_ERROR || rv == pkcs11.CKR_FUNCTION_FAILED
}

// isPIN tells whether a login must not be tried again.
func isPIN(rv pkcs11.Error) bool {
	switch rv {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE,
		pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return true
	default:
		return false
	}
}

// wrapped gives err a sentinel of package hsm if it has none.
func wrapped(err error) error {
	for _, sentinel := range []error{
		hsm.ErrUnavailable, hsm.ErrBusy, hsm.ErrStale, hsm.ErrCorrupt, hsm.ErrNotFound, hsm.ErrExists,
		hsm.ErrWrongAnswer, hsm.ErrNotTrusted, hsm.ErrRefused, hsm.ErrUnsupported, hsm.ErrCiphertext, hsm.ErrPIN, hsm.ErrSelfTest,
	} {
		if errors.Is(err, sentinel) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
}

// blame gives the error of an unwrap its sentinel if it is the wrapped key that is not
// what it must be. SoftHSM reports that like a fault of its own: then control, a
// legitimate call of the same kind, tells.
func blame(err, sentinel error, control func() error) error {
	switch rv := code(err); rv {
	case pkcs11.CKR_WRAPPED_KEY_INVALID, pkcs11.CKR_WRAPPED_KEY_LEN_RANGE,
		pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, pkcs11.CKR_KEY_SIZE_RANGE,
		pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE:
		return fmt.Errorf("%w: %w", sentinel, err)
	default:
		if (isVague(rv) || rv == pkcs11.CKR_ARGUMENTS_BAD) && control() == nil { // the latter is NSS
			return fmt.Errorf("%w: %w", sentinel, err)
		}
		return err
	}
}
