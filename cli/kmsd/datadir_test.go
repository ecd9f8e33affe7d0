package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// unpack extracts an archive of scripts/golden-datadir.sh.
func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	must(t, err)
	defer f.Close()
	packed, err := gzip.NewReader(f)
	must(t, err)
	for r := tar.NewReader(packed); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		must(t, err)
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			must(t, os.MkdirAll(path, 0o700))
			continue
		}
		b, err := io.ReadAll(r)
		must(t, err)
		must(t, os.WriteFile(path, b, 0o600))
	}
}

// TestGoldenDataDirectories opens, with the present kmsd, a data directory and an HSM
// of every version that is out: every key is there as it was, everything that was
// encrypted opens, also after the upgrade and from its own snapshot.
func TestGoldenDataDirectories(t *testing.T) {
	t.Parallel()
	archives, err := filepath.Glob("testdata/datadir/*.tar.gz")
	must(t, err)
	releases, err := os.ReadFile("../../scripts/releases")
	must(t, err)
	out := 0
	for line := range strings.Lines(string(releases)) {
		if !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "" {
			out++
		}
	}
	if len(archives) != out {
		t.Fatalf("%d golden data directories of %d versions: scripts/golden-datadir.sh makes one", len(archives), out)
	}
	for _, archive := range archives {
		dir := t.TempDir()
		unpack(t, archive, dir)
		for _, kind := range []string{"pkcs11", "embedded"} {
			version := strings.TrimSuffix(filepath.Base(archive), ".tar.gz")
			t.Run(version+"/"+kind, func(t *testing.T) { openGolden(t, filepath.Join(dir, kind), kind) })
		}
	}
}

func openGolden(t *testing.T, dir, kind string) {
	c := newCluster(t, 1)
	p := c.nodes[0]
	ctx := t.Context()
	p.raft = ", snapshot_interval: 1s, snapshot_threshold: 4, trailing_logs: 2"
	must(t, errors.Join(os.RemoveAll(p.path("tokens")), os.RemoveAll(p.path("pin"))))
	must(t, os.CopyFS(p.dir, os.DirFS(dir)))
	must(t, os.Chmod(p.path("pin"), 0o600))
	p.configure("")
	if kind == "embedded" {
		p.edit("hsm: {token: kms-1", "hsm: {kind: embedded")
	}
	p.start()
	c.until("the golden node serves", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	c.asItWas(ctx, dir)

	_, err := c.dial(operatorID).Cluster().Upgrade(ctx, &pb.UpgradeRequest{})
	must(t, err)
	key := c.createKey(ctx, p)
	c.eventually("a snapshot of its own is there", func() bool {
		_, err := c.dial(adminID).Keys().UpdateKeyDescription(ctx, &pb.UpdateKeyDescriptionRequest{KeyId: key, Description: "new"})
		must(t, err)
		own, err := filepath.Glob(p.path("data/raft/snapshots/*-*-*"))
		must(t, err)
		before, err := filepath.Glob(filepath.Join(dir, "data/raft/snapshots/*-*-*"))
		must(t, err)
		return len(own) > 0 && filepath.Base(own[len(own)-1]) != filepath.Base(before[len(before)-1])
	}, p)
	p.kill()
	p.start()
	c.until("it serves from it", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	c.asItWas(ctx, dir)
	must(t, second(c.dial(userID).Encrypt(ctx, key, []byte("x"), nil)))
}

// asItWas compares a cluster's keys with those listed in a directory and opens what
// is encrypted there.
func (c *testCluster) asItWas(ctx context.Context, dir string) {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "keys.json"))
	must(c.t, err)
	var list pb.ListKeysResponse
	must(c.t, protojson.Unmarshal(b, &list))
	if len(list.GetKeys()) == 0 {
		c.t.Fatal("no keys are listed")
	}
	for _, was := range list.GetKeys() {
		r, err := c.dial(adminID).Keys().DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: was.GetKeyId()})
		if was.GetDeletionDate() != nil && time.Now().After(was.GetDeletionDate().AsTime()) && errors.Is(err, client.ErrNotFound) {
			continue // its time has come since
		}
		must(c.t, err)
		is := r.GetKey().ProtoReflect()
		was.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if !v.Equal(is.Get(f)) {
				c.t.Errorf("%s of key %s was %v and is %v", f.Name(), was.GetKeyId(), v, is.Get(f))
			}
			return true
		})
	}
	c.opensAll(ctx, filepath.Join(dir, "encrypted"))
}

// opensAll decrypts every line of a file of scripts/golden-datadir.sh.
func (c *testCluster) opensAll(ctx context.Context, file string) {
	c.t.Helper()
	b, err := os.ReadFile(file)
	must(c.t, err)
	user, opened := c.dial(userID), 0
	for line := range bytes.Lines(b) {
		var x struct {
			Key, Context          string
			Plaintext, Ciphertext []byte
		}
		must(c.t, json.Unmarshal(line, &x))
		name, value, _ := strings.Cut(x.Context, "=")
		got, err := user.Decrypt(ctx, x.Ciphertext, map[string]string{name: value})
		switch x.Key {
		case "alias/disabled":
			if !errors.Is(err, client.ErrKeyDisabled) {
				c.t.Errorf("under a disabled key: %v", err)
			}
			continue
		case "alias/dying":
			if !errors.Is(err, client.ErrKeyPendingDeletion) && !errors.Is(err, client.ErrNotFound) {
				c.t.Errorf("under a key that is pending deletion: %v", err)
			}
			continue
		}
		if err != nil || !bytes.Equal(got, x.Plaintext) {
			c.t.Errorf("%s with %s: %q, %v; want %q", x.Key, x.Context, got, err, x.Plaintext)
		}
		if _, err := user.Decrypt(ctx, x.Ciphertext, nil); !errors.Is(err, client.ErrInvalidCiphertext) {
			c.t.Errorf("%s with another context: %v", x.Key, err)
		}
		opened++
	}
	if opened == 0 {
		c.t.Error("nothing was opened")
	}
}
