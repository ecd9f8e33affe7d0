package fsm

import "fmt"

// GrantOperation is an operation that a grant may allow.
type GrantOperation string

// The operations of grants.
const (
	GrantDecrypt          GrantOperation = "Decrypt"
	GrantEncrypt          GrantOperation = "Encrypt"
	GrantGenerateDataKey  GrantOperation = "GenerateDataKey"
	GrantDataKeyBlind     GrantOperation = "GenerateDataKeyWithoutPlaintext"
	GrantReEncryptFrom    GrantOperation = "ReEncryptFrom"
	GrantReEncryptTo      GrantOperation = "ReEncryptTo"
	GrantSign             GrantOperation = "Sign"
	GrantVerify           GrantOperation = "Verify"
	GrantGetPublicKey     GrantOperation = "GetPublicKey"
	GrantCreateGrant      GrantOperation = "CreateGrant"
	GrantRetireGrant      GrantOperation = "RetireGrant"
	GrantDescribeKey      GrantOperation = "DescribeKey"
	GrantDataKeyPair      GrantOperation = "GenerateDataKeyPair"
	GrantDataKeyPairBlind GrantOperation = "GenerateDataKeyPairWithoutPlaintext"
	GrantGenerateMac      GrantOperation = "GenerateMac"
	GrantVerifyMac        GrantOperation = "VerifyMac"
)

// grantOperations is the one table of what a grant may allow: what a key that only
// decrypts forbids, and what a key must be for it.
var grantOperations = map[GrantOperation]struct {
	seals bool
	suits func(*Key) bool
}{
	GrantEncrypt:          {true, encrypts},
	GrantDecrypt:          {false, encrypts},
	GrantReEncryptFrom:    {false, isSymmetric},
	GrantReEncryptTo:      {true, isSymmetric},
	GrantGenerateDataKey:  {true, isSymmetric},
	GrantDataKeyBlind:     {true, isSymmetric},
	GrantDataKeyPair:      {true, isSymmetric},
	GrantDataKeyPairBlind: {true, isSymmetric},
	GrantSign:             {true, signs},
	GrantVerify:           {false, signs},
	GrantGetPublicKey:     {false, isPair},
	GrantGenerateMac:      {true, authenticates},
	GrantVerifyMac:        {false, authenticates},
	GrantCreateGrant:      {false, isAny},
	GrantRetireGrant:      {false, isAny},
	GrantDescribeKey:      {false, isAny},
}

func encrypts(k *Key) bool      { return k.Usage == UsageEncryptDecrypt }
func signs(k *Key) bool         { return k.Usage == UsageSignVerify }
func authenticates(k *Key) bool { return k.Usage == UsageMac }
func isSymmetric(k *Key) bool   { return k.Spec == SpecSymmetric }
func isPair(k *Key) bool        { return k.Spec.Pair() }
func isAny(*Key) bool           { return true }

// Seals tells whether an operation makes something new under a key.
func (op GrantOperation) Seals() bool { return grantOperations[op].seals }

// Serves is nil if the key is of a kind for an operation; otherwise it wraps
// ErrUnsupported.
func (k *Key) Serves(op GrantOperation) error {
	if row, known := grantOperations[op]; known && row.suits(k) {
		return nil
	}
	return fmt.Errorf("%w: key %s is %s for %s, not for %s", ErrUnsupported, k.ID, k.Spec, k.Usage, op)
}
