//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package soft

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/quorumkms/quorumkms/hsm"
)

// lock makes this process the only one that has the directory's keys loaded, until
// it closes what is returned, or ends.
func lock(root *os.Root) (io.Closer, error) {
	f, err := root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		err = fmt.Errorf("%w: %s is in use by another process: %w", hsm.ErrUnavailable, root.Name(), err)
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// syncDir makes the names in a directory durable.
func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
