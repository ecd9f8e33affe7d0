package node

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// harden keeps the process's memory to itself: no core dumps, no tracing by others
// of the same user, and no swapping where the system allows it.
func harden(log *slog.Logger) {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		log.Warn("core dumps could not be switched off", "error", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("the process could not be made undumpable", "error", err)
	}
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit)
	if err == nil && limit.Cur != unix.RLIM_INFINITY {
		limit.Cur, limit.Max = unix.RLIM_INFINITY, unix.RLIM_INFINITY
		err = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit)
	}
	if err == nil {
		err = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	}
	if err != nil {
		log.Warn("memory is not locked and may be swapped: raise the memlock limit or switch swap off", "error", err)
	}
}
