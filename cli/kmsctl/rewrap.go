package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/rewrapfile"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// maxRewraps is how many items one call takes.
const maxRewraps = 64

func (a *app) domainRewrap() *cobra.Command {
	return group("rewrap", "Move key versions from an older generation of the domain key to the active one",
		a.rewrapStart(), a.rewrapStop(), a.rewrapApply())
}

func parseGeneration(s string) (uint32, error) {
	number, err := strconv.ParseUint(s, 10, 32)
	if err != nil || number == 0 {
		return 0, usagef("GENERATION %q: want a number from 1 on", s)
	}
	return uint32(number), nil
}

func (a *app) rewrapStart() *cobra.Command {
	var node string
	var wait bool
	c := &cobra.Command{
		Use:   "start GENERATION",
		Short: "Have a node move all key versions from a generation to the active one",
		Long: `Have a node move all key versions from a generation that has been succeeded to the active
one. Keys stay usable all the time. When all are moved the old generation can be retired.

A generation lets nothing go that it has wrapped. For the length of this the node holds its
twin, which does; that node's own Security Officer must allow it (kmsd hsm trust on its
host, with the fingerprint on its console). While the twin is there, whoever has that
partition's PIN could take keys out: choose a node that is guarded well, and do not leave it
waiting. It ends by itself, or with kmsctl domain rewrap stop; kmsctl domain status shows
what is left. A restart of the node, or another leader, does not disturb it.`,
		Example: "  kmsctl domain rewrap start 1 --node kms-2 --wait",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			number, err := parseGeneration(args[0])
			if err != nil {
				return err
			}
			if !a.yes && !a.dryRun {
				question := fmt.Sprintf("One node's HSM partition will let go of the keys under generation %d until they are moved.\nType its number: ", number)
				if err := a.confirm(ctx, question, strconv.FormatUint(uint64(number), 10)); err != nil {
					return err
				}
			}
			r, err := kms.Cluster().StartRewrap(ctx, &quorumkmsv1.StartRewrapRequest{Generation: number, Node: node, DryRun: a.dryRun, RequestId: a.requestID})
			if err != nil {
				return err
			}
			if wait {
				return a.awaitRewrap(ctx, kms, number)
			}
			return a.printLine(r, "%s moves %d key versions from generation %d: kmsctl domain status.", r.GetRewrap().GetRaftId(), r.GetRewrap().GetRemaining(), number)
		}),
	}
	c.Flags().StringVar(&node, "node", "", "name or raft id of the node that does it (default: the node that answers)")
	c.Flags().BoolVar(&wait, "wait", false, "show how far it is until it ends")
	return a.yesFlag(a.mutates(c))
}

// awaitRewrap shows how far the moving is, whenever that changes, until it ends.
func (a *app) awaitRewrap(ctx context.Context, kms *client.Client, number uint32) error {
	shown := ""
	for {
		r, err := kms.Cluster().DescribeDomain(ctx, &quorumkmsv1.DescribeDomainRequest{})
		if err != nil {
			return err
		}
		if r.GetRewrap().GetGeneration() != number {
			i := slices.IndexFunc(r.GetGenerations(), func(g *quorumkmsv1.DomainGeneration) bool { return g.GetNumber() == number })
			if i >= 0 && r.GetGenerations()[i].GetKeyVersions() > 0 {
				return fmt.Errorf("it was stopped: generation %d still wraps %d key versions", number, r.GetGenerations()[i].GetKeyVersions())
			}
			return a.print(r, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Generation %d wraps nothing any more: kmsctl domain retire %d.\n", number, number)
				return err
			})
		}
		if now := rewrapText(r); now != shown {
			shown = now
			if _, err := fmt.Fprintln(a.stderr, now); err != nil {
				return err
			}
		}
		if err := pause(ctx, domainPoll); err != nil {
			return err
		}
	}
}

// rewrapText is how far the moving is, and what it waits for; empty: there is none.
func rewrapText(r *quorumkmsv1.DescribeDomainResponse) string {
	now := r.GetRewrap()
	if now == nil {
		return ""
	}
	lines := []string{fmt.Sprintf("%s moves key versions from generation %d since %s: %d are left.", now.GetRaftId(), now.GetGeneration(), timeText(now.GetSince()), now.GetRemaining())}
	for _, n := range r.GetNodes() {
		switch {
		case n.GetRaftId() != now.GetRaftId():
		case n.GetWaitsForGeneration() == now.GetGeneration():
			lines = append(lines, fmt.Sprintf("It waits for its own Security Officer, on the host of %s:", n.GetName()),
				"  kmsd hsm trust --config <configuration> --so-pin-file <file> "+n.GetFingerprint())
		case n.GetProblem() != "":
			lines = append(lines, n.GetProblem())
		}
	}
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

func (a *app) rewrapStop() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:     "stop GENERATION",
		Short:   "Stop moving key versions; what was moved stays moved",
		Long:    "Stop moving key versions from a generation. The node destroys the twin; what was moved\nstays moved, and the rest is moved when it is started again.",
		Example: "  kmsctl domain rewrap stop 1",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			number, err := parseGeneration(args[0])
			if err != nil {
				return err
			}
			r, err := kms.Cluster().StopRewrap(ctx, &quorumkmsv1.StopRewrapRequest{Generation: number, DryRun: a.dryRun, RequestId: a.requestID})
			if err != nil {
				return err
			}
			return a.printLine(r, "Stopped: generation %d wraps %d key versions.", number, r.GetRemaining())
		}),
	})
}

// applied is what became of the items of a file.
type applied struct {
	Generation uint32   `json:"generation"`
	DryRun     bool     `json:"dry_run"` // it is what would become of them
	Applied    int      `json:"applied"`
	Already    int      `json:"already"` // in their places before
	Gone       int      `json:"gone"`    // keys or versions that were deleted or destroyed
	Changed    int      `json:"changed"` // that got another token since the backup
	Refused    int      `json:"refused"`
	Problems   []string `json:"problems"` // of the first that were refused
}

// maxProblems is how many refusals are shown.
const maxProblems = 10

func (a *app) rewrapApply() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:   "apply FILE",
		Short: "Put tokens in their places that kmsd recovery rewrap has made",
		Long: `Put tokens in their places that kmsd recovery rewrap has made of a backup, on a machine
with a recovery copy of the domain key. Each takes its place only if it holds the same key
as the one it replaces, and a majority of HSMs has opened it. The same file can be applied
again: what is done is counted and left.

--dry-run has the cluster look at each token as it would then, also open it in the HSMs, and
tells what would become of it. --request-id names the whole file: its parts are sent under
that id and their number, and a part that was made before is answered and not made again.`,
		Example: "  kmsctl domain rewrap apply rewrapped.jsonl --dry-run\n  kmsctl domain rewrap apply rewrapped.jsonl",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			file, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer file.Close() //nolint:errcheck // read only
			h, total, err := rewrapfile.Check(file)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if _, err := file.Seek(0, io.SeekStart); err != nil {
				return err
			}
			status, err := kms.Cluster().Status(ctx, &quorumkmsv1.StatusRequest{})
			if err != nil {
				return err
			}
			if status.GetClusterId() != h.Cluster {
				return usagef("%s is for cluster %s, this is %s", args[0], clean(h.Cluster), status.GetClusterId())
			}
			if len(a.partID(total/maxRewraps)) > maxRequestID {
				return usagef("--request-id: with the number of a part it is longer than %d bytes", maxRequestID)
			}
			sum := applied{Generation: h.Generation, DryRun: a.dryRun}
			done, parts := uint64(0), uint64(0)
			var batch []*quorumkmsv1.RewrapItem
			flush := func() error {
				if len(batch) == 0 {
					return nil
				}
				if err := a.applyBatch(ctx, kms, batch, a.partID(parts), &sum); err != nil {
					return err
				}
				parts++
				done += uint64(len(batch))
				batch = batch[:0]
				if a.output != formatJSON {
					_, err := fmt.Fprintf(a.stderr, "%d of %d\n", done, total)
					return err
				}
				return nil
			}
			_, err = rewrapfile.Read(file, func(item rewrapfile.Item) error {
				batch = append(batch, &quorumkmsv1.RewrapItem{KeyId: item.Key, Version: item.Version, OldSha256: item.Old, Token: item.Token})
				if len(batch) < maxRewraps {
					return nil
				}
				return flush()
			})
			if err == nil {
				err = flush()
			}
			if err != nil {
				return fmt.Errorf("%d of %d were looked at; apply the file again: %w", done, total, err)
			}
			return errors.Join(a.printApplied(sum), sum.failed())
		}),
	})
}

// partID is the request id of a part of a file.
func (a *app) partID(part uint64) string { return a.requestID + "-" + strconv.FormatUint(part, 10) }

func (a *app) applyBatch(ctx context.Context, kms *client.Client, batch []*quorumkmsv1.RewrapItem, id string, sum *applied) error {
	r, err := kms.Cluster().ApplyRewraps(ctx, &quorumkmsv1.ApplyRewrapsRequest{Items: batch, DryRun: a.dryRun, RequestId: id})
	if err != nil {
		return err
	}
	if n := len(r.GetResults()); n != len(batch) {
		return fmt.Errorf("%d answers to %d key versions", n, len(batch))
	}
	for i, x := range r.GetResults() {
		switch x.GetOutcome() {
		case quorumkmsv1.RewrapOutcome_REWRAP_OUTCOME_APPLIED:
			sum.Applied++
		case quorumkmsv1.RewrapOutcome_REWRAP_OUTCOME_ALREADY:
			sum.Already++
		case quorumkmsv1.RewrapOutcome_REWRAP_OUTCOME_GONE:
			sum.Gone++
		case quorumkmsv1.RewrapOutcome_REWRAP_OUTCOME_CHANGED:
			sum.Changed++
		case quorumkmsv1.RewrapOutcome_REWRAP_OUTCOME_REFUSED, quorumkmsv1.RewrapOutcome_REWRAP_OUTCOME_UNSPECIFIED:
			if sum.Refused++; len(sum.Problems) < maxProblems {
				sum.Problems = append(sum.Problems, clean(fmt.Sprintf("%s version %d: %s", batch[i].GetKeyId(), batch[i].GetVersion(), x.GetProblem())))
			}
		}
	}
	return nil
}

func (a *app) printApplied(sum applied) error {
	return a.printValue(sum, func(w io.Writer) error {
		appliedText, refusedText := "Applied", "Refused"
		if sum.DryRun {
			appliedText, refusedText = "Would be applied", "Would be refused"
		}
		rows := [][2]string{
			{"Generation", strconv.FormatUint(uint64(sum.Generation), 10)},
			{appliedText, strconv.Itoa(sum.Applied)},
			{"Already there", strconv.Itoa(sum.Already)},
			{"Deleted since", strconv.Itoa(sum.Gone)},
			{"Changed since", strconv.Itoa(sum.Changed)},
			{refusedText, strconv.Itoa(sum.Refused)},
		}
		for _, p := range sum.Problems {
			rows = append(rows, [2]string{"", p})
		}
		return writeFields(w, rows)
	})
}

func (s applied) failed() error {
	switch {
	case s.Refused == 0:
		return nil
	case s.DryRun:
		return fmt.Errorf("%d key versions would be refused; nothing was changed", s.Refused)
	}
	return fmt.Errorf("%d key versions were refused", s.Refused)
}
