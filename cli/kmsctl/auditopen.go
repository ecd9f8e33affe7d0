package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/envelope"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

func (a *app) auditOpen() *cobra.Command {
	var to string
	c := &cobra.Command{
		Use:         "open DIR",
		Annotations: map[string]string{opens: "yes"},
		Short:       "Copy the files of a trail, the sealed segments opened",
		Long: `Copy the files of a node's trail (data_dir/audit, or a copy of it) into a new directory, the
segments that are sealed (audit.seal) opened: kmsd audit verify reads all of that copy.

You need permission to Decrypt with the key that they are sealed with, as a key user of its
tenant or by a grant; auditors of all tenants can have the nodes open them instead: kmsctl
audit search, export and verify. One segment is kmsctl object open, too, with the encryption
context purpose=audit-trail, cluster, node (its raft id) and segment (its number).

A sealed segment that was altered, or is another's, is named and copied as it is; the exit
code is 4 then.`,
		Example: "  kmsctl audit open evidence/audit --to evidence/opened",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			if to == "" {
				return usagef("--to is missing: a directory that is to be made")
			}
			return a.openTrail(ctx, kms, args[0], to)
		}),
	}
	c.Flags().StringVar(&to, "to", "", "directory to make")
	return c
}

// segmentOpener opens sealed segments with the caller's permission.
type segmentOpener struct {
	kms           *client.Client
	cluster, node string
}

func (o segmentOpener) OpenSegment(ctx context.Context, segment int64, sealed io.Reader) (io.Reader, error) {
	return envelope.NewOpenReader(ctx, o.kms, trail.SealContext(o.cluster, o.node, segment), sealed)
}

// isAltered tells whether a sealed file is not what was sealed there.
func isAltered(err error) bool {
	return errors.Is(err, client.ErrInvalidCiphertext) || errors.Is(err, client.ErrMalformedCiphertext) || errors.Is(err, envelope.ErrFormat) || errors.Is(err, envelope.ErrCorrupt)
}

func (a *app) openTrail(ctx context.Context, kms *client.Client, dir, to string) (err error) {
	cluster, node, err := trail.Claimed(dir)
	if err != nil {
		return err
	}
	if node == "" {
		return fmt.Errorf("%s has no checkpoint that names its node: copy the files %s, too", dir, "*"+trail.CheckpointsEnd)
	}
	segments, err := trail.Segments(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(absent(to), os.MkdirAll(to, 0o700)); err != nil {
		return err
	}
	whole := false
	defer func() {
		if !whole {
			err = errors.Join(err, os.RemoveAll(to))
		}
	}()
	beside, err := filepath.Glob(filepath.Join(dir, "*"+trail.CheckpointsEnd))
	if err != nil {
		return err
	}
	for _, path := range append(beside, filepath.Join(dir, trail.HashesFile)) {
		if err := a.copyInto(to, path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	opened, bad := 0, []trail.Range{}
	for _, s := range segments {
		a.auditProgress("segment %d", s.Number)
		err := a.openInto(ctx, segmentOpener{kms, cluster, node}, to, s)
		if s.Sealed() && isAltered(err) {
			fmt.Fprintf(a.stderr, "segment %d was altered, or is another's: %s\n", s.Number, clean(err.Error())) //nolint:errcheck // it is also the result
			bad = append(bad, trail.Range{First: s.First(), Last: s.First() + trail.SegmentRecords - 1})
			err = a.copyInto(to, s.Path)
		} else if err == nil && s.Sealed() {
			opened++
		}
		if err != nil {
			return err
		}
	}
	a.auditProgress("")
	whole = true
	err = a.printValue(struct {
		Directory string        `json:"directory"`
		Node      string        `json:"node"`
		Segments  int           `json:"segments"`
		Opened    int           `json:"opened"`
		Altered   []trail.Range `json:"altered"`
	}{to, node, len(segments), opened, bad}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%d segments of %s in %s, %d of them were sealed and are open now\n", len(segments), clean(node), to, opened)
		return err
	})
	if len(bad) > 0 {
		return errors.Join(err, errFinding)
	}
	return err
}

// openInto copies a segment's file, opened, into a directory.
func (a *app) openInto(ctx context.Context, o trail.Opener, to string, s trail.Segment) error {
	name, r, err := s.OpenFile(ctx, o)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // only read
	return a.copyTo(filepath.Join(to, name), r)
}

// copyInto copies a file into a directory.
func (a *app) copyInto(to, path string) error {
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // only read
	return a.copyTo(filepath.Join(to, filepath.Base(path)), r)
}

func (a *app) copyTo(path string, r io.Reader) error {
	out, err := a.create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	return out.finish(err)
}
