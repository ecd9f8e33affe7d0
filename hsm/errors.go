package hsm

import (
	"errors"
	"fmt"
)

// The sentinels every error of this package and its providers wraps.
var (
	// ErrUnavailable means: the token cannot be used now (lost, locked out, failing).
	// Trying later, or another node, may succeed.
	ErrUnavailable = errors.New("hsm unavailable")
	// ErrBusy means: the queue of waiting HSM work is full.
	ErrBusy = errors.New("hsm queue full")
	// ErrStale means: a loaded key vanished with the session that held it; open it again.
	ErrStale = errors.New("loaded key lost")
	// ErrCorrupt means: a token, a check value or an answer of the HSM is not what it
	// must be. Never retried with anything weaker.
	ErrCorrupt = errors.New("key material corrupt")
	// ErrWrongAnswer means: the token answered, and wrongly. Nothing of the answer was used;
	// another node may do better. It is an ErrCorrupt, too.
	ErrWrongAnswer error = wrongAnswer{}
	// ErrNotFound means: the partition does not hold the domain key generation.
	ErrNotFound = errors.New("domain key not in this partition")
	// ErrExists means: the partition holds it already.
	ErrExists = errors.New("domain key already in this partition")
	// ErrNotTrusted means: the Security Officer has not trusted the recipient's key.
	ErrNotTrusted = errors.New("transfer key not trusted by the security officer")
	// ErrRefused means: a message or request is malformed or not what was expected.
	ErrRefused = errors.New("refused")
	// ErrCloned is an ErrRefused: in the transfer profile cloned domain keys come to another
	// partition, and leave this one, by the vendor's cloning only.
	ErrCloned = fmt.Errorf("%w: in the transfer profile cloned no domain key is wrapped for another partition: clone it with the HSM vendor's tools", ErrRefused)
	// ErrUnsupported means: the token lacks the mechanism.
	ErrUnsupported = errors.New("the hsm lacks the mechanism")
	// ErrCiphertext means: a ciphertext was not made for the key, or was altered.
	ErrCiphertext = errors.New("ciphertext does not open")
	// ErrPIN means: the token refused the PIN. Not retried: real HSMs destroy themselves.
	ErrPIN = errors.New("wrong pin")
	// ErrSelfTest means: the token fails a probe that the operator has not accepted.
	ErrSelfTest = errors.New("hsm self-test failed")
)

// wrongAnswer is the type of ErrWrongAnswer.
type wrongAnswer struct{}

func (wrongAnswer) Error() string { return "the hsm gave a wrong answer" }

// Is makes it an ErrCorrupt.
func (wrongAnswer) Is(target error) bool { return target == ErrCorrupt }
