//go:build measure

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/p11"
)

// makerEnv makes TestScaleMaker a process that has the HSM make keys; its value is the
// token's label and the cluster's id.
const makerEnv = "KMSD_TEST_SCALE_MAKER"

const keyVersions = 2

// wrappedKey is the n-th key's versions, wrapped by the HSM.
type wrappedKey struct {
	n      int
	tokens [keyVersions][]byte
}

// maker is a process that is sent ids of keys and answers with wrapped keys.
type maker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (r *scaleRig) startMakers() []*maker {
	r.t.Helper()
	if r.makers != nil {
		return r.makers
	}
	for range keyMakers {
		m := &maker{cmd: exec.CommandContext(r.t.Context(), os.Args[0], "-test.run", "^TestScaleMaker$")}
		m.cmd.Env = append(append(os.Environ(), fmt.Sprintf("%s=%s %s", makerEnv, r.node.name, r.domain), "GOMAXPROCS=1"), r.node.env...)
		m.cmd.Stderr = os.Stderr
		var err error
		m.in, err = m.cmd.StdinPipe()
		must(r.t, err)
		reader, writer, err := os.Pipe()
		must(r.t, err)
		m.cmd.ExtraFiles = []*os.File{writer}
		must(r.t, m.cmd.Start())
		must(r.t, writer.Close())
		m.out = bufio.NewReader(reader)
		r.makers = append(r.makers, m)
		r.t.Cleanup(func() { m.end() })
	}
	return r.makers
}

// end lets the process end, and counts its processor time as ours.
func (m *maker) end() {
	_ = m.in.Close()
	_ = m.cmd.Wait()
}

// make has every step-th key from the first on made.
func (m *maker) make(ctx context.Context, ids []fsm.ID, first, end, step int, made chan<- wrappedKey) error {
	asked := make(chan error, 1)
	go func() {
		w := bufio.NewWriter(m.in)
		for n := first; n < end; n += step {
			if _, err := w.Write(ids[n][:]); err != nil {
				asked <- err
				return
			}
		}
		asked <- w.Flush()
	}()
	for n := first; n < end; n += step {
		k := wrappedKey{n: n}
		for i := range k.tokens {
			var size uint16
			if err := binary.Read(m.out, binary.BigEndian, &size); err != nil {
				return fmt.Errorf("a process that makes keys: %w", err)
			}
			k.tokens[i] = make([]byte, size)
			if _, err := io.ReadFull(m.out, k.tokens[i]); err != nil {
				return fmt.Errorf("a process that makes keys: %w", err)
			}
		}
		select {
		case made <- k:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return <-asked
}

// TestScaleMaker is the process of a maker.
func TestScaleMaker(t *testing.T) {
	var label, id string
	if n, _ := fmt.Sscan(os.Getenv(makerEnv), &label, &id); n != 2 {
		t.Skip("a part of TestScale")
	}
	ctx := context.Background()
	p, err := p11.Open(ctx, p11.Config{Token: label, PIN: []byte(testPIN), Sessions: 1})
	must(t, err)
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.NewFile(3, "wrapped keys"))
	domain := uuid.MustParse(id)
	for {
		var key hsm.ID
		if _, err := io.ReadFull(in, key[:]); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for version := range keyVersions {
			token, err := p.GenerateUnopened(ctx, hsm.KeySpec{
				Cluster: hsm.ID(domain), Generation: 1, Class: hsm.ClassAES, Key: key, Version: uint32(version + 1), Created: time.Now(),
			})
			must(t, err)
			must(t, binary.Write(out, binary.BigEndian, uint16(len(token))))
			_, err = out.Write(token)
			must(t, err)
		}
		if in.Buffered() == 0 {
			must(t, out.Flush())
		}
	}
	must(t, out.Flush())
	must(t, p.Close())
}
