package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/p11"
	"github.com/quorumkms/quorumkms/rpc/client/backup"
)

// openerEnv makes TestTokenOpener a process that opens tokens; its value is a token's
// label, the cluster's id and a backup's file.
const openerEnv = "KMSD_TEST_OPENER"

// twinsOf is the key of opensBackup's answer under which it lists the twins in the token.
const twinsOf = "twins"

// opensBackup has a node's own HSM token, in a process of its own, open the newest version
// of every key of a backup; by key: "opened", or why not.
func (c *testCluster) opensBackup(ctx context.Context, p *process, file string) map[string]string {
	c.t.Helper()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestTokenOpener$")
	reader, writer, err := os.Pipe()
	must(c.t, err)
	cmd.Env = append(append(os.Environ(), fmt.Sprintf("%s=%s %s %s", openerEnv, p.name, c.clusterID(), file)), p.env...)
	cmd.ExtraFiles = []*os.File{writer}
	must(c.t, cmd.Start())
	must(c.t, writer.Close())
	out := map[string]string{}
	must(c.t, json.NewDecoder(reader).Decode(&out))
	must(c.t, cmd.Wait())
	return out
}

// TestTokenOpener is the process of opensBackup.
func TestTokenOpener(t *testing.T) {
	var label, cluster, file string
	if n, _ := fmt.Sscan(os.Getenv(openerEnv), &label, &cluster, &file); n != 3 {
		t.Skip("a part of TestDomain")
	}
	ctx := context.Background()
	id := hsm.ID(uuid.MustParse(cluster))
	p, err := p11.Open(ctx, p11.Config{Token: label, PIN: []byte(testPIN)})
	must(t, err)
	key, err := p.LogKey(ctx, id)
	must(t, err)
	b, err := os.ReadFile(file)
	must(t, err)
	snapshot, err := backup.NewReader(bytes.NewReader(b))
	must(t, err)
	s, err := fsm.ReadSnapshot(snapshot, key)
	must(t, err)
	twins, err := p.Twins(ctx, id)
	must(t, err)
	out := map[string]string{twinsOf: fmt.Sprint(twins)}
	for _, k := range s.Keys(fsm.DefaultTenant, fsm.ID{}, fsm.MaxKeys) {
		v := k.Current()
		opened, err := p.Open(ctx, v.Token, hsm.TokenHeader{
			Class: hsm.ClassAES, Generation: v.Generation, Cluster: id, Key: hsm.ID(k.ID), Version: v.Version,
		})
		if out[k.ID.String()] = "opened"; err != nil {
			out[k.ID.String()] = err.Error()
			continue
		}
		opened.Close()
	}
	must(t, errors.Join(json.NewEncoder(os.NewFile(3, "answers")).Encode(out), p.Close()))
}
