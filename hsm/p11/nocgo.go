//go:build !cgo

package p11

import (
	"context"
	"errors"

	"github.com/quorumkms/quorumkms/hsm"
)

// Partition is never made without cgo.
type Partition struct{ hsm.Partition }

var _ hsm.Partition = (*Partition)(nil)

var errNoCgo = errors.New("built without cgo: PKCS#11 is not available, only the embedded partition")

// Open reports that there is no PKCS#11 in this build.
func Open(context.Context, Config) (*Partition, error) { return nil, errNoCgo }

// Adopt reports that there is no PKCS#11 in this build.
func Adopt(context.Context, Config) ([]byte, error) { return nil, errNoCgo }

// InitToken reports that there is no PKCS#11 in this build.
func InitToken(context.Context, InitConfig) error { return errNoCgo }

// Trust reports that there is no PKCS#11 in this build.
func Trust(context.Context, TrustConfig, []byte) error { return errNoCgo }

// Untrust reports that there is no PKCS#11 in this build.
func Untrust(context.Context, TrustConfig, string) error { return errNoCgo }

// Find reports that there is no PKCS#11 in this build.
func Find(_, _, _, _ string) (Found, error) { return Found{}, errNoCgo }

// Examine reports that there is no PKCS#11 in this build.
func Examine(context.Context, Config) (Examination, error) { return Examination{}, errNoCgo }

// Erase reports that there is no PKCS#11 in this build.
func Erase(context.Context, Config) error { return errNoCgo }
