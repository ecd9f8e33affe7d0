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

const (
	// askTime limits the question to one member: a status must come also when
	// members do not answer.
	askTime = 2 * time.Second
	// maxAsked is the number of members that are asked at most: as many as a cluster has.
	maxAsked = 32
	// caDigits is how much of a CA key's hash is shown.
	caDigits = 12
)

func (a *app) clusterStatus() *cobra.Command {
	var checked bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what is wrong with the cluster and what to do, and its members",
		Long: `Show the cluster: in the first line whether all is well, then each problem with what to
do about it, the worst first, then the members and details.

It asks one node, and then every member at its client address. OK means that nothing is
wrong; DEGRADED that the cluster goes on, but something is to be done; DOWN that nothing
can be changed, or no node serves. --output json prints the answer of the one node, with
the verdict and the problems before it.

Exit codes: 0 if a status was shown. With --check, for scripts: 0 OK, 1 DEGRADED, 2 DOWN,
also if no node answers (and, as always, if the command line is wrong).`,
		Example: "  kmsctl cluster status\n  kmsctl cluster status --check --output json",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			sent := time.Now()
			first, err := kms.Cluster().Status(ctx, &quorumkmsv1.StatusRequest{})
			if err != nil {
				return a.unanswered(err, checked)
			}
			if first.GetClusterId() == "" {
				err := a.print(first, func(w io.Writer) error { return writeFoundling(w, first) })
				if err == nil && checked {
					err = check(verdictDown)
				}
				return err
			}
			s := a.examine(ctx, first, sent)
			if err := a.printStatus(s); err != nil || !checked {
				return err
			}
			return check(s.verdict())
		}),
	}
	c.Flags().BoolVar(&checked, "check", false, "tell by the exit code: 0 OK, 1 DEGRADED, 2 DOWN")
	return c
}

// unanswered is what is said when no node answers: with checked that is a verdict, too.
func (a *app) unanswered(err error, checked bool) error {
	if !checked || exitCode(err) != exitUnavailable {
		return err
	}
	view := view{Verdict: verdictDown, Problems: []finding{{
		Check: "member", Level: outage, Text: "no node answers: " + shortError(err),
		Do: "is " + a.value(setAddresses) + " right (kmsctl config view)? On each node: systemctl status kmsd",
	}}}
	err = a.printValue(view, func(w io.Writer) error { return (&survey{findings: view.Problems}).writeVerdict(w) })
	if err == nil {
		err = check(verdictDown)
	}
	return err
}

// view is what JSON shows beside the answer of a node.
type view struct {
	Verdict  string    `json:"verdict"`
	Problems []finding `json:"problems"`
}

func (a *app) printStatus(s *survey) error {
	if a.output != formatJSON {
		return a.printText(func(w io.Writer) error {
			if err := s.writeVerdict(w); err != nil {
				return err
			}
			return writeStatus(w, s)
		})
	}
	problems := s.problems()
	if problems == nil {
		problems = []finding{}
	}
	head, err := marshal(view{s.verdict(), problems})
	if err != nil {
		return err
	}
	return a.printMessage(head, s.first)
}

// askMembers asks every member itself, each at its own address; those who do not
// answer are missing.
func (a *app) askMembers(ctx context.Context, status *quorumkmsv1.StatusResponse) map[string]*quorumkmsv1.StatusResponse {
	answers := map[string]*quorumkmsv1.StatusResponse{}
	for id, r := range a.askAll(ctx, status) {
		if r.status != nil {
			answers[id] = r.status
		}
	}
	answers[status.GetRaftId()] = status
	return answers
}

func (a *app) askMember(ctx context.Context, address string) (r *quorumkmsv1.StatusResponse, err error) {
	err = a.at(address, func(kms *client.Client) error {
		r, err = kms.Cluster().Status(ctx, &quorumkmsv1.StatusRequest{})
		return err
	})
	return r, err
}

// at asks one member, once.
func (a *app) at(address string, f func(*client.Client) error) error {
	config, err := a.clientConfig()
	if err != nil {
		return err
	}
	config.Addresses, config.Fixed, config.Deadline, config.Retrying = []string{address}, true, askTime, nil
	kms, err := client.New(config)
	if err != nil {
		return err
	}
	defer kms.Close() //nolint:errcheck // nothing is lost
	return f(kms)
}

// writeFoundling shows a node that belongs to no cluster.
func writeFoundling(w io.Writer, s *quorumkmsv1.StatusResponse) error {
	return writeFields(w, [][2]string{
		{"Node", s.GetNodeName()},
		{"Cluster", "none yet: kmsctl cluster init makes it the first member of one, a join token a member of another's"},
		{"HSM", hsmText(s.GetHsm())},
		{"Release", s.GetVersion()},
	})
}

// writeStatus shows the members, and what there is to know beside the problems.
func writeStatus(w io.Writer, all *survey) error {
	s, answers := all.first, map[string]*quorumkmsv1.StatusResponse{}
	for id, r := range all.answers {
		if r.status != nil {
			answers[id] = r.status
		}
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	if err := writeTable(w, memberRows(s, answers)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	leader := "none"
	for _, m := range s.GetMembers() {
		if m.GetRaftId() == s.GetLeaderId() {
			leader = m.GetName()
		}
	}
	fields := [][2]string{
		{"Cluster", fmt.Sprintf("%s in %s, since %s", s.GetClusterId(), s.GetTrustDomain(), timeText(s.GetCreated()))},
		{"Leader", fmt.Sprintf("%s, term %d", leader, s.GetTerm())},
		{"Keys", strconv.FormatUint(s.GetKeyCount(), 10)},
		{"Domain key", domainText(s)},
		{"Answer of", fmt.Sprintf("%s, %s, release %d", s.GetNodeName(), s.GetVersion(), s.GetRelease())},
		{"  serves", servesText(s)},
		{"  log", fmt.Sprintf("applied %d of %d, running hash %.4x", s.GetAppliedIndex(), s.GetLastLogIndex(), s.GetRunningHash())},
		{"  HSM", hsmText(s.GetHsm())},
	}
	if d := s.GetDisk(); d.GetTotalBytes() != 0 {
		fields = append(fields, [2]string{"  disk", fmt.Sprintf("%s of %s are free for %s", sizeText(d.GetFreeBytes()), sizeText(d.GetTotalBytes()), d.GetDirectory())})
	}
	if b := s.GetBackup(); b != nil {
		fields = append(fields, backupFields(b)...)
	}
	for _, p := range s.GetHsm().GetProbes() {
		if !p.GetPassed() {
			fields = append(fields, [2]string{"  weakness", probeText(p)})
		}
	}
	if p := s.GetTransferProfile(); p == "cloned" {
		fields = append(fields, [2]string{"Profile", p + ": domain keys come to other partitions by the HSM vendor's cloning"})
	}
	if n := s.GetRefusedJoins(); n > 0 {
		fields = append(fields, [2]string{"  refused joins", strconv.FormatUint(n, 10)})
	}
	fields = append(fields, recoveryFields(s)...)
	if err := writeFields(w, fields); err != nil {
		return err
	}
	tables := [][][]string{certificateRows(s, answers, all.now)}
	if rows := sinkRows(s, answers); len(rows) > 1 {
		tables = append(tables, rows)
	}
	for _, rows := range tables {
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		if err := writeTable(w, rows); err != nil {
			return err
		}
	}
	return nil
}

func domainText(s *quorumkmsv1.StatusResponse) string {
	text := fmt.Sprintf("generation %d, recovery epoch %d", s.GetDomainGeneration(), s.GetRecoveryEpoch())
	if r := s.GetRewrap(); r != nil {
		text += fmt.Sprintf("; key versions are moved from generation %d since %s", r.GetGeneration(), timeText(r.GetSince()))
	}
	return text
}

// certificateRows is the table of the members' certificates and of the CAs that each
// trusts, by the beginnings of their keys' hashes.
func certificateRows(s *quorumkmsv1.StatusResponse, answers map[string]*quorumkmsv1.StatusResponse, now time.Time) [][]string {
	rows := [][]string{{"NODE", "CERTIFICATE EXPIRES", "TRUSTED CAS", "WARNING"}}
	for _, m := range s.GetMembers() {
		r := answers[m.GetRaftId()]
		if r == nil {
			rows = append(rows, []string{m.GetName(), "no answer", "", ""})
			continue
		}
		var cas, warnings []string
		for _, c := range r.GetCaCertificates() {
			cas = append(cas, c.GetKeyHash()[:min(caDigits, len(c.GetKeyHash()))])
		}
		for _, c := range append(r.GetCaCertificates(), r.GetCertificate()) {
			if c.GetWarning() != "" {
				warnings = append(warnings, c.GetWarning())
			}
		}
		rows = append(rows, []string{m.GetName(), expiryText(r.GetCertificateExpiry(), now), strings.Join(cas, " "), strings.Join(warnings, "; ")})
	}
	return rows
}

// memberRows is the table of members. What a member says of itself is exact; for
// others there is what the leader heard last.
func memberRows(s *quorumkmsv1.StatusResponse, answers map[string]*quorumkmsv1.StatusResponse) [][]string {
	rows := [][]string{{"NODE", "ROLE", "STATE", "REACHABLE", "SERVES", "HSM", "APPLIED", "LAG", "CLIENT ADDRESS"}}
	newest := s.GetLastLogIndex()
	for _, r := range answers {
		newest = max(newest, r.GetAppliedIndex())
	}
	for _, m := range s.GetMembers() {
		serves, hsm, applied := silentText(m), "no answer", m.GetAppliedIndex()
		if r := answers[m.GetRaftId()]; r != nil {
			serves, hsm, applied = servesText(r), healthText(r.GetHsm()), r.GetAppliedIndex()
		}
		index, lag := "", ""
		if applied != 0 {
			index, lag = strconv.FormatUint(applied, 10), strconv.FormatUint(newest-min(applied, newest), 10)
		}
		rows = append(rows, []string{
			m.GetName(), roleOf(m), enumName(m.GetState(), "MEMBER_STATE_"), yesNo(m.GetReachable()),
			serves, hsm, index, lag, m.GetClientAddress(),
		})
	}
	return rows
}

// silentText is what is known of a member that does not answer.
func silentText(m *quorumkmsv1.Member) string {
	if left := m.GetLeaseLeft().AsDuration(); left > 0 {
		return fmt.Sprintf("no answer, lease at most %.1fs", left.Seconds())
	}
	return "no answer"
}

func roleOf(m *quorumkmsv1.Member) string {
	switch {
	case m.GetLeader():
		return "leader"
	case m.GetVoter():
		return "voter"
	default:
		return "non-voter"
	}
}

func servesText(s *quorumkmsv1.StatusResponse) string {
	if !s.GetServing() {
		return "NO: " + s.GetNotServingReason()
	}
	return fmt.Sprintf("yes, lease %.1fs", s.GetLeaseLeft().AsDuration().Seconds())
}

func healthText(h *quorumkmsv1.HsmStatus) string {
	if !h.GetHealthy() {
		return "FAILED: " + h.GetProblem()
	}
	return "healthy"
}

func hsmText(h *quorumkmsv1.HsmStatus) string {
	parts := []string{healthText(h), tokenText(h)}
	if h.GetCalls() > 0 {
		parts = append(parts, fmt.Sprintf("%d keys loaded, %d messages in %d calls", h.GetLoadedKeys(), h.GetMessages(), h.GetCalls()))
	}
	return strings.Join(parts, ", ")
}

func probeText(p *quorumkmsv1.HsmProbe) string {
	text := p.GetName() + ": " + p.GetDetail()
	if p.GetAccepted() {
		return text + " (accepted by the operator)"
	}
	return text + " (NOT ACCEPTED)"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}
