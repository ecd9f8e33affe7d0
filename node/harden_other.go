//go:build !linux

package node

import "log/slog"

// harden does nothing here: this build is for development.
func harden(log *slog.Logger) {
	log.Warn("memory and core dumps are not protected on this operating system: for development only")
}
