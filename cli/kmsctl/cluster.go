package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	defaultInvitation = 15 * time.Minute
	maxInvitation     = time.Hour
	adminForm         = "spiffe://TRUST-DOMAIN/tenant/default/admin/NAME"
)

func (a *app) clusterCommand() *cobra.Command {
	return group("cluster", "Found a cluster, look at it, and govern its members",
		a.clusterInit(), a.clusterStatus(), a.clusterInvite(), a.clusterPending(), a.clusterApprove(), a.clusterReject(), a.clusterRemove(), a.clusterTransfer(),
		a.clusterVote("promote", true), a.clusterVote("demote", false), a.clusterUpgrade(),
		a.clusterRecover())
}

func (a *app) clusterInit() *cobra.Command {
	var administrator string
	var noRecovery bool
	var recoveryFiles []string
	var required, approvals, drillDays uint32
	var lease time.Duration
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a node the first member of a new cluster",
		Long: `Make a node the first member of a new cluster.

It is the node that --addresses names, which must be one only: a second node that
were initialized would be another cluster. Other nodes join: see kmsctl cluster
invite.

--administrator is the first key administrator of the tenant "default".
--recovery-recipient is the file of a recovery key (kmsctl recovery init, or kmsd recovery
init-token): the domain key is wrapped for it, into the cluster's state and so into every
backup. The node's Security Officer trusts each key before: kmsd hsm trust --recovery.
Give it once for each. --recovery-required of them must hold a generation of the domain key before it
becomes active, --recovery-approvals operators must approve a change of the recipients,
and after --recovery-drill days without a report of kmsd recovery verify the status
warns.
--no-recovery accepts, instead, that nothing recovers the domain key: with the last
member's HSM partition, every key of the cluster is lost.
--lease is how long a node may go on answering after it lost touch with the leader,
the same for all nodes: longer rides out longer elections, shorter makes the first
restriction after a node's death return sooner.`,
		Example: "  kmsctl cluster init --addresses kms1.example.org:7300 --administrator spiffe://kms.example.org/tenant/default/admin/alice --recovery-recipient vault.recovery",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			if _, _, found := strings.Cut(a.value(setAddresses), ","); found {
				return usagef("--addresses names several nodes: init makes one node the first member, so name that one only")
			}
			if rest, ok := strings.CutPrefix(administrator, "spiffe://"); !ok || !strings.Contains(rest, "/tenant/default/admin/") {
				return usagef("--administrator %q: want %s", administrator, adminForm)
			}
			keys, err := a.readRecoveryKeys(ctx, recoveryFiles)
			if err != nil {
				return err
			}
			r, err := kms.Cluster().Init(ctx, &quorumkmsv1.InitRequest{
				Administrator: administrator, NoRecovery: noRecovery, LeaseDuration: durationpb.New(lease),
				RecoveryKeys: keys, RecoveryRequired: required, RecoveryApprovals: approvals, RecoveryDrillDays: drillDays,
				DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			if noRecovery {
				if _, err := fmt.Fprintln(a.stderr, "WARNING: NOTHING RECOVERS THE DOMAIN KEY OF THIS CLUSTER: IF EVERY NODE'S HSM TOKEN IS LOST, SO IS ALL DATA."); err != nil {
					return err
				}
			}
			return a.print(r, func(w io.Writer) error {
				return writeFields(w, [][2]string{
					{"Cluster", r.GetClusterId()},
					{"First member", r.GetRaftId()},
					{"Administrator", administrator},
					{"Recovery", recipientsText(len(keys))},
				})
			})
		}),
	}
	c.Flags().StringVar(&administrator, "administrator", "", "SPIFFE URI of the first key administrator, "+adminForm)
	c.Flags().StringArrayVar(&recoveryFiles, "recovery-recipient", nil, "file of a recovery key; may be repeated")
	c.Flags().Uint32Var(&required, "recovery-required", 1, "recipients that hold a generation of the domain key before it becomes active")
	c.Flags().Uint32Var(&approvals, "recovery-approvals", 2, "operators who approve a change of the recipients")
	c.Flags().Uint32Var(&drillDays, "recovery-drill", 90, "days after which a recovery must have been tried again")
	c.Flags().BoolVar(&noRecovery, "no-recovery", false, "accept that nothing recovers the domain key")
	c.Flags().DurationVar(&lease, "lease", 6*time.Second, "how long a node may answer by itself, 1s to 60s")
	return a.mutates(c)
}

func (a *app) clusterInvite() *cobra.Command {
	var validFor time.Duration
	var nonVoter bool
	var tokenFile, identity string
	c := &cobra.Command{
		Use:   "invite NAME",
		Short: "Make a join token for a new node",
		Long: `Make a join token for a new node.

--identity names the identity key of the node's HSM partition by its fingerprint, as kmsd
hsm identity shows it on the node's own host: no other partition may join, whoever has
stolen the token. Without it, who asks to join waits until an operator has read the
fingerprint off the node's console and approved it: kmsctl cluster approve.

The token is a secret all the same. --token-file writes it to a file that only its owner
can read.`,
		Example: "  kmsctl cluster invite kms2 --identity SHA256:9f2c… --token-file kms2.token",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			if validFor <= 0 || validFor > maxInvitation {
				return usagef("--valid-for %s: want more than 0, at most %s", validFor, maxInvitation)
			}
			r, err := kms.Cluster().Invite(ctx, &quorumkmsv1.InviteRequest{
				NodeName: args[0], ValidFor: durationpb.New(validFor), NonVoter: nonVoter, Identity: identity, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			token := r.GetJoinToken()
			if tokenFile != "" {
				if err := a.writeSecret(tokenFile, []byte(token+"\n")); err != nil {
					return err
				}
				token, r.JoinToken = "written to "+tokenFile, ""
			}
			return a.print(r, func(w io.Writer) error {
				return writeFields(w, [][2]string{
					{"Node", args[0]},
					{"Identity", approvalText(r, identity)},
					{"Ticket", r.GetTicketId()},
					{"Expires", expiryText(r.GetExpires(), time.Now())},
					{"Members", strings.Join(r.GetPeerAddresses(), " ")},
					{"Join token", token},
				})
			})
		}),
	}
	c.Flags().DurationVar(&validFor, "valid-for", defaultInvitation, "how long the token is good, at most 1h")
	c.Flags().StringVar(&identity, "identity", "", "fingerprint of the node's identity key, SHA256:…")
	c.Flags().BoolVar(&nonVoter, "non-voter", false, "the node serves, but has no vote")
	c.Flags().StringVar(&tokenFile, "token-file", "", "write the token to this file instead of printing it")
	return a.mutates(c)
}

func (a *app) clusterRemove() *cobra.Command {
	return a.yesFlag(a.mutates(&cobra.Command{
		Use:   "remove NODE",
		Short: "Take a node out of the cluster for good",
		Long: `Take a node out of the cluster for good. NODE is its name or raft id.

When this returns, the node can serve nothing any more. To come back it has to join
anew, with an empty data directory. The command asks to type the node's name;
--yes does without.`,
		Example: "  kmsctl cluster remove kms3",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			if !a.yes && !a.dryRun {
				if err := a.confirmRemoval(ctx, kms, args[0]); err != nil {
					return err
				}
			}
			r, err := kms.Cluster().Remove(ctx, &quorumkmsv1.RemoveRequest{Node: args[0], DryRun: a.dryRun, RequestId: a.requestID})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s is no member any more.\n%s.\n", clean(fmt.Sprintf("%s (%s)", args[0], r.GetRaftId())), exposedText([]string{args[0]}))
				return err
			})
		}),
	}))
}

func (a *app) confirmRemoval(ctx context.Context, kms *client.Client, node string) error {
	if !isTerminal(a.stdin) {
		return a.confirm(ctx, "")
	}
	status, err := kms.Cluster().Status(ctx, &quorumkmsv1.StatusRequest{})
	if err != nil {
		return err
	}
	var names []string
	for _, m := range status.GetMembers() {
		if m.GetName() == node || m.GetRaftId() == node {
			question := fmt.Sprintf("Node %s at %s will leave cluster %s for good.\nType its name: ",
				clean(m.GetName()), clean(m.GetClientAddress()), status.GetClusterId())
			return a.confirm(ctx, question, m.GetName())
		}
		names = append(names, m.GetName())
	}
	return fmt.Errorf("no member is called %q: the members are %s", node, clean(strings.Join(names, ", ")))
}

func (a *app) clusterTransfer() *cobra.Command {
	return a.mutates(&cobra.Command{
		Use:   "transfer [NODE]",
		Short: "Hand leadership to another node",
		Long:  "Hand leadership to another node: NODE, a name or raft id, or the best follower.",
		Example: `  kmsctl cluster transfer
  kmsctl cluster transfer kms2`,
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Cluster().TransferLeadership(ctx, &quorumkmsv1.TransferLeadershipRequest{
				Node: first(args), DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s leads.", r.GetLeaderId())
		}),
	})
}

func (a *app) clusterVote(name string, voter bool) *cobra.Command {
	c := &cobra.Command{
		Use:   name + " NODE",
		Short: "Give a node a vote",
		Long: `Give a node a vote. NODE is its name or raft id. The command returns when the node
votes: it does so as soon as it has caught up with the others.

The cluster goes on while more than half of its voters are in touch with each
other: of 3 one may fail, of 5 two. An even number tolerates no more failures than
the odd one below it.`,
		Example: "  kmsctl cluster promote kms4",
	}
	done := "%s (%s) votes."
	if !voter {
		c.Short = "Take a node's vote; it goes on serving"
		c.Long = `Take a node's vote. NODE is its name or raft id. It goes on serving cryptography, and
restrictions such as disabling a key go on waiting for it. If it leads, it hands the
leadership over first. The last vote is not taken, nor one without which too few of
the voters left would be in touch with each other.`
		c.Example = "  kmsctl cluster demote kms4"
		done = "%s (%s) has no vote; it goes on serving."
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		r, err := kms.Cluster().SetVoter(ctx, &quorumkmsv1.SetVoterRequest{Node: args[0], Voter: voter, DryRun: a.dryRun, RequestId: a.requestID})
		if err != nil {
			return err
		}
		return a.printLine(r, done, args[0], r.GetRaftId())
	})
	return a.mutates(c)
}
