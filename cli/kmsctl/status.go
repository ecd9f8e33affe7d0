package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
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
	return &cobra.Command{
		Use:   "status",
		Short: "Show the cluster and its members",
		Long: `Show the cluster and its members, as the node that answers sees them. As text it
also asks every member at its client address whether it serves, and for its HSM;
as JSON it is the answer of one node, with what the leader knows of the others.`,
		Example: "  kmsctl cluster status",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			status, err := kms.Cluster().Status(ctx, &quorumkmsv1.StatusRequest{})
			if err != nil {
				return err
			}
			return a.print(status, func(w io.Writer) error {
				if status.GetClusterId() == "" {
					return writeFoundling(w, status)
				}
				return writeStatus(w, status, a.askMembers(ctx, status), time.Now())
			})
		}),
	}
}

// askMembers asks every member itself, each at its own address; those who do not
// answer are missing.
func (a *app) askMembers(ctx context.Context, status *quorumkmsv1.StatusResponse) map[string]*quorumkmsv1.StatusResponse {
	answers := map[string]*quorumkmsv1.StatusResponse{status.GetRaftId(): status}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for i, m := range status.GetMembers() {
		gone := m.GetState() == quorumkmsv1.MemberState_MEMBER_STATE_GONE
		if i >= maxAsked || gone || m.GetRaftId() == status.GetRaftId() {
			continue
		}
		asking.Go(func() {
			r, err := a.askMember(ctx, m.GetClientAddress())
			if err != nil || r.GetRaftId() != m.GetRaftId() {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answers[m.GetRaftId()] = r
		})
	}
	asking.Wait()
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

func writeStatus(w io.Writer, s *quorumkmsv1.StatusResponse, answers map[string]*quorumkmsv1.StatusResponse, now time.Time) error {
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
		{"Domain key", fmt.Sprintf("generation %d, recovery epoch %d", s.GetDomainGeneration(), s.GetRecoveryEpoch())},
		{"Answer of", fmt.Sprintf("%s, %s, release %d", s.GetNodeName(), s.GetVersion(), s.GetRelease())},
		{"  serves", servesText(s)},
		{"  log", fmt.Sprintf("applied %d of %d, running hash %.4x", s.GetAppliedIndex(), s.GetLastLogIndex(), s.GetRunningHash())},
		{"  HSM", hsmText(s.GetHsm())},
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
	if names := s.GetExposedTo(); len(names) > 0 {
		fields = append(fields, [2]string{"ADVICE", exposedText(names)})
	}
	fields = append(fields, recoveryFields(s)...)
	for _, split := range s.GetSplits() {
		fields = append(fields, [2]string{"ALARM", split})
	}
	if err := writeFields(w, fields); err != nil {
		return err
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
	return writeTable(w, certificateRows(s, answers, now))
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
