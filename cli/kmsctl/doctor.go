package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// warnBefore is how long before its end the caller's certificate is warned of, or in the last
// third of its life if that is shorter: as nodes do with theirs.
const warnBefore = 30 * day

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check everything that can be checked from here, and say what is to be fixed",
		Long: `Check the cluster and this machine's access to it, and show every check with its
result: your certificate, the CAs and each member's certificate; every clock against
the others and this machine's; who answers, the leader, how many voters may fail; HSM
tokens, leases, disks, audit trails and their sinks, alarms that hold, backups and the journal, versions and releases, the
recovery of the domain key and its drill. It changes nothing.

kmsd doctor checks a node on its own host, also while it is down.

Exit codes: 0 nothing is to be fixed, 1 something is, 2 the cluster is down (or the
command line is wrong).`,
		Example: "  kmsctl doctor\n  kmsctl doctor --output json",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			s := &survey{now: time.Now()}
			first, err := kms.Cluster().Status(ctx, &quorumkmsv1.StatusRequest{})
			switch {
			case err != nil:
				s.add("member", "", outage, "no node answers: "+shortError(err), "is "+a.value(setAddresses)+" right (kmsctl config view)? On each node: systemctl status kmsd, kmsd doctor")
			case first.GetClusterId() == "":
				s.add("member", first.GetNodeName(), outage, "it belongs to no cluster", "kmsctl cluster init makes it the first member of one, a join token a member of another's")
			default:
				s = a.examine(ctx, first, s.now)
				s.ownClock()
			}
			s.now = time.Now()
			a.ownCertificates(s)
			if err := a.printDoctor(s); err != nil {
				return err
			}
			return check(s.verdict())
		}),
	}
}

func (a *app) printDoctor(s *survey) error {
	found := slices.Clone(s.findings)
	slices.SortStableFunc(found, func(x, y finding) int { return cmp.Compare(checkOrder(x.Check), checkOrder(y.Check)) })
	return a.printValue(struct {
		Verdict string    `json:"verdict"`
		Checks  []finding `json:"checks"`
	}{s.verdict(), found}, func(w io.Writer) error {
		rows := [][]string{{"CHECK", "OF", "RESULT", "FOUND"}}
		for _, f := range found {
			rows = append(rows, []string{f.Check, cmp.Or(f.Node, "-"), []string{"ok", "WARNING", "FAULT", "OUTAGE"}[f.Level], f.Text})
		}
		if err := writeTable(w, rows); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		return s.writeVerdict(w)
	})
}

// checkOrder is where a check stands in the table of a doctor.
func checkOrder(name string) int {
	order := []string{
		"own certificate", "own ca", "own clock", "member", "leader", "service", "quorum", "history", "state", "alarm", "clock", "lease", "lag", "hsm", "disk", "audit", "sink",
		"certificate", "ca", "backup", "journal", "release", "domain", "recovery",
	}
	if i := slices.Index(order, name); i >= 0 {
		return i
	}
	return len(order)
}

// ownClock compares the clock of this machine with the members'.
func (s *survey) ownClock() {
	type clock struct{ ahead, doubt time.Duration }
	var all []clock
	for _, r := range s.answers {
		if ahead, doubt, ok := r.offset(); ok {
			all = append(all, clock{ahead, doubt})
		}
	}
	if len(all) == 0 {
		return
	}
	slices.SortFunc(all, func(a, b clock) int { return cmp.Compare(a.ahead, b.ahead) })
	middle := all[(len(all)-1)/2]
	if middle.ahead.Abs()-middle.doubt > warnSkew {
		s.add("own clock", "", warning, fmt.Sprintf("this machine's clock is %s that of the nodes", skewText(-middle.ahead)), "here: timedatectl status, chronyc tracking")
		return
	}
	s.add("own clock", "", fine, "this machine's clock goes with the nodes'", "")
}

// ownCertificates looks at the caller's files.
func (a *app) ownCertificates(s *survey) {
	if _, cert, err := readIdentity(a.value(setCert)); err == nil {
		s.ownCertificate("own certificate", cert, "have "+a.value(setCert)+" renewed")
	} else {
		s.add("own certificate", "", fault, err.Error(), "name your certificate with --cert")
	}
	data, err := os.ReadFile(a.value(setCA))
	if err != nil {
		s.add("own ca", "", fault, err.Error(), "name the cluster's CA file with --ca")
		return
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return
		}
		if ca, err := x509.ParseCertificate(block.Bytes); err == nil {
			s.ownCertificate("own ca", ca, "put the cluster's new CA into "+a.value(setCA))
		}
	}
}

func (s *survey) ownCertificate(name string, c *x509.Certificate, do string) {
	subject := strings.TrimPrefix(c.Subject.String(), "CN=")
	if len(c.URIs) == 1 {
		subject = c.URIs[0].String()
	}
	left := c.NotAfter.Sub(s.now)
	text := fmt.Sprintf("%s ends %s", subject, expiry(c.NotAfter, s.now))
	switch {
	case left <= 0:
		s.add(name, "", fault, text, do)
	case left < min(warnBefore, c.NotAfter.Sub(c.NotBefore)/3):
		s.add(name, "", warning, text, do)
	default:
		s.add(name, "", fine, text, "")
	}
}
