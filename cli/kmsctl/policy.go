package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const maxPolicy = 32 << 10 // bytes

func (a *app) policyCommand() *cobra.Command {
	g := group("policy", "Say who may use and administer keys",
		a.policyGet(), a.policyPut(), a.policyDelete(), a.policyHistory(), a.policyValidate(), a.policyExplain())
	g.Long = `Say who may use and administer keys, in Cedar: a policy for the tenant, and one for
each key. They decide together: what is permitted nowhere is denied, and what is
forbidden anywhere is denied. A tenant without a policy has the default one.

A tenant's policy takes the place of the default one, which kmsctl policy get prints as
long as there is no other: begin with that.

KEY is a key's id, its ARN, or an alias such as alias/volumes. Without it, a command
is about the tenant's policy.

Actions, each KMS::Action::"NAME", or KMS::Action::"GROUP" for all of a group:
` + policyActions() + `
Those marked * are about the tenant, + about a key or the tenant, the others about a key.`
	return g
}

// actionGroup is a group of the actions that policies know.
type actionGroup struct {
	name    string
	actions []string // as policyActions shows them
}

var actionGroups = []actionGroup{
	{"use", []string{
		"Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair",
		"GenerateDataKeyPairWithoutPlaintext", "GenerateRandom*", "Sign", "Verify", "GenerateMac", "VerifyMac", "GetPublicKey", "BindResource",
		"ReleaseResource",
	}},
	{"administer", []string{
		"CreateKey*", "EnableKey", "DisableKey", "SetKeyDecryptOnly", "UpdateKeyDescription", "ScheduleKeyDeletion", "CancelKeyDeletion",
		"SetDeletionProtection", "SetRequiredContext", "TagResource", "UntagResource", "CreateAlias+", "UpdateAlias", "DeleteAlias",
		"EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand", "GetParametersForImport", "ImportKeyMaterial",
		"DeleteImportedKeyMaterial", "EnableKeyVersion", "DisableKeyVersion",
		"ScheduleKeyVersionDestruction", "CancelKeyVersionDestruction", "PutKeyPolicy", "DeleteKeyPolicy", "PutTenantPolicy*",
		"DeleteTenantPolicy*", "CreateGrant", "RevokeGrant", "RetireGrant", "ForceReleaseResource", "DisablePrincipal*", "EnablePrincipal*",
		"FreezeTenant*", "ThawTenant*",
	}},
	{"read", []string{
		"DescribeKey", "ListKeys*", "ListAliases+", "ListResourceTags", "ListKeyRotations", "GetKeyRotationStatus", "ListKeyVersions",
		"ListGrants+", "ListRetirableGrants*", "GetKeyPolicy", "GetTenantPolicy*", "ListPolicyRevisions+", "ExplainPolicy+",
		"ValidatePolicy*", "ListResources+", "ListPrincipals*", "DescribeTenant*",
	}},
}

// policyActions are the actions by group, as help shows them.
func policyActions() string {
	var b strings.Builder
	for _, g := range actionGroups {
		b.WriteString(wrapped(fmt.Sprintf(" %-10s", g.name), g.actions))
	}
	return b.String()
}

// actionNames are all actions, for the shell.
func actionNames() (names []string) {
	for _, g := range actionGroups {
		for _, action := range g.actions {
			names = append(names, strings.TrimRight(action, "*+"))
		}
	}
	return names
}

// policyOf names a policy, at the beginning of a sentence.
func policyOf(args []string) string {
	if len(args) == 0 {
		return "The tenant's policy"
	}
	return "The policy of " + args[0]
}

// policyRevision adds --if-revision: for policies, 0 is a revision like any other.
func policyRevision(c *cobra.Command) func() *uint32 {
	n := c.Flags().Uint32("if-revision", 0, "only if the present policy has this revision (0: there is none)")
	return func() *uint32 {
		if c.Flags().Changed("if-revision") {
			return n
		}
		return nil
	}
}

func (a *app) policyGet() *cobra.Command {
	var revision uint32
	c := &cobra.Command{
		Use:   "get [KEY]",
		Short: "Print a policy",
		Long: `Print a policy: its text alone, as kmsctl policy put takes it. --output json gives
who made it, and when, too.`,
		Example: `  kmsctl policy get >tenant.cedar
  kmsctl policy get alias/volumes --revision 3`,
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Policies().GetPolicy(ctx, &quorumkmsv1.GetPolicyRequest{KeyId: first(args), Revision: revision})
			if err != nil {
				return err
			}
			text := r.GetPolicy().GetText()
			switch {
			case a.output == formatJSON:
				return a.print(r, nil)
			case text == "" && revision != 0:
				return fmt.Errorf("revision %d has no text: the policy was deleted", revision)
			case text == "":
				return errors.New("there is no policy: kmsctl policy put makes one")
			}
			_, err = io.WriteString(a.stdout, a.shown(text))
			return err
		}),
	}
	c.Flags().Uint32Var(&revision, "revision", 0, "an earlier revision (0: the present one)")
	return c
}

// shown is a text as it is, or, on a terminal, with nothing that could steer it.
func (a *app) shown(text string) string {
	if !isTerminal(a.stdout) {
		return text
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		lines[i] = clean(strings.ReplaceAll(strings.TrimSuffix(line, "\r"), "\t", "    "))
	}
	return strings.Join(lines, "\n") + "\n"
}

// policyFile is the flag --file of commands that take a policy's text.
type policyFile struct{ path string }

func (f *policyFile) flag(c *cobra.Command) {
	c.Flags().StringVar(&f.path, "file", "", "file with the policy's text, or - for standard input")
}

// name is how problems name it.
func (f *policyFile) name() string {
	if f.path == stdio {
		return "stdin"
	}
	return f.path
}

func (f *policyFile) read(ctx context.Context, a *app) (string, error) {
	if f.path == "" {
		return "", usagef("--file is missing: the policy's text, or - for standard input")
	}
	text, err := a.readSmall(ctx, f.path, maxPolicy, ", which a policy may not be")
	switch {
	case err != nil:
		return "", err
	case len(text) == 0:
		return "", usagef("%s is empty: want a policy; kmsctl policy delete takes one away", f.name())
	case !utf8.Valid(text):
		return "", usagef("%s is not valid UTF-8", f.name())
	}
	return string(text), nil
}

// write writes problems as compilers do.
func (f *policyFile) write(w io.Writer, problems []*quorumkmsv1.PolicyProblem) error {
	for _, p := range problems {
		if _, err := fmt.Fprintf(w, "%s:%d:%d: %s\n", clean(f.name()), p.GetLine(), p.GetColumn(), clean(p.GetText())); err != nil {
			return err
		}
	}
	return nil
}

func (f *policyFile) problems(n int) error {
	if n == 1 {
		return fmt.Errorf("%s has a problem", f.name())
	}
	return fmt.Errorf("%s has %d problems", f.name(), n)
}

func (a *app) policyPut() *cobra.Command {
	var f policyFile
	c := &cobra.Command{
		Use:   "put [KEY]",
		Short: "Replace a policy",
		Long: `Replace a policy: on every node when this returns.

A text with problems is refused, and each is shown as FILE:LINE:COLUMN. So is what
would leave nobody who may change the policy again.`,
		Example: `  kmsctl policy put --file tenant.cedar --dry-run
  kmsctl policy get alias/volumes | sed s/blue/green/ | kmsctl policy put alias/volumes --file -`,
	}
	expected := policyRevision(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		text, err := f.read(ctx, a)
		if err != nil {
			return err
		}
		r, err := kms.Policies().PutPolicy(ctx, &quorumkmsv1.PutPolicyRequest{
			KeyId: first(args), Text: text, ExpectedPolicyRevision: expected(), DryRun: a.dryRun, RequestId: a.requestID,
		})
		if errors.Is(err, client.ErrPolicyInvalid) {
			return a.explainProblems(ctx, kms, &f, text, err)
		}
		if err != nil {
			return err
		}
		return a.printLine(r, "%s is at revision %d.", policyOf(args), r.GetRevision())
	})
	f.flag(c)
	return a.mutates(c)
}

// explainProblems shows where a text that was refused is wrong, if the cluster tells.
func (a *app) explainProblems(ctx context.Context, kms *client.Client, f *policyFile, text string, refusal error) error {
	r, err := kms.Policies().ValidatePolicy(ctx, &quorumkmsv1.ValidatePolicyRequest{Text: text})
	if err != nil || len(r.GetProblems()) == 0 {
		return refusal
	}
	if err := f.write(a.stderr, r.GetProblems()); err != nil {
		return err
	}
	return fmt.Errorf("%w; nothing was changed", f.problems(len(r.GetProblems())))
}

func (a *app) policyDelete() *cobra.Command {
	c := &cobra.Command{
		Use:   "delete [KEY]",
		Short: "Take a policy away",
		Long: `Take a policy away: the tenant gets the default policy again, a key has none. Its
text stays in kmsctl policy history.`,
		Example: "  kmsctl policy delete alias/volumes",
	}
	expected := policyRevision(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		r, err := kms.Policies().DeletePolicy(ctx, &quorumkmsv1.DeletePolicyRequest{
			KeyId: first(args), ExpectedPolicyRevision: expected(), DryRun: a.dryRun, RequestId: a.requestID,
		})
		if err != nil {
			return err
		}
		if len(args) == 0 {
			return a.printLine(r, "The tenant's policy is deleted: the default one decides.")
		}
		return a.printLine(r, "The policy of %s is deleted: the tenant's decides.", args[0])
	})
	return a.mutates(c)
}

func (a *app) policyHistory() *cobra.Command {
	return &cobra.Command{
		Use:     "history [KEY]",
		Short:   "List the revisions of a policy, the newest first",
		Long:    "List the revisions of a policy, the newest first: at most 20. kmsctl policy get --revision prints one.",
		Example: "  kmsctl policy history alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Policies().ListPolicyRevisions(ctx, &quorumkmsv1.ListPolicyRevisionsRequest{KeyId: first(args)})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) error {
				rows := [][]string{{"REVISION", "CREATED", "STATE", "BYTES", "BY"}}
				for _, p := range r.GetPolicies() {
					rows = append(rows, []string{
						number(p.GetRevision()), timeText(p.GetCreationDate()), policyState(p), fmt.Sprint(len(p.GetText())), p.GetCreatedBy(),
					})
				}
				return writeTable(w, rows)
			})
		}),
	}
}

func policyState(p *quorumkmsv1.Policy) string {
	var states []string
	if p.GetPresent() {
		states = append(states, "present")
	}
	if p.GetText() == "" {
		states = append(states, "deleted")
	}
	return strings.Join(states, ", ")
}

func (a *app) policyValidate() *cobra.Command {
	var f policyFile
	c := &cobra.Command{
		Use:   "validate",
		Short: "Check the text of a policy; nothing is changed",
		Long: `Check the text of a policy; nothing is changed. Each problem is shown as
FILE:LINE:COLUMN, and the exit code is 1 if there is any.`,
		Example: "  kmsctl policy validate --file tenant.cedar",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			text, err := f.read(ctx, a)
			if err != nil {
				return err
			}
			r, err := kms.Policies().ValidatePolicy(ctx, &quorumkmsv1.ValidatePolicyRequest{Text: text})
			if err != nil {
				return err
			}
			if len(r.GetProblems()) == 0 {
				return a.printLine(r, "%s is a good policy.", f.name())
			}
			err = a.print(r, func(w io.Writer) error { return f.write(w, r.GetProblems()) })
			return errors.Join(err, f.problems(len(r.GetProblems())))
		}),
	}
	f.flag(c)
	return c
}

func (a *app) policyExplain() *cobra.Command {
	var who principal
	var operation string
	c := &cobra.Command{
		Use:   "explain [KEY]",
		Short: "Tell how a call would be decided, and by what",
		Long: `Tell how a call would be decided, and by what: a statement, a grant, a role, a state.
Nothing is called. Without KEY, it is about the tenant, for calls such as CreateKey.
The exit code is 0 for both answers.`,
		Example: `  kmsctl policy explain alias/volumes --principal spiffe://kms.example.org/service/volumes --operation Decrypt --context tenant=blue --context resource=v-17
  kmsctl policy explain --principal spiffe://kms.example.org/tenant/blue/admin/bob --operation CreateKey`,
	}
	ec := contextFlag(c)
	c.RunE = a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
		switch {
		case who == "":
			return usagef("--principal is missing: who would call, %s", spiffeForm)
		case operation == "":
			return usagef("--operation is missing: what would be called, such as Decrypt or CreateKey")
		}
		r, err := kms.Policies().ExplainPolicy(ctx, &quorumkmsv1.ExplainPolicyRequest{
			KeyId: first(args), Principal: string(who), Operation: operation, EncryptionContext: *ec,
		})
		if err != nil {
			return err
		}
		return a.print(r, func(w io.Writer) error { return writeDecision(w, r) })
	})
	c.Flags().Var(&who, "principal", "who would call, "+spiffeForm)
	c.Flags().StringVar(&operation, "operation", "", "what would be called, such as Decrypt: see kmsctl policy --help")
	complete(c, "operation", actionNames()...)
	return c
}

func writeDecision(w io.Writer, r *quorumkmsv1.ExplainPolicyResponse) error {
	var b strings.Builder
	b.WriteString("ALLOWED\n")
	if !r.GetAllowed() {
		b.Reset()
		b.WriteString(clean("DENIED: "+orDash(r.GetReason())) + "\n")
	}
	b.WriteString("Decided by " + clean(orDash(r.GetDecidedBy())) + "\n")
	for i, step := range r.GetSteps() {
		fmt.Fprintf(&b, "%3d. %s\n", i+1, clean(step))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
