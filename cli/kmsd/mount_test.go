package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// asRoot runs a command as root: directly, or with sudo.
func asRoot(args ...string) (string, error) {
	if os.Geteuid() != 0 {
		args = append([]string{"sudo", "-n"}, args...)
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

// mount puts a small file system of its own at a directory of the node; options
// are tmpfs's. It takes Linux, and root or sudo.
func (p *process) mount(name, options string) {
	p.c.t.Helper()
	must(p.c.t, os.MkdirAll(p.path(name), 0o700))
	options += fmt.Sprintf(",uid=%d,gid=%d,mode=0700", os.Geteuid(), os.Getegid())
	if out, err := asRoot("mount", "-t", "tmpfs", "-o", options, "tmpfs", p.path(name)); err != nil {
		p.c.t.Fatalf("mounting a small disk takes root or sudo: %v: %s", err, out)
	}
	p.c.t.Cleanup(func() { p.unmount(name) })
}

// unmount undoes mount; it does nothing where nothing is mounted.
func (p *process) unmount(name string) {
	p.c.t.Helper()
	if out, err := asRoot("umount", "--lazy", p.path(name)); err != nil && !strings.Contains(out, "not mounted") && !strings.Contains(out, "no mount point") {
		p.c.t.Errorf("unmounting %s: %v: %s", p.path(name), err, out)
	}
}
