package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // OAEP with SHA-1 is what SoftHSM2 has
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	importSHA1   = pb.WrappingAlgorithm_WRAPPING_ALGORITHM_RSAES_OAEP_SHA_1
	importSHA256 = pb.WrappingAlgorithm_WRAPPING_ALGORITHM_RSAES_OAEP_SHA_256
	wrapSHA1     = pb.WrappingAlgorithm_WRAPPING_ALGORITHM_RSA_AES_KEY_WRAP_SHA_1
	wrapSHA256   = pb.WrappingAlgorithm_WRAPPING_ALGORITHM_RSA_AES_KEY_WRAP_SHA_256
	newMaterial  = pb.ImportType_IMPORT_TYPE_NEW_KEY_MATERIAL
)

var (
	pendingImport = refused(codes.FailedPrecondition, client.ErrKeyPendingImport, "pending import")
	tokenRefused  = refused(codes.FailedPrecondition, client.ErrImportTokenRefused, "get new parameters")
	badMaterial   = refused(codes.InvalidArgument, client.ErrInvalidKeyMaterial, "does not unwrap")
	otherMaterial = refused(codes.FailedPrecondition, client.ErrKeyMaterialDiffers, "takes the bytes back that it had")
)

// externalKey makes a key without material.
func (c *testCluster) externalKey(ctx context.Context, spec pb.KeySpec, through ...*process) string {
	c.t.Helper()
	r, err := c.dial(adminID, through...).Keys().CreateKey(ctx, &pb.CreateKeyRequest{Origin: pb.KeyOrigin_KEY_ORIGIN_EXTERNAL, Spec: spec})
	must(c.t, err)
	if got := r.GetKey(); got.GetState() != pb.KeyState_KEY_STATE_PENDING_IMPORT || got.GetOrigin() != pb.KeyOrigin_KEY_ORIGIN_EXTERNAL {
		c.t.Errorf("a new key without material is %v", got)
	}
	c.level(ctx)
	return r.GetKey().GetKeyId()
}

// parametersFor gets what an import into a key needs, from a node.
func (c *testCluster) parametersFor(ctx context.Context, key string, a pb.WrappingAlgorithm, at *process) *pb.GetParametersForImportResponse {
	c.t.Helper()
	r, err := c.dial(adminID, at).Keys().GetParametersForImport(ctx, &pb.GetParametersForImportRequest{
		KeyId: key, WrappingAlgorithm: a, WrappingKeySpec: pb.WrappingKeySpec_WRAPPING_KEY_SPEC_RSA_2048,
	})
	must(c.t, err)
	return r
}

// wrapped is material under the key of an answer, by OAEP.
func wrapped(t *testing.T, p *pb.GetParametersForImportResponse, material []byte) []byte {
	t.Helper()
	parsed, err := x509.ParsePKIXPublicKey(p.GetPublicKey())
	must(t, err)
	h := sha256.New()
	if p.GetWrappingAlgorithm() == importSHA1 {
		h = sha1.New() //nolint:gosec // see above
	}
	out, err := rsa.EncryptOAEP(h, rand.Reader, parsed.(*rsa.PublicKey), material, nil)
	must(t, err)
	return out
}

// bring imports material: the parameters from one node, the import at another.
func (c *testCluster) bring(ctx context.Context, key string, material []byte, edit func(*pb.ImportKeyMaterialRequest), from, at *process) (*pb.ImportKeyMaterialResponse, error) {
	c.t.Helper()
	p := c.parametersFor(ctx, key, importSHA1, from)
	r := &pb.ImportKeyMaterialRequest{KeyId: key, ImportToken: p.GetImportToken(), EncryptedKeyMaterial: wrapped(c.t, p, material)}
	if edit != nil {
		edit(r)
	}
	return c.dial(adminID, at).Keys().ImportKeyMaterial(ctx, r)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// TestImport brings material into a cluster, takes it away and brings it back.
func TestImport(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 8*patience)
	defer cancel()
	one, two, three := c.nodes[0], c.nodes[1], c.nodes[2]
	material := randomBytes(32)
	key := c.externalKey(ctx, pb.KeySpec_KEY_SPEC_SYMMETRIC)
	pendingImport.check(t, "a key without material", second(c.dial(userID, two).Encrypt(ctx, key, []byte("m"), nil)))

	done, err := c.bring(ctx, key, material, nil, one, two)
	must(t, err)
	if done.GetVersion() != 1 || done.GetPendingRotation() {
		t.Errorf("imported: %v", done)
	}
	c.level(ctx)
	blob, err := c.dial(userID, three).Encrypt(ctx, key, []byte("m"), nil)
	must(t, err)
	opens := func(what string, blob []byte, nodes ...*process) {
		t.Helper()
		for _, p := range nodes {
			if got, err := c.dial(userID, p).Decrypt(ctx, blob, nil); err != nil || string(got) != "m" {
				t.Errorf("%s, through %s: %q, %v", what, p.name, got, err)
			}
		}
	}
	opens("imported", blob, c.nodes...)
	c.refuseImports(ctx, key, material)

	// Another kind, by another algorithm: known answers.
	mac := c.externalKey(ctx, pb.KeySpec_KEY_SPEC_HMAC_256)
	must(t, second(c.bring(ctx, mac, material, nil, three, one)))
	c.level(ctx)
	got, err := c.dial(userID, two).GenerateMac(ctx, mac, []byte("m"), hmac256)
	must(t, err)
	if want := hmacSHA256(material, "m"); !bytes.Equal(got, want) {
		t.Errorf("the MAC is %x, with that material %x", got, want)
	}

	c.takeAway(ctx, key, material, blob)

	// A leader's death between the parameters and the import.
	p := c.parametersFor(ctx, key, importSHA1, one)
	must(t, second(c.dial(adminID).Keys().DeleteImportedKeyMaterial(ctx, &pb.DeleteImportedKeyMaterialRequest{KeyId: key})))
	leader := c.leader(one)
	leader.kill()
	var left []*process
	for _, n := range c.nodes {
		if n != leader {
			left = append(left, n)
		}
	}
	must(t, second(c.dial(adminID, left...).Keys().ImportKeyMaterial(ctx, &pb.ImportKeyMaterialRequest{
		KeyId: key, ImportToken: p.GetImportToken(), EncryptedKeyMaterial: wrapped(t, p, material), RequestId: "after the leader",
	})))
	leader.start()
	c.until(leader.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, leader)
	c.level(ctx)
	opens("after a leader's death", blob, c.nodes...)

	c.rotateImported(ctx, key, material, blob, opens)
	for _, n := range c.nodes {
		n.terminate()
	}
	for _, n := range c.nodes {
		n.start()
	}
	for _, n := range c.nodes {
		c.until(n.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, n)
	}
	opens("after a restart", blob, c.nodes...)
}

func hmacSHA256(key []byte, message string) []byte {
	c := exec.Command("openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:"+hex.EncodeToString(key), "-binary")
	c.Stdin = strings.NewReader(message)
	out, _ := c.Output()
	return out
}

// refuseImports brings what is wrong to a key that has its material.
func (c *testCluster) refuseImports(ctx context.Context, key string, material []byte) {
	c.t.Helper()
	t, admin := c.t, c.dial(adminID, c.nodes[1])
	other, plain, pair := c.externalKey(ctx, 0), c.createKey(ctx), c.keyOfSpec(ctx, pb.KeySpec_KEY_SPEC_ECC_NIST_P256, 0)
	c.level(ctx)
	ofOther := c.parametersFor(ctx, other, importSHA256, c.nodes[0])
	unsupported := refused(codes.FailedPrecondition, client.ErrUnsupported)
	soon := timestamppb.New(time.Now().Add(time.Hour).Truncate(time.Second))
	for what, x := range map[string]struct {
		want *refusal
		edit func(*pb.ImportKeyMaterialRequest)
	}{
		"another key's token":     {tokenRefused, func(r *pb.ImportKeyMaterialRequest) { r.ImportToken = ofOther.GetImportToken() }},
		"an altered token":        {tokenRefused, func(r *pb.ImportKeyMaterialRequest) { r.ImportToken[len(r.ImportToken)-1] ^= 1 }},
		"a token with other date": {tokenRefused, func(r *pb.ImportKeyMaterialRequest) { r.ImportToken[55]++ }},
		"a token of yesterday":    {tokenRefused, func(r *pb.ImportKeyMaterialRequest) { r.ImportToken[53]--; r.ImportToken[53]-- }},
		"a cut token":             {tokenRefused, func(r *pb.ImportKeyMaterialRequest) { r.ImportToken = r.ImportToken[:200] }},
		"no token":                {invalidWith("import token of 0 bytes"), func(r *pb.ImportKeyMaterialRequest) { r.ImportToken = nil }},
		"no material":             {invalidWith("material of 0 bytes"), func(r *pb.ImportKeyMaterialRequest) { r.EncryptedKeyMaterial = nil }},
		"too much":                {invalidWith("material of 4096 bytes"), func(r *pb.ImportKeyMaterialRequest) { r.EncryptedKeyMaterial = make([]byte, 4096) }},
		"altered material":        {badMaterial, func(r *pb.ImportKeyMaterialRequest) { r.EncryptedKeyMaterial[9] ^= 1 }},
		"cut material":            {badMaterial, func(r *pb.ImportKeyMaterialRequest) { r.EncryptedKeyMaterial = r.EncryptedKeyMaterial[1:] }},
		"an end in the past":      {invalidWith("must be later"), func(r *pb.ImportKeyMaterialRequest) { r.ValidTo = timestamppb.New(time.Unix(1, 0)) }},
		"an end too far": {invalidWith("365 days"), func(r *pb.ImportKeyMaterialRequest) {
			r.ValidTo = timestamppb.New(time.Now().Add(366 * 24 * time.Hour).Truncate(time.Second))
		}},
		"an end within a second":  {invalidWith("whole seconds"), func(r *pb.ImportKeyMaterialRequest) { r.ValidTo = &timestamppb.Timestamp{Seconds: 1 << 33, Nanos: 1} }},
		"no end where there is":   {invalidWith("valid_to is missing"), func(r *pb.ImportKeyMaterialRequest) { r.ExpirationModel = 1 }},
		"an end where there none": {invalidWith("valid_to is given"), func(r *pb.ImportKeyMaterialRequest) { r.ExpirationModel, r.ValidTo = 2, soon }},
		"an unknown model":        {invalidWith("expiration model"), func(r *pb.ImportKeyMaterialRequest) { r.ExpirationModel = 9 }},
		"an unknown type":         {invalidWith("import type"), func(r *pb.ImportKeyMaterialRequest) { r.ImportType = 9 }},
		"a version of new bytes":  {invalidWith("name none"), func(r *pb.ImportKeyMaterialRequest) { r.ImportType, r.Version = newMaterial, 1 }},
		"an earlier end":          {invalidWith("end earlier"), func(r *pb.ImportKeyMaterialRequest) { r.ValidTo = soon }},
		"a trial":                 {refused(codes.FailedPrecondition, client.ErrDryRun), func(r *pb.ImportKeyMaterialRequest) { r.DryRun = true }},
		"a key of the HSM":        {unsupported, func(r *pb.ImportKeyMaterialRequest) { r.KeyId = plain }},
	} {
		_, err := c.bring(ctx, key, bytes.Clone(material), x.edit, c.nodes[0], c.nodes[1])
		x.want.check(t, what, err)
	}
	_, err := c.bring(ctx, key, randomBytes(32), nil, c.nodes[0], c.nodes[2])
	otherMaterial.check(t, "other bytes", err)
	_, err = c.bring(ctx, key, randomBytes(31), nil, c.nodes[0], c.nodes[2])
	badMaterial.check(t, "fewer bytes", err)
	for what, k := range map[string]string{"a key of the HSM": plain, "a pair": pair} {
		unsupported.check(t, "parameters for "+what, second(admin.Keys().GetParametersForImport(ctx, &pb.GetParametersForImportRequest{KeyId: k})))
		unsupported.check(t, "no material of "+what, second(admin.Keys().DeleteImportedKeyMaterial(ctx, &pb.DeleteImportedKeyMaterialRequest{KeyId: k})))
	}
	unsupported.check(t, "an RSA key without material", second(admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{
		Origin: pb.KeyOrigin_KEY_ORIGIN_EXTERNAL, Spec: pb.KeySpec_KEY_SPEC_RSA_2048, Usage: signVerify,
	})))
	invalidWith("key origin 9").check(t, "an unknown origin", second(admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{Origin: 9})))
	invalidWith("wrapping algorithm").check(t, "an unknown algorithm", second(admin.Keys().GetParametersForImport(ctx, &pb.GetParametersForImportRequest{KeyId: key, WrappingAlgorithm: 9})))
	invalidWith("0 bits").check(t, "an unknown spec", second(admin.Keys().GetParametersForImport(ctx, &pb.GetParametersForImportRequest{KeyId: key, WrappingKeySpec: 9})))
	refused(codes.PermissionDenied, client.ErrDenied).check(t, "parameters for a user",
		second(c.dial(userID).Keys().GetParametersForImport(ctx, &pb.GetParametersForImportRequest{KeyId: key})))
	unsupported.check(t, "a schedule", second(admin.Keys().EnableKeyRotation(ctx, &pb.EnableKeyRotationRequest{KeyId: key})))
	unsupported.check(t, "a rotation without new material", second(admin.Keys().RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: key})))
}

// takeAway deletes material while it is in use: no result comes after the return. Then it
// comes back, until a date.
func (c *testCluster) takeAway(ctx context.Context, key string, material, blob []byte) {
	c.t.Helper()
	t := c.t
	type result struct {
		begun time.Time
		err   error
	}
	results, stop := make(chan result, 1<<16), make(chan struct{})
	finished := make(chan struct{}, len(c.nodes))
	for _, p := range c.nodes {
		user := c.dial(userID, p)
		go func() {
			defer func() { finished <- struct{}{} }()
			for {
				select {
				case <-stop:
					return
				default:
				}
				begun := time.Now()
				_, err := user.Decrypt(ctx, blob, nil)
				results <- result{begun, err}
				if err != nil && time.Since(begun) > patience {
					return
				}
			}
		}()
	}
	for range 50 {
		if r := <-results; r.err != nil {
			t.Fatalf("before the deletion: %v", r.err)
		}
	}
	must(t, second(c.dial(adminID, c.nodes[1]).Keys().DeleteImportedKeyMaterial(ctx, &pb.DeleteImportedKeyMaterialRequest{KeyId: key})))
	returned := time.Now()
	after := 0
	for after < 100 {
		r := <-results
		if r.begun.Before(returned) {
			continue
		}
		after++
		pendingImport.check(t, "after the deletion has returned", r.err)
	}
	close(stop)
	for range c.nodes {
		for done := false; !done; {
			select {
			case <-results:
			case <-finished:
				done = true
			}
		}
	}
	admin := c.dial(adminID, c.nodes[0]).Keys()
	for what, err := range map[string]error{
		"enable":  second(admin.EnableKey(ctx, &pb.EnableKeyRequest{KeyId: key})),
		"disable": second(admin.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: key})),
		"rotate":  second(admin.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: key})),
		"grant":   second(c.dial(adminID, c.nodes[0]).Grants().CreateGrant(ctx, &pb.CreateGrantRequest{KeyId: key, GranteePrincipal: uri(userID), Operations: []string{"Decrypt"}})),
	} {
		pendingImport.check(t, what, err)
	}
	must(t, second(admin.DeleteImportedKeyMaterial(ctx, &pb.DeleteImportedKeyMaterialRequest{KeyId: key}))) // which has no effect
	_, err := c.bring(ctx, key, randomBytes(32), nil, c.nodes[0], c.nodes[2])
	otherMaterial.check(t, "other bytes again", err)

	ends := time.Now().Add(6 * time.Second).Truncate(time.Second)
	until := func(r *pb.ImportKeyMaterialRequest) {
		r.ValidTo, r.MaterialDescription = timestamppb.New(ends), "vault 7"
	}
	must(t, second(c.bring(ctx, key, material, until, c.nodes[2], c.nodes[0])))
	described, err := admin.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key})
	must(t, err)
	if k := described.GetKey(); k.GetExpirationModel() != pb.ExpirationModel_EXPIRATION_MODEL_KEY_MATERIAL_EXPIRES || !k.GetValidTo().AsTime().Equal(ends) {
		t.Errorf("described as %v", k)
	}
	for _, p := range c.nodes {
		c.eventually(p.name+" refuses material that has expired", func() bool {
			begun := time.Now()
			err := second(c.dial(userID, p).Decrypt(ctx, blob, nil))
			if err == nil && begun.After(ends) {
				t.Errorf("%s uses material %s after its end", p.name, begun.Sub(ends))
			}
			return err != nil
		}, p)
		pendingImport.check(t, "expired", second(c.dial(userID, p).Decrypt(ctx, blob, nil)))
	}
	c.eventually("the material is removed", func() bool {
		v, err := admin.ListKeyVersions(ctx, &pb.ListKeyVersionsRequest{KeyId: key})
		must(t, err)
		only := v.GetVersions()[0]
		return only.GetState() == pb.KeyVersionState_KEY_VERSION_STATE_PENDING_IMPORT && only.GetValidTo() == nil && only.GetMaterialDescription() == "vault 7"
	}, c.nodes...)
	must(t, second(c.bring(ctx, key, material, nil, c.nodes[1], c.nodes[2])))
	c.level(ctx)
}

// rotateImported brings a second material, and rotates to it.
func (c *testCluster) rotateImported(ctx context.Context, key string, material, blob []byte, opens func(string, []byte, ...*process)) {
	c.t.Helper()
	t, admin, next := c.t, c.dial(adminID, c.nodes[2]).Keys(), randomBytes(32)
	isNew := func(r *pb.ImportKeyMaterialRequest) { r.ImportType = newMaterial }
	done, err := c.bring(ctx, key, next, isNew, c.nodes[0], c.nodes[1])
	must(t, err)
	if done.GetVersion() != 2 || !done.GetPendingRotation() {
		t.Errorf("new material: %v", done)
	}
	_, err = c.bring(ctx, key, randomBytes(32), isNew, c.nodes[0], c.nodes[1])
	refused(codes.AlreadyExists, client.ErrExists, "waits for the rotation").check(t, "a third material", err)
	c.level(ctx)
	sealed, err := c.dial(userID, c.nodes[0]).Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: key, Plaintext: []byte("m")})
	must(t, err)
	if sealed.GetKeyVersion() != 1 {
		t.Errorf("sealed with version %d before the rotation", sealed.GetKeyVersion())
	}
	r, err := admin.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: key})
	must(t, err)
	if r.GetCurrentVersion() != 2 {
		t.Errorf("rotated to version %d", r.GetCurrentVersion())
	}
	c.level(ctx)
	sealed, err = c.dial(userID, c.nodes[1]).Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: key, Plaintext: []byte("m")})
	must(t, err)
	if sealed.GetKeyVersion() != 2 {
		t.Errorf("sealed with version %d after the rotation", sealed.GetKeyVersion())
	}
	opens("sealed before the rotation", blob, c.nodes...)
	opens("sealed after it", sealed.GetCiphertext(), c.nodes...)
	must(t, second(admin.DeleteImportedKeyMaterial(ctx, &pb.DeleteImportedKeyMaterialRequest{KeyId: key, Version: 1})))
	for what, b := range map[string][]byte{"the version that lacks it": blob, "the other version": sealed.GetCiphertext()} {
		pendingImport.check(t, what, second(c.dial(userID, c.nodes[0]).Decrypt(ctx, b, nil)))
	}
	_, err = c.bring(ctx, key, next, nil, c.nodes[2], c.nodes[0])
	otherMaterial.check(t, "the second material for the first version", err)
	must(t, second(c.bring(ctx, key, material, nil, c.nodes[2], c.nodes[0])))
	c.level(ctx)
	opens("with the old material back", blob, c.nodes...)
	opens("with the old material back", sealed.GetCiphertext(), c.nodes...)
}

// TestImportTools runs kmsctl, and the openssl commands of README.md as they stand there.
func TestImportTools(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	k := c.buildKmsctl()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	dir := t.TempDir()
	material := filepath.Join(dir, "material.bin")
	must(t, os.WriteFile(material, randomBytes(32), 0o600))
	run := func(args ...string) string {
		t.Helper()
		out, code := k.runAs(adminID, c.nodes, args...)
		if code != 0 {
			t.Fatalf("kmsctl %s: exit code %d: %s", strings.Join(args, " "), code, out)
		}
		return out
	}
	run("key", "create", "--origin", "external", "--alias", "alias/mine")
	if out := run("key", "describe", "alias/mine"); !strings.Contains(out, "pending import") || !strings.Contains(out, "missing: kmsctl key import") {
		t.Errorf("described as %s", out)
	}
	if out := run("key", "import", "alias/mine", "--material", material, "--expires", "90d", "--material-description", "vault"); !strings.Contains(out, "Version 1 of alias/mine has its material") {
		t.Errorf("imported: %s", out)
	}
	blob, err := c.dial(userID).Encrypt(ctx, "alias/mine", []byte("m"), nil)
	must(t, err)
	run("key", "delete-material", "alias/mine", "--yes")
	pendingImport.check(t, "deleted", second(c.dial(userID).Decrypt(ctx, blob, nil)))
	commands := opensslCommands(t)
	for _, a := range []pb.WrappingAlgorithm{importSHA1, importSHA256, wrapSHA1, wrapSHA256} {
		name := strings.TrimPrefix(a.String(), "WRAPPING_ALGORITHM_")
		run("key", "import-parameters", "alias/mine", "--out-dir", dir, "--algorithm", strings.ToLower(strings.ReplaceAll(name, "_", "-")), "--wrapping-spec", "rsa-3072")
		script := exec.Command("sh", "-e", "-c", commands[name])
		script.Dir = dir
		if out, err := script.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", commands[name], err, out)
		}
		run("key", "import-material", "alias/mine", "--token", filepath.Join(dir, "import-token.bin"), "--encrypted", filepath.Join(dir, "wrapped.bin"))
		if got, err := c.dial(userID).Decrypt(ctx, blob, nil); err != nil || string(got) != "m" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		run("key", "delete-material", "alias/mine", "--yes", "--version", "1")
	}
	for what, args := range map[string][]string{
		"import token":          {"key", "import-material", "alias/mine", "--token", material, "--encrypted", material},
		"want":                  {"key", "import", "alias/mine", "--material", filepath.Join(dir, "import-token.bin")},
		"key import-parameters": {"key", "import", "alias/mine", "--material", material, "--algorithm", "rsa-aes-key-wrap-sha-1"},
	} {
		if out, code := k.runAs(adminID, c.nodes, args...); code == 0 || !strings.Contains(out, strings.TrimPrefix(what, "want")) {
			t.Errorf("kmsctl %q ends with %d: %s", args, code, out)
		}
	}
	audit, err := os.ReadFile(c.nodes[0].trailFile())
	must(t, err)
	bytesOf, err := os.ReadFile(material)
	must(t, err)
	for _, text := range []string{`"ImportKeyMaterial"`, `"DeleteImportedKeyMaterial"`, `"GetParametersForImport"`} {
		if !bytes.Contains(audit, []byte(text)) {
			t.Errorf("the audit trail lacks %s", text)
		}
	}
	sum, err := os.ReadFile(filepath.Join(dir, "wrapped.bin"))
	must(t, err)
	if want := fmt.Sprintf("%x", sha256.Sum256(sum)); !bytes.Contains(audit, []byte(want)) {
		t.Errorf("the audit trail does not name the wrapped material, %s", want)
	}
	if bytes.Contains(audit, bytesOf) {
		t.Error("the audit trail holds the material")
	}
}

// opensslCommands are README.md's, by algorithm.
func opensslCommands(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	must(t, err)
	out, name := map[string]string{}, ""
	for line := range strings.Lines(string(b)) {
		switch {
		case strings.HasPrefix(line, "RSA") && strings.HasSuffix(line, ":\n"):
			name = strings.TrimSuffix(line, ":\n")
		case strings.HasPrefix(line, "    ") && name != "":
			out[name] += strings.TrimPrefix(line, "    ")
		case line != "\n":
			name = ""
		}
	}
	if len(out) != 4 {
		t.Fatalf("README.md has commands for %d algorithms: %q", len(out), out)
	}
	return out
}

// TestImportedRestore: material that was deleted behind a backup stays away in a restore
// with the journal, and comes back with the same bytes.
func TestImportedRestore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	journal := filepath.Join(c.dir, "journal")
	must(t, os.Mkdir(journal, 0o700))
	p := c.nodes[0]
	p.extra = fmt.Sprintf("backup: {dir: %s}", journal)
	c.begin()
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	material := randomBytes(32)
	var keys [2]string
	var blobs [2][]byte
	for i := range keys {
		keys[i] = c.externalKey(ctx, 0)
		must(t, second(c.bring(ctx, keys[i], material, nil, p, p)))
		var err error
		blobs[i], err = c.dial(userID).Encrypt(ctx, keys[i], []byte("m"), nil)
		must(t, err)
	}
	late := c.externalKey(ctx, 0) // disabled behind the backup, when it has its material
	var backup bytes.Buffer
	must(t, c.dial(operatorID).CreateBackup(ctx, &backup))
	must(t, second(c.dial(adminID).Keys().DeleteImportedKeyMaterial(ctx, &pb.DeleteImportedKeyMaterialRequest{KeyId: keys[0]})))
	must(t, second(c.bring(ctx, late, material, nil, p, p)))
	must(t, second(c.dial(adminID).Keys().DisableKey(ctx, &pb.DisableKeyRequest{KeyId: late})))
	s, err := c.status(p)
	must(t, err)
	c.until("the journal covers everything", func(now *pb.StatusResponse) bool { return now.GetBackup().GetJournalIndex() >= s.GetAppliedIndex() }, p)
	p.kill()
	must(t, os.Rename(p.path("data"), p.path("old-data")))
	p.extra = ""
	c.newNode(p)
	must(t, second(restoreOf(backup.Bytes(), readJournal(t, journal)).into(ctx, c, operatorID, p)))
	c.until("the restored node serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	pendingImport.check(t, "deleted behind the backup", second(c.dial(userID, p).Decrypt(ctx, blobs[0], nil)))
	if got, err := c.dial(userID, p).Decrypt(ctx, blobs[1], nil); err != nil || string(got) != "m" {
		t.Errorf("imported before the backup: %q, %v", got, err)
	}
	_, err = c.bring(ctx, keys[0], randomBytes(32), nil, p, p)
	otherMaterial.check(t, "other bytes", err)
	must(t, second(c.bring(ctx, keys[0], material, nil, p, p)))
	if got, err := c.dial(userID, p).Decrypt(ctx, blobs[0], nil); err != nil || string(got) != "m" {
		t.Errorf("brought back: %q, %v", got, err)
	}
	must(t, second(c.bring(ctx, late, material, nil, p, p)))
	refused(codes.FailedPrecondition, client.ErrKeyDisabled).check(t, "disabled behind the backup", second(c.dial(userID, p).Encrypt(ctx, late, []byte("m"), nil)))
}
