package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node"
)

// errCheck is the end of a check that the token did not pass.
var errCheck = errors.New("the token cannot serve a node: see what is missing above")

func checkCommand() *cobra.Command {
	var c node.HSM
	var soPINFile, output string
	var scratch, readOnly bool
	command := &cobra.Command{
		Use: "check", Short: "Find out whether a PKCS#11 token can serve a node", Args: cobra.NoArgs,
		Long: `Lists what a token offers of what a node needs, and runs a node's self-test: known
answers, and attacks on keys that live in a session only. Nothing is written to the
token.

With --scratch the whole conformance suite runs too: it makes keys in the token,
has its Security Officer trust some, moves domain keys in and out, and destroys
them all. The token must hold no objects of a node.

PINs come from files with mode 0600 or from KMSD_HSM_PIN and KMSD_HSM_SO_PIN.
hsm/README.md tells what each weakness means.

Exit codes: 0 the token can serve a node, with the weaknesses that are accepted;
1 it cannot; 2 flags or files; 3 the PIN was refused (tried once); 4 no such token.`,
		Example: "  kmsd hsm check --module /opt/vendor/lib/libpkcs11.so --token kms-1 --pin-file pin\n" +
			"  kmsd hsm check --module /opt/vendor/lib/libpkcs11.so --token scratch --pin-file pin --so-pin-file so-pin --scratch --output json",
		RunE: func(command *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("%w: --output %q: want text or json", node.ErrConfig, output)
			}
			c.Kind = node.KindPKCS11
			pin, err := required("user PIN", c.PINFile, node.EnvPIN, "--pin-file")
			if err != nil {
				return err
			}
			var soPIN []byte
			if scratch {
				if soPIN, err = node.Secret("Security Officer's PIN", soPINFile, envSOPIN); err != nil {
					return err
				}
			}
			out := command.OutOrStdout()
			told := func(node.HSMCheckPart) {}
			if output == "text" && scratch {
				told = func(p node.HSMCheckPart) { // it takes a while
					_, _ = fmt.Fprintln(command.ErrOrStderr(), "checked:", p.Name)
				}
			}
			check, err := node.CheckHSM(command.Context(), c, pin, soPIN, scratch, told)
			if err != nil {
				return err
			}
			if output == "json" {
				err = checkJSON(out, check)
			} else {
				err = checkText(out, check)
			}
			if err == nil && !check.Passed {
				err = errCheck
			}
			return err
		},
	}
	f := command.Flags()
	f.StringVar(&c.Module, "module", "", "PKCS#11 library (default: SoftHSM2 where distributions put it)")
	f.StringVar(&c.ModuleArguments, "module-arguments", "", "what the library is started with, if its vendor wants that")
	f.StringVar(&c.Token, "token", "", "label of the token")
	f.StringVar(&c.Serial, "serial", "", "serial number, if two tokens have the label")
	f.StringVar(&c.PINFile, "pin-file", "", "file with the user PIN")
	f.StringVar(&soPINFile, "so-pin-file", "", "file with the Security Officer's PIN, for --scratch")
	f.IntVar(&c.Sessions, "sessions", 8, "how many HSM calls a node would run at a time")
	f.StringSliceVar(&c.AcceptWeakness, "accept-weakness", nil, "weaknesses that a node would accept, by name")
	f.BoolVar(&scratch, "scratch", false, "run the conformance suite: the token is there to be spoilt")
	f.BoolVar(&readOnly, "read-only", false, "write nothing to the token (the default)")
	f.StringVar(&output, "output", "text", "text or json")
	command.MarkFlagsMutuallyExclusive("scratch", "read-only")
	return command
}

// verdict is how a probe ended, in a word.
func verdict(p hsm.Probe) string {
	switch {
	case p.Passed:
		return "passed"
	case p.Accepted:
		return "accepted"
	default:
		return "FAILED"
	}
}

func offered(offered, required bool) string {
	switch {
	case offered:
		return "yes"
	case required:
		return "MISSING"
	default:
		return "no"
	}
}

// maxDetail is how much of a detail a line shows, in bytes; JSON has all that the probe tells.
const maxDetail = 160

func brief(s string) string {
	if len(s) > maxDetail {
		return s[:maxDetail] + " …"
	}
	return s
}

func checkText(w io.Writer, c node.HSMCheck) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) }
	line("Token\t%s\t%s %s, serial %s, firmware %s", c.Info.Label, c.Info.Manufacturer, c.Info.Model, c.Info.Serial, c.Firmware)
	line("")
	for _, required := range []bool{true, false} {
		if required {
			line("What a node needs\tis there\t")
		} else {
			line("\nWhat kinds of keys need\tis there\t")
		}
		for _, n := range c.Needs {
			if n.Required == required {
				line("  %s\t%s\t%s", n.Name, offered(n.Offered, n.Required), brief(n.Detail))
			}
		}
	}
	line("\nSelf-test\t\t")
	for _, p := range c.Info.Probes {
		line("  %s\t%s\t%s", p.Name, verdict(p), brief(p.Detail))
	}
	if c.Parts != nil {
		line("\nConformance\t\t")
	}
	for _, p := range c.Parts {
		if p.Passed {
			line("  %s\tpassed\t", p.Name)
			continue
		}
		for i, f := range p.Failures {
			line("  %s\t%s\t%s", map[bool]string{true: p.Name}[i == 0], map[bool]string{true: "FAILED"}[i == 0], brief(f))
		}
	}
	result := "can serve a node"
	if !c.Passed {
		result = "cannot serve a node"
	}
	line("\nThis token %s.", result)
	return t.Flush()
}

func checkJSON(w io.Writer, c node.HSMCheck) error {
	type probe struct {
		Name    string `json:"name"`
		Verdict string `json:"verdict"` // passed, accepted, FAILED
		Detail  string `json:"detail,omitempty"`
	}
	type part struct {
		Name     string   `json:"name"`
		Passed   bool     `json:"passed"`
		Failures []string `json:"failures,omitempty"`
	}
	out := struct {
		Label        string  `json:"label"`
		Manufacturer string  `json:"manufacturer"`
		Model        string  `json:"model"`
		Serial       string  `json:"serial"`
		Firmware     string  `json:"firmware"`
		Passed       bool    `json:"passed"`
		Needs        any     `json:"needs"`
		SelfTest     []probe `json:"self_test"`
		Conformance  []part  `json:"conformance,omitempty"`
	}{
		Label: c.Info.Label, Manufacturer: c.Info.Manufacturer, Model: c.Info.Model, Serial: c.Info.Serial, Firmware: c.Firmware,
		Passed: c.Passed, Needs: c.Needs,
	}
	for _, p := range c.Info.Probes {
		out.SelfTest = append(out.SelfTest, probe{p.Name, verdict(p), p.Detail})
	}
	for _, p := range c.Parts {
		out.Conformance = append(out.Conformance, part(p))
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(out)
}
