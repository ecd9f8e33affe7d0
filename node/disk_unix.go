//go:build unix

package node

import (
	"golang.org/x/sys/unix"

	"github.com/quorumkms/quorumkms/rpc"
)

// diskOf is the room that is left where a directory is.
func diskOf(dir string) rpc.Disk {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return rpc.Disk{Dir: dir, Err: err}
	}
	var at unix.Stat_t
	if err := unix.Stat(dir, &at); err != nil {
		return rpc.Disk{Dir: dir, Err: err}
	}
	block := uint64(s.Bsize) //nolint:gosec,unconvert,nolintlint // not negative; its type differs between systems
	return rpc.Disk{
		Dir: dir, Free: uint64(s.Bavail) * block, Total: uint64(s.Blocks) * block, //nolint:gosec,unconvert,nolintlint // as above
		Device: uint64(at.Dev), //nolint:gosec,unconvert,nolintlint // a name
	}
}
