package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const (
	// completeTime limits what a shell waits for.
	completeTime = 2 * time.Second
	// maxCompletions are offered at most.
	maxCompletions = 1000
)

// completeArgs offers to the shell, for every command, what its next argument may be: the
// tenant's aliases for KEY, members for NODE, files for FILE.
func (a *app) completeArgs(c *cobra.Command) {
	if c.ValidArgsFunction == nil && !c.HasSubCommands() {
		names := strings.Fields(c.Use)[1:]
		c.ValidArgsFunction = func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			name := ""
			if len(args) < len(names) {
				name = strings.Trim(names[len(args)], "[].")
			}
			switch name {
			case "KEY":
				return a.offer(c, aliasNames), cobra.ShellCompDirectiveNoFileComp
			case "NODE":
				return a.offer(c, memberNames), cobra.ShellCompDirectiveNoFileComp
			case "FILE":
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
	}
	for _, child := range c.Commands() {
		a.completeArgs(child)
	}
}

// offer asks the cluster, with the configuration that is in effect; nothing is offered when
// it does not answer.
func (a *app) offer(c *cobra.Command, ask func(context.Context, *client.Client) ([]string, error)) []string {
	settings, err := a.resolve(c.Flags())
	if err != nil {
		return nil
	}
	a.settings = settings
	config, err := a.clientConfig()
	if err != nil {
		return nil
	}
	config.Deadline, config.Retrying = completeTime, nil
	kms, err := client.New(config)
	if err != nil {
		return nil
	}
	defer kms.Close() //nolint:errcheck // nothing is lost
	ctx, cancel := context.WithTimeout(c.Context(), completeTime)
	defer cancel()
	names, err := ask(ctx, kms)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(names, func(s string) bool { return clean(s) != s })
}

func aliasNames(ctx context.Context, kms *client.Client) (names []string, err error) {
	r, err := kms.Keys().ListAliases(ctx, &quorumkmsv1.ListAliasesRequest{Limit: maxCompletions})
	for _, alias := range r.GetAliases() {
		names = append(names, alias.GetName())
	}
	return names, err
}

func memberNames(ctx context.Context, kms *client.Client) (names []string, err error) {
	r, err := kms.Cluster().Status(ctx, &quorumkmsv1.StatusRequest{})
	for _, m := range r.GetMembers() {
		names = append(names, m.GetName())
	}
	return names, err
}

// genMan writes the man pages of all commands: make man.
func (a *app) genMan() *cobra.Command {
	return &cobra.Command{
		Use: "gen-man DIR", Short: "Write the man pages", Hidden: true,
		Example: "  kmsctl gen-man man/man1",
		RunE: a.local(func(c *cobra.Command, args []string) error {
			c.Root().DisableAutoGenTag = true
			return doc.GenManTree(c.Root(), &doc.GenManHeader{Section: "1", Source: "QuorumKMS", Manual: "QuorumKMS"}, args[0])
		}),
	}
}
