package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // OAEP with SHA-1 is all that some HSMs have, and is sound
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	maxMaterial        = 64   // bytes of key material: HMAC_512
	maxImportToken     = 4202 // bytes
	maxWrappedMaterial = 1024 // bytes, more than any algorithm makes of maxMaterial

	// The files of kmsctl key import-parameters.
	wrappingKeyFile = "wrapping-key.pem"
	importTokenFile = "import-token.bin"
)

var (
	wrappingSpecs      = enum{"WRAPPING_KEY_SPEC_", quorumkmsv1.WrappingKeySpec_name}
	wrappingAlgorithms = enum{"WRAPPING_ALGORITHM_", quorumkmsv1.WrappingAlgorithm_name}
	origins            = enum{"KEY_ORIGIN_", quorumkmsv1.KeyOrigin_name}
)

// wrapping is what material is wrapped with.
type wrapping struct{ spec, algorithm string }

func (w *wrapping) flags(c *cobra.Command) {
	enumFlag(c, &w.spec, "wrapping-spec", wrappingSpecs, "RSA key that wraps the material (default rsa-3072)")
	enumFlag(c, &w.algorithm, "algorithm", wrappingAlgorithms, "how it wraps (default: OAEP, with the hash that the HSM unwraps by itself)")
}

// parameters gets a key to wrap with, and its import token.
func (w *wrapping) parameters(ctx context.Context, kms *client.Client, key string) (*quorumkmsv1.GetParametersForImportResponse, error) {
	spec, err := wrappingSpecs.parse("wrapping-spec", w.spec)
	if err != nil {
		return nil, err
	}
	algorithm, err := wrappingAlgorithms.parse("algorithm", w.algorithm)
	if err != nil {
		return nil, err
	}
	return kms.Keys().GetParametersForImport(ctx, &quorumkmsv1.GetParametersForImportRequest{
		KeyId: key, WrappingKeySpec: quorumkmsv1.WrappingKeySpec(spec), WrappingAlgorithm: quorumkmsv1.WrappingAlgorithm(algorithm),
	})
}

// importing is what is said of material that is imported.
type importing struct {
	expires, description string
	fresh                bool
	version              uint32
}

func (i *importing) flags(c *cobra.Command) {
	c.Flags().StringVar(&i.expires, "expires", "", "take the material away then: 90d, or a time such as 2027-01-31T00:00:00Z; at most 365 days (default never)")
	c.Flags().StringVar(&i.description, "material-description", "", "where the material comes from")
	c.Flags().BoolVar(&i.fresh, "new", false, "new material: kmsctl key rotate makes it current")
	c.Flags().Uint32Var(&i.version, "version", 0, "version whose material it is (default: the one that lacks it, or the current one)")
}

func (i *importing) request(key string) (*quorumkmsv1.ImportKeyMaterialRequest, error) {
	r := &quorumkmsv1.ImportKeyMaterialRequest{KeyId: key, Version: i.version, MaterialDescription: i.description}
	if i.fresh && i.version != 0 {
		return nil, usagef("--new and --version: new material has no version yet")
	}
	if i.fresh {
		r.ImportType = quorumkmsv1.ImportType_IMPORT_TYPE_NEW_KEY_MATERIAL
	}
	if i.expires != "" {
		at, _, err := parseWhen(i.expires, time.Now())
		if err != nil {
			return nil, usagef("--expires %s", err)
		}
		r.ValidTo = timestamppb.New(at)
	}
	return r, nil
}

// importMaterial sends wrapped material and tells what has become of it.
func (a *app) importMaterial(ctx context.Context, kms *client.Client, r *quorumkmsv1.ImportKeyMaterialRequest) error {
	r.ExpectedRevision, r.DryRun, r.RequestId = a.revision, a.dryRun, a.requestID
	done, err := kms.Keys().ImportKeyMaterial(ctx, r)
	if err != nil {
		return err
	}
	if done.GetPendingRotation() {
		return a.printLine(done, "Version %d of %s has its material: kmsctl key rotate makes it the current one.", done.GetVersion(), r.GetKeyId())
	}
	return a.printLine(done, "Version %d of %s has its material.", done.GetVersion(), r.GetKeyId())
}

func (a *app) keyImport() *cobra.Command {
	var file string
	var w wrapping
	var i importing
	c := &cobra.Command{
		Use:   "import KEY",
		Short: "Import key material from a file",
		Long: `Import key material from a file, or from standard input: exactly 32 bytes for a
symmetric key, as many as the MAC has for an HMAC key. The key was made with
kmsctl key create --origin external.

The material is wrapped on this machine under an RSA key that the HSM has made for it,
and unwrapped by the HSM. Keep it: it can be deleted from the cluster, and then no other
bytes are taken in its place. Use it nowhere else: whoever has it can open all that the
key has sealed, and other uses of an AES key give parts of it away.

To wrap it elsewhere, see kmsctl key import-parameters.`,
		Example: `  kmsctl key import alias/volumes --material material.bin
  kmsctl key import alias/volumes --material next.bin --new --expires 90d`,
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		if file == "" {
			return usagef("--material is missing: name a file, or - for standard input")
		}
		r, err := i.request(args[0])
		if err != nil {
			return err
		}
		material, err := a.readSmall(ctx, file, maxMaterial, ", and no key's material is")
		if err != nil {
			return err
		}
		defer clear(material)
		p, err := w.parameters(ctx, kms, args[0])
		if err != nil {
			return err
		}
		if len(material) != int(p.GetMaterialSize()) {
			return usagef("the material has %d bytes: the key wants %d", len(material), p.GetMaterialSize())
		}
		r.ImportToken = p.GetImportToken()
		if r.EncryptedKeyMaterial, err = wrapMaterial(p, material); err != nil {
			return err
		}
		return a.importMaterial(ctx, kms, r)
	})
	c.Flags().StringVar(&file, "material", "", "file with the material; - is standard input")
	w.flags(c)
	i.flags(c)
	return a.mutatesKey(c)
}

// wrapMaterial wraps material as parameters say. AES key wrap, which longer material needs,
// is left to other tools.
func wrapMaterial(p *quorumkmsv1.GetParametersForImportResponse, material []byte) ([]byte, error) {
	var h hash.Hash
	switch p.GetWrappingAlgorithm() {
	case quorumkmsv1.WrappingAlgorithm_WRAPPING_ALGORITHM_RSAES_OAEP_SHA_1:
		h = sha1.New() //nolint:gosec // see above
	case quorumkmsv1.WrappingAlgorithm_WRAPPING_ALGORITHM_RSAES_OAEP_SHA_256:
		h = sha256.New()
	default:
		return nil, usagef("--algorithm: kmsctl wraps with rsaes-oaep-sha-1 and rsaes-oaep-sha-256; for the others see kmsctl key import-parameters")
	}
	parsed, err := x509.ParsePKIXPublicKey(p.GetPublicKey())
	if err != nil {
		return nil, fmt.Errorf("the node's wrapping key: %w", err)
	}
	public, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the node's wrapping key is a %T", parsed)
	}
	return rsa.EncryptOAEP(h, rand.Reader, public, material, nil)
}

func (a *app) keyImportParameters() *cobra.Command {
	var dir string
	var w wrapping
	c := &cobra.Command{
		Use:   "import-parameters KEY",
		Short: "Get what key material is wrapped with, to wrap it elsewhere",
		Long: `Get what key material is wrapped with, to wrap it elsewhere: an RSA key
(` + wrappingKeyFile + `) and the import token that belongs to it (` + importTokenFile + `), good for a
day. Wrap the material, say with openssl as README.md shows, and bring it back with
kmsctl key import-material.`,
		Example: "  kmsctl key import-parameters alias/volumes --out-dir import --algorithm rsaes-oaep-sha-256",
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		if dir == "" {
			return usagef("--out-dir is missing: name a directory for %s and %s", wrappingKeyFile, importTokenFile)
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		p, err := w.parameters(ctx, kms, args[0])
		if err != nil {
			return err
		}
		key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: p.GetPublicKey()})
		if err := a.writeFile(filepath.Join(dir, wrappingKeyFile), key); err != nil {
			return err
		}
		if err := a.writeFile(filepath.Join(dir, importTokenFile), p.GetImportToken()); err != nil {
			return err
		}
		where := "the HSM unwraps it by itself"
		if !p.GetUnwrappedInside() {
			where = "the HSM lacks this mechanism: a node's memory holds the plaintext for a moment"
		}
		return a.printLine(p, "%s and %s are in %s. Wrap %d bytes with %s until %s; %s.", wrappingKeyFile, importTokenFile, dir,
			p.GetMaterialSize(), wrappingAlgorithms.text(int32(p.GetWrappingAlgorithm())), timeText(p.GetParametersValidTo()), where)
	})
	c.Flags().StringVar(&dir, "out-dir", "", "directory to write to; it is made if it is not there")
	w.flags(c)
	return c
}

func (a *app) keyImportMaterial() *cobra.Command {
	var token, encrypted string
	var i importing
	c := &cobra.Command{
		Use:     "import-material KEY",
		Short:   "Import key material that was wrapped elsewhere",
		Long:    "Import key material that was wrapped under the key of kmsctl key import-parameters.",
		Example: "  kmsctl key import-material alias/volumes --token import/import-token.bin --encrypted wrapped.bin",
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		if token == "" || encrypted == "" {
			return usagef("--token and --encrypted are needed: the import token, and the wrapped material")
		}
		r, err := i.request(args[0])
		if err != nil {
			return err
		}
		if r.ImportToken, err = a.readSmall(ctx, token, maxImportToken, ", and no import token is"); err != nil {
			return err
		}
		if r.EncryptedKeyMaterial, err = a.readSmall(ctx, encrypted, maxWrappedMaterial, ", and no wrapped material is"); err != nil {
			return err
		}
		return a.importMaterial(ctx, kms, r)
	})
	c.Flags().StringVar(&token, "token", "", "file with the import token")
	c.Flags().StringVar(&encrypted, "encrypted", "", "file with the wrapped material")
	i.flags(c)
	return a.mutatesKey(c)
}

func (a *app) keyDeleteMaterial() *cobra.Command {
	var version uint32
	c := a.yesFlag(a.mutatesKey(&cobra.Command{
		Use:   "delete-material KEY",
		Short: "Take imported key material away",
		Long: `Take imported key material away. When this returns, no node uses the key any more: it
is pending import until the same bytes are imported again. What the key protects, and
when it was last used, is shown first, on standard error. The command asks to type KEY,
an alias of the key, or its id; --yes does without.`,
		Example: "  kmsctl key delete-material alias/volumes",
	}))
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		r := &quorumkmsv1.DeleteImportedKeyMaterialRequest{KeyId: args[0], Version: version, DryRun: true}
		if err := a.preflight(func() error {
			_, err := kms.Keys().DeleteImportedKeyMaterial(ctx, r)
			return err
		}); err != nil {
			return err
		}
		question := "The key's material is taken away: without your own copy of it all that it has sealed is lost.\n"
		if err := a.confirmKey(ctx, kms, args[0], question); err != nil {
			return err
		}
		r.ExpectedRevision, r.DryRun, r.RequestId = a.revision, a.dryRun, a.requestID
		done, err := kms.Keys().DeleteImportedKeyMaterial(ctx, r)
		if err != nil {
			return err
		}
		return a.printLine(done, "The material of version %d of %s is gone: no node uses it any more.", done.GetVersion(), args[0])
	})
	c.Flags().Uint32Var(&version, "version", 0, "version whose material goes (default: the current one)")
	return c
}
