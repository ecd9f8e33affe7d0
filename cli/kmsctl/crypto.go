package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const maxBytes = 1024 // of a data key, and of random bytes

// inOut are the flags of what reads bytes and gives bytes.
type inOut struct{ in, out string }

func (f *inOut) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.in, "in", "", "file to read (default: standard input)")
	c.Flags().StringVar(&f.out, "out", "", "file to write (default: standard output)")
}

// deliver gives out a command's bytes: to the file, if there is one, and then the
// response without them as JSON if that is wanted; else to standard output, as
// they are or as part of the JSON. field is where they stand in the response.
func (a *app) deliver(path string, field *[]byte, response proto.Message) error {
	toStdout := path == "" || path == stdio
	if a.output != formatJSON {
		return a.writeData(path, *field)
	}
	if !toStdout {
		if err := a.writeFile(path, *field); err != nil {
			return err
		}
		*field = nil
	}
	return a.print(response, nil)
}

// serviceKeyHelp says what no KEY means.
const serviceKeyHelp = `A storage service may leave KEY out: then it is the service's own key of --tenant, which
is made when it is first asked for. Its --context must have tenant=… and resource=….`

// tries adds --dry-run to a command that uses a key.
func (a *app) tries(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.dryRun, "dry-run", false, "tell whether the key may be used so; nothing is done with it")
	return c
}

// named is the key that a command names; empty: none.
func named(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (a *app) encryptCommand() *cobra.Command {
	var f inOut
	var algorithm string
	c := &cobra.Command{
		Use:   "encrypt [KEY]",
		Short: "Encrypt up to 4,096 bytes",
		Long: `Encrypt up to 4,096 bytes. What is larger is sealed: see kmsctl object seal.

The same --context must be given to decrypt. It is not secret, and not stored.

An RSA key of usage encrypt-decrypt wants --algorithm, has no context, and takes less: 214
bytes with 2,048 bits and rsaes-oaep-sha-1.

` + serviceKeyHelp,
		Example: `  kmsctl encrypt alias/app --context purpose=db-password --in password.txt --out password.kms
  printf secret | kmsctl encrypt alias/app --output json
  kmsctl encrypt alias/letters --algorithm rsaes-oaep-sha-1 --in letter --out letter.rsa`,
	}
	ec := contextFlag(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		how, err := encryptions.parse("algorithm", algorithm)
		if err != nil {
			return err
		}
		plaintext, err := a.readSmall(ctx, f.in, maxPlaintext, ": use kmsctl object seal, which has no such limit")
		if err != nil {
			return err
		}
		defer clear(plaintext)
		if len(plaintext) == 0 {
			return usagef("the input is empty: want 1 to %d bytes", maxPlaintext)
		}
		r, err := kms.Crypto().Encrypt(ctx, &quorumkmsv1.EncryptRequest{KeyId: named(args), Plaintext: plaintext, EncryptionContext: *ec, EncryptionAlgorithm: quorumkmsv1.EncryptionAlgorithm(how), DryRun: a.dryRun})
		if err != nil {
			return err
		}
		return a.deliver(f.out, &r.Ciphertext, r)
	})
	f.flags(c)
	enumFlag(c, &algorithm, "algorithm", encryptions, "of RSA keys")
	return a.tries(c)
}

func (a *app) decryptCommand() *cobra.Command {
	var f inOut
	var key, algorithm string
	c := &cobra.Command{
		Use:         "decrypt",
		Annotations: map[string]string{opens: "yes"},
		Short:       "Decrypt what encrypt or data-key made",
		Long: `Decrypt what encrypt or data-key made. The ciphertext names its key.

--expect-key refuses a ciphertext of another key. A ciphertext of RSA names none: give the
key with --expect-key, and --algorithm.`,
		Example: `  kmsctl decrypt --context purpose=db-password --in password.kms
  kmsctl decrypt --expect-key alias/letters --algorithm rsaes-oaep-sha-1 --in letter.rsa`,
	}
	ec := contextFlag(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
		how, err := encryptions.parse("algorithm", algorithm)
		if err != nil {
			return err
		}
		ciphertext, err := a.readCiphertext(ctx, f.in)
		if err != nil {
			return err
		}
		r, err := kms.Crypto().Decrypt(ctx, &quorumkmsv1.DecryptRequest{
			Ciphertext: ciphertext, KeyId: key, EncryptionContext: *ec, EncryptionAlgorithm: quorumkmsv1.EncryptionAlgorithm(how), DryRun: a.dryRun,
		})
		if err != nil {
			return err
		}
		defer clear(r.GetPlaintext())
		return a.deliver(f.out, &r.Plaintext, r)
	})
	f.flags(c)
	c.Flags().StringVar(&key, "expect-key", "", "the key that the ciphertext must name, or was made with by RSA")
	enumFlag(c, &algorithm, "algorithm", encryptions, "of RSA keys")
	return a.tries(c)
}

func (a *app) readCiphertext(ctx context.Context, path string) ([]byte, error) {
	data, err := a.readSmall(ctx, path, maxCiphertext, ": is it a sealed object? See kmsctl object")
	switch {
	case err != nil:
		return nil, err
	case len(data) == 0:
		return nil, usagef("the input is empty: want a ciphertext")
	case bytes.HasPrefix(data, []byte(sealedMagic)):
		return nil, usagef("the input is a sealed object: see kmsctl object open and kmsctl object rewrap")
	}
	return data, nil
}

func (a *app) reencryptCommand() *cobra.Command {
	var f inOut
	var t destination
	c := &cobra.Command{
		Use:         "reencrypt",
		Annotations: map[string]string{opens: "yes"},
		Short:       "Move a ciphertext to its key's current version, to another key or context",
		Long: `Move a ciphertext to its key's current version, to another key or context. The
plaintext stays in the cluster. What is there already comes back unchanged.`,
		Example: `  kmsctl reencrypt --context purpose=db-password --in password.kms --out password.kms
  kmsctl reencrypt --to-key alias/new --in old.kms --out new.kms`,
	}
	ec := contextFlag(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
		ciphertext, err := a.readCiphertext(ctx, f.in)
		if err != nil {
			return err
		}
		request, err := t.request(ciphertext, *ec)
		if err != nil {
			return err
		}
		request.DryRun = a.dryRun
		r, err := kms.Crypto().ReEncrypt(ctx, request)
		if err != nil {
			return err
		}
		return a.deliver(f.out, &r.Ciphertext, r)
	})
	f.flags(c)
	t.flags(c)
	return a.tries(c)
}

// destination is where ReEncrypt moves to.
type destination struct {
	key       string
	context   pairs
	noContext bool
}

func (d *destination) flags(c *cobra.Command) {
	c.Flags().StringVar(&d.key, "to-key", "", "the key to move to (default: the same)")
	c.Flags().Var(&d.context, "to-context", "the new "+contextHelp+" (default: the same)")
	c.Flags().BoolVar(&d.noContext, "to-no-context", false, "the new encryption context is empty")
}

func (d *destination) request(ciphertext []byte, ec pairs) (*quorumkmsv1.ReEncryptRequest, error) {
	if d.noContext && d.context != nil {
		return nil, usagef("--to-context and --to-no-context exclude each other")
	}
	return &quorumkmsv1.ReEncryptRequest{
		Ciphertext:                   ciphertext,
		SourceEncryptionContext:      ec,
		DestinationKeyId:             d.key,
		DestinationEncryptionContext: d.context,
		SameContext:                  !d.noContext && d.context == nil,
	}, nil
}

// dataKey are the flags of data-key.
type dataKey struct {
	spec         string
	bytes        uint32
	withoutPlain bool
	show         bool
	plaintextOut string
	blobOut      string
}

func (a *app) dataKeyCommand() *cobra.Command {
	var d dataKey
	c := &cobra.Command{
		Use:   "data-key [KEY]",
		Short: "Make a data key: in plaintext, and encrypted under KEY",
		Long: `Make a data key: in plaintext, to encrypt with and forget, and as a blob, to keep
beside what it encrypts; decrypt gives the key back for the blob.

The plaintext is not printed on a terminal unless --show says so.

` + serviceKeyHelp,
		Example: `  kmsctl data-key alias/volumes --context volume=v1 --plaintext-out v1.key --blob-out v1.blob
  kmsctl data-key alias/volumes --without-plaintext --blob-out v2.blob`,
	}
	ec := contextFlag(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		spec, err := d.check(c.Flags().Changed("spec"), c.Flags().Changed("bytes"))
		if err != nil {
			return err
		}
		if d.withoutPlain {
			r, err := kms.Crypto().GenerateDataKeyWithoutPlaintext(ctx, &quorumkmsv1.GenerateDataKeyWithoutPlaintextRequest{
				KeyId: named(args), Spec: spec, NumberOfBytes: d.bytes, EncryptionContext: *ec, DryRun: a.dryRun,
			})
			if err != nil {
				return err
			}
			return a.deliverDataKey(d, nil, &r.Ciphertext, r)
		}
		if d.plaintextOut == "" && isTerminal(a.stdout) && !d.show && !a.dryRun {
			return usagef("the plaintext of a data key is not shown on a terminal: use --plaintext-out FILE, --without-plaintext, or --show")
		}
		r, err := kms.Crypto().GenerateDataKey(ctx, &quorumkmsv1.GenerateDataKeyRequest{
			KeyId: named(args), Spec: spec, NumberOfBytes: d.bytes, EncryptionContext: *ec, DryRun: a.dryRun,
		})
		if err != nil {
			return err
		}
		defer clear(r.GetPlaintext())
		return a.deliverDataKey(d, &r.Plaintext, &r.Ciphertext, r)
	})
	c.Flags().StringVar(&d.spec, "spec", "aes-256", "kind of key: aes-256 or aes-128")
	c.Flags().Uint32Var(&d.bytes, "bytes", 0, "length in bytes instead of --spec, 1 to 1024")
	c.Flags().BoolVar(&d.withoutPlain, "without-plaintext", false, "make the blob only")
	c.Flags().BoolVar(&d.show, "show", false, "print the plaintext even on a terminal")
	c.Flags().StringVar(&d.plaintextOut, "plaintext-out", "", "file for the plaintext, readable by its owner only")
	c.Flags().StringVar(&d.blobOut, "blob-out", "", "file for the blob")
	complete(c, "spec", "aes-256", "aes-128")
	return a.tries(c)
}

func (d *dataKey) check(specGiven, bytesGiven bool) (quorumkmsv1.DataKeySpec, error) {
	switch {
	case specGiven && bytesGiven:
		return 0, usagef("--spec and --bytes exclude each other")
	case d.withoutPlain && (d.plaintextOut != "" || d.show):
		return 0, usagef("--without-plaintext leaves no plaintext to show or write")
	case d.plaintextOut == stdio || d.blobOut == stdio:
		return 0, usagef("--plaintext-out and --blob-out want a file; without them, keys are printed")
	case d.plaintextOut != "" && d.plaintextOut == d.blobOut:
		return 0, usagef("--plaintext-out and --blob-out name the same file")
	case bytesGiven && (d.bytes == 0 || d.bytes > maxBytes):
		return 0, usagef("--bytes %d: want 1 to %d", d.bytes, maxBytes)
	case bytesGiven:
		return quorumkmsv1.DataKeySpec_DATA_KEY_SPEC_UNSPECIFIED, nil
	case d.spec == "aes-256":
		return quorumkmsv1.DataKeySpec_DATA_KEY_SPEC_AES_256, nil
	case d.spec == "aes-128":
		return quorumkmsv1.DataKeySpec_DATA_KEY_SPEC_AES_128, nil
	default:
		return 0, usagef("--spec %q: want aes-256 or aes-128", d.spec)
	}
}

// keyedMessage is a response that names the key that was used.
type keyedMessage interface {
	proto.Message
	GetKeyId() string
	GetKeyVersion() uint32
}

// deliverDataKey writes what goes to files, the blob first, and prints the rest.
func (a *app) deliverDataKey(d dataKey, plaintext, blob *[]byte, response keyedMessage) error {
	fields := [][2]string{
		{"Key", response.GetKeyId()},
		{"Version", number(response.GetKeyVersion())},
	}
	for _, part := range []struct {
		name  string
		path  string
		bytes *[]byte
	}{{"Blob", d.blobOut, blob}, {"Plaintext", d.plaintextOut, plaintext}} {
		switch {
		case part.bytes == nil:
		case part.path == "":
			fields = append(fields, [2]string{part.name, base64.StdEncoding.EncodeToString(*part.bytes)})
		default:
			if err := a.writeSecret(part.path, *part.bytes); err != nil {
				return err
			}
			fields = append(fields, [2]string{part.name, "written to " + part.path})
			clear(*part.bytes)
			*part.bytes = nil
		}
	}
	return a.print(response, func(w io.Writer) error { return writeFields(w, fields) })
}

func (a *app) randomCommand() *cobra.Command {
	var out string
	var asHex bool
	c := &cobra.Command{
		Use:     "random N",
		Short:   "Get N random bytes from the HSM, 1 to 1,024",
		Example: "  kmsctl random 32 --hex",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			n, err := strconv.ParseUint(args[0], 10, 32)
			if err != nil || n == 0 || n > maxBytes {
				return usagef("N is %q: want 1 to %d", args[0], maxBytes)
			}
			if asHex && a.output == formatJSON {
				return usagef("--hex and --output json exclude each other")
			}
			r, err := kms.Crypto().GenerateRandom(ctx, &quorumkmsv1.GenerateRandomRequest{NumberOfBytes: uint32(n)})
			if err != nil {
				return err
			}
			defer clear(r.GetPlaintext())
			if asHex {
				return a.writeData(out, append([]byte(hex.EncodeToString(r.GetPlaintext())), '\n'))
			}
			return a.deliver(out, &r.Plaintext, r)
		}),
	}
	c.Flags().StringVar(&out, "out", "", "file to write (default: standard output)")
	c.Flags().BoolVar(&asHex, "hex", false, "in hexadecimal, with a new line")
	return c
}
