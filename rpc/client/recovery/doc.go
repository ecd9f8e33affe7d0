// Package recovery is what a cluster's domain key is recovered with when every HSM is
// lost: a recovery key, made offline and split among people or in an HSM token, and the files
// of the ceremonies around it. It knows files and keys, no cluster and no token.
//
// # The key
//
// A recovery key is RSA-4096. The cluster keeps its public half and, for each
// generation of the domain key, a copy wrapped for it (DKX1, package hsm); backups have
// them.
//
// Of kind SHARES the private half is in PKCS #8, sealed with AES-256-GCM under a key that is
// derived (HKDF-SHA256, label "quorumkms/recovery/seal/v1") from a random scalar of
// ristretto255, and that scalar is split: M of N people open it together, fewer learn
// nothing (Shamir), and a share that is not the one that was made is named (Feldman's
// commitments). The splitting is CIRCL's, the encryption of each share to its holder
// age's.
//
// Of kind TOKEN it is in an HSM token, which has made it, opens copies with it and never
// gives it away.
//
// # The files
//
// All are canonical JSON of one object and a line end: unknown or missing members, other
// spellings, white space and trailing bytes are refused, and so is any other format than
// the one known.
//
//	PublicKey  NAME.recovery: for the cluster; signed by the key itself, or by the token
//	Share      in age's armour, NAME-1-of-N.share.age: for one holder
//	Request    a node's transfer key, asking for the domain key
//	Release    the domain key, wrapped for a Request
//	Report     what a drill has opened; signed by the recovery key, or by the token
//
// Signatures are over a label of the sort of file and the file with an empty signature: of
// kind SHARES RSA-PSS with SHA-256 (salt of 32 bytes) by the recovery key, of kind TOKEN ECDSA
// P-256 with SHA-256 (ASN.1 DER) by the identity key of the token, for there the recovery key
// does nothing but open copies.
package recovery
