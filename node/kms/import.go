package kms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
)

const (
	// importValidity is how long an import token is taken.
	importValidity = 24 * time.Hour
	// maxImportToken is more than a KWT1 token of an RSA key of 4,096 bits has, in bytes.
	maxImportToken = 4202
)

// ImportType says whether a version has had the material before.
type ImportType int

// The types: ImportAny is existing material where there was any.
const (
	ImportAny ImportType = iota
	ImportNew
	ImportExisting
)

// ImportParameters is what material is wrapped with, and how it comes back.
type ImportParameters struct {
	Key       fsm.ID
	Public    []byte // DER SubjectPublicKeyInfo
	Token     []byte
	Until     time.Time
	Algorithm hsm.ImportAlgorithm
	Inside    bool // the HSM unwraps it by itself
	Size      int  // of the material, in bytes
}

// Material is what is imported.
type Material struct {
	Token       []byte // of GetParametersForImport
	Wrapped     []byte
	Expires     int64 // unix seconds; 0: never
	Type        ImportType
	Version     uint32 // of existing material; 0: see version
	Description string
}

// GetParametersForImport makes a pair for an import into a key. An empty algorithm is the
// best that this node's HSM unwraps by itself.
func (s *Service) GetParametersForImport(ctx context.Context, c Call, key string, bits uint16, a hsm.ImportAlgorithm) (ImportParameters, *fsm.State, error) {
	const name = "GetParametersForImport"
	a = cmp.Or(a, s.bestImport())
	if !a.Known() || bits != 2048 && bits != 3072 && bits != 4096 {
		return ImportParameters{}, nil, s.refuse(begin(name, c), early{invalid("wrapping algorithm %.80q with an RSA key of %d bits", a, bits)})
	}
	return read(ctx, s, reading{name: name, call: c, key: &key, needs: mayAdminister}, func(st *fsm.State, _ string, k *fsm.Key) (ImportParameters, error) {
		command := s.importCommand(st, k, fsm.KeyRef{ID: k.ID, Tenant: k.Tenant}, Material{})
		if _, err := st.Try(command); err != nil {
			return ImportParameters{}, err
		}
		free, err := s.place(ctx)
		if err != nil {
			return ImportParameters{}, err
		}
		defer free()
		now := s.now().UTC().Truncate(time.Second)
		made, err := s.keys.NewImportPair(ctx, hsm.ImportPairSpec{
			Cluster: hsm.ID(st.Cluster().ID), Generation: command.Generation, Key: hsm.ID(k.ID), Bits: bits, Algorithm: a, Created: now,
		})
		if err != nil {
			return ImportParameters{}, err
		}
		return ImportParameters{
			Key: k.ID, Public: made.SPKI, Token: made.Token, Until: now.Add(importValidity), Algorithm: a,
			Inside: s.keys.ImportsInside(a), Size: kindOf(k.Spec, k.Usage).MaterialSize(),
		}, nil
	})
}

func (s *Service) bestImport() hsm.ImportAlgorithm {
	if !s.keys.ImportsInside(hsm.ImportOAEPSHA256) && s.keys.ImportsInside(hsm.ImportOAEPSHA1) {
		return hsm.ImportOAEPSHA1
	}
	return hsm.ImportOAEPSHA256
}

// importCommand is the command of an import, in which what stands for the material would
// be taken.
func (s *Service) importCommand(st *fsm.State, k *fsm.Key, ref fsm.KeyRef, m Material) *fsm.ImportKeyMaterial {
	g, _ := st.ActiveGeneration() // none: the command is refused for that
	at := s.wall(st)
	command := &fsm.ImportKeyMaterial{
		KeyRef: ref, Version: m.version(st, k, at), Generation: g.Number, Token: []byte{0}, Check: make([]byte, 16),
		Expires: m.Expires, Description: m.Description,
	}
	if v := k.Version(command.Version); v != nil && v.Import != nil {
		if len(v.Import.Check) > 0 {
			command.Check = v.Import.Check
		}
		if v.Token != nil && v.Import.Expires > at && m.Wrapped == nil { // nothing is imported yet, and when it would end is not known
			command.Expires = v.Import.Expires
		}
	}
	return command
}

// version is the version whose material it is.
func (m Material) version(st *fsm.State, k *fsm.Key, at int64) uint32 {
	first := &k.Versions[0]
	never := len(k.Versions) == 1 && first.Import != nil && len(first.Import.Check) == 0
	switch missing := k.Missing(at); {
	case m.Type == ImportNew && !never:
		return st.NextVersion(k)
	case m.Version != 0:
		return m.Version
	case missing != nil:
		return missing.Version
	}
	return k.Current().Version
}

// wellFormed says what is wrong with material, whatever key it is for.
func (m Material) wellFormed() error {
	switch {
	case len(m.Token) == 0 || len(m.Token) > maxImportToken:
		return invalid("import token of %d bytes: must be one that GetParametersForImport has given", len(m.Token))
	case len(m.Wrapped) == 0 || len(m.Wrapped) > hsm.MaxImportCiphertext:
		return invalid("encrypted key material of %d bytes: must be 1 to %d", len(m.Wrapped), hsm.MaxImportCiphertext)
	case m.Type == ImportNew && m.Version != 0:
		return invalid("new key material is of no version yet: name none")
	}
	return nil
}

// ImportKeyMaterial gives a version of a key its material. The partition unwraps it; what
// it makes of it is an HSM's token as any other, which a majority of HSMs opens first.
func (s *Service) ImportKeyMaterial(ctx context.Context, c Call, key string, m Material, expect uint64) (fsm.Result, *fsm.State, error) {
	x := s.changeOf("ImportKeyMaterial", c, key, expect, struct {
		Token, Material string
		Expires         int64
		Type            ImportType
		Version         uint32
		Description     string
	}{digest(m.Token), digest(m.Wrapped), m.Expires, m.Type, m.Version, m.Description})
	x.shown = &fsm.ImportKeyMaterial{
		KeyRef: fsm.KeyRef{ID: uuid.Max}, Version: max(m.Version, 1), Token: []byte{0}, Check: make([]byte, 16), Expires: m.Expires, Description: m.Description,
	}
	x.wrong = m.wellFormed()
	x.build = func(ctx context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
		e.CiphertextSHA256 = digest(m.Wrapped)
		k, err := s.named(st, c, key, x.question(), e)
		if err != nil {
			return nil, err
		}
		command := s.importCommand(st, k, fsm.KeyRef{ID: k.ID, Tenant: k.Tenant, Expect: cmp.Or(expect, k.Revision)}, m)
		if _, err := st.Try(command); err != nil {
			return nil, err
		}
		if v := k.Version(command.Version); m.Type == ImportExisting && (v == nil || len(v.Import.Check) == 0) {
			return nil, invalid("version %d of key %s never had key material: import it as new", command.Version, k.ID)
		}
		e.KeyVersion = command.Version
		if err := s.tokenFor(st, k, m.Token); err != nil || c.DryRun {
			return command, err
		}
		return command, s.takeIn(ctx, st, k, m, command)
	}
	return s.apply(ctx, x)
}

// tokenFor refuses an import token that is not for a key, or no longer. That it was not
// altered the partition tells.
func (s *Service) tokenFor(st *fsm.State, k *fsm.Key, token []byte) error {
	t, err := hsm.ParseImportToken(token)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrImportToken, err)
	}
	if t.Header.Key != hsm.ID(k.ID) || t.Header.Cluster != hsm.ID(st.Cluster().ID) {
		return fmt.Errorf("%w: it is for key %s of cluster %s", ErrImportToken, uuid.UUID(t.Header.Key), uuid.UUID(t.Header.Cluster))
	}
	if until := t.Header.Created.Add(importValidity); s.wall(st) >= until.Unix() {
		return fmt.Errorf("%w: it was good until %s", ErrImportToken, until.Format(time.RFC3339))
	}
	return nil
}

// takeIn has the partition make a token of the material, and puts it into the command.
func (s *Service) takeIn(ctx context.Context, st *fsm.State, k *fsm.Key, m Material, command *fsm.ImportKeyMaterial) error {
	kind := kindOf(k.Spec, k.Usage)
	made, err := s.keys.ImportKey(ctx, hsm.ImportRequest{Token: m.Token, Ciphertext: m.Wrapped, Spec: hsm.KeySpec{
		Cluster: hsm.ID(st.Cluster().ID), Generation: command.Generation, Class: kind.Class, Bits: kind.Bits,
		Key: hsm.ID(k.ID), Version: command.Version, Created: s.now(),
	}})
	switch {
	case errors.Is(err, hsm.ErrCiphertext):
		return ErrKeyMaterial
	case errors.Is(err, hsm.ErrRefused), errors.Is(err, hsm.ErrNotFound):
		return fmt.Errorf("%w: %w", ErrImportToken, err)
	case err != nil:
		return err
	}
	t, err := hsm.ParseToken(made.Token)
	if err != nil {
		return err
	}
	command.Token, command.Check = made.Token, t.Check[:]
	if _, err := st.Try(command); err != nil { // other bytes than before are told before anybody opens them
		return err
	}
	return s.opener.Opened(ctx, k.ID, command.Version, kind, made)
}

// DeleteImportedKeyMaterial takes a version's material away; 0 is the current one. No node
// uses the key any more when it returns.
func (s *Service) DeleteImportedKeyMaterial(ctx context.Context, c Call, key string, version uint32, expect uint64) (fsm.Result, *fsm.State, error) {
	return s.onKeyVersion(ctx, "DeleteImportedKeyMaterial", c, key, version, expect, version,
		func(_ context.Context, _ *fsm.State, k *fsm.Key, ref fsm.KeyRef) (fsm.Command, error) {
			n := max(version, 1)
			if k != nil && version == 0 {
				n = k.Current().Version
			}
			return &fsm.DeleteKeyMaterial{VersionRef: fsm.VersionRef{KeyRef: ref, Version: n}}, nil
		})
}

// rotateToImported is the rotation of a key whose material is imported.
func rotateToImported(st *fsm.State, k *fsm.Key, ref fsm.KeyRef) fsm.Command {
	n := st.NextVersion(k) // which is refused
	if v := k.Waiting(); v != nil {
		n = v.Version
	}
	return &fsm.RotateToImported{KeyRef: ref, Version: n}
}

// at is the time on which it depends whether a key has its material.
func (s *Service) at(st *fsm.State, k *fsm.Key) int64 {
	if k.Origin != fsm.OriginExternal {
		return 0
	}
	return s.wall(st)
}
