//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package soft

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/quorumkms/quorumkms/hsm"
)

// lock makes this process the only one that has the directory's keys loaded, until
// it closes what is returned. The lock is the existence of a file: weaker than where
// the system has locks that end with their process. After a crash the file stays, and
// somebody who knows that no other process is at work must remove it.
func lock(root *os.Root) (io.Closer, error) {
	f, err := root.OpenFile(lockName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: %s is in use by another process, or was when it crashed: then remove %s",
			hsm.ErrUnavailable, root.Name(), filepath.Join(root.Name(), lockName))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return existing{f, root}, nil
}

// existing is a file that exists until it is closed.
type existing struct {
	*os.File
	root *os.Root
}

// Close closes and removes the file.
func (e existing) Close() error {
	return errors.Join(e.File.Close(), e.root.Remove(lockName))
}

// syncDir leaves it to the file system when names in a directory become durable: not
// every system can be asked to.
func syncDir(*os.Root, string) error { return nil }
