package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// firstRelease is what nodes know that do not say what they know.
const firstRelease = 1

// nodeRelease is one member's software.
type nodeRelease struct {
	Node    string `json:"node"`
	Version string `json:"version"`       // empty: it did not answer
	Knows   uint32 `json:"known_release"` // 0: it did not answer
}

// upgradeReport is what `cluster upgrade` prints.
type upgradeReport struct {
	Nodes    []nodeRelease `json:"nodes"`
	Previous uint32        `json:"previous_release"`
	Release  uint32        `json:"release"` // the cluster's, afterwards
	newest   uint32        // that a node knows
}

func (a *app) clusterUpgrade() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:   "upgrade",
		Short: "Raise the cluster's release, once every node is upgraded",
		Long: `Raise the cluster's release, once every node is upgraded.

While nodes are upgraded one after the other, the cluster goes on speaking the
release that all of them know; what is new in the later one is refused. This command
asks every node for its version and the newest release it knows, says which are
behind, and if none is, raises the cluster's release. From then on no node of an
earlier version can come back.`,
		Example: `  kmsctl cluster upgrade --dry-run
  kmsctl cluster upgrade`,
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			status, err := kms.Cluster().Status(ctx, &quorumkmsv1.StatusRequest{})
			if err != nil {
				return err
			}
			report := a.surveyReleases(ctx, status)
			err = a.raise(ctx, kms, &report)
			return errors.Join(a.printUpgrade(report, err == nil), err)
		}),
	})
}

// surveyReleases asks every member what it runs.
func (a *app) surveyReleases(ctx context.Context, status *quorumkmsv1.StatusResponse) upgradeReport {
	out := upgradeReport{Nodes: []nodeRelease{}, Previous: status.GetRelease(), Release: status.GetRelease(), newest: status.GetRelease()}
	answers := a.askMembers(ctx, status)
	for _, m := range status.GetMembers() {
		n := nodeRelease{Node: m.GetName()}
		if r := answers[m.GetRaftId()]; r != nil {
			n.Version, n.Knows = r.GetVersion(), max(r.GetKnownRelease(), firstRelease)
		}
		out.Nodes, out.newest = append(out.Nodes, n), max(out.newest, n.Knows)
	}
	return out
}

// raise has the release raised if no node is behind. The nodes check it again.
func (a *app) raise(ctx context.Context, kms *client.Client, report *upgradeReport) error {
	if report.newest == report.Previous {
		return nil
	}
	var behind []string
	for _, n := range report.Nodes {
		switch {
		case n.Knows == 0:
			behind = append(behind, n.Node+" does not answer")
		case n.Knows < report.newest:
			behind = append(behind, fmt.Sprintf("%s runs %s", n.Node, n.Version))
		}
	}
	if len(behind) > 0 {
		return fmt.Errorf("not every node is known to know release %d: %s: upgrade and start these nodes, or remove them, and try again",
			report.newest, clean(strings.Join(behind, ", ")))
	}
	r, err := kms.Cluster().Upgrade(ctx, &quorumkmsv1.UpgradeRequest{Release: report.newest, DryRun: a.dryRun, RequestId: a.requestID})
	if errors.Is(err, client.ErrDryRun) {
		return nil
	}
	if err != nil {
		return err
	}
	report.Release = r.GetRelease()
	return nil
}

func (a *app) printUpgrade(report upgradeReport, allowed bool) error {
	return a.printValue(report, func(w io.Writer) error {
		rows := [][]string{{"NODE", "VERSION", "KNOWS"}}
		for _, n := range report.Nodes {
			row := []string{n.Node, "no answer", ""}
			if n.Knows != 0 {
				row[1], row[2] = n.Version, fmt.Sprintf("release %d", n.Knows)
			}
			rows = append(rows, row)
		}
		if err := writeTable(w, rows); err != nil {
			return err
		}
		_, err := fmt.Fprintln(w, "\n"+report.conclusion(allowed))
		return err
	})
}

func (r upgradeReport) conclusion(allowed bool) string {
	switch {
	case r.Release > r.Previous:
		return fmt.Sprintf("The cluster was at release %d and is at release %d now.", r.Previous, r.Release)
	case !allowed:
		return fmt.Sprintf("The cluster stays at release %d.", r.Release)
	case r.newest > r.Release:
		return fmt.Sprintf("The cluster is at release %d and can be raised to release %d. Nothing was changed.", r.Release, r.newest)
	default:
		return fmt.Sprintf("The cluster is at release %d, the newest that its nodes know. Nothing was changed.", r.Release)
	}
}
