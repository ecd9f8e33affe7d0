package hsm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"slices"
)

// TransferMessage is DKX1: a generation of the domain key, wrapped for one
// recipient and signed by the donor.
//
//	"DKX1" | cluster 16 | epoch u32 | generation u32
//	donor u8 length + bytes | recipient u8 length + bytes
//	SHA-256 of the recipient's RSA SPKI 32 | OAEP hash u8
//	count u8 | count times { kind u8 | check value 16 | n u16 | OAEP ciphertext n }
//	n u16 | signature n
//
// Integers are big endian. The signature is ECDSA P-256, ASN.1 DER, of SHA-256 of
// "quorumkms/dkx/v1" || everything before its length.
type TransferMessage struct {
	Cluster           ID
	Epoch, Generation uint32
	Donor, Recipient  string // raft ids, 1..255 bytes
	SPKIHash          [32]byte
	OAEPHash          uint8 // OAEPSHA1 or OAEPSHA256; the label is empty
	Keys              []TransferKeyEntry
	Signature         []byte
}

// TransferKeyEntry is one domain key inside a TransferMessage.
type TransferKeyEntry struct {
	Kind       KeyKind
	Check      [16]byte // CheckFromWrap or CheckFromMAC
	Ciphertext []byte   // RSA-OAEP of the 32 bytes of the key
}

const (
	// DomainKeySize is the size of every domain key, in bytes.
	DomainKeySize = 32
	// LabelLogKey begins the message whose HMAC under the log root key is the log
	// key, see LogKeyMessage.
	LabelLogKey = "quorumkms/lmk/v1"

	transferMagic    = "DKX1"
	labelTransfer    = "quorumkms/dkx/v1"
	labelPossess     = "quorumkms/possess/v1"
	labelDomainCheck = "quorumkms/dk-kcv/v1"

	maxName         = 255 // bytes of a raft id
	maxTransferKeys = 16
	maxCiphertext   = 1024 // bytes: RSA-8192
	maxSignature    = 72   // bytes: ECDSA P-256 in DER
	exporterSize    = 32
	nonceSize       = 32
)

// valid tells whether DKX1 can carry the message.
func (m TransferMessage) valid() error {
	switch {
	case !validName(m.Donor):
		return fmt.Errorf("donor of %d bytes", len(m.Donor))
	case !validName(m.Recipient):
		return fmt.Errorf("recipient of %d bytes", len(m.Recipient))
	case OAEPName(m.OAEPHash) == "":
		return fmt.Errorf("unknown oaep hash %d", m.OAEPHash)
	case len(m.Keys) == 0 || len(m.Keys) > maxTransferKeys:
		return fmt.Errorf("%d keys", len(m.Keys))
	case len(m.Signature) == 0 || len(m.Signature) > maxSignature:
		return fmt.Errorf("signature of %d bytes", len(m.Signature))
	}
	for _, k := range m.Keys {
		if len(k.Ciphertext) == 0 || len(k.Ciphertext) > maxCiphertext {
			return fmt.Errorf("ciphertext of %d bytes", len(k.Ciphertext))
		}
	}
	return nil
}

func validName(s string) bool { return len(s) >= 1 && len(s) <= maxName }

// Signed is what the donor's NIK signs. It is of use only for a message that
// Encode accepts once it has its signature.
func (m TransferMessage) Signed() []byte {
	b := []byte(labelTransfer + transferMagic)
	b = append(b, m.Cluster[:]...)
	b = binary.BigEndian.AppendUint32(b, m.Epoch)
	b = binary.BigEndian.AppendUint32(b, m.Generation)
	b = appendName(b, m.Donor)
	b = appendName(b, m.Recipient)
	b = append(b, m.SPKIHash[:]...)
	b = append(b, m.OAEPHash, byte(len(m.Keys))) //nolint:gosec // at most maxTransferKeys
	for _, k := range m.Keys {
		b = append(b, byte(k.Kind))
		b = append(b, k.Check[:]...)
		b = appendShort(b, k.Ciphertext)
	}
	return b
}

// Encode is the message as it travels. ErrRefused if a field is out of bounds.
func (m TransferMessage) Encode() ([]byte, error) {
	if err := m.valid(); err != nil {
		return nil, fmt.Errorf("%w: transfer message: %w", ErrRefused, err)
	}
	return appendShort(m.Signed()[len(labelTransfer):], m.Signature), nil
}

// ParseTransfer reads a transfer message: ErrRefused unless every byte has its
// place and a known value. It verifies nothing: see Verify.
func ParseTransfer(b []byte) (TransferMessage, error) {
	r := reader{rest: b}
	if string(r.next(len(transferMagic))) != transferMagic {
		return TransferMessage{}, fmt.Errorf("%w: not a DKX1 message", ErrRefused)
	}
	m := TransferMessage{Cluster: ID(r.array16()), Epoch: r.uint32(), Generation: r.uint32()}
	m.Donor = string(r.next(int(r.uint8())))
	m.Recipient = string(r.next(int(r.uint8())))
	copy(m.SPKIHash[:], r.next(len(m.SPKIHash)))
	m.OAEPHash = r.uint8()
	for range r.uint8() {
		k := TransferKeyEntry{Kind: KeyKind(r.uint8()), Check: r.array16()}
		k.Ciphertext = bytes.Clone(r.next(int(r.uint16())))
		m.Keys = append(m.Keys, k)
	}
	m.Signature = bytes.Clone(r.next(int(r.uint16())))
	if r.short || len(r.rest) != 0 {
		return TransferMessage{}, fmt.Errorf("%w: transfer message of %d bytes has the wrong length", ErrRefused, len(b))
	}
	if err := m.valid(); err != nil {
		return TransferMessage{}, fmt.Errorf("%w: transfer message: %w", ErrRefused, err)
	}
	return m, nil
}

// Verify checks the message against what the recipient knows from elsewhere: the
// donor's signature, every field, the transfer key it was made for and the OAEP hash
// that was announced with it (the signature of announced is not looked at), and the
// check value of every domain key. ErrRefused names what differs. Only after it has
// passed may a ciphertext be opened: OAEP authenticates nobody.
func (m TransferMessage) Verify(want ImportExpectation, announced Transfer) error {
	if err := VerifyIdentitySignature(want.DonorIdentity, m.Signed(), m.Signature); err != nil {
		return fmt.Errorf("transfer message: %w", err)
	}
	var field string
	switch {
	case m.Cluster != want.Cluster:
		field = "cluster"
	case m.Epoch != want.Epoch:
		field = "epoch"
	case m.Generation != want.Generation.Number:
		field = "generation"
	case m.Donor != want.Donor:
		field = "donor"
	case m.Recipient != want.Recipient:
		field = "recipient"
	case m.SPKIHash != sha256.Sum256(announced.SPKI):
		field = "transfer key"
	case m.OAEPHash != announced.OAEPHash:
		field = "oaep hash"
	}
	if field != "" {
		return fmt.Errorf("%w: transfer message: unexpected %s", ErrRefused, field)
	}
	return m.verifyKeys(want.Generation.Checks)
}

// verifyKeys compares the keys of a message with the check values of the generation that
// is expected, which has the kinds of one.
func (m TransferMessage) verifyKeys(want []KeyCheck) error {
	if len(m.Keys) != len(want) {
		return fmt.Errorf("%w: transfer message: %d keys, %d expected", ErrRefused, len(m.Keys), len(want))
	}
	var kinds []KeyKind
	for _, expected := range want {
		kinds = append(kinds, expected.Kind)
	}
	if !kindsOfGeneration(kinds) {
		return fmt.Errorf("%w: transfer message: kinds %d are expected, no generation has these", ErrRefused, kinds)
	}
	for i, kind := range kinds {
		got, expected := m.Keys[i], want[i]
		if got.Kind != kind {
			return fmt.Errorf("%w: transfer message: key %d is of kind %d, not %d", ErrRefused, i, got.Kind, kind)
		}
		if subtle.ConstantTimeCompare(got.Check[:], expected.Value[:]) != 1 {
			return fmt.Errorf("%w: transfer message: unexpected check value of kind %d", ErrRefused, kind)
		}
	}
	return nil
}

// Check verifies everything of a request that needs no HSM (the names and
// Transfer.Verify) and returns the transfer key. ErrRefused.
func (r ExportRequest) Check() (*rsa.PublicKey, error) {
	if !validName(r.Donor) || !validName(r.Recipient) {
		return nil, fmt.Errorf("%w: export: names of %d and %d bytes", ErrRefused, len(r.Donor), len(r.Recipient))
	}
	pub, err := r.Transfer.Verify(r.RecipientIdentity)
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	return pub, nil
}

// Check verifies everything of a request that needs no HSM and returns the recovery key.
// ErrRefused.
func (r RecoveryRequest) Check() (*rsa.PublicKey, error) {
	if !validName(r.Donor) || !validName(r.Recipient) {
		return nil, fmt.Errorf("%w: recovery copy: names of %d and %d bytes", ErrRefused, len(r.Donor), len(r.Recipient))
	}
	if r.OAEPHash != 0 && OAEPName(r.OAEPHash) == "" {
		return nil, fmt.Errorf("%w: recovery copy: unknown oaep hash %d", ErrRefused, r.OAEPHash)
	}
	return RecoveryPublicKey(r.SPKI)
}

// VerifyIdentitySignature verifies a NIK's signature: ECDSA P-256 of
// SHA-256(message), ASN.1 DER. ErrRefused.
func VerifyIdentitySignature(nikSPKI, message, sig []byte) error {
	parsed, err := x509.ParsePKIXPublicKey(nikSPKI)
	if err != nil {
		return fmt.Errorf("%w: identity key: %w", ErrRefused, err)
	}
	pub, ok := parsed.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return fmt.Errorf("%w: identity key is not of P-256", ErrRefused)
	}
	digest := sha256.Sum256(message)
	if !ecdsa.VerifyASN1(pub, digest[:], sig) {
		return fmt.Errorf("%w: identity signature does not verify", ErrRefused)
	}
	return nil
}

// PossessionMessage is what the domain MAC key authenticates to prove that a
// partition holds it:
//
//	"quorumkms/possess/v1" | cluster 16 | generation u32
//	verifier u8 length + bytes | prover u8 length + bytes | exporter 32 | nonce 32
//
// Labelled and fully determined, so that it is no oracle for other MACs.
// ErrRefused if a field has the wrong size.
func PossessionMessage(p Possession) ([]byte, error) {
	if !validName(p.Verifier) || !validName(p.Prover) {
		return nil, fmt.Errorf("%w: possession: names of %d and %d bytes", ErrRefused, len(p.Verifier), len(p.Prover))
	}
	if len(p.Exporter) != exporterSize || len(p.Nonce) != nonceSize {
		return nil, fmt.Errorf("%w: possession: exporter of %d bytes, nonce of %d", ErrRefused, len(p.Exporter), len(p.Nonce))
	}
	b := append([]byte(labelPossess), p.Cluster[:]...)
	b = binary.BigEndian.AppendUint32(b, p.Generation)
	b = appendName(b, p.Verifier)
	b = appendName(b, p.Prover)
	return slices.Concat(b, p.Exporter, p.Nonce), nil
}

// LogKeyMessage is the message whose HMAC-SHA256 under the log root key is the
// cluster's log key.
func LogKeyMessage(cluster ID) []byte {
	return append([]byte(LabelLogKey), cluster[:]...)
}

// CheckFromWrap is the check value of a wrapping key: the first 16 bytes of
// SHA-256("quorumkms/dk-kcv/v1" || kind || the RFC 5649 wrap of 32 zero bytes).
func CheckFromWrap(kind KeyKind, wrappedZeros []byte) [16]byte {
	sum := sha256.Sum256(append(CheckMACMessage(kind), wrappedZeros...))
	return [16]byte(sum[:16])
}

// CheckMACMessage is the message of the check value of the domain MAC key and of
// the log root key: "quorumkms/dk-kcv/v1" || kind.
func CheckMACMessage(kind KeyKind) []byte {
	return append([]byte(labelDomainCheck), byte(kind))
}

// CheckFromMAC is the check value of the domain MAC key and of the log root key:
// the first 16 bytes of its HMAC-SHA256 of CheckMACMessage. ErrCorrupt if mac is
// not 32 bytes.
func CheckFromMAC(mac []byte) ([16]byte, error) {
	if len(mac) != sha256.Size {
		return [16]byte{}, fmt.Errorf("%w: hmac of %d bytes", ErrCorrupt, len(mac))
	}
	return [16]byte(mac[:16]), nil
}

func appendName(b []byte, s string) []byte {
	return append(append(b, byte(len(s))), s...) //nolint:gosec // validName
}

func appendShort(b, s []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...) //nolint:gosec // bounded by valid
}

// reader takes fields off the front of rest. A field that is not all there reads
// as zero and sets short.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) next(n int) []byte {
	if n > len(r.rest) {
		r.short, r.rest = true, nil
		return nil
	}
	field := r.rest[:n:n]
	r.rest = r.rest[n:]
	return field
}

func (r *reader) array16() (a [16]byte) {
	copy(a[:], r.next(len(a)))
	return a
}

func (r *reader) uint8() uint8 {
	var b [1]byte
	copy(b[:], r.next(len(b)))
	return b[0]
}

func (r *reader) uint16() uint16 {
	var b [2]byte
	copy(b[:], r.next(len(b)))
	return binary.BigEndian.Uint16(b[:])
}

func (r *reader) uint32() uint32 {
	var b [4]byte
	copy(b[:], r.next(len(b)))
	return binary.BigEndian.Uint32(b[:])
}
