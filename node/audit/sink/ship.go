package sink

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// ship writes objects: records in a compressed file of their own, which appears whole under its
// name, <node>-<first sequence>-<last sequence>.records.gz. Whoever takes them away removes them.
type ship struct {
	node    string
	options Options
	tidied  bool
}

func newShip(c Config, o Options) *ship { return &ship{node: c.Node, options: o} }

func (s *ship) size() size {
	return size{records: s.options.MaxRecords, bytes: 16 << 20, gather: s.options.Every}
}

func (s *ship) deliver(_ context.Context, b batch) (int, error) {
	if err := s.tidy(); err != nil {
		return 0, err
	}
	name := fmt.Sprintf("%s-%020d-%020d%s", s.node, b.first, b.last(), trail.CompressedEnd)
	return 0, audit.Replace(filepath.Join(s.options.Path, name), readable, func(f io.Writer) error {
		z := gzip.NewWriter(f)
		for _, line := range b.lines {
			if _, err := z.Write(append(line, '\n')); err != nil {
				return err
			}
		}
		return z.Close()
	})
}

// tidy removes what an earlier run has left unfinished.
func (s *ship) tidy() error {
	if s.tidied {
		return nil
	}
	parts, err := filepath.Glob(filepath.Join(s.options.Path, s.node+"-*"+audit.PartEnd))
	if err != nil {
		return err
	}
	for _, part := range parts {
		err = errors.Join(err, os.Remove(part))
	}
	s.tidied = err == nil
	return err
}

func (s *ship) close() error { return nil }
