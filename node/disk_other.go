//go:build !unix

package node

import (
	"errors"

	"github.com/quorumkms/quorumkms/rpc"
)

func diskOf(dir string) rpc.Disk {
	return rpc.Disk{Dir: dir, Err: errors.ErrUnsupported}
}
