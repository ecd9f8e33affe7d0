package main

import (
	"context"
	"crypto"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// The enums that are flags.
var (
	specs       = enum{"KEY_SPEC_", quorumkmsv1.KeySpec_name}
	usages      = enum{"KEY_USAGE_", quorumkmsv1.KeyUsage_name}
	protections = enum{"PROTECTION_LEVEL_", quorumkmsv1.ProtectionLevel_name}
	pairSpecs   = enum{"DATA_KEY_PAIR_SPEC_", quorumkmsv1.DataKeyPairSpec_name}
	signings    = enum{"SIGNING_ALGORITHM_", quorumkmsv1.SigningAlgorithm_name}
	macs        = enum{"MAC_ALGORITHM_", quorumkmsv1.MacAlgorithm_name}
	encryptions = enum{"ENCRYPTION_ALGORITHM_", quorumkmsv1.EncryptionAlgorithm_name}
)

const (
	maxMessage   = 4096 // bytes, of a MAC
	maxSignature = 512  // bytes
)

// enumFlag adds a flag that is an enum.
func enumFlag(c *cobra.Command, value *string, flag string, e enum, usage string) {
	c.Flags().StringVar(value, flag, "", usage+": "+strings.Join(e.choices(), ", "))
	complete(c, flag, e.choices()...)
}

// signing are the flags of sign and verify.
type signing struct {
	in        string
	algorithm string
	isDigest  bool
}

func (s *signing) flags(c *cobra.Command, how string) {
	enumFlag(c, &s.algorithm, "algorithm", signings, how)
	c.Flags().StringVar(&s.in, "in", "", "file to read (default: standard input)")
	c.Flags().BoolVar(&s.isDigest, "digest", false, "the input is the digest itself, in binary")
}

// digest reads the input and hashes it here: the message need not leave this machine, and
// may be of any size.
func (s *signing) digest(ctx context.Context, a *app) ([]byte, quorumkmsv1.SigningAlgorithm, error) {
	n, err := signings.required("algorithm", s.algorithm)
	if err != nil {
		return nil, 0, err
	}
	algorithm := quorumkmsv1.SigningAlgorithm(n)
	hash := crypto.SHA256
	switch {
	case strings.HasSuffix(algorithm.String(), "_384"):
		hash = crypto.SHA384
	case strings.HasSuffix(algorithm.String(), "_512"):
		hash = crypto.SHA512
	}
	if s.isDigest {
		digest, err := a.readSmall(ctx, s.in, int64(hash.Size()), ": with --digest it is the digest itself")
		if err == nil && len(digest) != hash.Size() {
			err = usagef("the input has %d bytes: a digest of %s has %d", len(digest), s.algorithm, hash.Size())
		}
		return digest, algorithm, err
	}
	in, err := a.open(ctx, s.in)
	if err != nil {
		return nil, 0, err
	}
	defer in.Close() //nolint:errcheck // only read
	h := hash.New()
	_, err = io.Copy(h, in)
	return h.Sum(nil), algorithm, err
}

func (a *app) signCommand() *cobra.Command {
	var s signing
	var out string
	c := &cobra.Command{
		Use:   "sign KEY",
		Short: "Sign a file of any size",
		Long: `Sign a file of any size with an RSA or ECC key of usage sign-verify. The file is hashed
here, and its digest is signed in an HSM of the cluster.

Whoever has the public key (kmsctl public-key) verifies without the cluster:
  openssl dgst -sha256 -verify releases.pem -signature release.sig release.tar
For PSS, add -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest.`,
		Example: `  kmsctl sign alias/releases --algorithm ecdsa-sha-256 --in release.tar --out release.sig`,
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		digest, algorithm, err := s.digest(ctx, a)
		if err != nil {
			return err
		}
		r, err := kms.Crypto().Sign(ctx, &quorumkmsv1.SignRequest{
			KeyId: args[0], Message: digest, MessageType: quorumkmsv1.MessageType_MESSAGE_TYPE_DIGEST, SigningAlgorithm: algorithm, DryRun: a.dryRun,
		})
		if err != nil {
			return err
		}
		return a.deliver(out, &r.Signature, r)
	})
	s.flags(c, "how to sign")
	c.Flags().StringVar(&out, "out", "", "file for the signature (default: standard output)")
	return a.tries(c)
}

func (a *app) verifyCommand() *cobra.Command {
	var s signing
	var path string
	c := &cobra.Command{
		Use:     "verify KEY",
		Short:   "Check a signature",
		Long:    `Check a signature. What does not verify is INVALID_SIGNATURE, with exit code 1.`,
		Example: `  kmsctl verify alias/releases --algorithm ecdsa-sha-256 --in release.tar --signature release.sig`,
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		signature, err := a.readProof(ctx, "signature", path)
		if err != nil {
			return err
		}
		digest, algorithm, err := s.digest(ctx, a)
		if err != nil {
			return err
		}
		r, err := kms.Crypto().Verify(ctx, &quorumkmsv1.VerifyRequest{
			KeyId: args[0], Message: digest, MessageType: quorumkmsv1.MessageType_MESSAGE_TYPE_DIGEST, SigningAlgorithm: algorithm, Signature: signature, DryRun: a.dryRun,
		})
		if err != nil {
			return err
		}
		return a.printLine(r, "The signature is of %s.", r.GetKeyId())
	})
	s.flags(c, "how it was signed")
	c.Flags().StringVar(&path, "signature", "", "file with the signature")
	return a.tries(c)
}

// readProof reads a file with a signature or a MAC.
func (a *app) readProof(ctx context.Context, flag, path string) ([]byte, error) {
	if path == "" || path == stdio {
		return nil, usagef("--%s is missing: want a file", flag)
	}
	data, err := a.readSmall(ctx, path, maxSignature, ": it is no "+flag)
	if err == nil && len(data) == 0 {
		err = usagef("%s is empty", path)
	}
	return data, err
}

func (a *app) publicKeyCommand() *cobra.Command {
	var out string
	var der bool
	c := &cobra.Command{
		Use:   "public-key KEY",
		Short: "Get the public half of an RSA or ECC key, as PEM",
		Long: `Get the public half of an RSA or ECC key, as PEM. With it anyone can verify, or encrypt
for the key, without the cluster.`,
		Example: `  kmsctl public-key alias/releases --out releases.pem`,
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		r, err := kms.Crypto().GetPublicKey(ctx, &quorumkmsv1.GetPublicKeyRequest{KeyId: args[0]})
		if err != nil {
			return err
		}
		if a.output != formatJSON || out != "" {
			if !der {
				r.PublicKey = pemOf("PUBLIC KEY", r.GetPublicKey())
			}
		}
		return a.deliver(out, &r.PublicKey, r)
	})
	c.Flags().StringVar(&out, "out", "", "file to write (default: standard output)")
	c.Flags().BoolVar(&der, "der", false, "as DER")
	return c
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// macFlags are the flags of mac and verify-mac.
type macFlags struct{ in, algorithm string }

func (m *macFlags) flags(c *cobra.Command) {
	enumFlag(c, &m.algorithm, "algorithm", macs, "that of the key's own size")
	c.Flags().StringVar(&m.in, "in", "", "file to read (default: standard input)")
}

func (m *macFlags) message(ctx context.Context, a *app) ([]byte, quorumkmsv1.MacAlgorithm, error) {
	n, err := macs.required("algorithm", m.algorithm)
	if err != nil {
		return nil, 0, err
	}
	message, err := a.readSmall(ctx, m.in, maxMessage, ": make the MAC of its hash")
	if err == nil && len(message) == 0 {
		err = usagef("the input is empty: want 1 to %d bytes", maxMessage)
	}
	return message, quorumkmsv1.MacAlgorithm(n), err
}

func (a *app) macCommand() *cobra.Command {
	var m macFlags
	var out string
	var asHex bool
	c := &cobra.Command{
		Use:     "mac KEY",
		Short:   "Compute the HMAC of up to 4,096 bytes",
		Example: `  kmsctl mac alias/tokens --algorithm hmac-sha-256 --in token --hex`,
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		if asHex && a.output == formatJSON {
			return usagef("--hex and --output json exclude each other")
		}
		message, algorithm, err := m.message(ctx, a)
		if err != nil {
			return err
		}
		r, err := kms.Crypto().GenerateMac(ctx, &quorumkmsv1.GenerateMacRequest{KeyId: args[0], Message: message, MacAlgorithm: algorithm, DryRun: a.dryRun})
		if err != nil {
			return err
		}
		if asHex {
			return a.writeData(out, append([]byte(hex.EncodeToString(r.GetMac())), '\n'))
		}
		return a.deliver(out, &r.Mac, r)
	})
	m.flags(c)
	c.Flags().StringVar(&out, "out", "", "file for the MAC (default: standard output)")
	c.Flags().BoolVar(&asHex, "hex", false, "in hexadecimal, with a new line")
	return a.tries(c)
}

func (a *app) verifyMacCommand() *cobra.Command {
	var m macFlags
	var path string
	c := &cobra.Command{
		Use:     "verify-mac KEY",
		Short:   "Check an HMAC",
		Long:    `Check an HMAC. What does not verify is INVALID_MAC, with exit code 1.`,
		Example: `  kmsctl verify-mac alias/tokens --algorithm hmac-sha-256 --in token --mac token.mac`,
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		mac, err := a.readProof(ctx, "mac", path)
		if err != nil {
			return err
		}
		message, algorithm, err := m.message(ctx, a)
		if err != nil {
			return err
		}
		r, err := kms.Crypto().VerifyMac(ctx, &quorumkmsv1.VerifyMacRequest{KeyId: args[0], Message: message, MacAlgorithm: algorithm, Mac: mac, DryRun: a.dryRun})
		if err != nil {
			return err
		}
		return a.printLine(r, "The MAC is of %s.", r.GetKeyId())
	})
	m.flags(c)
	c.Flags().StringVar(&path, "mac", "", "file with the MAC, in binary")
	return a.tries(c)
}

// dataKeyPair are the flags of data-key-pair.
type dataKeyPair struct {
	spec         string
	withoutPlain bool
	show         bool
	privateOut   string
	publicOut    string
	blobOut      string
}

func (a *app) dataKeyPairCommand() *cobra.Command {
	var d dataKeyPair
	c := &cobra.Command{
		Use:   "data-key-pair [KEY]",
		Short: "Make an RSA or ECC pair: its private half in plaintext, and encrypted under KEY",
		Long: `Make an RSA or ECC pair: its private half in plaintext, to use and forget, and as a blob,
to keep; decrypt gives the private half back for the blob, as PKCS #8 DER, which
openssl pkey -inform DER reads. KEY is a symmetric key. Files are PEM, but for the blob.

The private half is not printed on a terminal unless --show says so.

` + serviceKeyHelp,
		Example: `  kmsctl data-key-pair alias/volumes --spec ecc-nist-p256 --context host=h1 --public-out h1.pem --private-out h1.key --blob-out h1.blob`,
	}
	ec := contextFlag(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		spec, err := d.check()
		if err != nil {
			return err
		}
		if d.withoutPlain {
			r, err := kms.Crypto().GenerateDataKeyPairWithoutPlaintext(ctx, &quorumkmsv1.GenerateDataKeyPairWithoutPlaintextRequest{
				KeyId: named(args), Spec: spec, EncryptionContext: *ec, DryRun: a.dryRun,
			})
			if err != nil {
				return err
			}
			return a.deliverDataKeyPair(d, nil, &r.PublicKey, &r.PrivateKeyCiphertext, r)
		}
		if d.privateOut == "" && isTerminal(a.stdout) && !d.show && !a.dryRun {
			return usagef("the private half of a pair is not shown on a terminal: use --private-out FILE, --without-plaintext, or --show")
		}
		r, err := kms.Crypto().GenerateDataKeyPair(ctx, &quorumkmsv1.GenerateDataKeyPairRequest{KeyId: named(args), Spec: spec, EncryptionContext: *ec, DryRun: a.dryRun})
		if err != nil {
			return err
		}
		defer clear(r.GetPrivateKeyPlaintext())
		return a.deliverDataKeyPair(d, &r.PrivateKeyPlaintext, &r.PublicKey, &r.PrivateKeyCiphertext, r)
	})
	enumFlag(c, &d.spec, "spec", pairSpecs, "kind of pair")
	c.Flags().BoolVar(&d.withoutPlain, "without-plaintext", false, "make the public half and the blob only")
	c.Flags().BoolVar(&d.show, "show", false, "print the private half even on a terminal")
	c.Flags().StringVar(&d.privateOut, "private-out", "", "file for the private half, readable by its owner only")
	c.Flags().StringVar(&d.publicOut, "public-out", "", "file for the public half")
	c.Flags().StringVar(&d.blobOut, "blob-out", "", "file for the blob")
	return a.tries(c)
}

func (d *dataKeyPair) check() (quorumkmsv1.DataKeyPairSpec, error) {
	files := map[string]string{}
	for flag, path := range map[string]string{"--private-out": d.privateOut, "--public-out": d.publicOut, "--blob-out": d.blobOut} {
		switch {
		case path == "":
		case path == stdio:
			return 0, usagef("%s wants a file; without it, what it is for is printed", flag)
		case files[path] != "":
			return 0, usagef("%s is named by two flags", path)
		}
		files[path] = flag
	}
	if d.withoutPlain && (d.privateOut != "" || d.show) {
		return 0, usagef("--without-plaintext leaves no private half to show or write")
	}
	n, err := pairSpecs.required("spec", d.spec)
	return quorumkmsv1.DataKeyPairSpec(n), err
}

// deliverDataKeyPair writes what goes to files, the blob first, and prints the rest.
func (a *app) deliverDataKeyPair(d dataKeyPair, private, public, blob *[]byte, response keyedMessage) error {
	fields := [][2]string{{"Key", response.GetKeyId()}, {"Version", number(response.GetKeyVersion())}}
	for _, part := range []struct {
		name, path, pem string
		bytes           *[]byte
	}{{"Blob", d.blobOut, "", blob}, {"Public", d.publicOut, "PUBLIC KEY", public}, {"Private", d.privateOut, "PRIVATE KEY", private}} {
		switch {
		case part.bytes == nil:
		case part.path == "":
			fields = append(fields, [2]string{part.name, base64.StdEncoding.EncodeToString(*part.bytes)})
		default:
			data := *part.bytes
			if part.pem != "" {
				data = pemOf(part.pem, data)
			}
			err := a.writeSecret(part.path, data)
			clear(data)
			clear(*part.bytes)
			if *part.bytes = nil; err != nil {
				return fmt.Errorf("%s: %w", part.name, err)
			}
			fields = append(fields, [2]string{part.name, "written to " + part.path})
		}
	}
	return a.print(response, func(w io.Writer) error { return writeFields(w, fields) })
}
