package trail

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// An export is two files: the records, a line each as their nodes wrote them, and a manifest,
// which has a line for each of them, with the proof that it is in the tree of a checkpoint
// that the node has signed. The manifest begins with a header and ends with the records'
// number and hash.

const (
	exportFormat = 1
	// ManifestEnd is what the manifest of an export is called behind the name of the records.
	ManifestEnd = ".manifest"
)

// ErrExport means: what should be an export is none.
var ErrExport = errors.New("audit export refused")

// ExportHeader is how a manifest begins.
type ExportHeader struct {
	Format  int       `json:"format"`
	Cluster string    `json:"cluster"`
	Created time.Time `json:"created"`
	Query   string    `json:"query"` // for people
	Proofs  bool      `json:"proofs"`
}

// manifestLine is one of three: a checkpoint of a node, a record, the end.
type manifestLine struct {
	Node       string   `json:"node,omitempty"` // raft id
	Checkpoint string   `json:"checkpoint,omitempty"`
	Sequence   uint64   `json:"sequence,omitempty"`
	Proof      [][]byte `json:"proof,omitempty"`
	Records    *uint64  `json:"records,omitempty"`
	SHA256     string   `json:"sha256,omitempty"`
}

// Exporter writes an export.
type Exporter struct {
	records, manifest io.Writer
	sum               hash.Hash
	n                 uint64
}

// NewExporter begins an export.
func NewExporter(records, manifest io.Writer, h ExportHeader) (*Exporter, error) {
	h.Format = exportFormat
	x := &Exporter{records: records, manifest: manifest, sum: sha256.New()}
	return x, x.tell(h)
}

func (x *Exporter) tell(v any) error {
	e := json.NewEncoder(x.manifest)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// Checkpoint is what the proofs of a node's records that follow lead to.
func (x *Exporter) Checkpoint(node string, note []byte) error {
	return x.tell(manifestLine{Node: node, Checkpoint: string(note)})
}

// Record adds a record: its line without its end.
func (x *Exporter) Record(node string, sequence uint64, line []byte, proof [][]byte) error {
	whole := append(bytes.Clone(line), '\n')
	x.n++
	x.sum.Write(whole)
	if _, err := x.records.Write(whole); err != nil {
		return err
	}
	return x.tell(manifestLine{Node: node, Sequence: sequence, Proof: proof})
}

// End ends the manifest and tells how many records there are.
func (x *Exporter) End() (records uint64, err error) {
	return x.n, x.tell(manifestLine{Records: &x.n, SHA256: hex.EncodeToString(x.sum.Sum(nil))})
}

// ExportReport is the result of checking an export.
type ExportReport struct {
	ExportHeader
	Records uint64            `json:"records"` // that are as their nodes signed them
	Nodes   map[string]uint64 `json:"nodes"`   // how many of each
	Line    uint64            `json:"line,omitempty"`
	Finding *Finding          `json:"finding,omitempty"` // of that line
}

// CheckExport verifies each record of an export with the identity keys of the heads. What is
// wrong is the report's Finding. It does not show that nothing was left out of the export.
func CheckExport(records, manifest io.Reader, heads Heads) (ExportReport, error) {
	c := &exportCheck{report: ExportReport{Nodes: map[string]uint64{}}, heads: heads, lines: bufio.NewReaderSize(records, MaxLine), checkpoints: map[string]Checkpoint{}, sum: sha256.New()}
	torn, err := Lines(manifest, func(line []byte) (bool, error) {
		err := c.line(line)
		return err == nil && c.report.Finding == nil, err
	})
	switch {
	case err != nil:
		return c.report, err
	case c.report.Finding != nil:
	case torn > 0 || !c.ended:
		return c.report, fmt.Errorf("%w: the manifest is cut off: its end is missing", ErrExport)
	}
	return c.report, nil
}

type exportCheck struct {
	report      ExportReport
	heads       Heads
	lines       *bufio.Reader
	checkpoints map[string]Checkpoint // by node
	sum         hash.Hash
	begun       bool
	ended       bool
}

func (c *exportCheck) line(b []byte) error {
	if c.ended {
		return fmt.Errorf("%w: something follows the end of the manifest", ErrExport)
	}
	if !c.begun {
		c.begun = true
		if err := json.Unmarshal(b, &c.report.ExportHeader); err != nil || c.report.Format != exportFormat {
			return errors.Join(fmt.Errorf("%w: it does not begin as a manifest of format %d", ErrExport, exportFormat), err)
		}
		if !c.report.Proofs {
			return fmt.Errorf("%w: it was exported without proofs, so nothing of it can be verified: kmsctl audit export --proofs", ErrExport)
		}
		if c.report.Cluster != c.heads.Cluster {
			return fmt.Errorf("%w: it is of cluster %.80s, the heads are of %.80s", ErrExport, c.report.Cluster, c.heads.Cluster)
		}
		return nil
	}
	var m manifestLine
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("%w: the manifest: %w", ErrExport, err)
	}
	switch {
	case m.Checkpoint != "":
		c.checkpoint(m)
	case m.Records != nil:
		c.end(m)
	default:
		return c.record(m)
	}
	return nil
}

func (c *exportCheck) find(k Kind, sequence uint64, format string, args ...any) {
	c.report.Finding = &Finding{k, sequence, sequence, fmt.Sprintf(format, args...)}
}

func (c *exportCheck) checkpoint(m manifestLine) {
	n, ok := c.heads.Find(m.Node)
	if !ok || n.Node != m.Node {
		c.find(Forged, 0, "the heads know no node %.80s", m.Node)
		return
	}
	p, err := OpenCheckpoint([]byte(m.Checkpoint), n.Identity)
	if err == nil && (p.Node != m.Node || p.Cluster != c.heads.Cluster) {
		err = fmt.Errorf("it is of node %s in cluster %s", p.Node, p.Cluster)
	}
	if err != nil {
		c.find(Forged, 0, "a checkpoint of node %.80s: %v", m.Node, err)
		return
	}
	if n.Checkpoint != "" {
		if was, err := OpenCheckpoint([]byte(n.Checkpoint), n.Identity); err == nil && was.Size == p.Size && was.Root != p.Root {
			c.find(Rewritten, uint64(p.Size), "node %s has signed two trees of %d records", m.Node, p.Size) //nolint:gosec // not negative
			return
		}
	}
	c.checkpoints[m.Node] = p
}

func (c *exportCheck) record(m manifestLine) error {
	c.report.Line++
	line, err := c.lines.ReadSlice('\n')
	if errors.Is(err, io.EOF) {
		c.find(Removed, m.Sequence, "the records end before line %d, record %d of node %.80s", c.report.Line, m.Sequence, m.Node)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrExport, err)
	}
	p, ok := c.checkpoints[m.Node]
	if !ok || m.Sequence == 0 || m.Sequence > uint64(p.Size) { //nolint:gosec // not negative
		return fmt.Errorf("%w: line %d: no checkpoint of node %.80s has record %d", ErrExport, c.report.Line, m.Node, m.Sequence)
	}
	proof := make(tlog.RecordProof, len(m.Proof))
	for i, h := range m.Proof {
		if len(h) != len(Hash{}) {
			return fmt.Errorf("%w: line %d: a hash of %d bytes", ErrExport, c.report.Line, len(h))
		}
		proof[i] = Hash(h)
	}
	c.sum.Write(line)
	if err := tlog.CheckRecord(proof, p.Size, p.Root, int64(m.Sequence)-1, RecordHash(bytes.TrimSuffix(line, []byte{'\n'}))); err != nil { //nolint:gosec // not more than the size
		c.find(Altered, m.Sequence, "line %d is not record %d of node %s as it was signed", c.report.Line, m.Sequence, m.Node)
		return nil //nolint:nilerr // that is the finding
	}
	c.report.Records++
	c.report.Nodes[m.Node]++
	return nil
}

func (c *exportCheck) end(m manifestLine) {
	c.ended = true
	_, err := c.lines.ReadByte()
	switch {
	case err == nil:
		c.report.Line++
		c.find(Inserted, 0, "line %d and what follows are not in the manifest", c.report.Line)
	case *m.Records != c.report.Records || m.SHA256 != hex.EncodeToString(c.sum.Sum(nil)):
		c.find(Altered, 0, "the manifest ends with another number of records, or another hash, than they have")
	default:
		c.report.Line = 0
	}
}
