//go:build linux && chaos

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// disk is an ext4 file system in a file.
type disk struct {
	t      *testing.T
	file   string
	at     string // where it is mounted
	frozen bool
}

const (
	diskSize     = 96 << 20 // bytes; the file is sparse: it takes what is written
	copyAttempts = 20
)

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

// snapshot keeps what has reached the disk up to now: the file system's own caches
// are not in it. Of two equal copies one after the other neither saw a write.
func (d *disk) snapshot() {
	d.t.Helper()
	first, second := d.file+".1", d.file+".2"
	for range copyAttempts {
		run(d.t, "cp", "--sparse=always", d.file, first)
		run(d.t, "cp", "--sparse=always", d.file, second)
		if exec.Command("cmp", "--silent", first, second).Run() == nil {
			must(d.t, os.Remove(second))
			return
		}
	}
	d.t.Fatalf("%s is written to all the time", d.at)
}

// restore goes on with the snapshot. No process has a file of the disk open.
func (d *disk) restore() {
	d.t.Helper()
	d.unmount()
	must(d.t, os.Rename(d.file+".1", d.file))
	if features := run(d.t, "dumpe2fs", "-h", d.file); !strings.Contains(features, "needs_recovery") {
		d.t.Errorf("vacuous: the disk of %s was unmounted cleanly:\n%s", d.at, features)
	}
	d.mount()
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
