package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// recoverTime is how long a recovery may take beside its wait for leases.
const recoverTime = time.Minute

func (a *app) clusterRecover() *cobra.Command {
	var node, confirmed string
	var dead []string
	c := &cobra.Command{
		Use:   "recover",
		Short: "Go on with one node after a majority was lost for good",
		Long: `Go on with one node after a majority was lost for good.

Every node that --addresses names is asked what it has. The most advanced survivor
becomes the whole cluster; no other one is accepted, and none while a node knows a
leader or a majority answers. All other members are out, survivors too: they come
back as new nodes, with an empty data directory (kmsctl cluster invite). Their HSM
tokens keep the domain key, so no key has to be carried over again.

What only the dead nodes held is lost. They must be fenced first: powered off, and
kept so until their data directories are emptied. If a majority of them came back,
they would be a second cluster; the recovered one then tells them, and you, as soon
as it reaches them.

The command shows what it found and asks to type the cluster's id. In scripts,
--confirm gives the id and --expect-nodes-dead names every member that must not
answer; if others answer, or do not, nothing is done.`,
		Example: `  kmsctl cluster recover --addresses kms1.example.org:7300,kms2.example.org:7300 --dry-run
  kmsctl cluster recover --confirm 0c2e4a52-6f0e-4a7b-9a55-0e6f0c9d2f11 --expect-nodes-dead kms2,kms3`,
		RunE: a.remote(func(ctx context.Context, _ *client.Client, _ []string) error {
			if confirmed != "" && len(dead) == 0 {
				return usagef("--confirm wants --expect-nodes-dead: the names of all members that are dead")
			}
			plans, err := a.recoveryPlans(ctx)
			if err != nil {
				return err
			}
			address, plan, err := choosePlan(plans, node)
			if err != nil {
				return err
			}
			if err := writePlan(a.stderr, plan); err != nil {
				return err
			}
			if !a.dryRun {
				if err := a.confirmRecovery(ctx, plan, confirmed, dead); err != nil {
					return err
				}
			}
			return a.recoverFrom(ctx, address, plan)
		}),
	}
	c.Flags().StringVar(&node, "node", "", "recover from this node, where several are equally advanced")
	c.Flags().StringVar(&confirmed, "confirm", "", "the cluster's id: do not ask for it")
	c.Flags().StringSliceVar(&dead, "expect-nodes-dead", nil, "names of the members that must not answer, separated by commas")
	return a.mutates(c)
}

// foundPlan is what one address answered.
type foundPlan struct {
	address string
	plan    *quorumkmsv1.RecoveryPlanResponse
	err     error
}

// recoveryPlans asks every address that is configured, and then every member that
// answers other nodes, what a recovery from it would mean.
func (a *app) recoveryPlans(ctx context.Context) ([]foundPlan, error) {
	config, err := a.clientConfig()
	if err != nil {
		return nil, err
	}
	var all []foundPlan
	for next := config.Addresses; len(next) > 0; {
		if len(all)+len(next) > maxAsked {
			return nil, fmt.Errorf("more than %d addresses to ask", maxAsked)
		}
		asked := make([]foundPlan, len(next))
		var asking sync.WaitGroup
		for i, address := range next {
			asking.Go(func() {
				asked[i] = foundPlan{address: address}
				asked[i].plan, asked[i].err = a.recoveryPlan(ctx, address)
			})
		}
		asking.Wait()
		all, next = append(all, asked...), nil
		for _, f := range asked {
			for _, m := range f.plan.GetMembers() {
				known := slices.ContainsFunc(all, func(f foundPlan) bool {
					return f.address == m.GetClientAddress() || f.plan.GetRaftId() == m.GetRaftId()
				})
				if m.GetAnswers() && !known && !slices.Contains(next, m.GetClientAddress()) {
					next = append(next, m.GetClientAddress())
				}
			}
		}
	}
	return all, nil
}

func (a *app) recoveryPlan(ctx context.Context, address string) (r *quorumkmsv1.RecoveryPlanResponse, err error) {
	kms, err := a.only(address, 0)
	if err != nil {
		return nil, err
	}
	defer kms.Close() //nolint:errcheck // nothing is lost
	return kms.Cluster().RecoveryPlan(ctx, &quorumkmsv1.RecoveryPlanRequest{})
}

// only is a client of one node, whose attempts may take the time of the whole call
// and more.
func (a *app) only(address string, more time.Duration) (*client.Client, error) {
	config, err := a.clientConfig()
	if err != nil {
		return nil, err
	}
	config.Addresses, config.Fixed, config.Retrying = []string{address}, true, nil
	config.Deadline += more
	config.Timeout, config.MutationTimeout = config.Deadline, config.Deadline
	return client.New(config)
}

// choosePlan picks the node to recover from: one whose own plan does not refuse.
func choosePlan(all []foundPlan, node string) (address string, plan *quorumkmsv1.RecoveryPlanResponse, err error) {
	var refused []error
	for _, f := range all {
		if f.err != nil {
			refused = append(refused, fmt.Errorf("%s: %w", f.address, f.err))
			continue
		}
		if plan != nil && f.plan.GetClusterId() != plan.GetClusterId() {
			return "", nil, fmt.Errorf("%s belongs to cluster %s, %s to %s", f.address, f.plan.GetClusterId(), address, plan.GetClusterId())
		}
		if f.plan.GetRefusal() != "" {
			refused = append(refused, fmt.Errorf("%s (%s): %s", f.plan.GetNodeName(), f.address, f.plan.GetRefusal()))
		} else if plan == nil && (node == "" || node == f.plan.GetNodeName() || node == f.plan.GetRaftId()) {
			address, plan = f.address, f.plan
		}
	}
	if plan == nil && node != "" {
		refused = append(refused, fmt.Errorf("--node %s is not one to recover from", node))
	}
	if plan == nil {
		return "", nil, errors.Join(refused...)
	}
	return address, plan, nil
}

func writePlan(w io.Writer, p *quorumkmsv1.RecoveryPlanResponse) error {
	rows := [][]string{{"NODE", "ANSWERS", "VOTES", "LAST ENTRY", "TERM", "APPLIED", "AFTERWARDS"}}
	for _, m := range p.GetMembers() {
		entry, term, applied := "", "", ""
		if m.GetAnswers() {
			entry, term, applied = fmt.Sprint(m.GetLastLogIndex()), fmt.Sprint(m.GetLastLogTerm()), fmt.Sprint(m.GetAppliedIndex())
		}
		then := "OUT; dead for good"
		switch {
		case m.GetRaftId() == p.GetRaftId():
			then = "the only member"
		case m.GetAnswers():
			then = "OUT; joins anew, with an empty data directory"
		}
		rows = append(rows, []string{m.GetName(), yesNo(m.GetAnswers()), yesNo(m.GetVotes()), entry, term, applied, then})
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, `
Cluster %s will go on with node %s alone: %d keys, recovery epoch %d.
  - What only the dead nodes held is lost, also if it was acknowledged.
  - %s
  - The dead nodes must be powered off NOW and stay so until their data
    directories are emptied: together they could be a second cluster.
  - It takes %s, until nothing that they may still hold can be valid.

`, p.GetClusterId(), clean(p.GetNodeName()), p.GetKeyCount(), p.GetRecoveryEpoch()+1, clean(missedText(p)), p.GetWait().AsDuration())
	return err
}

// missedText says what becomes of restrictions that only the dead nodes held.
func missedText(p *quorumkmsv1.RecoveryPlanResponse) string {
	text := fmt.Sprintf("%d restrictions that this node lacks are in the journals in %s, up to %s: they are made again.",
		p.GetMissedRestrictions(), p.GetJournalDirectory(), orDash(timeText(p.GetJournalTime())))
	switch {
	case p.GetJournalDirectory() == "":
		return "That holds for what was revoked, too: this node has no journal (backup.dir)."
	case p.GetJournalProblem() != "":
		return text + " NOT ALL could be read: " + p.GetJournalProblem()
	}
	return text
}

// deadNodes are the members of a plan that do not answer.
func deadNodes(p *quorumkmsv1.RecoveryPlanResponse) (names []string) {
	for _, m := range p.GetMembers() {
		if !m.GetAnswers() {
			names = append(names, m.GetName())
		}
	}
	return names
}

func (a *app) confirmRecovery(ctx context.Context, p *quorumkmsv1.RecoveryPlanResponse, confirmed string, expected []string) error {
	found := deadNodes(p)
	if expected != nil {
		slices.Sort(expected)
		if !slices.Equal(slices.Compact(expected), slices.Sorted(slices.Values(found))) {
			return fmt.Errorf("--expect-nodes-dead says %s; the members that do not answer are %s", strings.Join(expected, ", "), clean(strings.Join(found, ", ")))
		}
	}
	switch {
	case confirmed == p.GetClusterId():
		return nil
	case confirmed != "":
		return fmt.Errorf("--confirm %s is not the cluster's id (%s); nothing was changed", confirmed, p.GetClusterId())
	case !isTerminal(a.stdin):
		return usagef("this asks for confirmation, and standard input is no terminal: add --confirm CLUSTER-ID and --expect-nodes-dead NAMES if you are sure")
	}
	return a.confirm(ctx, fmt.Sprintf("%s: are they powered off, for good? Type the cluster's id: ", clean(strings.Join(found, ", "))), p.GetClusterId())
}

func (a *app) recoverFrom(ctx context.Context, address string, p *quorumkmsv1.RecoveryPlanResponse) (err error) {
	kms, err := a.only(address, p.GetWait().AsDuration()+recoverTime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kms.Close()) }()
	r, err := kms.Cluster().Recover(ctx, &quorumkmsv1.RecoverRequest{
		ClusterId: p.GetClusterId(), RecoveryEpoch: p.GetRecoveryEpoch(), Node: p.GetRaftId(), DeadNodes: deadNodes(p),
		MissedRestrictions: p.GetMissedRestrictions(), JournalProblem: p.GetJournalProblem(),
		DryRun: a.dryRun, RequestId: a.requestID,
	})
	if errors.Is(err, client.ErrOutcomeUnknown) {
		return fmt.Errorf("%w\nThe recovery may be under way; it goes on when the node is started again. It is done when `kmsctl cluster status --addresses %s` shows recovery epoch %d",
			err, address, p.GetRecoveryEpoch()+1)
	}
	if err != nil {
		return err
	}
	return a.printLine(r, "Cluster %s goes on with %s alone, in recovery epoch %d. Invite the other nodes: kmsctl cluster invite NAME.",
		p.GetClusterId(), p.GetNodeName(), r.GetRecoveryEpoch())
}
