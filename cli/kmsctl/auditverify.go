package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/trail"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// errFinding means: a trail, or an export, is not what was signed.
var errFinding = errors.New("an audit trail is not what was signed")

func (a *app) auditExport() *cobra.Command {
	var f auditFilter
	var out string
	var proofs bool
	c := &cobra.Command{
		Use:   "export",
		Short: "Write records of all nodes that fit into a file",
		Long: `Write records of all nodes that fit into a file, as their nodes wrote them, one a line. Beside
it FILE.manifest tells what was asked for and how many records there are; with --proofs also
the proof, for each, that it is in a trail that its node has signed, which kmsctl audit
verify --export checks without any node. Nothing proves that an export is complete.`,
		Example: "  kmsctl audit export --out march.jsonl --since 2026-03-01T00:00:00Z --until 2026-04-01T00:00:00Z --proofs",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			if out == "" || out == stdio {
				return usagef("--out is missing: a file's name")
			}
			r, err := f.wanted(time.Now())
			if err != nil {
				return err
			}
			r.WithProofs = proofs
			return a.export(ctx, kms, r, out)
		}),
	}
	c.Flags().StringVar(&out, "out", "", "file to write")
	c.Flags().BoolVar(&proofs, "proofs", false, "with the proof of each record")
	return f.addUntil(c)
}

func (a *app) export(ctx context.Context, kms *client.Client, r *quorumkmsv1.SearchRecordsRequest, path string) error {
	status, _, err := members(ctx, kms)
	if err != nil {
		return err
	}
	records, err := a.create(path)
	if err != nil {
		return err
	}
	manifest, err := a.create(path + trail.ManifestEnd)
	if err != nil {
		return errors.Join(err, records.discard())
	}
	x, err := trail.NewExporter(records, manifest, trail.ExportHeader{
		Cluster: status.GetClusterId(), Created: time.Now().UTC(), Query: filterText(r, a.value(setTenant)), Proofs: r.GetWithProofs(),
	})
	var incomplete *missing
	if err == nil {
		told := map[string][]byte{}
		err = a.eachRecord(ctx, kms, r, func(s *source, m *quorumkmsv1.SearchRecordsResponse) error {
			if r.GetWithProofs() && !bytes.Equal(told[s.raftID], s.checkpoint) {
				told[s.raftID] = s.checkpoint
				if err := x.Checkpoint(s.raftID, s.checkpoint); err != nil {
					return err
				}
			}
			return x.Record(s.raftID, m.GetSequence(), m.GetRecord(), m.GetProof())
		})
		if errors.As(err, &incomplete) {
			err = nil // what the others have is kept
		}
	}
	var n uint64
	if err == nil {
		n, err = x.End()
	}
	if err = errors.Join(records.finish(err), manifest.finish(err)); err != nil {
		return err
	}
	err = a.printValue(struct {
		File     string `json:"file"`
		Manifest string `json:"manifest"`
		Records  uint64 `json:"records"`
		Proofs   bool   `json:"proofs"`
	}{path, path + trail.ManifestEnd, n, r.GetWithProofs()}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%d records in %s, manifest in %s\n", n, path, path+trail.ManifestEnd)
		return err
	})
	if incomplete != nil {
		return errors.Join(err, incomplete)
	}
	return err
}

// memory is what one node remembers of all.
type memory struct {
	name   string
	member *quorumkmsv1.Member
	answer *quorumkmsv1.DescribeTrailsResponse
}

// memories asks every member what is remembered.
func (a *app) memories(ctx context.Context, list []*quorumkmsv1.Member, gone *unheard) (out []memory) {
	for _, m := range list {
		var r *quorumkmsv1.DescribeTrailsResponse
		err := a.atNode(m.GetClientAddress(), func(kms *client.Client) (err error) {
			r, err = kms.Audit().DescribeTrails(ctx, &quorumkmsv1.DescribeTrailsRequest{})
			return err
		})
		if err == nil && r.GetRaftId() != m.GetRaftId() {
			err = fmt.Errorf("at its address is node %s", r.GetRaftId())
		}
		if err != nil {
			gone.add(m.GetName(), err)
			continue
		}
		out = append(out, memory{m.GetName(), m, r})
	}
	return out
}

// asked is what all members remember, and what that is together; an error if none answers.
func (a *app) asked(ctx context.Context, kms *client.Client, gone *unheard) (all []memory, heads trail.Heads, differ []string, err error) {
	status, list, err := members(ctx, kms)
	if err != nil {
		return nil, heads, nil, err
	}
	if all = a.memories(ctx, list, gone); len(all) == 0 {
		return nil, heads, nil, gone.err()
	}
	heads, differ = together(status.GetClusterId(), all)
	return all, heads, differ, nil
}

// together makes one of what the nodes remember: the newest of each. differ says where they
// contradict each other; one that is a little behind does not.
func together(cluster string, all []memory) (h trail.Heads, differ []string) {
	h.Cluster = cluster
	byNode, sizes := map[string]*trail.NodeHead{}, map[string]uint64{}
	for _, m := range all {
		for _, t := range m.answer.GetTrails() {
			n := byNode[t.GetRaftId()]
			if n == nil {
				n = &trail.NodeHead{Node: t.GetRaftId(), Name: t.GetName(), Identity: t.GetIdentity()}
				byNode[t.GetRaftId()] = n
			}
			other := t.GetRecords() == sizes[n.Node] && n.Checkpoint != "" && !sameTree(n.Identity, []byte(n.Checkpoint), t.GetCheckpoint())
			if other || !bytes.Equal(n.Identity, t.GetIdentity()) || n.Conflict != "" && len(t.GetConflict()) > 0 && !sameTree(n.Identity, []byte(n.Conflict), t.GetConflict()) {
				differ = append(differ, fmt.Sprintf("%s remembers something else of %s than others do", m.name, t.GetName()))
			}
			if t.GetRecords() > sizes[n.Node] {
				n.Checkpoint, sizes[n.Node] = string(t.GetCheckpoint()), t.GetRecords()
			}
			if n.Conflict == "" && signedBy(n, cluster, t.GetConflict()) { // what it has not signed says nothing of it
				n.Conflict = string(t.GetConflict())
			}
			if m.member.GetRaftId() != n.Node { // nobody exempts itself
				n.Removed = n.Removed || t.GetRemoved()
			}
		}
	}
	for _, n := range byNode {
		h.Nodes = append(h.Nodes, *n)
	}
	slices.SortFunc(h.Nodes, func(a, b trail.NodeHead) int { return cmp.Compare(a.Node, b.Node) })
	return h, differ
}

// signedBy tells whether a checkpoint is a node's own.
func signedBy(n *trail.NodeHead, cluster string, note []byte) bool {
	c, err := trail.OpenCheckpoint(note, n.Identity)
	return err == nil && c.Node == n.Node && c.Cluster == cluster
}

// sameTree tells whether two checkpoints are of one tree.
func sameTree(identity, a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	one, err := trail.OpenCheckpoint(a, identity)
	other, err2 := trail.OpenCheckpoint(b, identity)
	return errors.Join(err, err2) == nil && one.Size == other.Size && one.Root == other.Root
}

func (a *app) auditHeads() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "heads",
		Short: "Write what the cluster remembers of the trails into a file",
		Long: `Write what the cluster remembers of each node's trail, and the nodes' public keys, into a file:
the newest checkpoint that any of the nodes remembers. With it kmsd audit verify checks a
node's files, and kmsctl audit verify --export an export, without a node. Keep such files
where the nodes' operators cannot change them: an older one convicts a trail that was
rewritten since.`,
		Example: "  kmsctl audit heads --out heads-2026-01-02.json",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			if out == "" {
				return usagef("--out is missing: a file's name, or - for standard output")
			}
			gone := &unheard{a: a}
			_, heads, differ, err := a.asked(ctx, kms, gone)
			if err != nil {
				return err
			}
			for _, text := range differ {
				fmt.Fprintln(a.stderr, clean(text)) //nolint:errcheck // it is also the result
			}
			b, err := heads.Encode()
			if err != nil {
				return err
			}
			if err := a.writeFile(out, b); err != nil {
				return err
			}
			if len(differ) > 0 {
				return errors.Join(errFinding, gone.err())
			}
			return gone.err()
		}),
	}
	c.Flags().StringVar(&out, "out", "", "file to write; - is standard output")
	return c
}

// verified is what was found of one node's trail.
type verified struct {
	Name    string `json:"name"`
	Removed bool   `json:"removed,omitempty"`
	Problem string `json:"problem,omitempty"` // why nothing can be said
	Signed  uint64 `json:"signed,omitempty"`  // records of its present checkpoint, if that alone was looked at
	trail.Report
}

func (v verified) text() []string {
	switch {
	case v.Problem != "":
		return []string{v.Name + ": nothing can be said: " + v.Problem}
	case v.Removed && v.Finding == nil && v.Proved == 0:
		return []string{fmt.Sprintf("%s (%s): a member no more; nothing of its trail is remembered", v.Name, v.Node)}
	case v.Removed && v.Finding == nil:
		return []string{fmt.Sprintf("%s (%s): a member no more; %s remembers its trail up to record %d: kmsd audit verify checks its files", v.Name, v.Node, v.ProvedBy, v.Proved)}
	}
	if v.Signed > 0 && v.Finding == nil {
		return []string{fmt.Sprintf("%s (%s): its present checkpoint, of %d records, goes on from the one of %d, of %s UTC, in %s", v.Name, v.Node, v.Signed, v.Proved, v.ProvedAt.Format(time.DateTime), v.ProvedBy)}
	}
	return v.Text(v.Name)
}

func (a *app) auditVerify() *cobra.Command {
	var export, heads string
	var quick bool
	c := &cobra.Command{
		Use:   "verify",
		Short: "Verify the nodes' trails against what the cluster remembers, or an export",
		Long: `Verify the nodes' trails against what the cluster remembers, or an export.

Every member is asked what it remembers of all trails. Then each member's trail is read whole
and verified here with that, and with the node's own checkpoints. Shown is up to which record
and time each trail is proved, and by whom, or the first record that is not as it was signed.

--quick reads no records: each node proves that its present checkpoint goes on from what is
remembered. That shows a trail that was rewritten with the node's key, but not whether the
records on its disk still are those that it signed. Operators may do this one, too.

--export verifies a file of kmsctl audit export --proofs with a file of kmsctl audit heads,
and asks no node.

The exit code is 4 if something was found, 3 if a node did not answer.`,
		Example: `  kmsctl audit verify
  kmsctl audit verify --quick
  kmsctl audit verify --export march.jsonl --heads heads.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case (export == "") != (heads == ""):
				return errors.New("--export and --heads belong together")
			case export != "" && quick:
				return errors.New("--export and --quick exclude each other")
			case export != "":
				return a.local(func(*cobra.Command, []string) error { return a.verifyExport(export, heads) })(cmd, args)
			}
			return a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
				return a.verifyTrails(ctx, kms, quick)
			})(cmd, args)
		},
	}
	c.Flags().StringVar(&export, "export", "", "verify this file of kmsctl audit export; its manifest is beside it")
	c.Flags().StringVar(&heads, "heads", "", "with this file of kmsctl audit heads")
	c.Flags().BoolVar(&quick, "quick", false, "compare checkpoints only, read no records")
	return c
}

func (a *app) verifyTrails(ctx context.Context, kms *client.Client, quick bool) error {
	gone := &unheard{a: a}
	all, heads, differ, err := a.asked(ctx, kms, gone)
	if err != nil {
		return err
	}
	var out []verified
	bad := len(differ) > 0
	for _, n := range heads.Nodes {
		v, err := a.verifyNode(ctx, all, heads.Cluster, n, quick)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.Problem = err.Error()
			gone.add(n.Name, err)
		}
		if f := n.Convicted(); v.Problem != "" && f != nil { // nothing of it is known that shows more
			v.Finding, v.Problem = f, ""
		}
		bad = bad || v.Finding != nil
		out = append(out, v)
	}
	err = a.printVerifications(differ, len(all), out)
	if bad {
		return errors.Join(err, errFinding)
	}
	return errors.Join(err, gone.err())
}

func (a *app) verifyNode(ctx context.Context, all []memory, cluster string, n trail.NodeHead, quick bool) (verified, error) {
	v := verified{Name: n.Name, Removed: n.Removed, Report: trail.Report{Node: n.Node, Cluster: cluster}}
	i := slices.IndexFunc(all, func(m memory) bool { return m.member.GetRaftId() == n.Node })
	switch {
	case i < 0: // a member that answers is read, whatever is said of it
		if !n.Removed {
			v.Problem = "it does not answer"
		}
		v.Finding = n.Convicted()
		if c, err := trail.OpenCheckpoint([]byte(n.Checkpoint), n.Identity); err == nil {
			v.Proved, v.ProvedAt, v.ProvedBy = uint64(c.Size), c.Time, "the cluster" //nolint:gosec // not negative
		}
		return v, nil
	case quick:
		heads := remembered(all, n)
		if n.Conflict != "" { // if the trail goes on from both, it is none
			heads = slices.Insert(heads, 0, trail.Head{Note: []byte(n.Conflict), Source: "what the cluster has against it"})
		}
		err := a.verifyQuick(ctx, all[i], n, heads, &v)
		return v, err
	}
	err := a.verifyWhole(ctx, all[i], n, remembered(all, n), &v)
	return v, err
}

func (a *app) printVerifications(differ []string, answers int, out []verified) error {
	return a.printValue(struct {
		Differ []string   `json:"memories_differ,omitempty"`
		Nodes  []verified `json:"nodes"`
	}{differ, out}, func(w io.Writer) error {
		for _, text := range differ {
			if _, err := fmt.Fprintln(w, clean(text)); err != nil {
				return err
			}
		}
		if len(differ) == 0 {
			if _, err := fmt.Fprintf(w, "The memories of %d nodes do not contradict each other.\n", answers); err != nil {
				return err
			}
		}
		for _, v := range out {
			for _, line := range v.text() {
				if _, err := fmt.Fprintln(w, clean(line)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// remembered are the checkpoints of a node that the others, and it itself, remember.
func remembered(all []memory, n trail.NodeHead) (out []trail.Head) {
	for _, m := range all {
		for _, t := range m.answer.GetTrails() {
			if t.GetRaftId() == n.Node && len(t.GetCheckpoint()) > 0 && !slices.ContainsFunc(out, func(h trail.Head) bool { return bytes.Equal(h.Note, t.GetCheckpoint()) }) {
				out = append(out, trail.Head{Note: t.GetCheckpoint(), Source: m.name + "'s memory"})
			}
		}
	}
	return out
}

// verifyWhole reads a node's trail into a directory that is removed again, and verifies it.
func (a *app) verifyWhole(ctx context.Context, m memory, n trail.NodeHead, heads []trail.Head, v *verified) (err error) {
	dir, err := os.MkdirTemp("", "kmsctl-audit-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d := &fetched{dir: dir}
	err = a.atNode(m.member.GetClientAddress(), func(kms *client.Client) error {
		return kms.ReadTrail(ctx, 0, d.begin, func(b []byte) error {
			a.auditProgress("%s: read %.1f MiB", n.Name, float64(d.bytes)/(1<<20))
			return d.data(b)
		})
	})
	if err = errors.Join(err, d.end()); err != nil {
		return err
	}
	v.Report, err = trail.Verify(dir, trail.Options{
		Identity: n.Identity, Node: n.Node, Cluster: v.Cluster, Heads: heads, Conflict: []byte(n.Conflict),
		Progress: func(records int64) { a.auditProgress("%s: %d records", n.Name, records) },
	})
	if v.Node == "" {
		v.Node = n.Node
	}
	a.auditProgress("")
	return err
}

// auditProgress shows on a terminal how far something is.
func (a *app) auditProgress(format string, args ...any) {
	if isTerminal(a.stderr) {
		fmt.Fprintf(a.stderr, "\r\x1b[K"+format, args...) //nolint:errcheck // it is no matter
	}
}

// fetched writes files as they come.
type fetched struct {
	dir   string
	file  *os.File
	bytes int64
}

func (d *fetched) end() error {
	if d.file == nil {
		return nil
	}
	err := d.file.Close()
	d.file = nil
	return err
}

func (d *fetched) begin(name string) error {
	if err := d.end(); err != nil {
		return err
	}
	if name != filepath.Base(name) || !filepath.IsLocal(name) {
		return fmt.Errorf("the node names a file %.80q", name)
	}
	var err error
	d.file, err = os.OpenFile(filepath.Join(d.dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, secretMode)
	return err
}

func (d *fetched) data(b []byte) error {
	if d.file == nil {
		return errors.New("the node sends data of no file")
	}
	n, err := d.file.Write(b)
	d.bytes += int64(n)
	return err
}

// verifyQuick has the node prove that its checkpoint goes on from each one that is remembered.
func (a *app) verifyQuick(ctx context.Context, m memory, n trail.NodeHead, heads []trail.Head, v *verified) error {
	for _, h := range heads {
		was, err := trail.OpenCheckpoint(h.Note, n.Identity)
		if err != nil {
			return fmt.Errorf("%s: %w", h.Source, err)
		}
		var r *quorumkmsv1.DescribeTrailsResponse
		err = a.atNode(m.member.GetClientAddress(), func(kms *client.Client) (err error) {
			r, err = kms.Audit().DescribeTrails(ctx, &quorumkmsv1.DescribeTrailsRequest{ProveFrom: uint64(was.Size)}) //nolint:gosec // not negative
			return err
		})
		if err != nil {
			return err
		}
		is, err := trail.OpenCheckpoint(r.GetCheckpoint(), n.Identity)
		if err == nil && (is.Node != n.Node || is.Cluster != v.Cluster) {
			err = fmt.Errorf("it is of node %s in cluster %s", is.Node, is.Cluster)
		}
		size := uint64(is.Size) //nolint:gosec // not negative
		if err != nil {
			v.Finding = &trail.Finding{Kind: trail.Forged, Text: fmt.Sprintf("its present checkpoint: %v", err)}
			return nil
		}
		v.Signed, v.Last, v.Heads = max(v.Signed, size), max(v.Last, r.GetPosition().GetLast()), v.Heads+1
		if err := goesOn(was, is, r); err != nil {
			v.Finding = &trail.Finding{Kind: trail.Rewritten, First: 1, Last: uint64(was.Size), Text: fmt.Sprintf("its present checkpoint, of %d records, does not go on from the one of %d records, of %s, that %s has: %v", size, was.Size, was.Time.Format(time.RFC3339), h.Source, err)} //nolint:gosec // not negative
			return nil
		}
		v.Proved, v.ProvedAt, v.ProvedBy = uint64(was.Size), was.Time, h.Source //nolint:gosec // not negative
	}
	return nil
}

func goesOn(was, is trail.Checkpoint, r *quorumkmsv1.DescribeTrailsResponse) error {
	if is.Size < was.Size {
		return errors.New("it is shorter")
	}
	if r.GetNoProof() != "" {
		return fmt.Errorf("there is no proof: %s", r.GetNoProof())
	}
	proof := make(tlog.TreeProof, len(r.GetProof()))
	for i, p := range r.GetProof() {
		if len(p) != len(trail.Hash{}) {
			return fmt.Errorf("a hash of %d bytes", len(p))
		}
		proof[i] = trail.Hash(p)
	}
	return tlog.CheckTree(proof, is.Size, is.Root, was.Size, was.Root)
}

func (a *app) verifyExport(path, headsPath string) error {
	b, err := os.ReadFile(headsPath)
	if err != nil {
		return err
	}
	heads, err := trail.ParseHeads(b)
	if err != nil {
		return fmt.Errorf("%s: %w", headsPath, err)
	}
	records, err := os.Open(path)
	if err != nil {
		return err
	}
	defer records.Close() //nolint:errcheck // only read
	manifest, err := os.Open(path + trail.ManifestEnd)
	if err != nil {
		return err
	}
	defer manifest.Close() //nolint:errcheck // only read
	r, err := trail.CheckExport(records, manifest, heads)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	err = a.printValue(r, func(w io.Writer) error {
		if f := r.Finding; f != nil {
			_, err := fmt.Fprintf(w, "%s: %s: %s; the %d records before are as they were signed\n", path, f.Kind, clean(f.Text), r.Records)
			return err
		}
		fields := [][2]string{{"Export", path}, {"Asked for", cmp.Or(r.Query, "everything")}, {"Made", r.Created.Format(time.DateTime) + " UTC"}, {"Records", fmt.Sprintf("%d, each as its node signed it", r.Records)}}
		for _, n := range heads.Nodes {
			if c := r.Nodes[n.Node]; c > 0 {
				fields = append(fields, [2]string{"  of " + n.Name, strconv.FormatUint(c, 10)})
			}
		}
		return writeFields(w, fields)
	})
	if r.Finding != nil {
		return errors.Join(err, errFinding)
	}
	return err
}
