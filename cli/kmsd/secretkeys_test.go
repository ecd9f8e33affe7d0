package main

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// openssl runs the program in a directory.
func openssl(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	c := exec.Command("openssl", args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	return string(out), err
}

// pssOptions are openssl's words for PSS with a salt of the digest's length.
func pssOptions(option string) []string {
	return []string{option, "rsa_padding_mode:pss", option, "rsa_pss_saltlen:digest"}
}

// A way to sign, and what openssl calls its hash.
type signingWay struct {
	algorithm pb.SigningAlgorithm
	hash      crypto.Hash
	name      string
	pss       bool
}

func signingWays(spec pb.KeySpec) []signingWay {
	if spec == pb.KeySpec_KEY_SPEC_ECC_NIST_P256 {
		return []signingWay{{pb.SigningAlgorithm_SIGNING_ALGORITHM_ECDSA_SHA_256, crypto.SHA256, "sha256", false}}
	}
	if spec == pb.KeySpec_KEY_SPEC_ECC_NIST_P384 {
		return []signingWay{{pb.SigningAlgorithm_SIGNING_ALGORITHM_ECDSA_SHA_384, crypto.SHA384, "sha384", false}}
	}
	return []signingWay{
		{pb.SigningAlgorithm_SIGNING_ALGORITHM_RSASSA_PSS_SHA_256, crypto.SHA256, "sha256", true},
		{pb.SigningAlgorithm_SIGNING_ALGORITHM_RSASSA_PSS_SHA_384, crypto.SHA384, "sha384", true},
		{pb.SigningAlgorithm_SIGNING_ALGORITHM_RSASSA_PSS_SHA_512, crypto.SHA512, "sha512", true},
		{pb.SigningAlgorithm_SIGNING_ALGORITHM_RSASSA_PKCS1_V1_5_SHA_256, crypto.SHA256, "sha256", false},
		{pb.SigningAlgorithm_SIGNING_ALGORITHM_RSASSA_PKCS1_V1_5_SHA_384, crypto.SHA384, "sha384", false},
		{pb.SigningAlgorithm_SIGNING_ALGORITHM_RSASSA_PKCS1_V1_5_SHA_512, crypto.SHA512, "sha512", false},
	}
}

// secretKeys are the keys of TestSecretKeys.
type secretKeys struct {
	dir     string
	signers map[pb.KeySpec]string
	macs    map[pb.MacAlgorithm]string
	letters map[pb.KeySpec]string // RSA that decrypts
	mac     map[pb.MacAlgorithm][]byte
}

const (
	signVerify = pb.KeyUsage_KEY_USAGE_SIGN_VERIFY
	encDecrypt = pb.KeyUsage_KEY_USAGE_ENCRYPT_DECRYPT
	oaepSHA1   = pb.EncryptionAlgorithm_ENCRYPTION_ALGORITHM_RSAES_OAEP_SHA_1
	oaepSHA256 = pb.EncryptionAlgorithm_ENCRYPTION_ALGORITHM_RSAES_OAEP_SHA_256
	pssSHA256  = pb.SigningAlgorithm_SIGNING_ALGORITHM_RSASSA_PSS_SHA_256
)

// TestSecretKeys makes keys of every kind that is not symmetric, uses them through every
// node, and has openssl check what they make: before and after a leader's death and a
// restart of all nodes.
func TestSecretKeys(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	k := c.makeSecretKeys(ctx)
	c.checkSecretKeys(ctx, k, c.nodes...)
	c.refuseSecretKeys(ctx, k)
	c.checkPairs(ctx, k)

	leader := c.leader(c.nodes[0])
	var others []*process
	for _, p := range c.nodes {
		if p != leader {
			others = append(others, p)
		}
	}
	leader.kill()
	c.checkSecretKeys(ctx, k, others...)
	leader.start()
	c.until(leader.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, leader)
	for _, p := range c.nodes {
		p.terminate()
	}
	for _, p := range c.nodes {
		p.start()
	}
	for _, p := range c.nodes {
		c.until(p.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	}
	c.checkSecretKeys(ctx, k, c.nodes...)
}

// makeSecretKeys makes the keys, each through another node.
func (c *testCluster) makeSecretKeys(ctx context.Context) secretKeys {
	c.t.Helper()
	k := secretKeys{
		dir: c.t.TempDir(), signers: map[pb.KeySpec]string{}, macs: map[pb.MacAlgorithm]string{},
		letters: map[pb.KeySpec]string{}, mac: map[pb.MacAlgorithm][]byte{},
	}
	n := 0
	through := func() *process { n++; return c.nodes[n%len(c.nodes)] }
	for spec, a := range map[pb.KeySpec]pb.MacAlgorithm{
		pb.KeySpec_KEY_SPEC_HMAC_256: hmac256, pb.KeySpec_KEY_SPEC_HMAC_384: pb.MacAlgorithm_MAC_ALGORITHM_HMAC_SHA_384,
		pb.KeySpec_KEY_SPEC_HMAC_512: pb.MacAlgorithm_MAC_ALGORITHM_HMAC_SHA_512,
	} {
		k.macs[a] = c.keyOfSpec(ctx, spec, pb.KeyUsage_KEY_USAGE_GENERATE_VERIFY_MAC, through())
	}
	for _, spec := range []pb.KeySpec{
		pb.KeySpec_KEY_SPEC_ECC_NIST_P256, pb.KeySpec_KEY_SPEC_ECC_NIST_P384,
		pb.KeySpec_KEY_SPEC_RSA_2048, pb.KeySpec_KEY_SPEC_RSA_3072,
	} {
		k.signers[spec] = c.keyOfSpec(ctx, spec, signVerify, through())
		must(c.t, os.WriteFile(k.pem(spec), c.publicPEM(ctx, k.signers[spec]), 0o600))
	}
	for _, spec := range []pb.KeySpec{pb.KeySpec_KEY_SPEC_RSA_2048, pb.KeySpec_KEY_SPEC_RSA_4096} {
		k.letters[spec] = c.keyOfSpec(ctx, spec, encDecrypt, through())
	}
	return k
}

func (k secretKeys) pem(spec pb.KeySpec) string { return filepath.Join(k.dir, spec.String()+".pem") }

// publicPEM is the public half of a key as openssl writes it.
func (c *testCluster) publicPEM(ctx context.Context, key string) []byte {
	c.t.Helper()
	spki, err := c.dial(userID).PublicKey(ctx, key)
	must(c.t, err)
	dir := c.t.TempDir()
	must(c.t, os.WriteFile(filepath.Join(dir, "spki"), spki, 0o600))
	out, err := openssl(c.t, dir, "pkey", "-pubin", "-inform", "DER", "-in", "spki")
	if err != nil {
		c.t.Fatalf("openssl does not read the public key: %s", out)
	}
	return []byte(out)
}

// checkSecretKeys uses every key through some nodes.
func (c *testCluster) checkSecretKeys(ctx context.Context, k secretKeys, nodes ...*process) {
	c.t.Helper()
	message := bytes.Repeat([]byte("message "), 512) // 4,096 bytes
	must(c.t, os.WriteFile(filepath.Join(k.dir, "message"), message, 0o600))
	for i, p := range nodes {
		user, other := c.dial(userID, p), c.dial(userID, nodes[(i+1)%len(nodes)])
		for a, key := range k.macs {
			mac, err := user.GenerateMac(ctx, key, message, a)
			must(c.t, err)
			must(c.t, other.VerifyMac(ctx, key, message, mac, a))
			if k.mac[a] == nil {
				k.mac[a] = mac
			}
			if !bytes.Equal(mac, k.mac[a]) {
				c.t.Errorf("%s through %s: another MAC than before", a, p.name)
			}
		}
		for spec, key := range k.signers {
			spki, err := user.PublicKey(ctx, key)
			must(c.t, err)
			if len(spki) == 0 {
				c.t.Errorf("no public key of %s", spec)
			}
			for _, way := range signingWays(spec) {
				h := way.hash.New()
				h.Write(message)
				digest := h.Sum(nil)
				whole, err := user.Sign(ctx, key, message, way.algorithm)
				must(c.t, err)
				hashed, err := user.SignDigest(ctx, key, digest, way.algorithm)
				must(c.t, err)
				must(c.t, other.VerifyDigest(ctx, key, digest, whole, way.algorithm))
				must(c.t, other.Verify(ctx, key, message, hashed, way.algorithm))
				c.opensslVerifies(k, spec, way, digest, whole)
			}
		}
		for spec, key := range k.letters {
			spki, err := user.PublicKey(ctx, key)
			must(c.t, err)
			must(c.t, os.WriteFile(filepath.Join(k.dir, "spki"), spki, 0o600))
			must(c.t, os.WriteFile(filepath.Join(k.dir, "letter"), []byte("a letter"), 0o600))
			out, err := openssl(c.t, k.dir, "pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", "spki", "-in", "letter", "-out", "sealed",
				"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha1")
			if err != nil {
				c.t.Fatalf("openssl does not encrypt: %s", out)
			}
			sealed, err := os.ReadFile(filepath.Join(k.dir, "sealed"))
			must(c.t, err)
			own, err := other.EncryptRSA(ctx, key, []byte("a letter"), oaepSHA1)
			must(c.t, err)
			for _, ciphertext := range [][]byte{sealed, own} {
				opened, err := user.DecryptRSA(ctx, key, ciphertext, oaepSHA1)
				if err != nil || string(opened) != "a letter" {
					c.t.Errorf("%s through %s: %q, %v", spec, p.name, opened, err)
				}
			}
		}
	}
}

// opensslVerifies has openssl check a signature of the message, and refuse another's.
func (c *testCluster) opensslVerifies(k secretKeys, spec pb.KeySpec, way signingWay, digest, signature []byte) {
	c.t.Helper()
	write := func(name string, b []byte) { must(c.t, os.WriteFile(filepath.Join(k.dir, name), b, 0o600)) }
	write("signature", signature)
	write("digest", digest)
	of := []string{"dgst", "-" + way.name, "-verify", k.pem(spec), "-signature", "signature"}
	raw := []string{"pkeyutl", "-verify", "-pubin", "-inkey", k.pem(spec), "-sigfile", "signature", "-in", "digest", "-pkeyopt", "digest:" + way.name}
	if way.pss {
		of, raw = append(of, pssOptions("-sigopt")...), append(raw, pssOptions("-pkeyopt")...)
	}
	if out, err := openssl(c.t, k.dir, append(of, "message")...); err != nil || !strings.Contains(out, "Verified OK") {
		c.t.Errorf("openssl dgst, %s of %s: %v: %s", way.algorithm, spec, err, out)
	}
	if out, err := openssl(c.t, k.dir, raw...); err != nil || !strings.Contains(out, "Signature Verified Successfully") {
		c.t.Errorf("openssl pkeyutl, %s of %s: %v: %s", way.algorithm, spec, err, out)
	}
	write("other", []byte("another message"))
	if out, err := openssl(c.t, k.dir, append(of, "other")...); err == nil {
		c.t.Errorf("openssl dgst, another message with %s of %s: %s", way.algorithm, spec, out)
	}
}

// refuseSecretKeys uses keys wrongly.
func (c *testCluster) refuseSecretKeys(ctx context.Context, k secretKeys) {
	c.t.Helper()
	user, admin := c.dial(userID, c.nodes[1]), c.dial(adminID, c.nodes[2])
	symmetric, mac := c.createKey(ctx), k.macs[hmac256]
	ec, rsa := k.signers[pb.KeySpec_KEY_SPEC_ECC_NIST_P256], k.signers[pb.KeySpec_KEY_SPEC_RSA_2048]
	letters := k.letters[pb.KeySpec_KEY_SPEC_RSA_2048]
	c.level(ctx)
	unsupported := func(texts ...string) *refusal {
		return refused(codes.FailedPrecondition, client.ErrUnsupported, texts...)
	}
	badSignature := refused(codes.InvalidArgument, client.ErrInvalidSignature, "does not verify")
	badMac := refused(codes.InvalidArgument, client.ErrInvalidMac, "does not verify")
	signature, err := user.Sign(ctx, ec, []byte("m"), ecdsaP256)
	must(c.t, err)
	sealed, err := user.EncryptRSA(ctx, letters, []byte("m"), oaepSHA1)
	must(c.t, err)
	long := make([]byte, 4097)
	sign := func(key string, m []byte, a pb.SigningAlgorithm) error { return second(user.Sign(ctx, key, m, a)) }
	c.unchanged("what is refused", func() {
		for what, x := range map[string]struct {
			want *refusal
			err  error
		}{
			"Sign with a symmetric key":        {unsupported("SYMMETRIC", "Sign"), sign(symmetric, []byte("m"), ecdsaP256)},
			"Sign with an HMAC key":            {unsupported("HMAC_256", "Sign"), sign(mac, []byte("m"), ecdsaP256)},
			"Sign with a key that decrypts":    {unsupported("RSA_2048 for ENCRYPT_DECRYPT"), sign(letters, []byte("m"), pssSHA256)},
			"PSS with an EC key":               {unsupported("it has ECDSA_SHA_256"), sign(ec, []byte("m"), pssSHA256)},
			"SHA-384 with P-256":               {unsupported("it has ECDSA_SHA_256"), sign(ec, []byte("m"), pb.SigningAlgorithm_SIGNING_ALGORITHM_ECDSA_SHA_384)},
			"ECDSA with RSA":                   {unsupported("it has RSASSA_PSS_SHA_256 or"), sign(rsa, []byte("m"), ecdsaP256)},
			"no algorithm":                     {invalidWith("algorithm is missing"), sign(ec, []byte("m"), 0)},
			"an unknown algorithm":             {invalidWith(`"99"`), sign(ec, []byte("m"), 99)},
			"no message":                       {invalidWith("message of 0 bytes: must be 1 to 4096"), sign(ec, nil, ecdsaP256)},
			"a long message":                   {invalidWith("message of 4097 bytes"), sign(ec, long, ecdsaP256)},
			"a short digest":                   {invalidWith("digest of 31 bytes: ECDSA_SHA_256 wants 32"), second(user.SignDigest(ctx, ec, make([]byte, 31), ecdsaP256))},
			"a digest of SHA-512 for SHA-256":  {invalidWith("digest of 64 bytes"), second(user.SignDigest(ctx, rsa, make([]byte, 64), pssSHA256))},
			"an unknown type of message":       {invalidWith("message type 9"), second(user.Crypto().Sign(ctx, &pb.SignRequest{KeyId: ec, Message: []byte("m"), MessageType: 9, SigningAlgorithm: ecdsaP256}))},
			"a key that is not there":          {notFound, sign("alias/nothing", []byte("m"), ecdsaP256)},
			"Sign by an administrator":         {refused(codes.PermissionDenied, client.ErrDenied, "may not"), second(admin.Sign(ctx, ec, []byte("m"), ecdsaP256))},
			"another message":                  {badSignature, user.Verify(ctx, ec, []byte("n"), signature, ecdsaP256)},
			"another key":                      {badSignature, user.Verify(ctx, rsa, []byte("m"), signature, pssSHA256)},
			"a tampered signature":             {badSignature, user.Verify(ctx, ec, []byte("m"), flipped(signature), ecdsaP256)},
			"a cut signature":                  {badSignature, user.Verify(ctx, ec, []byte("m"), signature[:len(signature)-1], ecdsaP256)},
			"a longer signature":               {badSignature, user.Verify(ctx, ec, []byte("m"), append(bytes.Clone(signature), 0), ecdsaP256)},
			"no signature":                     {invalidWith("signature of 0 bytes"), user.Verify(ctx, ec, []byte("m"), nil, ecdsaP256)},
			"a long signature":                 {invalidWith("signature of 513 bytes"), user.Verify(ctx, ec, []byte("m"), long[:513], ecdsaP256)},
			"GenerateMac with an EC key":       {unsupported("ECC_NIST_P256"), second(user.GenerateMac(ctx, ec, []byte("m"), hmac256))},
			"SHA-512 with HMAC_256":            {unsupported("it has HMAC_SHA_256"), second(user.GenerateMac(ctx, mac, []byte("m"), pb.MacAlgorithm_MAC_ALGORITHM_HMAC_SHA_512))},
			"a long message for a MAC":         {invalidWith("message of 4097 bytes"), second(user.GenerateMac(ctx, mac, long, hmac256))},
			"the message of a check value":     {invalidWith("quorumkms/kcv/v1"), second(user.GenerateMac(ctx, mac, []byte("quorumkms/kcv/v1 and more"), hmac256))},
			"a wrong MAC":                      {badMac, user.VerifyMac(ctx, mac, []byte("m"), make([]byte, 32), hmac256)},
			"a cut MAC":                        {badMac, user.VerifyMac(ctx, mac, []byte("m"), make([]byte, 16), hmac256)},
			"the public key of an HMAC key":    {unsupported("HMAC_256", "GetPublicKey"), second(user.PublicKey(ctx, mac))},
			"the public key of a symmetric":    {unsupported("SYMMETRIC"), second(user.PublicKey(ctx, symmetric))},
			"Encrypt with a key that signs":    {unsupported("RSA_2048 for SIGN_VERIFY"), second(user.EncryptRSA(ctx, rsa, []byte("m"), oaepSHA1))},
			"Encrypt without the algorithm":    {invalidWith("name the algorithm, RSAES_OAEP_SHA_1"), second(user.Encrypt(ctx, letters, []byte("m"), nil))},
			"RSA with a context":               {invalidWith("no encryption context"), second(user.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: letters, Plaintext: []byte("m"), EncryptionAlgorithm: oaepSHA1, EncryptionContext: client.ContextPairs(map[string]string{"a": "b"})}))},
			"too much for RSA":                 {invalidWith("must be 1 to 214"), second(user.EncryptRSA(ctx, letters, make([]byte, 215), oaepSHA1))},
			"OAEP with a symmetric key":        {unsupported("SYMMETRIC"), second(user.EncryptRSA(ctx, symmetric, []byte("m"), oaepSHA1))},
			"what SoftHSM lacks":               {unsupported("RSAES_OAEP_SHA_256"), second(user.EncryptRSA(ctx, letters, []byte("m"), oaepSHA256))},
			"what SoftHSM lacks, to decrypt":   {unsupported("RSAES_OAEP_SHA_256"), second(user.DecryptRSA(ctx, letters, sealed, oaepSHA256))},
			"a tampered ciphertext of RSA":     {badCiphertext, second(user.DecryptRSA(ctx, letters, flipped(sealed), oaepSHA1))},
			"a cut ciphertext of RSA":          {badCiphertext, second(user.DecryptRSA(ctx, letters, sealed[1:], oaepSHA1))},
			"zeros":                            {badCiphertext, second(user.DecryptRSA(ctx, letters, make([]byte, 256), oaepSHA1))},
			"a ciphertext of RSA, no key":      {invalidWith("key is missing"), second(user.DecryptRSA(ctx, "", sealed, oaepSHA1))},
			"GenerateDataKey with an RSA key":  {unsupported("RSA_2048"), second2(user.GenerateDataKey(ctx, letters, nil))},
			"a pair of no spec":                {invalidWith("data key pair"), second(user.Crypto().GenerateDataKeyPair(ctx, &pb.GenerateDataKeyPairRequest{KeyId: symmetric}))},
			"a pair under an EC key":           {unsupported("ECC_NIST_P256"), second(user.Crypto().GenerateDataKeyPair(ctx, &pb.GenerateDataKeyPairRequest{KeyId: ec, Spec: 4}))},
			"rotation of an EC key":            {unsupported("rotation", "ECC_NIST_P256"), second(admin.Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: ec}))},
			"a schedule for an HMAC key":       {unsupported("rotation", "HMAC_256"), second(admin.Keys().EnableKeyRotation(ctx, &pb.EnableKeyRotationRequest{KeyId: mac}))},
			"a required context of an RSA key": {unsupported("context"), second(admin.Keys().SetRequiredContext(ctx, &pb.SetRequiredContextRequest{KeyId: letters, ContextKeys: []string{"a"}}))},
			"EC that encrypts":                 {invalidWith("ECC_NIST_P256 are for SIGN_VERIFY"), second(admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{Spec: pb.KeySpec_KEY_SPEC_ECC_NIST_P256, Usage: encDecrypt}))},
			"RSA for nothing":                  {invalidWith("name the usage"), second(admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{Spec: pb.KeySpec_KEY_SPEC_RSA_2048}))},
			"HMAC that signs":                  {invalidWith("GENERATE_VERIFY_MAC"), second(admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{Spec: pb.KeySpec_KEY_SPEC_HMAC_256, Usage: signVerify}))},
			"a spec that is unknown":           {invalidWith(`"77" is unknown`), second(admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{Spec: 77}))},
		} {
			x.want.check(c.t, what, x.err)
		}
	})
	must(c.t, user.Verify(ctx, ec, []byte("m"), signature, ecdsaP256))
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

func second2[T, U any](_ T, _ U, err error) error { return err }

// checkPairs makes data key pairs: openssl reads and uses them, and every node opens the
// private halves.
func (c *testCluster) checkPairs(ctx context.Context, k secretKeys) {
	c.t.Helper()
	key, ec := c.createKey(ctx), map[string]string{"host": "h1"}
	c.level(ctx)
	for i, spec := range []pb.DataKeyPairSpec{1, 2, 3, 4, 5} {
		p, other := c.nodes[i%3], c.nodes[(i+1)%3]
		private, blob, public, err := c.dial(userID, p).GenerateDataKeyPair(ctx, key, spec, ec)
		must(c.t, err)
		opened, err := c.dial(userID, other).Decrypt(ctx, blob, ec)
		if err != nil || !bytes.Equal(opened, private) {
			c.t.Errorf("%s: the blob opens to %d bytes, %v", spec, len(opened), err)
		}
		must(c.t, os.WriteFile(filepath.Join(k.dir, "private"), private, 0o600))
		must(c.t, os.WriteFile(filepath.Join(k.dir, "public"), public, 0o600))
		if out, err := openssl(c.t, k.dir, "pkey", "-inform", "DER", "-in", "private", "-check", "-noout"); err != nil || !strings.Contains(out, "Key is valid") {
			c.t.Errorf("%s: openssl says %v: %s", spec, err, out)
		}
		out, err := openssl(c.t, k.dir, "pkey", "-inform", "DER", "-in", "private", "-pubout", "-outform", "DER", "-out", "derived")
		must(c.t, err)
		derived, err := os.ReadFile(filepath.Join(k.dir, "derived"))
		if err != nil || !bytes.Equal(derived, public) {
			c.t.Errorf("%s: another public half: %s", spec, out)
		}
		hidden, err := c.dial(userID, p).Crypto().GenerateDataKeyPairWithoutPlaintext(ctx, &pb.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: key, Spec: spec})
		must(c.t, err)
		if opened, err = c.dial(userID, other).Decrypt(ctx, hidden.GetPrivateKeyCiphertext(), nil); err != nil || len(opened) < 100 || bytes.Equal(hidden.GetPublicKey(), public) {
			c.t.Errorf("%s without plaintext: %d bytes, %v", spec, len(opened), err)
		}
		badCiphertext.check(c.t, fmt.Sprint(spec, " in another context"), second(c.dial(userID, other).Decrypt(ctx, blob, nil)))
	}
}
