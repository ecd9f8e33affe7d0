// Package trail is the form of an audit trail on the disk, and how one is verified with its
// files and public keys alone. It knows files and signatures, no node.
//
// # The files
//
// A node's directory has
//
//	0000000000.records            the records of a segment, a line each, being written
//	0000000000.records.gz         those of one that is whole, compressed
//	0000000000.records.gz.sealed  the same, encrypted as a whole if audit.seal names a key
//	0000000000.checkpoints        signed checkpoints whose last record is in that segment
//	segments.hashes               the hashes of the tree above the segments
//
// Segment k has the records k*65536+1 to (k+1)*65536 of the node's sequence, which begins at
// 1 and has no gap. Each record is one JSON object; package node/audit documents its members.
// It names the record before it by its hash in the tree (previous).
//
// A trail that begins behind record 1 has a signed record of the event AuditSegmentRemoved whose
// target is "records A to B", B being the last one that is not there: the node writes it before it
// removes that segment, and removes segments in their order.
//
// # The tree
//
// The lines, without their ends, are the leaves of a Merkle tree as in RFC 6962, section 2.1;
// the code is golang.org/x/mod/sumdb/tlog.
//
// # Checkpoints
//
// Each second in which there were records, and after they are on the disk, the node's HSM
// signs the tree's size and root with the node's identity key, as a note (C2SP signed-note)
// in the form of C2SP tlog-checkpoint with one line of its own:
//
//	quorumkms/audit/v1/<cluster>/<node's raft id>
//	<number of records>
//	<root, base64>
//	time <milliseconds since 1970>
//
//	— <node's raft id> <base64 of 4 bytes that name the key, and the signature>
//
// The signature is ECDSA P-256 over SHA-256, ASN.1 DER, of type 2. The cluster keeps the last
// one of each node in its replicated state: there a node that has rewritten its trail, also
// with its own key, is convicted.
package trail
