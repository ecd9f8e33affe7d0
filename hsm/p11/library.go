//go:build cgo

package p11

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// library is one loaded PKCS#11 library. A process has each library once, and its
// initialisation belongs to the whole process: hence the table below, which is the
// only state of this package that no partition owns.
type library struct {
	path   string
	ctx    *pkcs11.Ctx
	native native

	arguments string // of the first who asked for it

	// Under libraries.Mutex.
	users   int
	foreign bool // initialised by other code of the process, which will finalize it
}

var libraries = struct {
	sync.Mutex
	byPath map[string]*library
}{byPath: map[string]*library{}}

// defaultModules returns the places of SoftHSM2 in Debian and Fedora.
func defaultModules() []string {
	return []string{
		"/usr/lib/softhsm/libsofthsm2.so",
		"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
		"/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
		"/usr/lib64/pkcs11/libsofthsm2.so",
		"/usr/lib64/softhsm/libsofthsm.so",
	}
}

func modulePath(path string) (string, error) {
	if path == "" {
		for _, candidate := range defaultModules() {
			if _, err := os.Stat(candidate); err == nil {
				path = candidate
				break
			}
		}
	}
	if path == "" {
		return "", fmt.Errorf("%w: no PKCS#11 module configured, and SoftHSM2 is in none of %s",
			hsm.ErrUnavailable, strings.Join(defaultModules(), ", "))
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("%w: the PKCS#11 module %s is not there; name the vendor's library (.so): %w",
			hsm.ErrUnavailable, path, err)
	}
	return resolved, nil
}

// maxArguments is the size of Config.ModuleArguments, in bytes.
const maxArguments = 64 << 10

// acquire loads and initialises the library, once in the process: all who use it at a
// time want the same arguments.
func acquire(path, arguments string) (*library, error) {
	if len(arguments) > maxArguments || strings.ContainsRune(arguments, 0) {
		return nil, fmt.Errorf("%w: module arguments have up to %d bytes, none of them 0", hsm.ErrRefused, maxArguments)
	}
	path, err := modulePath(path)
	if err != nil {
		return nil, err
	}
	libraries.Lock()
	defer libraries.Unlock()
	lib := libraries.byPath[path]
	if lib == nil {
		lib = &library{path: path}
		if lib.native, err = loadNative(path); err != nil {
			return nil, fmt.Errorf("%w: %s is not a PKCS#11 library: %w", hsm.ErrUnavailable, path, err)
		}
		if lib.ctx = pkcs11.New(path); lib.ctx == nil {
			return nil, fmt.Errorf("%w: %s cannot be loaded", hsm.ErrUnavailable, path)
		}
		libraries.byPath[path] = lib
	}
	if lib.users == 0 {
		lib.arguments = arguments
		if err := lib.initialize(); err != nil {
			return nil, err
		}
	}
	if lib.arguments != arguments {
		return nil, fmt.Errorf("%w: this process uses %s with other arguments already", hsm.ErrRefused, path)
	}
	lib.users++
	return lib, nil
}

func (lib *library) initialize() error {
	err := lib.native.initialize(lib.arguments)
	lib.foreign = errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED))
	if err != nil && !lib.foreign {
		return fmt.Errorf("%w: %s does not start (are its configuration and its arguments right, and what they name there and readable?): %w", hsm.ErrUnavailable, lib.path, err)
	}
	return nil
}

func (lib *library) release() error {
	libraries.Lock()
	defer libraries.Unlock()
	lib.users--
	if lib.users > 0 || lib.foreign {
		return nil
	}
	if err := lib.ctx.Finalize(); err != nil {
		return fmt.Errorf("%w: finalize %s: %w", hsm.ErrUnavailable, lib.path, err)
	}
	return nil
}

// restart finalizes and initialises the library: some see a new or returned token
// only then. It does nothing while anybody else in the process uses the library.
// The caller has no session and no call under way.
func (lib *library) restart() error {
	libraries.Lock()
	defer libraries.Unlock()
	if lib.users != 1 || lib.foreign {
		return nil
	}
	if err := lib.ctx.Finalize(); err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)) {
		return fmt.Errorf("%w: finalize %s: %w", hsm.ErrUnavailable, lib.path, err)
	}
	return lib.initialize()
}

// slot is a slot with a token in it.
type slot struct {
	id    uint
	token pkcs11.TokenInfo
}

// slots lists the initialised tokens.
func (lib *library) slots() ([]slot, error) {
	ids, err := lib.ctx.GetSlotList(true)
	if err != nil {
		return nil, fmt.Errorf("%w: list the slots of %s: %w", hsm.ErrUnavailable, lib.path, err)
	}
	var found []slot
	for _, id := range ids {
		info, err := lib.ctx.GetTokenInfo(id)
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue // gone since, or blank
		}
		found = append(found, slot{id, info})
	}
	return found, nil
}

// find returns the one token with this label and, unless it is empty, serial number.
func (lib *library) find(label, serial string) (slot, error) {
	all, err := lib.slots()
	if err != nil {
		return slot{}, err
	}
	var found []slot
	var labels, serials []string
	for _, s := range all {
		labels = append(labels, fmt.Sprintf("%q", s.token.Label))
		if s.token.Label == label && (serial == "" || s.token.SerialNumber == serial) {
			found = append(found, s)
			serials = append(serials, s.token.SerialNumber)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if serial != "" {
			label += " (serial " + serial + ")"
		}
		return slot{}, fmt.Errorf("%w: %s has no token %q, it has: %s; name one of these, or make the token first",
			hsm.ErrUnavailable, lib.path, label, orNone(labels))
	default:
		return slot{}, fmt.Errorf("%w: %s has %d tokens %q; choose one by its serial number: %s",
			hsm.ErrUnavailable, lib.path, len(found), label, strings.Join(serials, ", "))
	}
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

const (
	findAttempts = 5
	findPause    = 200 * time.Millisecond
)

// await is find, repeated for about a second: when several processes start at once,
// SoftHSM sometimes does not see the token until it is initialised again.
func (lib *library) await(ctx context.Context, label, serial string) (slot, error) {
	for attempt := 1; ; attempt++ {
		s, err := lib.find(label, serial)
		if err == nil || attempt == findAttempts {
			return s, err
		}
		select {
		case <-ctx.Done():
			return slot{}, fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(findPause):
		}
		if err := lib.restart(); err != nil {
			return slot{}, err
		}
	}
}
