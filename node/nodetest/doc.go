// Package nodetest runs a whole cluster in one testing/synctest bubble, in virtual
// time: real Raft, the real state machine, the real lease, the real gate and the real
// duties of every node; a network that cuts, delays and loses, disks that hang, clocks
// that drift, and processes that crash.
//
// What a seed does to the cluster is decided by a source of its own and is the same
// each time; Raft draws its timeouts from a global source and goroutines are scheduled
// as it happens, so the outcome is not. A failure keeps its whole trace and is run
// again many times.
//
// Reading order: clock.go, disk.go, network.go, rafttransport.go, peers.go (what nodes
// stand on), node.go (a node's life), duties.go (what it does by itself), cluster.go (a
// cluster's life), client.go and right.go (what its clients do), trace.go. The schedules
// are in the tests.
package nodetest
