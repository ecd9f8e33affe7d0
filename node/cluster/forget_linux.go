package cluster

import (
	"os"

	"golang.org/x/sys/unix"
)

// forget asks the system to drop what it has of a synced file in memory, so that
// reading it reads the disk. A file system that does not take the advice is read
// through memory.
func forget(f *os.File) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
