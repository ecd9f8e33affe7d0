package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (a *app) clusterPending() *cobra.Command {
	return &cobra.Command{
		Use:   "pending",
		Short: "Show open invitations, and the nodes that wait for approval",
		Long: `Show open invitations, and the nodes that wait for approval.

A node that was invited without --identity waits until an operator approves the
identity key of its HSM partition. Its fingerprint is not shown here, where a thief of
the join token would have it shown too: read it off the node's own console, or have it
read to you by somebody who stands there.`,
		Example: "  kmsctl cluster pending",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			r, err := kms.Cluster().ListJoins(ctx, &quorumkmsv1.ListJoinsRequest{})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) error {
				rows := [][]string{{"NODE", "STATE", "EXPIRES", "ASKED", "PEER ADDRESS", "CLIENT ADDRESS"}}
				for _, j := range r.GetJoins() {
					row := []string{j.GetNodeName(), joinText(j), expiryText(j.GetExpires(), time.Now()), "-", "-", "-"}
					if j.GetRaftId() != "" {
						row[3], row[4], row[5] = timeText(j.GetSince()), j.GetPeerAddress(), j.GetClientAddress()
					}
					rows = append(rows, row)
				}
				return writeTable(w, rows)
			})
		}),
	}
}

func joinText(j *quorumkmsv1.Join) string {
	switch j.GetState() {
	case quorumkmsv1.JoinState_JOIN_STATE_WAITING:
		return "WAITS FOR APPROVAL"
	case quorumkmsv1.JoinState_JOIN_STATE_PINNED:
		return "identity pinned"
	default:
		return enumName(j.GetState(), "JOIN_STATE_")
	}
}

func (a *app) clusterApprove() *cobra.Command {
	var identity string
	c := &cobra.Command{
		Use:   "approve NAME",
		Short: "Let a node in that waits, by the fingerprint on its own console",
		Long: `Let a node in that waits for approval.

--identity is the fingerprint that the node's own console shows (kmsd run, or kmsd hsm
identity). No command of this program shows it: it must come from where the node stands.
If it is refused although it was typed right, another node uses the invitation:
kmsctl cluster reject.`,
		Example: "  kmsctl cluster approve kms2 --identity SHA256:9f2c…",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			if identity == "" {
				return usagef("--identity is missing: the fingerprint that the console of %s shows", args[0])
			}
			r, err := kms.Cluster().ApproveJoin(ctx, &quorumkmsv1.ApproveJoinRequest{
				NodeName: args[0], Identity: identity, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s (%s) is approved: it joins by itself.", args[0], r.GetRaftId())
		}),
	}
	c.Flags().StringVar(&identity, "identity", "", "fingerprint on the node's own console, SHA256:…")
	return a.mutates(c)
}

func (a *app) clusterReject() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:   "reject NAME",
		Short: "Take a node's open invitations back, and refuse who waits with them",
		Long: `Take the open invitations of a node's name back, and refuse the node that waits with
one of them. What is a member already stays: kmsctl cluster remove.`,
		Example: "  kmsctl cluster reject kms2",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Cluster().RejectJoin(ctx, &quorumkmsv1.RejectJoinRequest{NodeName: args[0], DryRun: a.dryRun, RequestId: a.requestID})
			if err != nil {
				return err
			}
			return a.printLine(r, "The invitations of %s are no good any more.", args[0])
		}),
	})
}

// approvalText tells what an invitation lets in.
func approvalText(r *quorumkmsv1.InviteResponse, identity string) string {
	switch {
	case identity != "":
		return "pinned: no other HSM partition may join"
	case r.GetNeedsApproval():
		return "must be approved: kmsctl cluster approve"
	}
	return "NOT CHECKED: the cluster's release cannot, see kmsctl cluster upgrade"
}
