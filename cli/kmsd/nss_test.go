package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// nssWeaknesses is what a node on NSS's softoken must accept: hsm/README.md says what each
// means.
const nssWeaknesses = "attributes-not-kept, private-key-usages-not-imposed, trusted-by-user, " +
	"domain-key-unwraps-readable, domain-key-mechanisms-not-imposed, domain-key-leaves, domain-key-other-mechanism, domain-key-altered, " +
	"oaep-key-other-mechanism, transfer-key-unwraps-readable, master-key-leaves, master-key-other-mechanism, master-key-altered, identity-key-leaves"

// onNSS gives a node a token of NSS in place of its SoftHSM2's.
func (p *process) onNSS() (module, arguments string) {
	t := p.c.t
	t.Helper()
	for _, path := range []string{
		"/usr/lib/x86_64-linux-gnu/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/libsoftokn3.so",
		"/usr/lib/x86_64-linux-gnu/nss/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/nss/libsoftokn3.so", "/usr/lib64/libsoftokn3.so",
	} {
		if _, err := os.Stat(path); err == nil && module == "" {
			module = path
		}
	}
	if module == "" {
		t.Fatal("install NSS: scripts/softhsm.sh install --nss")
	}
	must(t, os.RemoveAll(p.path("tokens"))) // its SoftHSM2 token is not what serves
	must(t, os.Remove(p.path("so-pin")))
	must(t, os.Mkdir(p.path("nss"), 0o700))
	arguments = fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='secmod.db' flags=noModDB dbTokenDescription='%s'", p.path("nss"), p.name)
	p.env = append(p.env, "NSS_MAX_MP_PBE_ITERATION_COUNT=1") // a PIN of a test needs no stretching
	p.userTrusts = true
	args := []string{"hsm", "init-token", "--no-security-officer", "--module", module, "--module-arguments", arguments, "--token", p.name, "--pin-file", p.path("pin")}
	if out, code := kmsd(t, p.env, args...); code != 0 {
		t.Fatalf("making NSS's token of %s: %s", p.name, out)
	}
	if out, code := kmsd(t, p.env, args...); code == 0 || !strings.Contains(out, "already") {
		t.Errorf("making it twice: code %d: %s", code, out)
	}
	p.hsm = fmt.Sprintf(", module: %s, module_arguments: %q, accept_weakness: [%s]", module, arguments, nssWeaknesses)
	return module, arguments
}

// TestNSS is a cluster whose first and third node are on NSS's softoken and whose second is on
// SoftHSM2: the domain key goes both ways, and each opens what the others made.
func TestNSS(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.nodes[0].onNSS()
	c.nodes[2].onNSS()

	accepting := c.nodes[0].hsm
	c.nodes[0].hsm = strings.Replace(accepting, "domain-key-leaves, ", "", 1)
	c.nodes[0].configure("")
	c.nodes[0].start()
	if code := c.nodes[0].waitExit(); code == 0 || !strings.Contains(c.nodes[0].output(), "domain-key-leaves") {
		t.Errorf("a weakness that is not accepted: code %d, %s", code, tail(c.nodes[0].output(), 3))
	}
	c.nodes[0].hsm = accepting
	c.begin()

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	k := c.makeSecretKeys(ctx)
	c.checkSecretKeys(ctx, k, c.nodes...)
	made, err := c.dial(adminID).Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
	must(t, err)
	id := made.GetKey().GetKeyId()
	blobs := map[string][]byte{}
	for _, p := range c.nodes {
		r, err := c.dial(userID, p).Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: id, Plaintext: []byte(p.name), IndexToken: made.GetIndexToken()})
		must(t, err)
		blobs[p.name] = r.GetCiphertext()
	}
	opens := func() {
		t.Helper()
		for _, p := range c.nodes {
			for text, blob := range blobs {
				r, err := c.dial(userID, p).Crypto().Decrypt(ctx, &pb.DecryptRequest{KeyId: id, Ciphertext: blob})
				must(t, err)
				if string(r.GetPlaintext()) != text {
					t.Errorf("%s opens what %s made as %q", p.name, text, r.GetPlaintext())
				}
			}
		}
	}
	opens()
	for _, p := range c.nodes {
		p.terminate()
	}
	for _, p := range c.nodes {
		p.start()
	}
	for _, p := range c.nodes {
		c.until(p.name+" is back", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	}
	opens()
	c.checkSecretKeys(ctx, k, c.nodes...)
}
