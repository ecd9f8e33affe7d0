package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
)

const longHelp = `kmsctl administers and uses a QuorumKMS cluster.

It needs the addresses of nodes, a certificate, its key, and the cluster's CA:
from flags, the environment, or a configuration file; "kmsctl config view" shows
what is in effect and where it comes from.

Exit codes:
  0  success
  1  the cluster refused the call, or it failed
  2  the command line or the configuration is wrong
  3  no node could serve, or the outcome of a change is unknown: try again
  4  an audit trail, or an export of one, is not what was signed`

const maxRequestID = 128 // bytes

// app is one run of the command line.
type app struct {
	getenv func(string) string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	settings  []setting // as resolved for this run
	output    string    // formatText or formatJSON
	dryRun    bool
	requestID string
	revision  uint64
	yes       bool
	repeat    string // what else a repetition needs to be the same request
	started   bool   // past the command line and the configuration

	notices sync.Mutex
	noticed map[string]bool // what was already said about failed attempts
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{
		getenv: getenv, stdin: stdin, stdout: stdout, stderr: stderr,
		requestID: uuid.NewString(), noticed: map[string]bool{},
	}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if errors.Is(err, client.ErrDryRun) {
		err = a.printDryRun()
	}
	if err == nil {
		return exitOK
	}
	if _, shown := errors.AsType[*verdictError](err); shown {
		return exitCode(err)
	}
	if !a.started {
		err = &usageError{err}
	}
	a.report(cmd, err)
	return exitCode(err)
}

func (a *app) root() *cobra.Command {
	root := group("kmsctl", "Administer and use a QuorumKMS cluster",
		a.clusterCommand(), a.domainCommand(), a.recoveryCommand(), a.hsmCommand(), a.keyCommand(), a.grantCommand(), a.policyCommand(), a.tenantCommand(), a.principalCommand(),
		a.encryptCommand(), a.decryptCommand(), a.reencryptCommand(), a.dataKeyCommand(), a.dataKeyPairCommand(), a.randomCommand(),
		a.signCommand(), a.verifyCommand(), a.publicKeyCommand(), a.macCommand(), a.verifyMacCommand(),
		a.objectCommand(), a.backupCommand(), a.auditCommand(), a.doctorCommand(), a.configCommand(), a.whoamiCommand(), a.versionCommand(), a.genMan())
	root.Long = longHelp
	root.SilenceErrors, root.SilenceUsage = true, true
	flags := root.PersistentFlags()
	for _, s := range knownSettings() {
		flags.String(s.flag(), "", fmt.Sprintf("%s (%s)", s.usage, s.env()))
	}
	flags.String(configFlag, "", fmt.Sprintf("configuration file (%s; default %s)", configEnv, "~/"+configPath))
	flags.StringVar(&a.output, "output", formatText, "what to print: text or json")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if a.output != formatText && a.output != formatJSON {
			return fmt.Errorf("--output %q: want %s or %s", a.output, formatText, formatJSON)
		}
		settings, err := a.resolve(cmd.Flags())
		a.settings = settings
		return err
	}
	complete(root, "output", formatText, formatJSON)
	checkAllArgs(root)
	a.completeArgs(root)
	return root
}

// complete offers fixed values for a flag to the shell.
func complete(c *cobra.Command, flag string, values ...string) {
	err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag is not there: a mistake in this program
	}
}

// group is a command that only has subcommands.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, SuggestionsMinimumDistance: 2}
	g.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			c.SetOut(c.ErrOrStderr())
			return errors.Join(c.Help(), errors.New("a command is missing"))
		}
		err := fmt.Errorf("unknown command %q", args[0])
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			err = fmt.Errorf("%w: did you mean %q?", err, strings.Join(near, `" or "`))
		}
		return err
	}
	g.AddCommand(children...)
	return g
}

// mayBeEmpty is the only argument for which "" makes sense.
const mayBeEmpty = "DESCRIPTION"

// dots stand behind an argument that may be repeated.
const dots = "..."

// checkAllArgs makes every command that does not check its arguments check them
// against its usage line: "KEY" is required, "[KEY]" optional, "KEY..." one or more,
// "[KEY...]" any number.
func checkAllArgs(c *cobra.Command) {
	if c.Args == nil {
		c.Args = checkArgs
	}
	for _, child := range c.Commands() {
		checkAllArgs(child)
	}
}

func checkArgs(c *cobra.Command, args []string) error {
	names := strings.Fields(c.Use)[1:]
	for i, name := range names {
		if i >= len(args) && !strings.HasPrefix(name, "[") {
			return fmt.Errorf("%s is missing: %s", strings.TrimSuffix(name, dots), c.UseLine())
		}
		if i < len(args) && args[i] == "" && name != mayBeEmpty {
			return fmt.Errorf("%s is empty", strings.Trim(name, "[]."))
		}
	}
	many := len(names) > 0 && strings.HasSuffix(strings.TrimSuffix(names[len(names)-1], "]"), dots)
	if len(args) > len(names) && !many {
		return fmt.Errorf("unexpected argument %q: %s", args[len(names)], c.UseLine())
	}
	return nil
}

// local is the RunE of a command that asks no node.
func (a *app) local(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return f(cmd, args)
	}
}

// remote is the RunE of a command that asks the cluster.
func (a *app) remote(f func(ctx context.Context, kms *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		config, err := a.clientConfig()
		if err != nil {
			return err
		}
		kms, err := client.New(config)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, kms.Close()) }()
		a.started = true
		return f(cmd.Context(), kms, args)
	}
}

// mutates adds the flags of commands that change something.
func (a *app) mutates(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.dryRun, "dry-run", false, "check everything, change nothing")
	c.Flags().Func("request-id", "repeat the change that was made with this id and whose outcome is unknown", func(s string) error {
		if s == "" || len(s) > maxRequestID {
			return fmt.Errorf("want 1 to %d bytes", maxRequestID)
		}
		a.requestID = s
		return nil
	})
	return c
}

// mutatesKey adds the flags of commands that change a key.
func (a *app) mutatesKey(c *cobra.Command) *cobra.Command {
	c.Flags().Uint64Var(&a.revision, "if-revision", 0, "only if the key has this revision (0: any)")
	return a.mutates(c)
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of kmsctl",
		Example: "  kmsctl version --output json",
		RunE: a.local(func(*cobra.Command, []string) error {
			v, c := buildVersion()
			return a.printValue(struct {
				Version string `json:"version"`
				Commit  string `json:"commit"`
				Go      string `json:"go"`
			}{v, c, runtime.Version()}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "kmsctl %s (%s, %s)\n", v, c, runtime.Version())
				return err
			})
		}),
	}
}

// buildVersion is what was stamped into the binary, or else what Go recorded.
func buildVersion() (v, c string) {
	v, c = version, commit
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	if v == "" {
		v = info.Main.Version
	}
	for _, s := range info.Settings {
		if c == "" && s.Key == "vcs.revision" {
			c = s.Value
		}
	}
	if v == "" {
		v = "unknown"
	}
	if c == "" {
		c = "unknown commit"
	}
	return v, c
}
