package main

import (
	"errors"
	"os"
	"syscall"
)

// mount puts a small file system of its own at a directory of the node; options
// are tmpfs's, or "ro". It takes root.
func (p *process) mount(name, options string) {
	p.c.t.Helper()
	must(p.c.t, os.MkdirAll(p.path(name), 0o700))
	var flags uintptr
	if options == "ro" {
		flags, options = syscall.MS_RDONLY, ""
	}
	if err := syscall.Mount("tmpfs", p.path(name), "tmpfs", flags, options); err != nil {
		p.c.t.Fatalf("mounting a small disk takes root: %v", err)
	}
	p.c.t.Cleanup(func() { p.unmount(name) })
}

// unmount undoes mount; it does nothing where nothing is mounted.
func (p *process) unmount(name string) {
	p.c.t.Helper()
	err := syscall.Unmount(p.path(name), syscall.MNT_DETACH)
	if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
		p.c.t.Errorf("unmounting %s: %v", p.path(name), err)
	}
}
