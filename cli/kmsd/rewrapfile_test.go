package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/rpc/client/rewrapfile"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// TestRewrapFile wraps a backup's keys of every kind anew with a token, away from the
// cluster.
func TestRewrapFile(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	p := c.nodes[0]
	old := map[string]bool{}
	before := c.seal(ctx, 3)
	for _, s := range before {
		old[s.key] = true
	}
	doomed := c.createKey(ctx)
	old[doomed] = true
	macKey := c.keyOfSpec(ctx, pb.KeySpec_KEY_SPEC_HMAC_256, 0)
	old[macKey] = true
	mac, err := c.dial(userID).GenerateMac(ctx, macKey, []byte(proven), hmac256)
	must(t, err)
	for _, spec := range []pb.KeySpec{
		pb.KeySpec_KEY_SPEC_HMAC_384, pb.KeySpec_KEY_SPEC_ECC_NIST_P256, pb.KeySpec_KEY_SPEC_ECC_NIST_P384,
	} {
		old[c.keyOfSpec(ctx, spec, 0)] = true
	}
	for _, usage := range []pb.KeyUsage{signVerify, encDecrypt} {
		old[c.keyOfSpec(ctx, pb.KeySpec_KEY_SPEC_RSA_2048, usage)] = true
	}
	resident := c.residentKey(ctx)
	old[resident] = true
	sealedInside := c.usesResident(ctx, resident, p)
	imported := c.externalKey(ctx, pb.KeySpec_KEY_SPEC_SYMMETRIC)
	old[imported] = true
	must(t, second(c.bring(ctx, imported, randomBytes(32), nil, p, p)))
	sealedImported, err := c.dial(userID).Encrypt(ctx, imported, []byte(proven), nil)
	must(t, err)
	number := c.rotateDomain(ctx, p)
	c.eventually("the generation is active", func() bool {
		r, err := c.describeDomain(p)
		return err == nil && isActive(number)(r)
	}, p)
	c.createKey(ctx) // under the new one: not in the file
	saved := filepath.Join(t.TempDir(), "all.qkb")
	var b bytes.Buffer
	must(t, c.dial(operatorID, p).CreateBackup(ctx, &b))
	must(t, os.WriteFile(saved, b.Bytes(), 0o600))
	cluster := c.clusterID()
	p.terminate()

	config := filepath.Join(t.TempDir(), "recovery.yaml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "hsm:\n  token: %s\n  pin_file: %s\n", p.name, p.path("pin")), 0o600))
	out := filepath.Join(t.TempDir(), "keys.rewrap")
	run := func(what string, want int, text string, args ...string) string {
		t.Helper()
		said, code := kmsd(t, p.env, append([]string{"recovery"}, args...)...)
		if code != want || !strings.Contains(said, text) {
			t.Fatalf("%s: exit code %d: %s; want %d and %q", what, code, said, want, text)
		}
		return said
	}
	twin := func(what, generation string, more ...string) []string {
		return append([]string{"twin", what, "--config", config, "--cluster", cluster, "--generation", generation}, more...)
	}
	file := []string{"rewrap", "--config", config, "--backup", saved, "--out", out}
	officer := []string{"--so-pin-file", p.path("so-pin")}

	run("no backup named", exitConfig, "--backup is missing", "rewrap", "--config", config, "--out", out)
	run("no generation named", exitConfig, "--generation is missing", "twin", "install", "--config", config, "--cluster", cluster)
	run("no cluster", exitConfig, "want the cluster's id", "twin", "list", "--config", config, "--cluster", "x")
	run("another cluster's twin", exitHSM, "twin of generation 1", "twin", "destroy", "--config", config, "--cluster", uuid.NewString(), "--generation", "1")
	run("without a twin", exitHSM, "no twin", file...)
	run("a generation that is not there", exitHSM, "does not hold generation 9", append(file, "--to", "9")...)
	run("the twin of a generation that is not there", exitHSM, "does not hold generation 9", twin("install", "9", officer...)...)
	run("destroying what is not there", exitHSM, "twin of generation 1", twin("destroy", "1")...)
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a file is there that was refused: %v", err)
	}
	run("install", exitOK, "WHOEVER HAS THE PARTITION'S PIN", twin("install", "1", officer...)...)
	run("install again", exitFailed, "twin of generation 1", twin("install", "1", officer...)...)
	run("list", exitOK, "1\n", "twin", "list", "--config", config, "--cluster", cluster)
	run("rewrap", exitOK, fmt.Sprintf("%d key versions of generation 1 are wrapped under generation %d", len(old), number), file...)
	run("over another file", exitFailed, "is there already", file...)
	run("destroy", exitOK, "destroyed", twin("destroy", "1")...)
	if said := run("list", exitOK, "", "twin", "list", "--config", config, "--cluster", cluster); said != "" {
		t.Errorf("after the end twins are %q", said)
	}
	run("the ceremony is over", exitHSM, "no twin", append(file[:len(file)-1:len(file)-1], out+"2")...)

	left, err := os.ReadDir(filepath.Dir(out))
	must(t, err)
	if len(left) != 1 {
		t.Errorf("left beside the file: %v", left)
	}
	raw, err := os.ReadFile(out)
	must(t, err)
	moved := map[string]bool{}
	h, err := rewrapfile.Read(bytes.NewReader(raw), func(i rewrapfile.Item) error {
		token, err := hsm.ParseToken(i.Token)
		must(t, err)
		if !old[i.Key] || token.Header.Generation != number || fsm.ID(token.Header.Key).String() != i.Key || token.Header.Version != i.Version {
			t.Errorf("item of key %s: %+v", i.Key, token.Header)
		}
		moved[i.Key] = true
		return nil
	})
	must(t, err)
	if h.Cluster != cluster || h.From != 1 || h.Generation != number || h.Index == 0 {
		t.Errorf("header %+v", h)
	}
	if len(moved) != len(old) {
		t.Errorf("%d keys are in the file, %d were under generation 1", len(moved), len(old))
	}
	p.start() // the token is as it was
	c.eventually("the node serves", func() bool {
		s, err := c.status(p)
		return err == nil && s.GetServing()
	}, p)
	ctl := c.buildKmsctl()
	apply := func(what string, want int, texts ...string) {
		t.Helper()
		args := []string{"domain", "rewrap", "apply", out, "--request-id", "file"}
		if strings.HasPrefix(what, "try") {
			args = append(args, "--dry-run")
		}
		said, code := ctl.run(c.nodes, args...)
		if code != want {
			t.Fatalf("%s: exit code %d: %s", what, code, said)
		}
		for _, text := range texts {
			if !strings.Contains(strings.Join(strings.Fields(said), " "), text) {
				t.Fatalf("%s: %s; want %q", what, said, text)
			}
		}
	}
	must(t, second(c.dial(adminID, p).Keys().ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: doomed})))
	apply("try", 0, fmt.Sprintf("Would be applied %d", len(old)), "Already there 0", "Would be refused 0")
	if g := c.generation(p, 1); g.GetKeyVersions() != uint64(len(old)) {
		t.Errorf("a dry run left generation 1 as %v", g)
	}
	apply("apply", 0, fmt.Sprintf("Applied %d", len(old)), "Refused 0") // what waits for its deletion may be taken back
	apply("apply again", 0, "Applied 0", fmt.Sprintf("Already there %d", len(old)))
	apply("try what is done", 0, "Would be applied 0", fmt.Sprintf("Already there %d", len(old)))
	if g := c.generation(p, 1); g.GetKeyVersions() != 0 {
		t.Errorf("generation 1 is %v", g)
	}
	must(t, second(c.dial(operatorID, p).Cluster().RetireGeneration(ctx, &pb.RetireGenerationRequest{Generation: 1})))
	c.eventually("the old generation is destroyed", func() bool {
		r, err := c.describeDomain(p)
		return err == nil && slices.Equal(r.GetNodes()[0].GetHolds(), []uint32{number})
	}, p)
	must(t, second(c.dial(adminID, p).Keys().CancelKeyDeletion(ctx, &pb.CancelKeyDeletionRequest{KeyId: doomed})))
	must(t, second(c.dial(adminID, p).Keys().EnableKey(ctx, &pb.EnableKeyRequest{KeyId: doomed})))
	c.intact(ctx, p, before)
	c.opensResident(ctx, sealedInside, p)
	must(t, second(c.dial(userID, p).Decrypt(ctx, sealedImported, nil)))
	must(t, second(c.dial(userID, p).Crypto().VerifyMac(ctx, &pb.VerifyMacRequest{KeyId: macKey, Message: []byte(proven), MacAlgorithm: hmac256, Mac: mac})))
}
