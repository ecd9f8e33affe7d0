package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (c *testCluster) status(p *process) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	return c.dial(operatorID, p).Cluster().Status(ctx, &pb.StatusRequest{})
}

// until waits for a node's status to be as wanted.
func (c *testCluster) until(what string, ok func(*pb.StatusResponse) bool, p *process) *pb.StatusResponse {
	c.t.Helper()
	var last *pb.StatusResponse
	c.eventually(what, func() bool {
		s, err := c.status(p)
		if err != nil {
			return false
		}
		last = s
		return ok(s)
	}, p)
	return last
}

// waitVoters waits until every running node sees that many voters and serves.
func (c *testCluster) waitVoters(n int) {
	c.t.Helper()
	for _, p := range c.nodes[:n] {
		c.until(fmt.Sprintf("%s sees %d voters", p.name, n), func(s *pb.StatusResponse) bool {
			voters := 0
			for _, m := range s.GetMembers() {
				if m.GetVoter() {
					voters++
				}
			}
			return voters == n && s.GetServing()
		}, p)
	}
}

// leader waits for a leader that a running node knows.
func (c *testCluster) leader(ask *process) *process {
	c.t.Helper()
	var found *process
	c.until("a leader is known", func(s *pb.StatusResponse) bool {
		for _, m := range s.GetMembers() {
			if m.GetLeader() {
				found = c.node(m.GetName())
			}
		}
		return found != nil
	}, ask)
	return found
}

// eventually waits for a condition and shows the nodes' logs if it does not come.
func (c *testCluster) eventually(what string, ok func() bool, show ...*process) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			for _, p := range show {
				c.t.Logf("%s:\n%s", p.name, p.output())
			}
			c.t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// refusal is how a call must fail: with a code, with the sentinel of a reason
// (nil: the answer carries none) and with a text that contains all of texts.
type refusal struct {
	code  codes.Code
	is    error
	texts []string
}

func refused(code codes.Code, is error, texts ...string) *refusal { return &refusal{code, is, texts} }

// check fails the test unless err is as it must be; a nil refusal wants success.
func (r *refusal) check(t *testing.T, what string, err error) {
	t.Helper()
	if r == nil {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return
	}
	var e *client.Error
	ok := errors.As(err, &e) && e.Code == r.code && (r.is == nil || errors.Is(err, r.is))
	if ok && r.is == nil {
		ok = e.Reason == pb.Reason_REASON_UNSPECIFIED
	}
	for _, text := range r.texts {
		ok = ok && strings.Contains(e.Message, text)
	}
	if !ok {
		t.Errorf("%s: got %v; want %s, %v and a text with %q", what, err, r.code, r.is, r.texts)
	}
}

// dump is everything that callers can see of the default tenant and its keys, as one
// node tells it; but for when keys were used.
func (c *testCluster) dump(p *process) string {
	c.t.Helper()
	ctx, x := c.t.Context(), c.dial(auditorID, p)
	keys := x.Keys()
	var list []*pb.KeyMetadata
	for marker := ""; ; {
		r, err := keys.ListKeys(ctx, &pb.ListKeysRequest{Limit: 1000, Marker: marker})
		must(c.t, err)
		list = append(list, r.GetKeys()...)
		if marker = r.GetNextMarker(); marker == "" {
			break
		}
	}
	lines := make([]string, len(list))
	must(c.t, concurrently(8, len(list), func(i int) error {
		k := list[i]
		tags, err := keys.ListResourceTags(ctx, &pb.ListResourceTagsRequest{KeyId: k.GetKeyId()})
		if err != nil {
			return err
		}
		versions, err := keys.ListKeyVersions(ctx, &pb.ListKeyVersionsRequest{KeyId: k.GetKeyId()})
		if err != nil {
			return err
		}
		grants, err := x.Grants().ListGrants(ctx, &pb.ListGrantsRequest{KeyId: k.GetKeyId(), Limit: 1000})
		if err != nil {
			return err
		}
		k.LastUsed, k.RefusedUse = nil, nil
		for _, v := range versions.GetVersions() {
			v.LastUsed = nil
		}
		lines[i] = fmt.Sprintln(k, tags.GetTags(), versions.GetVersions(), grants.GetGrants())
		return nil
	}))
	aliases, err := keys.ListAliases(ctx, &pb.ListAliasesRequest{Limit: 1000})
	must(c.t, err)
	tenant, err := x.Tenants().DescribeTenant(ctx, &pb.DescribeTenantRequest{})
	must(c.t, err)
	tenants, err := x.Tenants().ListTenants(ctx, &pb.ListTenantsRequest{})
	must(c.t, err)
	disabled, err := x.Tenants().ListDisabledPrincipals(ctx, &pb.ListDisabledPrincipalsRequest{})
	must(c.t, err)
	return fmt.Sprint(strings.Join(lines, ""), aliases.GetAliases(), "\n", tenant.GetDescription(), tenants.GetTenants(), disabled.GetPrincipals(), "\n")
}

// unchanged runs f and fails the test if anything of the keys is different
// afterwards, seen from any node.
func (c *testCluster) unchanged(what string, f func()) {
	c.t.Helper()
	before := c.dump(c.nodes[0])
	f()
	for _, p := range c.nodes {
		if after := c.dump(p); after != before {
			c.t.Errorf("%s changed something, as %s sees it:\n%s", what, p.name, different(before, after))
		}
	}
}

// concurrently calls f with 0 to n-1 in so many goroutines, and returns what failed.
func concurrently(workers, n int, f func(i int) error) error {
	var next atomic.Int64
	errs := make([]error, n)
	var work sync.WaitGroup
	for range min(workers, n) {
		work.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				errs[i] = f(i)
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// different shows the lines that two texts do not share.
func different(before, after string) string {
	var out strings.Builder
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			fmt.Fprintln(&out, "before", line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			fmt.Fprintln(&out, "after ", line)
		}
	}
	return out.String()
}

// connect opens a gRPC connection without the SDK, for what the SDK does not send.
func (c *testCluster) connect(address string, config *tls.Config, options ...grpc.DialOption) *grpc.ClientConn {
	c.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address,
		append(options, grpc.WithTransportCredentials(credentials.NewTLS(config)))...)
	must(c.t, err)
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// clientTLS is a TLS configuration that shows a certificate of c.certs() and
// accepts any server; without a file it shows none.
func (c *testCluster) clientTLS(file string) *tls.Config {
	c.t.Helper()
	config := &tls.Config{InsecureSkipVerify: true}
	if file != "" {
		pair, err := tls.LoadX509KeyPair(file+".crt", file+".key")
		must(c.t, err)
		config.Certificates = []tls.Certificate{pair}
	}
	return config
}

// pause freezes the process as a whole and waits until it is frozen.
func (p *process) pause() {
	p.c.t.Helper()
	must(p.c.t, p.cmd.Process.Signal(syscall.SIGSTOP))
	p.c.eventually(p.name+" is frozen", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		must(p.c.t, err)
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		return fields[0] == "T"
	})
}

func (p *process) resume() {
	p.c.t.Helper()
	must(p.c.t, p.cmd.Process.Signal(syscall.SIGCONT))
}

// run calls f as a subtest on the cluster.
func (c *testCluster) run(name string, f func(ctx context.Context, c *testCluster)) bool {
	c.t.Helper()
	return c.t.Run(name, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		defer func(parent *testing.T) { c.t = parent }(c.t)
		c.t = t // what fails is the subtest
		f(ctx, c)
	})
}

// fromStatus is what the SDK makes of an answer that came without it.
func fromStatus(err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	e := &client.Error{Code: s.Code(), Message: s.Message()}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == "quorumkms" {
			e.Reason = pb.Reason(pb.Reason_value["REASON_"+info.GetReason()])
		}
	}
	return e
}
