//go:build !unix

package node

import (
	"fmt"
	"os"

	"github.com/quorumkms/quorumkms/node/cluster"
)

// lockDir makes sure that one process at a time uses a data directory, as well as
// this operating system lets it: the file is there while the process runs.
func lockDir(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", cluster.ErrDataDir, err)
	}
	return f.Close, nil
}
