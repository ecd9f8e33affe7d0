package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// domainPoll is between two looks at the generations while one becomes active.
const domainPoll = 2 * time.Second

func (a *app) domainCommand() *cobra.Command {
	return group("domain", "Look at the domain key's generations, and make new ones",
		a.domainStatus(), a.domainRotate(), a.domainRewrap(), a.domainRetire())
}

func (a *app) domainStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the generations of the domain key, and who holds them",
		Long: `Show the generations of the domain key, how many key versions each wraps, which nodes
hold them, and what nodes wait for that lack one.`,
		Example: "  kmsctl domain status",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			r, err := kms.Cluster().DescribeDomain(ctx, &quorumkmsv1.DescribeDomainRequest{})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) error { return writeDomain(w, r) })
		}),
	}
}

func (a *app) domainRotate() *cobra.Command {
	var noRecovery, wait bool
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Make a new generation of the domain key",
		Long: `Make a new generation of the domain key, in the HSM partition of the node that answers.
New and rotated keys are wrapped under it from its activation; what earlier ones have
wrapped goes on opening. It becomes active by itself when every node has it.

Each of the other nodes asks for it with a transfer key of its own, and shows that key's
fingerprint on its console. The Security Officer of a node that has the generation
compares it and trusts it, on that host: kmsd hsm trust. kmsctl domain status shows who
waits for what; --wait shows it until the generation is active.

It is also wrapped for the recovery recipients, by each node whose Security Officer has
trusted their keys (kmsd hsm trust --recovery), and does not become active before as many
hold it as must. --no-recovery accepts that none does: with the last member's HSM
partition, every key under it is lost.`,
		Example: "  kmsctl domain rotate --wait",
	}
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
		var before *quorumkmsv1.DescribeDomainResponse
		if c.Flags().Changed("request-id") && !a.dryRun { // otherwise nobody can have made this request before
			var err error
			if before, err = kms.Cluster().DescribeDomain(ctx, &quorumkmsv1.DescribeDomainRequest{}); err != nil {
				return err
			}
		}
		r, err := kms.Cluster().RotateDomain(ctx, &quorumkmsv1.RotateDomainRequest{NoRecovery: noRecovery, DryRun: a.dryRun, RequestId: a.requestID})
		if err != nil {
			return err
		}
		if noRecovery {
			if _, err := fmt.Fprintf(a.stderr, "WARNING: GENERATION %d OF THE DOMAIN KEY HAS NO RECOVERY COPY: IF EVERY NODE'S HSM TOKEN IS LOST, SO IS ALL DATA.\n", r.GetGeneration()); err != nil {
				return err
			}
		}
		if wait {
			if err := a.awaitGeneration(ctx, kms, r.GetGeneration()); err != nil {
				return err
			}
			return a.printLine(r, "Generation %d is active.", r.GetGeneration())
		}
		if g := generationOf(before, r.GetGeneration()); g != nil {
			return a.printLine(r, "Nothing is done: an earlier call with this request id has proposed generation %d already, which is %s: kmsctl domain status.", g.GetNumber(), enumName(g.GetState(), "GENERATION_STATE_"))
		}
		return a.printLine(r, "Generation %d is proposed; it becomes active when every node has it: kmsctl domain status.", r.GetGeneration())
	})
	c.Flags().BoolVar(&noRecovery, "no-recovery", false, "accept that the generation has no recovery copy")
	c.Flags().BoolVar(&wait, "wait", false, "show what nodes wait for until the generation is active")
	return a.mutates(c)
}

// generationOf is a generation by its number; nil: there is none.
func generationOf(r *quorumkmsv1.DescribeDomainResponse, number uint32) *quorumkmsv1.DomainGeneration {
	for _, g := range r.GetGenerations() {
		if g.GetNumber() == number {
			return g
		}
	}
	return nil
}

// awaitGeneration shows what a generation waits for, whenever that changes, until it is
// active.
func (a *app) awaitGeneration(ctx context.Context, kms *client.Client, number uint32) error {
	shown := ""
	for {
		r, err := kms.Cluster().DescribeDomain(ctx, &quorumkmsv1.DescribeDomainRequest{})
		if err != nil {
			return err
		}
		g := generationOf(r, number)
		if g.GetState() != quorumkmsv1.GenerationState_GENERATION_STATE_PROPOSED {
			return gaveUp(g, number)
		}
		if now := waitText(r, g); now != shown {
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

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// gaveUp is nil if a generation is, or was, active.
func gaveUp(g *quorumkmsv1.DomainGeneration, number uint32) error {
	if g == nil || g.GetState() == quorumkmsv1.GenerationState_GENERATION_STATE_RETIRED {
		return fmt.Errorf("generation %d was given up", number)
	}
	return nil
}

func (a *app) domainRetire() *cobra.Command {
	return a.yesFlag(a.mutates(&cobra.Command{
		Use:   "retire GENERATION",
		Short: "Give a proposed generation up, or end one that wraps nothing any more",
		Long: `Give a proposed generation up, or end one under which no key version is wrapped any
more. Every node destroys it in its HSM partition, for good: a backup with key versions
under it can never be used again.`,
		Example: "  kmsctl domain retire 1",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			number, err := parseGeneration(args[0])
			if err != nil {
				return err
			}
			if !a.yes && !a.dryRun {
				question := fmt.Sprintf("Generation %d of the domain key will be destroyed in every HSM partition; no backup that needs it can be used again.\nType its number: ", number)
				if err := a.confirm(ctx, question, strconv.FormatUint(uint64(number), 10)); err != nil {
					return err
				}
			}
			r, err := kms.Cluster().RetireGeneration(ctx, &quorumkmsv1.RetireGenerationRequest{Generation: number, DryRun: a.dryRun, RequestId: a.requestID})
			if err != nil {
				return err
			}
			return a.printLine(r, "Generation %d is retired: every node destroys it.", number)
		}),
	}))
}

func writeDomain(w io.Writer, r *quorumkmsv1.DescribeDomainResponse) error {
	rows := [][]string{{"GENERATION", "STATE", "CREATED", "KEY VERSIONS", "RECOVERY COPIES"}}
	for _, g := range r.GetGenerations() {
		rows = append(rows, []string{
			strconv.FormatUint(uint64(g.GetNumber()), 10), enumName(g.GetState(), "GENERATION_STATE_"), timeText(g.GetCreated()),
			strconv.FormatUint(g.GetKeyVersions(), 10), copiesText(g),
		})
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	rows = [][]string{{"NODE", "HOLDS", "WAITS FOR"}}
	for _, n := range r.GetNodes() {
		rows = append(rows, []string{n.GetName(), joinNumbers(n.GetHolds()), nodeWaits(n)})
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	var notes []string
	for _, g := range r.GetGenerations() {
		if g.GetState() == quorumkmsv1.GenerationState_GENERATION_STATE_PROPOSED {
			notes = append(notes, waitText(r, g))
		}
	}
	if text := rewrapText(r); text != "" {
		notes = append(notes, text)
	}
	for _, g := range r.GetGenerations() {
		if names := g.GetRecoveryLacking(); len(names) > 0 {
			notes = append(notes, clean(fmt.Sprintf("Generation %d is not wrapped for the recovery recipients %s: a Security Officer of a node that holds it must trust their keys: kmsd hsm trust --recovery.", g.GetNumber(), strings.Join(names, ", "))))
		}
	}
	if names := r.GetExposedTo(); len(names) > 0 {
		notes = append(notes, "ADVICE: "+exposedText(names))
	}
	for _, note := range notes {
		if _, err := fmt.Fprintf(w, "\n%s\n", note); err != nil {
			return err
		}
	}
	return nil
}

func copiesText(g *quorumkmsv1.DomainGeneration) string {
	switch {
	case g.GetRecoveryRecipients() > 0:
		return strconv.FormatUint(uint64(g.GetRecoveryRecipients()), 10)
	case g.GetState() == quorumkmsv1.GenerationState_GENERATION_STATE_RETIRED:
		return "-"
	}
	return "NONE"
}

func joinNumbers(all []uint32) string {
	out := make([]string, len(all))
	for i, n := range all {
		out[i] = strconv.FormatUint(uint64(n), 10)
	}
	return strings.Join(out, " ")
}

// nodeWaits is what one node waits for, for a table.
func nodeWaits(n *quorumkmsv1.DomainNode) string {
	switch {
	case n.GetProblem() != "":
		return n.GetProblem()
	case n.GetWaitsForGeneration() != 0 && n.GetFingerprint() == "":
		return fmt.Sprintf("generation %d: the vendor's cloning", n.GetWaitsForGeneration())
	case n.GetWaitsForGeneration() != 0:
		return fmt.Sprintf("generation %d: a Security Officer's trust", n.GetWaitsForGeneration())
	}
	return "-"
}

// waitText is what a proposed generation waits for, and what is to be done about it.
func waitText(r *quorumkmsv1.DescribeDomainResponse, g *quorumkmsv1.DomainGeneration) string {
	lines := []string{clean(fmt.Sprintf("Generation %d is proposed. %s", g.GetNumber(), g.GetWaitsFor()))}
	for _, n := range r.GetNodes() {
		switch {
		case n.GetWaitsForGeneration() != 0 && n.GetFingerprint() == "":
			lines = append(lines, clean(fmt.Sprintf("%s: clone generation %d into its HSM partition from that of %s, with the vendor's tools; it goes on by itself.",
				n.GetName(), n.GetWaitsForGeneration(), strings.Join(n.GetDonors(), " or "))))
		case n.GetWaitsForGeneration() != 0:
			lines = append(lines,
				clean(fmt.Sprintf("%s: compare with the fingerprint on its own console; then, on the host of %s:", n.GetName(), strings.Join(n.GetDonors(), " or "))),
				clean("  kmsd hsm trust --config <configuration> --so-pin-file <file> "+n.GetFingerprint()))
		case n.GetProblem() != "":
			lines = append(lines, clean(n.GetName()+": "+n.GetProblem()))
		}
	}
	return strings.Join(lines, "\n")
}

// exposedText is the advice to make a new generation.
func exposedText(names []string) string {
	return clean(fmt.Sprintf("the HSM partitions of removed nodes (%s) may hold the newest generation of the domain key: destroy them, and make another generation: kmsctl domain rotate", strings.Join(names, ", ")))
}
