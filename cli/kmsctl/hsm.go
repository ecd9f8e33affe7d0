package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (a *app) hsmCommand() *cobra.Command {
	return group("hsm", "Look at the nodes' HSM partitions", a.hsmStatus())
}

func (a *app) hsmStatus() *cobra.Command {
	var node string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the HSM of every node can do, and how it does",
		Long: `Ask every member of the cluster, at its client address, for its HSM: what the token can
do, its self-test with the weaknesses that were accepted, sessions, loaded keys, calls of
the token with their errors, and when it was lost and came back. Counters begin with the
node's start. A node whose token is lost answers too. A member that does not answer is
shown as such; if none answers that was asked for, the command fails.`,
		Example: "  kmsctl hsm status\n  kmsctl hsm status --node kms-2 --output json",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			status, err := kms.Cluster().Status(ctx, &quorumkmsv1.StatusRequest{})
			if err != nil {
				return err
			}
			var report *quorumkmsv1.HsmReport
			if len(status.GetMembers()) > 0 {
				report, err = a.askHSMs(ctx, status, node)
			} else { // the node belongs to no cluster
				report, err = ownHSM(ctx, kms)
			}
			if err != nil {
				return err
			}
			return a.print(report, func(w io.Writer) error { return writeHSMs(w, report) })
		}),
	}
	c.Flags().StringVar(&node, "node", "", "ask only the member of this name or raft id")
	return c
}

// ownHSM asks the node that answers.
func ownHSM(ctx context.Context, kms *client.Client) (*quorumkmsv1.HsmReport, error) {
	r, err := kms.Hsm().DescribeHsm(ctx, &quorumkmsv1.DescribeHsmRequest{})
	return &quorumkmsv1.HsmReport{Nodes: []*quorumkmsv1.HsmOfNode{{NodeName: r.GetNodeName(), Hsm: r}}}, err
}

// askHSMs asks the members that are named so, or all. The error is that of a member if
// nobody has answered.
func (a *app) askHSMs(ctx context.Context, status *quorumkmsv1.StatusResponse, node string) (*quorumkmsv1.HsmReport, error) {
	report := &quorumkmsv1.HsmReport{}
	var asking sync.WaitGroup
	var names []string
	var errs [maxAsked]error
	for _, m := range status.GetMembers() {
		if m.GetState() == quorumkmsv1.MemberState_MEMBER_STATE_GONE {
			continue
		}
		names = append(names, m.GetName())
		i := len(report.GetNodes())
		if i >= maxAsked || node != "" && node != m.GetName() && node != m.GetRaftId() {
			continue
		}
		of := &quorumkmsv1.HsmOfNode{NodeName: m.GetName()}
		report.Nodes = append(report.Nodes, of)
		asking.Go(func() {
			errs[i] = a.at(m.GetClientAddress(), func(kms *client.Client) (err error) {
				of.Hsm, err = kms.Hsm().DescribeHsm(ctx, &quorumkmsv1.DescribeHsmRequest{})
				return err
			})
			if errs[i] == nil && of.GetHsm().GetRaftId() != m.GetRaftId() {
				of.Hsm, errs[i] = nil, fmt.Errorf("%s is not at %s any more", m.GetName(), m.GetClientAddress())
			}
			if errs[i] != nil {
				of.Problem = errs[i].Error()
			}
		})
	}
	asking.Wait()
	if len(report.GetNodes()) == 0 {
		return nil, fmt.Errorf("no member %q: there are %s", node, strings.Join(names, ", "))
	}
	for i := range report.GetNodes() {
		if errs[i] == nil {
			return report, nil
		}
	}
	return nil, errors.Join(errs[:]...)
}

func writeHSMs(w io.Writer, r *quorumkmsv1.HsmReport) error {
	for i, n := range r.GetNodes() {
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
		}
		var err error
		if n.GetHsm() == nil {
			err = writeFields(w, [][2]string{{"Node", n.GetNodeName()}, {"  no answer", n.GetProblem()}})
		} else {
			err = writeHSM(w, n.GetHsm())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeHSM(w io.Writer, r *quorumkmsv1.DescribeHsmResponse) error {
	h, s, c := r.GetHsm(), r.GetSessions(), r.GetCache()
	fields := [][2]string{
		{"Node", r.GetNodeName()},
		{"State", healthText(h)},
		{"Token", tokenText(h)},
		{"Algorithms", strings.Join(r.GetAlgorithms(), " ")},
		{"Key wrapping", wrapText(r)},
		{"Sessions", sessionsText(s)},
		{"Loaded keys", fmt.Sprintf("%d of %d, %d hits, %d misses, %d evictions", c.GetLoaded(), c.GetLimit(), c.GetHits(), c.GetMisses(), c.GetEvictions())},
		{"Messages", fmt.Sprintf("%d in %d calls, %d under way of at most %d", c.GetMessages(), c.GetCalls(), c.GetWaiting(), c.GetMaxWaiting())},
		{"Wrong answers", strconv.FormatUint(c.GetWrongAnswers(), 10)},
		{"Token lost", lossText(r)},
		{"Last error", faultText(r.GetLastError())},
		{"Self-test", selfTestText(h)},
	}
	for _, p := range h.GetProbes() {
		if !p.GetPassed() {
			fields = append(fields, [2]string{"  weakness", probeText(p)})
		} else if p.GetDetail() != "" {
			fields = append(fields, [2]string{"  passed", p.GetName() + ": " + p.GetDetail()})
		}
	}
	if err := writeFields(w, fields); err != nil {
		return err
	}
	rows := [][]string{{"CALL", "COUNT", "ERRORS", "TIME", "MEAN"}}
	for _, x := range r.GetCalls() {
		if x.GetCount() == 0 {
			continue
		}
		total := x.GetTime().AsDuration()
		rows = append(rows, []string{
			x.GetKind(), strconv.FormatUint(x.GetCount(), 10), strconv.FormatUint(x.GetErrors(), 10),
			total.Round(time.Millisecond).String(), (total / time.Duration(x.GetCount())).Round(time.Microsecond).String(), //nolint:gosec // not that many
		})
	}
	if len(rows) == 1 {
		return nil
	}
	return writeTable(w, rows)
}

func tokenText(h *quorumkmsv1.HsmStatus) string {
	parts := []string{h.GetKind()}
	for _, p := range []struct{ name, value string }{
		{"", h.GetManufacturer()}, {"", h.GetModel()}, {"serial ", h.GetSerial()}, {"label ", h.GetLabel()},
	} {
		if p.value != "" {
			parts = append(parts, p.name+p.value)
		}
	}
	return strings.Join(parts, ", ")
}

func wrapText(r *quorumkmsv1.DescribeHsmResponse) string {
	text := "RFC 5649"
	if r.GetKeyWrapMechanism() != 0 {
		text = fmt.Sprintf("RFC 5649 is mechanism %#x", r.GetKeyWrapMechanism())
	}
	return text + "; domain keys come in by OAEP with " + strings.Join(r.GetOaepHashes(), " or ")
}

func sessionsText(s *quorumkmsv1.HsmSessions) string {
	if s.GetLimit() == 0 {
		return "none needed"
	}
	return fmt.Sprintf("%d of %d busy, %d calls wait of at most %d", s.GetBusy(), s.GetLimit(), s.GetWaiting(), s.GetMaxWaiting())
}

func lossText(r *quorumkmsv1.DescribeHsmResponse) string {
	if r.GetLosses() == 0 {
		return "never"
	}
	return fmt.Sprintf("%d times, last at %s; back %d times%s", r.GetLosses(), timeText(r.GetLost()), r.GetReturns(), lastText(r.GetReturned()))
}

func lastText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return ", last at " + timeText(t)
}

func faultText(f *quorumkmsv1.HsmFault) string {
	if f == nil {
		return "none"
	}
	return timeText(f.GetTime()) + ", " + f.GetText()
}

func selfTestText(h *quorumkmsv1.HsmStatus) string {
	passed, accepted := 0, 0
	for _, p := range h.GetProbes() {
		switch {
		case p.GetPassed():
			passed++
		case p.GetAccepted():
			accepted++
		}
	}
	if len(h.GetProbes()) == 0 {
		return "none: the partition is in the process"
	}
	return fmt.Sprintf("%d probes, %d passed, %d weaknesses accepted", len(h.GetProbes()), passed, accepted)
}
