package recovery

import (
	"crypto/rsa"
	"regexp"
	"slices"
)

const (
	maxTransfer    = 1 << 10 // bytes of a transfer key, an identity key or a signature
	maxMessage     = 16 << 10
	maxGenerations = 16
)

// Request is a node's request for the domain key: its transfer key, which its HSM's
// identity key has signed. It is public; the fingerprint of the transfer key is compared
// by people.
type Request struct {
	Format    int    `json:"format"`
	Node      string `json:"node"`
	Identity  []byte `json:"identity"` // SubjectPublicKeyInfo of the identity key
	SPKI      []byte `json:"spki"`     // of the transfer key
	OAEPHash  uint8  `json:"oaep_hash"`
	Signature []byte `json:"signature"` // by the identity key, see hsm.TransferKeyMessage
}

// Fingerprint names the transfer key for people.
func (r *Request) Fingerprint() string { return Fingerprint(r.SPKI) }

// Encode is the file.
func (r *Request) Encode() ([]byte, error) { return encode(r) }

// ParseRequest reads the file of a request; its signature is for the donor to verify.
// ErrRefused.
func ParseRequest(b []byte) (*Request, error) {
	r := new(Request)
	if err := decode(b, "request", r); err != nil {
		return nil, err
	}
	for _, field := range [][]byte{r.Identity, r.SPKI, r.Signature} {
		if len(field) == 0 || len(field) > maxTransfer {
			return nil, refused("request with a field of %d bytes", len(field))
		}
	}
	if r.Node == "" || len(r.Node) > maxText {
		return nil, refused("request of a node with a name of %d bytes", len(r.Node))
	}
	return r, nil
}

// Release is the domain key on its way to a node: each generation, wrapped for the
// transfer key of a Request and signed by the donor's identity: one that exists for this release
// alone, or of the token that the recovery key is in.
type Release struct {
	Format   int      `json:"format"`
	Cluster  string   `json:"cluster"` // UUID
	Node     string   `json:"node"`
	Donor    string   `json:"donor"`
	Identity []byte   `json:"identity"` // SubjectPublicKeyInfo of the donor's identity key
	Messages [][]byte `json:"messages"` // DKX1, one a generation
}

// Encode is the file.
func (r *Release) Encode() ([]byte, error) { return encode(r) }

// ParseRelease reads the file of a release; its messages are for the HSM to verify.
// ErrRefused.
func ParseRelease(b []byte) (*Release, error) {
	r := new(Release)
	if err := decode(b, "release", r); err != nil {
		return nil, err
	}
	if !validUUID.MatchString(r.Cluster) || r.Node == "" || len(r.Node) > maxText || r.Donor == "" || len(r.Donor) > maxText {
		return nil, refused("release for node %.80q of cluster %.60q", r.Node, r.Cluster)
	}
	if len(r.Identity) == 0 || len(r.Identity) > maxTransfer || len(r.Messages) == 0 || len(r.Messages) > maxGenerations {
		return nil, refused("release with %d messages and an identity of %d bytes", len(r.Messages), len(r.Identity))
	}
	for _, m := range r.Messages {
		if len(m) == 0 || len(m) > maxMessage {
			return nil, refused("release with a message of %d bytes", len(m))
		}
	}
	return r, nil
}

var validUUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Report is what a drill has opened with a recovery key. It is written only when all that
// was tried opened.
type Report struct {
	Format        int      `json:"format"`
	Cluster       string   `json:"cluster"` // UUID
	Recipient     string   `json:"recipient"`
	Kind          string   `json:"kind"`    // of the recovery key
	Key           string   `json:"key"`     // the recovery key's fingerprint
	Created       int64    `json:"created"` // unix seconds
	Backup        []byte   `json:"backup"`  // SHA-256 of the file
	BackupIndex   uint64   `json:"backup_index"`
	BackupCreated int64    `json:"backup_created"` // unix seconds
	Generations   []uint32 `json:"generations"`    // of the domain key that were opened, rising
	Active        uint32   `json:"active"`         // the one among them that wraps new keys
	Checks        []byte   `json:"checks"`         // SHA-256 of its check values
	Tokens        uint64   `json:"tokens"`         // wrapped key versions in the backup
	Opened        uint64   `json:"opened"`         // of them in this drill
	Signature     []byte   `json:"signature"`
}

func (r *Report) label() string      { return "quorumkms/recovery/report/v1" }
func (r *Report) signature() *[]byte { return &r.Signature }

// Sign signs a report with a recovery key of kind SHARES and gives its file.
func (r *Report) Sign(key *rsa.PrivateKey) ([]byte, error) {
	r.Kind = KindShares
	if err := sign(r, key); err != nil {
		return nil, err
	}
	return r.file()
}

// SignWith has the token that the recovery key is in sign a report, and gives its file.
func (r *Report) SignWith(sign Signer) ([]byte, error) {
	r.Kind = KindToken
	if err := signWith(r, sign); err != nil {
		return nil, err
	}
	return r.file()
}

func (r *Report) file() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	return encode(r)
}

// ParseReport reads the file of a report; see Verify. ErrRefused.
func ParseReport(b []byte) (*Report, error) {
	r := new(Report)
	if err := decode(b, "report", r); err != nil {
		return nil, err
	}
	return r, r.check()
}

func (r *Report) check() error {
	if err := ValidName(r.Recipient); err != nil {
		return err
	}
	switch {
	case r.Kind != KindShares && r.Kind != KindToken:
		return refused("report of a recovery key of kind %.40q, this release knows %s and %s", r.Kind, KindShares, KindToken)
	case !validUUID.MatchString(r.Cluster):
		return refused("report about cluster %.60q", r.Cluster)
	case len(r.Checks) != 32:
		return refused("report without the hash of the check values")
	case r.Created <= 0 || r.BackupCreated <= 0 || r.BackupIndex == 0 || len(r.Backup) != 32:
		return refused("report without the dates, the index or the hash of a backup")
	case r.Opened > r.Tokens || len(r.Generations) == 0 || len(r.Generations) > maxGenerations ||
		!slices.IsSorted(r.Generations) || !slices.Contains(r.Generations, r.Active):
		return refused("report of %d of %d key versions under generations %v, of which %d is active", r.Opened, r.Tokens, r.Generations, r.Active)
	case len(r.Signature) > maxSignature || len(r.Key) > maxText:
		return refused("report with a signature of %d bytes", len(r.Signature))
	}
	return nil
}

// Verify checks that a recovery key, or the token that it is in, has signed the report: of the
// key its kind, SPKI and Identity are looked at. ErrRefused.
func (r *Report) Verify(k *PublicKey) error {
	if r.Kind != k.Kind {
		return refused("report of a recovery key of kind %.40s, %s is of kind %s", r.Kind, r.Recipient, k.Kind)
	}
	if r.Key != k.Fingerprint() {
		return refused("report of the recovery key %.80s, %s has the key %s", r.Key, r.Recipient, k.Fingerprint())
	}
	return verify(r, k)
}
