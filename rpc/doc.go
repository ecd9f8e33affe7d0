// Package rpc is the gRPC door: it translates between the protocol and the key
// service, and holds no rule of its own.
//
// Reading order: server.go (listeners, limits, interceptors), caller.go (who
// calls), errors.go (the one table of errors), keys.go, crypto.go, cluster.go and
// domain.go (the services), peer.go and peerclient.go (what nodes say to each other),
// joinwire.go (the conversation of a node that joins, or pulls a generation).
package rpc
