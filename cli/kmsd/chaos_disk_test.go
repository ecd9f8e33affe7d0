//go:build linux && chaos

package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// disk is an ext4 file system in a file.
type disk struct {
	t      *testing.T
	file   string
	at     string // where it is mounted
	frozen bool
}

// diskSize is in bytes. The file is sparse: it takes what is written.
const diskSize = 96 << 20

// newDisk makes a file system and mounts it.
func newDisk(t *testing.T, file, at string) *disk {
	t.Helper()
	f, err := os.Create(file)
	must(t, err)
	must(t, errors.Join(f.Truncate(diskSize), f.Close()))
	run(t, "mkfs.ext4", "-q", "-F", file)
	must(t, os.MkdirAll(at, 0o700))
	d := &disk{t: t, file: file, at: at}
	d.mount()
	must(t, os.RemoveAll(filepath.Join(at, "lost+found")))
	t.Cleanup(d.unmount)
	return d
}

func (d *disk) mount() { run(d.t, "mount", "-o", "loop,noatime", d.file, d.at) }

func (d *disk) unmount() {
	d.thaw()
	run(d.t, "umount", d.at)
}

// freeze lets every write to the disk wait.
func (d *disk) freeze() {
	run(d.t, "fsfreeze", "--freeze", d.at)
	d.frozen = true
}

func (d *disk) thaw() {
	if d.frozen {
		run(d.t, "fsfreeze", "--unfreeze", d.at)
		d.frozen = false
	}
}
