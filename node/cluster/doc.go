// Package cluster is the member: one node's part in Raft, in the lease and in
// the membership of the cluster.
//
// Reading order: member.go (what a member is made of, start and stop), propose.go
// (how a command reaches the leader and its answer comes back), lease.go (why a
// node may answer by itself, and what a restriction waits for), membership.go
// (the leader's duty: Raft's configuration follows the state), join.go, donor.go and
// jointoken.go (how a node gets in), domain.go and pull.go (how partitions come to a new
// generation of the domain key), opening.go (who opens a new key before it is proposed),
// clock.go. Raft's disk: store.go (what it is),
// seal.go, sealedstore.go, sealedopen.go and mark.go (how a node knows that its log is
// as it left it), snapshots.go, boltfile.go.
//
// It knows no gRPC: other nodes are reached through Peers, which package rpc
// implements, and its handlers (Handle…) are called by rpc's peer service.
package cluster
