package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// auditTime limits how long one node is waited for until it begins to answer.
const auditTime = 5 * time.Second

func (a *app) auditCommand() *cobra.Command {
	g := group("audit", "Read the nodes' audit trails, export them, and verify them",
		a.auditTail(), a.auditSearch(), a.auditExport(), a.auditHeads(), a.auditVerify(), a.auditOpen())
	g.Long = `Read the nodes' audit trails, export them, and verify them.

Each node has a trail of its own, of the calls that it answered. These commands ask every
member at its client address and put the records in the order of their times. A node that
does not answer is named, and makes the exit code other than 0; the others' records are
shown.

Auditors of all tenants (/auditor/<name>) see all records; --tenant leaves one tenant's.
Auditors of a tenant see that tenant's, also those of services that used its keys.`
	return g
}

// missing means: some nodes did not answer, or not to the end.
type missing struct {
	nodes []string
	err   error // of the first
}

func (m *missing) Error() string {
	return "the answer is not whole: there is nothing of, or not all of, " + strings.Join(m.nodes, ", ")
}
func (m *missing) Unwrap() error { return m.err }

// unheard collects the nodes that did not answer, and names them at once.
type unheard struct {
	a       *app
	missing missing
}

func (x *unheard) add(name string, err error) {
	if x.missing.err == nil {
		x.missing.err = err
	}
	x.missing.nodes = append(x.missing.nodes, name)
	fmt.Fprintf(x.a.stderr, "%s does not answer: %s\n", clean(name), clean(err.Error())) //nolint:errcheck // there is nowhere else to say it
}

func (x *unheard) err() error {
	if x.missing.err == nil {
		return nil
	}
	return &x.missing
}

// members are those that have a trail to read.
func members(ctx context.Context, kms *client.Client) (*quorumkmsv1.StatusResponse, []*quorumkmsv1.Member, error) {
	status, err := kms.Cluster().Status(ctx, &quorumkmsv1.StatusRequest{})
	if err != nil {
		return nil, nil, err
	}
	if status.GetClusterId() == "" {
		return nil, nil, fmt.Errorf("%s belongs to no cluster", status.GetNodeName())
	}
	out := slices.DeleteFunc(slices.Clone(status.GetMembers()), func(m *quorumkmsv1.Member) bool {
		return m.GetState() == quorumkmsv1.MemberState_MEMBER_STATE_GONE
	})
	slices.SortFunc(out, func(a, b *quorumkmsv1.Member) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return status, out, nil
}

// atNode asks one member alone; a stream from it may take longer than the beginning of it.
func (a *app) atNode(address string, f func(*client.Client) error) error {
	config, err := a.clientConfig()
	if err != nil {
		return err
	}
	config.Addresses, config.Fixed, config.Deadline, config.Retrying = []string{address}, true, auditTime, nil
	kms, err := client.New(config)
	if err != nil {
		return err
	}
	return errors.Join(f(kms), kms.Close())
}

// auditFilter are the flags that say which records are wanted.
type auditFilter struct {
	key, principal, operation, result, alarm, request string
	since, until                                      string
	limit                                             uint64
}

func (f *auditFilter) add(c *cobra.Command) *cobra.Command {
	flags := c.Flags()
	flags.StringVar(&f.key, "key-id", "", "only records about this key: its id, ARN, or the alias it was named by")
	flags.StringVar(&f.principal, "principal", "", "only calls of this principal, a SPIFFE URI")
	flags.StringVar(&f.operation, "operation", "", "only calls of this name, such as Decrypt")
	flags.StringVar(&f.result, "result", "", "only calls with this result: SUCCESS, DENIED, FAILED, WITHHELD or UNKNOWN")
	flags.StringVar(&f.alarm, "alarm", "", "only alarms: any, or one by its name (--alarm=NAME)")
	flags.Lookup("alarm").NoOptDefVal = "any"
	flags.StringVar(&f.request, "request", "", "only the change with this request id")
	flags.StringVar(&f.since, "since", "", "not before: a time such as 2026-01-02T15:04:05Z, or how long ago, such as 90m")
	complete(c, "result", "SUCCESS", "DENIED", "FAILED", "WITHHELD", "UNKNOWN")
	return c
}

func (f *auditFilter) addUntil(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&f.until, "until", "", "before: a time, or how long ago")
	c.Flags().Uint64Var(&f.limit, "limit", 0, "at most so many records, the oldest (0: all)")
	return f.add(c)
}

// parseMoment reads a time, or how long ago it was.
func parseMoment(flag, s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil //nolint:nilnil // no time was given
	}
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		return timestamppb.New(now.Add(-ago)), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return nil, usagef("--%s %q: want a time such as 2026-01-02T15:04:05Z, or how long ago, such as 90m", flag, s)
	}
	return timestamppb.New(t), nil
}

func (f *auditFilter) wanted(now time.Time) (*quorumkmsv1.SearchRecordsRequest, error) {
	r := &quorumkmsv1.SearchRecordsRequest{
		Key: f.key, Principal: f.principal, Operation: f.operation, Result: strings.ToUpper(f.result), Alarm: f.alarm, OfRequest: f.request, Limit: f.limit,
	}
	var err, err2 error
	r.Since, err = parseMoment("since", f.since, now)
	r.Until, err2 = parseMoment("until", f.until, now)
	return r, errors.Join(err, err2)
}

// filterText is a filter for people.
func filterText(r *quorumkmsv1.SearchRecordsRequest, tenant string) string {
	var out []string
	for _, x := range [][2]string{
		{"tenant", tenant},
		{"key", r.GetKey()},
		{"principal", r.GetPrincipal()},
		{"operation", r.GetOperation()},
		{"result", r.GetResult()},
		{"alarm", r.GetAlarm()},
		{"request", r.GetOfRequest()},
		{"since", timeText(r.GetSince())},
		{"until", timeText(r.GetUntil())},
	} {
		if x[1] != "" {
			out = append(out, x[0]+"="+x[1])
		}
	}
	return strings.Join(out, " ")
}

func (a *app) auditTail() *cobra.Command {
	var f auditFilter
	c := &cobra.Command{
		Use:   "tail",
		Short: "Show records as they are written, until it is interrupted",
		Long: `Show records of all nodes as they are written, until it is interrupted. With --since those from
that time on come first.`,
		Example: "  kmsctl audit tail\n  kmsctl audit tail --alarm --since 24h\n  kmsctl audit tail --result DENIED --output json",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			now := time.Now()
			r, err := f.wanted(now)
			if err != nil {
				return err
			}
			if r.Since == nil {
				r.Since = timestamppb.New(now)
			}
			r.Follow = true
			err = a.showRecords(ctx, kms, r)
			if ctx.Err() != nil {
				return nil //nolint:nilerr // that is how it ends
			}
			return err
		}),
	}
	return f.add(c)
}

func (a *app) auditSearch() *cobra.Command {
	var f auditFilter
	c := &cobra.Command{
		Use:   "search",
		Short: "Show records of all nodes that fit, the oldest first",
		Long: `Show records of all nodes that fit, in the order of their times: as a table, or, with --output
json, as their nodes wrote them, one a line.`,
		Example: "  kmsctl audit search --key-id 5f0c… --operation Decrypt --since 24h\n" +
			"  kmsctl audit search --principal spiffe://kms.example.org/service/volumes --tenant acme --output json\n" +
			"  kmsctl audit search --alarm --since 2026-01-01T00:00:00Z --until 2026-02-01T00:00:00Z",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, _ []string) error {
			r, err := f.wanted(time.Now())
			if err != nil {
				return err
			}
			return a.showRecords(ctx, kms, r)
		}),
	}
	return f.addUntil(c)
}

// shown is what the table has of a record.
type shown struct {
	Time      time.Time `json:"eventTime"`
	Name      string    `json:"eventName"`
	Principal string    `json:"principal"`
	Tenant    string    `json:"tenant"`
	Key       string    `json:"keyId"`
	Alias     string    `json:"alias"`
	Target    string    `json:"target"`
	Alarm     string    `json:"alarm"`
	DryRun    bool      `json:"dryRun"`
	Result    string    `json:"result"`
	Reason    string    `json:"reason"`
}

const recordRow = "%-23s  %-8s  %-24s  %-8s  %-32s  %s\n"

func (a *app) showRecords(ctx context.Context, kms *client.Client, r *quorumkmsv1.SearchRecordsRequest) error {
	heading := a.output != formatJSON
	return a.eachRecord(ctx, kms, r, func(s *source, m *quorumkmsv1.SearchRecordsResponse) error {
		if a.output == formatJSON {
			_, err := fmt.Fprintf(a.stdout, "%s\n", m.GetRecord())
			return err
		}
		if heading {
			heading = false
			if _, err := fmt.Fprintf(a.stdout, recordRow, "TIME (UTC)", "NODE", "OPERATION", "RESULT", "PRINCIPAL", "ABOUT"); err != nil {
				return err
			}
		}
		return writeRecord(a.stdout, s.name, m.GetRecord())
	})
}

func writeRecord(w io.Writer, node string, line []byte) error {
	var x shown
	if err := json.Unmarshal(line, &x); err != nil {
		return fmt.Errorf("a record of %s: %w", node, err)
	}
	var about []string
	for _, f := range [][2]string{{"tenant ", x.Tenant}, {"key ", x.Key}, {"", x.Alias}, {"", x.Target}, {"ALARM ", x.Alarm}, {"", x.Reason}} {
		if f[1] != "" {
			about = append(about, f[0]+f[1])
		}
	}
	result := x.Result
	if x.DryRun {
		result += "?"
	}
	_, principal, _ := strings.Cut(strings.TrimPrefix(x.Principal, "spiffe://"), "/")
	if principal == "" {
		principal = x.Principal
	}
	_, err := fmt.Fprintf(w, recordRow, x.Time.UTC().Format("2006-01-02 15:04:05.000"), clean(node), clean(x.Name), clean(result), shorten(clean(principal)), shorten(clean(strings.Join(about, "; "))))
	return err
}

// source is one node's records.
type source struct {
	name     string
	messages chan *quorumkmsv1.SearchRecordsResponse
	failure  error // read behind the end of messages

	raftID     string
	cluster    string
	checkpoint []byte                             // of the records that follow
	head       *quorumkmsv1.SearchRecordsResponse // the record that is to come next
	upTo       time.Time                          // what is older has come
	done       bool
}

// eachRecord asks every member and hands their records on in the order of their times. Of each
// node one record waits, and what the network holds.
func (a *app) eachRecord(ctx context.Context, kms *client.Client, r *quorumkmsv1.SearchRecordsRequest, take func(*source, *quorumkmsv1.SearchRecordsResponse) error) (err error) {
	_, list, err := members(ctx, kms)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	var sources []*source
	for _, m := range list {
		s := &source{name: m.GetName(), messages: make(chan *quorumkmsv1.SearchRecordsResponse)}
		sources = append(sources, s)
		own := &quorumkmsv1.SearchRecordsRequest{
			Key: r.GetKey(), Principal: r.GetPrincipal(), Operation: r.GetOperation(), Result: r.GetResult(), Alarm: r.GetAlarm(), OfRequest: r.GetOfRequest(),
			Since: r.GetSince(), Until: r.GetUntil(), Limit: r.GetLimit(), Follow: r.GetFollow(), WithProofs: r.GetWithProofs(),
		}
		asking.Go(func() {
			defer close(s.messages)
			s.failure = a.atNode(m.GetClientAddress(), func(kms *client.Client) error {
				return kms.SearchRecords(ctx, own, func(x *quorumkmsv1.SearchRecordsResponse) error {
					select {
					case s.messages <- x:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				})
			})
		})
	}
	return a.merge(ctx, sources, r.GetLimit(), take)
}

func (a *app) merge(ctx context.Context, sources []*source, limit uint64, take func(*source, *quorumkmsv1.SearchRecordsResponse) error) error {
	gone := &unheard{a: a}
	for taken := uint64(0); ; {
		var first, behind *source // the oldest record; whose older ones may still come
		for _, s := range sources {
			switch {
			case s.head != nil:
				if first == nil || s.head.GetTime().AsTime().Before(first.head.GetTime().AsTime()) {
					first = s
				}
			case !s.done && (behind == nil || s.upTo.Before(behind.upTo)):
				behind = s
			}
		}
		if first != nil && (behind == nil || !behind.upTo.Before(first.head.GetTime().AsTime())) {
			if err := take(first, first.head); err != nil {
				return err
			}
			first.head = nil
			if taken++; taken == limit {
				return gone.err()
			}
			continue
		}
		if behind == nil {
			return gone.err()
		}
		if err := behind.next(ctx); err != nil {
			gone.add(behind.name, err)
		}
	}
}

// next takes one message in; the error is what the node failed of.
func (s *source) next(ctx context.Context) error {
	m, ok := <-s.messages
	if !ok {
		s.done = true
		if ctx.Err() == nil { // else it is this side that had enough
			return s.failure
		}
		return nil
	}
	if m.GetRaftId() != "" {
		s.raftID, s.cluster = m.GetRaftId(), m.GetClusterId()
	}
	if len(m.GetCheckpoint()) > 0 {
		s.checkpoint = m.GetCheckpoint()
	}
	if m.GetTime() != nil {
		s.upTo = m.GetTime().AsTime()
	}
	if len(m.GetRecord()) > 0 {
		s.head = m
	}
	return nil
}
