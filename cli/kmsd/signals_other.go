//go:build !unix

package main

import "os"

var hangupSignals []os.Signal
