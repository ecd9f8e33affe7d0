// Package hsm is one HSM partition: what a partition does, independent of who
// provides it.
//
// Reading order: partition.go (the contract), token.go (KWT1, the form in which
// a customer master key leaves a partition), keyring.go (loaded keys, bounded),
// derive.go and message.go (message keys; concurrent derivations under one key
// share one HSM call, whose answers are checked), resident.go (messages that the partition
// encrypts itself), algorithm.go and public.go (keys of other classes, and what their
// public halves do), import.go (how material comes in from outside), transferkey.go and
// transfer.go (DKX1, how the domain key travels from one partition to another), rewrap.go
// (how keys move to another generation of it). Providers live
// below: p11 (PKCS#11) and soft (pure Go). One conformance suite, hsmtest, runs on
// both.
//
// The package needs the standard library only and builds without cgo.
package hsm

import (
	"context"
	"slices"
	"time"
)

// ID is a 16-byte identifier (a UUID): of a cluster or of a customer master key.
type ID [16]byte

// Class says what kind of key a token carries; it selects the domain key that
// wraps it, so that the domain key's unwrap template fixes its usage.
type Class uint8

// The classes of KWT1. The numbers are part of the format.
const (
	ClassAES       Class = 1
	ClassHMAC      Class = 2
	ClassRSA       Class = 3
	ClassEC        Class = 4
	ClassImportRSA Class = 5
	ClassResident  Class = 6 // AES of suite 2: its tokens, and no others, have AttrResident
)

// Attributes are those of every token of the class.
func (c Class) Attributes() Attributes {
	if c == ClassResident {
		return AttrResident
	}
	return 0
}

// Attributes are the flag bits of a wrapped key token.
type Attributes uint16

// The bits of Attributes. Unknown bits are refused.
const (
	AttrImported Attributes = 1 << 0 // the material was imported, not generated in the partition
	AttrResident Attributes = 1 << 1 // HSM_RESIDENT: the whole AEAD runs in the partition
)

// Partition is one HSM partition of one node. All methods may be called from any
// goroutine. Every error wraps one of the sentinels of errors.go. Every slice that is
// returned belongs to the caller alone: providers neither share nor reuse buffers
// across calls.
//
// A partition is opened for one of two transfer profiles. In generic, domain keys come to
// another partition as DKX1. In cloned they come by the vendor's cloning: NewTransfer,
// Export and Import answer ErrCloned, and everything else is the same.
type Partition interface {
	// Info describes the token for people: it never blocks and makes no HSM call.
	Info() Info
	// Activity tells what the partition can do and has done. Like Info, it makes no call.
	Activity() Activity
	// Doubt has the token answer questions whose answers are known, because something that
	// it said was wrong. If it errs again, or does not answer, the partition is out of use
	// until it answers rightly (Healthy), and the error says so.
	Doubt(ctx context.Context) error
	// Healthy is nil while the partition can be used; otherwise it wraps
	// ErrUnavailable and says why. It makes no HSM call.
	Healthy() error

	// Identity is the DER SubjectPublicKeyInfo of the node identity key (NIK), a
	// P-256 signing key made at first use, which never leaves the partition.
	Identity() []byte
	// SignIdentity signs SHA-256(message) with the NIK; the signature is ASN.1 DER.
	SignIdentity(ctx context.Context, message []byte) ([]byte, error)
	// Random fills b (1..1024 bytes) from the partition's generator.
	Random(ctx context.Context, b []byte) error

	// CreateDomain makes generation number of the domain key: one wrapping key per
	// class, the domain MAC key and, if there is none yet for the cluster, the log
	// key. ErrExists if the generation is there already.
	CreateDomain(ctx context.Context, cluster ID, number uint32) (Generation, error)
	// DestroyDomain destroys a generation: tokens under it are never opened again here.
	// The log key, which belongs to all generations, stays. ErrNotFound if the partition
	// holds none of that number; ErrRefused if what it holds under the number has other
	// check values, or if it holds no other of the cluster.
	DestroyDomain(ctx context.Context, cluster ID, g Generation) error
	// Generations lists the domain key generations this partition holds for the
	// cluster, by number.
	Generations(ctx context.Context, cluster ID) ([]Generation, error)
	// LogKey is the cluster's log key LMK: 32 bytes, HMAC-SHA256 of
	// "quorumkms/lmk/v1" || cluster under the log root key of the partition. It is
	// the one key that is handed to the process. ErrNotFound if the partition is
	// in no domain of this cluster.
	LogKey(ctx context.Context, cluster ID) ([]byte, error)

	// NewTransfer makes the one-time RSA-3072 key that receives a domain key, and
	// signs its public half and the OAEP hash this partition opens with the NIK
	// (TransferKeyMessage). A previous one is destroyed.
	NewTransfer(ctx context.Context) (Transfer, error)
	// Export wraps a generation for the recipient as DKX1, with the OAEP hash the
	// recipient asks for. ErrRefused if this partition lacks that hash; the text names
	// both sides'. ErrNotTrusted until the partition's Security Officer has trusted
	// the recipient's transfer key (Fingerprint of its SPKI).
	Export(ctx context.Context, r ExportRequest) ([]byte, error)
	// Trusted is nil if the partition's Security Officer has trusted a transfer key or a
	// recovery key (SPKI), so that the partition wraps for it; otherwise ErrNotTrusted.
	Trusted(ctx context.Context, spki []byte) error
	// ExportRecovery wraps a generation for a recovery key as DKX1, with the hash of OAEP that
	// is asked for, or one that this partition has. ErrRefused and ErrNotTrusted as Export.
	ExportRecovery(ctx context.Context, r RecoveryRequest) ([]byte, error)
	// Import takes a DKX1 message in, checks it against what the recipient
	// expects, and destroys the transfer key, unless more is to follow. The partition is unchanged if it
	// fails. A message that fails its checks (ErrRefused) leaves the transfer key
	// in place, so that junk cannot end a ceremony; with no transfer key every
	// message is ErrRefused.
	Import(ctx context.Context, message []byte, want ImportExpectation) (Generation, error)
	// Possess computes the proof of possession of a generation (PossessionMessage
	// under the domain MAC key).
	Possess(ctx context.Context, p Possession) ([]byte, error)

	// GenerateKey makes a key in the partition, wraps it, opens the result once to
	// prove that it can be opened, and leaves nothing behind. ErrUnsupported if the
	// token has no algorithm of keys of that kind.
	GenerateKey(ctx context.Context, s KeySpec) (NewKey, error)
	// Open checks a KWT1 token of an AES key against what the caller's records say of
	// it, in this order: the MAC, the header's fields, the generation; then unwraps it
	// and compares the check value. A mismatch is ErrCorrupt.
	Open(ctx context.Context, token []byte, want TokenHeader) (BlockKey, error)
	// OpenResident is Open for a key of class resident. ErrUnsupported if the token lacks
	// AES-GCM or AES-CMAC.
	OpenResident(ctx context.Context, token []byte, want TokenHeader) (ResidentKey, error)
	// OpenSecret is Open for the other kinds of keys (Ref.Prove): it returns a key that
	// does what its kind is for and nothing else.
	OpenSecret(ctx context.Context, ref Ref) (SecretKey, error)
	// Supports tells whether the token has an algorithm. It makes no HSM call.
	Supports(a Algorithm) bool

	Rewrapper
	Recoverer
	// NewImportPair makes the RSA pair under which the material of a key is wrapped on its
	// way in. The token of its private half is the import token.
	NewImportPair(ctx context.Context, s ImportPairSpec) (NewKey, error)
	// ImportsInside tells whether this partition unwraps an algorithm by itself, so that
	// no plaintext comes into the process. It makes no HSM call.
	ImportsInside(a ImportAlgorithm) bool
	// ImportKey takes the material of a key in, AES or HMAC, and wraps it as GenerateKey
	// does. ErrRefused if the import token is none of the domain's, or of another key;
	// ErrNotFound if it is of a generation that is not here; ErrUnsupported if the token
	// was made for what this partition lacks; ErrCiphertext, and no word more, if the
	// material does not unwrap or has another size than the key's.
	ImportKey(ctx context.Context, r ImportRequest) (NewKey, error)

	// Close releases the sessions. Keys that are still open become unusable.
	Close() error
}

// BlockKey is a loaded AES-256 key that can do one thing: encrypt blocks (ECB).
// It may be used from any goroutine.
type BlockKey interface {
	// EncryptBlocks encrypts src into dst: 1..MaxBlocks whole blocks in one HSM
	// call. dst and src have the same length and do not overlap. ErrStale means
	// that the key was lost with the token's sessions: Open it again.
	//
	// A provider has the token write its answer to dst and nowhere else. It keeps
	// neither slice when it returns, and has no output buffer that calls share or
	// reuse: sealing compares two answers of one call (Seal), which would prove
	// nothing if both could be left over from another.
	EncryptBlocks(ctx context.Context, dst, src []byte) error
	// Close destroys the loaded key. Closing twice is harmless.
	Close()
}

// ResidentKey is a loaded AES-256 key of suite 2, which works in the partition alone. It
// may be used from any goroutine.
//
// ErrStale means that nothing was done: the key was lost with the token's sessions before.
// Providers keep none of the slices they are given.
type ResidentKey interface {
	// Commit is K_com of the message that t stands for.
	Commit(ctx context.Context, t [32]byte) (com [32]byte, err error)
	// Seal encrypts 1..MaxResident bytes with AES-256-GCM, an IV that the partition's
	// generator has just made and the additional data of bind. It returns the ciphertext
	// with the tag of 16 bytes behind it.
	Seal(ctx context.Context, plaintext []byte, bind Binding) ([]byte, error)
	// Open is the inverse. ErrCiphertext, if the tag is wrong, is told from a fault of the
	// token: the token may report both alike.
	Open(ctx context.Context, iv [IVSize]byte, ciphertext, aad []byte) ([]byte, error)
	// Close destroys the loaded key. Closing twice is harmless.
	Close()
}

// Binding binds a message that is being sealed to its IV: it returns t, and what makes the
// additional data of K_com.
type Binding func(iv [IVSize]byte) (t [32]byte, aad func(com *[32]byte) []byte)

// SecretKey is a loaded HMAC key, or the private half of an RSA or EC key. It may be used
// from any goroutine.
type SecretKey interface {
	// Apply uses the key with an algorithm of its kind: the MAC of a message, the
	// signature of a digest, the plaintext of a ciphertext. ErrRefused if Kind.Accepts
	// refuses algorithm or input, ErrUnsupported if the token lacks the algorithm,
	// ErrCiphertext if a ciphertext does not open, ErrStale as EncryptBlocks. Whoever
	// calls checks signatures (the Keyring does).
	Apply(ctx context.Context, a Algorithm, input []byte) ([]byte, error)
	// Close destroys the loaded key. Closing twice is harmless.
	Close()
}

const (
	// BlockSize is the AES block, in bytes.
	BlockSize = 16
	// MaxBlocks is the ceiling of one EncryptBlocks call: 4 KiB.
	MaxBlocks = 256
	// IVSize is the size of the IVs of ResidentKey, in bytes.
	IVSize = 12
	// TagSize is the tag of AES-GCM, in bytes.
	TagSize = 16
	// MaxResident is the most that a ResidentKey seals at once, in bytes.
	MaxResident = 64 << 10
	// MaxRandom is the largest request of Random, in bytes.
	MaxRandom = 16 << 10
)

// Info describes a partition for people.
type Info struct {
	Kind         string // "pkcs11" or "embedded"
	Manufacturer string
	Model        string
	Serial       string
	Label        string
	Probes       []Probe // the start-up self-test, in the order it ran
}

// Probe is one step of the start-up self-test.
type Probe struct {
	Name     string // stable, lower case with dashes: what --accept-weakness names
	Passed   bool
	Accepted bool   // the probe failed and the operator accepts this weakness by name
	Detail   string // what was tried and what the token did
}

// KeyKind names one key inside a domain generation. The wrapping keys have the
// numbers of their classes.
type KeyKind uint8

// The kinds beyond the wrapping keys. The numbers are part of DKX1.
const (
	KindMAC KeyKind = 16 // DMK: HMAC over tokens, proof of possession
	KindLog KeyKind = 17 // log root key, one per cluster, the same in every generation
)

// DomainKinds are the keys of a new generation, in the order of DKX1.
func DomainKinds() []KeyKind {
	return []KeyKind{
		KeyKind(ClassAES), KeyKind(ClassHMAC), KeyKind(ClassRSA), KeyKind(ClassEC), KeyKind(ClassImportRSA),
		KeyKind(ClassResident), KindMAC, KindLog,
	}
}

// Later tells whether generations that earlier releases made lack the kind. Nothing is
// wrapped under such a generation that would need it.
func (k KeyKind) Later() bool { return k == KeyKind(ClassResident) }

// kindsOfGeneration tells whether these are the kinds of a generation, of this or an
// earlier release, in the order of DKX1.
func kindsOfGeneration(kinds []KeyKind) bool {
	return slices.Equal(kinds, DomainKinds()) || slices.Equal(kinds, slices.DeleteFunc(DomainKinds(), KeyKind.Later))
}

// KeyCheck is the check value of one domain key: it identifies the key and tells
// nothing else about it.
type KeyCheck struct {
	Kind  KeyKind
	Value [16]byte
}

// Generation is one generation of the domain key as a partition holds it.
type Generation struct {
	Number uint32
	Checks []KeyCheck // of every key that it has, in the order of DomainKinds
}

// Equal tells whether two are the same generation: what has the number only is another.
func (g Generation) Equal(h Generation) bool {
	return g.Number == h.Number && slices.Equal(g.Checks, h.Checks)
}

// KeySpec says which key to make.
type KeySpec struct {
	Cluster    ID
	Generation uint32
	Class      Class
	Attributes Attributes
	Key        ID
	Version    uint32
	Created    time.Time // stored to the second
	Bits       uint16    // as in Kind
	Decrypts   bool      // as in Kind
}

// Kind is the kind of the key to make.
func (s KeySpec) Kind() Kind { return Kind{Class: s.Class, Bits: s.Bits, Decrypts: s.Decrypts} }

// NewKey is a key that was made.
type NewKey struct {
	Token []byte // KWT1
	SPKI  []byte // DER SubjectPublicKeyInfo of a pair; nil of other keys
}

// Transfer is the public side of a one-time transfer key, as the recipient announces
// it.
type Transfer struct {
	SPKI      []byte // DER SubjectPublicKeyInfo, RSA-3072
	OAEPHash  uint8  // OAEPSHA1 or OAEPSHA256: with which the donor must wrap
	Signature []byte // by the NIK over TransferKeyMessage
}

// ExportRequest asks a partition that holds a generation to wrap it for another.
type ExportRequest struct {
	Cluster    ID
	Epoch      uint32 // recovery epoch of the cluster
	Generation uint32
	Donor      string // raft id of this node, 1..255 bytes
	Recipient  string // raft id of the recipient, 1..255 bytes
	Transfer   Transfer
	// RecipientIdentity is the recipient's NIK (SPKI), which must have signed the
	// transfer key.
	RecipientIdentity []byte
}

// RecoveryRequest asks a partition that holds a generation to wrap it for a recovery key.
type RecoveryRequest struct {
	Cluster    ID
	Epoch      uint32 // recovery epoch of the cluster
	Generation uint32
	Donor      string // raft id of this node, 1..255 bytes
	Recipient  string // what the recovery key is called, 1..255 bytes
	SPKI       []byte // of the recovery key, RSA-4096
	OAEPHash   uint8  // that the recovery key's token has; 0: any
}

// ImportExpectation is what the recipient knows about the transfer from elsewhere
// than the message.
type ImportExpectation struct {
	Cluster       ID
	Epoch         uint32
	Donor         string
	Recipient     string
	DonorIdentity []byte     // SPKI of the donor's NIK, from the cluster's state
	Generation    Generation // number and check values, from the cluster's state
	More          bool       // further generations follow for the same transfer key: it is kept
}

// Possession fixes every byte of a proof of possession.
type Possession struct {
	Cluster    ID
	Generation uint32
	Verifier   string // raft id of the node that asks
	Prover     string // raft id of the node that proves
	Exporter   []byte // TLS exporter value of the connection, 32 bytes
	Nonce      []byte // 32 bytes, chosen by the verifier
}
