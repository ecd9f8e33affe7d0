// Package recovery is what a cluster's domain key is recovered with when every HSM is
// lost: a recovery key, made offline and split among people, and the files of the
// ceremonies around it. It knows files and keys, no cluster.
//
// # The key
//
// A recovery key is RSA-4096. The cluster keeps its public half and, for each
// generation of the domain key, a copy wrapped for it (DKX1, package hsm); backups have
// them. The private half is in PKCS #8, sealed with AES-256-GCM under a key that is
// derived (HKDF-SHA256, label "quorumkms/recovery/seal/v1") from a random scalar of
// ristretto255, and that scalar is split: M of N people open it together, fewer learn
// nothing (Shamir), and a share that is not the one that was made is named (Feldman's
// commitments). The splitting is CIRCL's, the encryption of each share to its holder
// age's.
//
// # The files
//
// All are canonical JSON of one object and a line end: unknown or missing members, other
// spellings, white space and trailing bytes are refused, and so is any other format than
// the one known.
//
//	PublicKey  NAME.recovery: for the cluster; signed by the key itself
//	Share      in age's armour, NAME-1-of-N.share.age: for one holder
//	Request    a node's transfer key, asking for the domain key
//	Release    the domain key, wrapped for a Request
//	Report     what a drill has opened; signed by the recovery key
//
// Signatures are RSA-PSS with SHA-256 (salt of 32 bytes) over a label of the kind of file
// and the file with an empty signature.
package recovery
