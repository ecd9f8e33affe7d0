// Kmsctl administers and uses a QuorumKMS cluster.
//
// Exit codes: 0 success; 1 the cluster refused the call, or it failed; 2 the
// command line or the configuration is wrong; 3 no node could serve, or the
// outcome of a change is unknown; 4 an audit trail is not what was signed.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Set by -ldflags "-X main.version=… -X main.commit=…".
var (
	version string
	commit  string
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends what the first one cannot
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
