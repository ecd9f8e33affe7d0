// Package transport is how nodes talk to nodes, and who a peer is: mutual TLS 1.3
// whose identities are SPIFFE URIs, one TCP port that carries several protocols
// told apart by ALPN, the stream layer of Raft and the gossip of liveness.
//
// Reading order: identity.go (who a certificate names), credentials.go (a node's own
// certificate and CAs, and their reload), tls.go (the configurations of servers and
// clients), conn.go (one connection, closed when the trust in its peer ends), mux.go
// (the port), certificate.go (what people are told of certificates),
// raft.go, gossip.go (what gossip offers) and packet.go (how memberlist's packets
// travel over TLS), devca.go (a certificate authority for development).
//
// Laws: a peer is what its certificate says, never what a message says; every
// connection is verified anew, so there are no session tickets; DNS names and
// addresses authenticate nobody; gossip only hints.
package transport
