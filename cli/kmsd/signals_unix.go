//go:build unix

package main

import (
	"os"
	"syscall"
)

var hangupSignals = []os.Signal{syscall.SIGHUP}
