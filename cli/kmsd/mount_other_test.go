//go:build !linux

package main

func (p *process) mount(string, string) {
	p.c.t.Helper()
	p.c.t.Fatal("mounting a small disk takes Linux")
}

func (p *process) unmount(string) {}
