package main

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

const (
	shortLife  = 24 * time.Second
	renewEvery = shortLife / 3
)

// renewer keeps every node's and client's certificate alive, as a certificate manager
// does.
type renewer struct {
	c    *testCluster
	mu   sync.Mutex
	ca   *transport.DevCA
	ids  map[string]bool // SPIFFE paths; false: not to be renewed
	last time.Time       // when what was issued last ends
}

func (c *testCluster) renewer(ids ...string) *renewer {
	c.t.Helper()
	r := &renewer{c: c, ca: c.ca, ids: map[string]bool{}}
	for _, id := range ids {
		r.ids[id] = true
	}
	for _, p := range c.nodes {
		r.ids["/node/"+p.name] = true
	}
	return r
}

// run renews until ctx ends.
func (r *renewer) run(ctx context.Context) {
	for {
		r.all()
		select {
		case <-time.After(renewEvery):
		case <-ctx.Done():
			return
		}
	}
}

// all renews every certificate.
func (r *renewer) all() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for path, renew := range r.ids {
		if renew {
			r.one(path, shortLife)
		}
	}
	r.last = time.Now().Add(shortLife)
}

// ends is when the certificates that there are now have expired.
func (r *renewer) ends() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *renewer) one(path string, life time.Duration) {
	id, err := transport.ParseIdentity("spiffe://" + testDomain + path)
	base := filepath.Join(r.c.certs(), filepath.Base(path))
	err = errors.Join(err, r.ca.RenewFiles(transport.Files{Cert: base + ".crt", Key: base + ".key"}, id, []string{"127.0.0.1"}, life))
	if err != nil {
		r.c.t.Errorf("renewing %s: %v", path, err)
	}
}

// except renews one certificate for a last time, with a life of its own.
func (r *renewer) except(path string, life time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids[path] = false
	r.one(path, life)
}

func (r *renewer) again(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids[path] = true
	r.one(path, shortLife)
}

func (r *renewer) use(ca *transport.DevCA) {
	r.mu.Lock()
	r.ca = ca
	r.mu.Unlock()
	r.all()
}

// trust replaces the CA file of all nodes and clients.
func (c *testCluster) trust(cas ...*transport.DevCA) {
	c.t.Helper()
	var bundle []byte
	for _, ca := range cas {
		bundle = append(bundle, ca.CertPEM()...)
	}
	file := filepath.Join(c.certs(), transport.DevCACert)
	must(c.t, os.WriteFile(file+".new", bundle, 0o644))
	must(c.t, os.Rename(file+".new", file))
}

// onAll waits until every node's status is as wanted.
func (c *testCluster) onAll(what string, ok func(*process, *pb.StatusResponse) bool) {
	c.t.Helper()
	for _, p := range c.nodes {
		c.until(p.name+": "+what, func(s *pb.StatusResponse) bool { return ok(p, s) }, p)
	}
}

// presents tells whether a node has the certificate that its file holds.
func presents(p *process, s *pb.StatusResponse) bool {
	creds, err := transport.Load(p.c.tlsFiles(p.name), testDomain)
	return err == nil && s.GetServing() && s.GetCertificate().GetKeyHash() == hex.EncodeToString(creds.KeyHash())
}

func (c *testCluster) tlsFiles(name string) transport.Files {
	base := filepath.Join(c.certs(), name)
	return transport.Files{Cert: base + ".crt", Key: base + ".key", CA: filepath.Join(c.certs(), transport.DevCACert)}
}

// TestRollover renews every certificate again and again, and replaces the CA, under
// load: no call fails. What is not renewed is cut off when its time has come.
func TestRollover(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	var loads []*load
	for i := range c.nodes {
		loads = append(loads, c.startLoad(slices.Concat(c.nodes[i:], c.nodes[:i])...))
	}
	goesOn := func(doing string) {
		t.Helper()
		for _, l := range loads {
			l.during("%s", doing)
			l.goesOn()
		}
	}
	r := c.renewer(operatorID, adminID, userID, auditorID, serviceID)
	ctx, stop := context.WithCancel(t.Context())
	var renewing sync.WaitGroup
	renewing.Go(func() { r.run(ctx) })
	t.Cleanup(func() { stop(); renewing.Wait() })

	for _, what := range []string{"first", "second"} {
		r.all()
		c.onAll("it has the "+what+" short-lived certificate", presents)
		goesOn("with the " + what + " certificates")
	}
	ends := r.ends()
	c.eventually("both have expired", func() bool { return time.Now().After(ends) })
	goesOn("when both have expired")

	c.replaceCA(r, goesOn)
	c.expiredClient(t.Context(), r)
	c.expiredNode(t.Context(), r, goesOn)
	c.halfWritten(r)
	goesOn("at the end")
	for _, l := range loads {
		l.end(t.Context(), c.nodes[0])
	}
}

// replaceCA goes from one CA to another.
func (c *testCluster) replaceCA(r *renewer, goesOn func(string)) {
	c.t.Helper()
	old := r.ca
	dir := filepath.Join(c.dir, "next-ca")
	must(c.t, transport.NewDevCA(dir, testDomain))
	next, err := transport.LoadDevCA(dir)
	must(c.t, err)

	c.trust(old, next)
	c.onAll("it trusts both CAs", func(_ *process, s *pb.StatusResponse) bool { return len(s.GetCaCertificates()) == 2 })
	goesOn("with both CAs")
	// A client that misses the change: its certificate is good for long.
	late := c.keptCalls(c.craftOf(old, "late"), c.nodes...)
	for _, call := range late {
		must(c.t, call())
	}
	r.use(next)
	c.onAll("its certificate is of the new CA", presents)
	goesOn("with certificates of the new CA")
	for _, call := range late {
		must(c.t, call())
	}
	c.trust(next)
	c.onAll("it trusts the new CA only", func(p *process, s *pb.StatusResponse) bool { return len(s.GetCaCertificates()) == 1 && s.GetServing() })
	goesOn("with the new CA only")
	for i, call := range late {
		if err := call(); status.Code(err) != codes.Unavailable {
			c.t.Errorf("%s still talks to a client of the old CA: %v", c.nodes[i].name, err)
		}
	}
	p := c.nodes[0]
	p.kill()
	p.start()
	c.until(p.name+" serves again", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	goesOn("after a restart under the new CA")
}

// craftOf makes a client's certificate of a CA that is good for a day.
func (c *testCluster) craftOf(ca *transport.DevCA, name string) (file string) {
	c.t.Helper()
	id, err := transport.ParseIdentity("spiffe://" + testDomain + userID)
	must(c.t, err)
	file = filepath.Join(c.t.TempDir(), name)
	must(c.t, ca.IssueFiles(transport.Files{Cert: file + ".crt", Key: file + ".key"}, id, nil, 24*time.Hour))
	return file
}

// keptCalls are calls to nodes, each on a connection of its own that stays open.
func (c *testCluster) keptCalls(file string, nodes ...*process) (calls []func() error) {
	for _, p := range nodes {
		status := pb.NewClusterServiceClient(c.connect(p.client, c.clientTLS(file)))
		calls = append(calls, func() error {
			ctx, cancel := context.WithTimeout(c.t.Context(), patience)
			defer cancel()
			return second(status.Status(ctx, &pb.StatusRequest{}))
		})
	}
	return calls
}

// expiredClient lets a client's certificate expire while it is connected.
func (c *testCluster) expiredClient(ctx context.Context, r *renewer) {
	c.t.Helper()
	const short = "/tenant/default/user/short"
	r.except(short, shortLife/2)
	end := time.Now().Add(shortLife / 2)
	call := c.keptCalls(filepath.Join(c.certs(), "short"), c.nodes[0])[0]
	must(c.t, call())
	x := c.dial(short, c.nodes[0])
	must(c.t, second(x.Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1})))
	c.eventually("the connection of the expired client is cut", func() bool { return call() != nil })
	if early := time.Until(end); early > time.Second { // certificates tell whole seconds
		c.t.Errorf("it was cut %s too early", early)
	}
	if err := call(); status.Code(err) != codes.Unavailable {
		c.t.Errorf("the next call on it: %v", err)
	}
	err := second(x.Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1}))
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "short.crt expired at ") {
		c.t.Errorf("the next call of the SDK: %v", err)
	}
	r.again(short)
	must(c.t, second(x.Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1})))
}

// expiredNode lets a node's certificate expire; it comes back with another one.
func (c *testCluster) expiredNode(ctx context.Context, r *renewer, goesOn func(string)) {
	c.t.Helper()
	p := c.nodes[2]
	r.except("/node/"+p.name, shortLife/2)
	c.until(p.name+" has its last certificate", func(s *pb.StatusResponse) bool { return presents(p, s) }, p)
	call := c.keptCalls(c.craftOf(r.ca, "credulous"), p)[0]
	must(c.t, call())
	c.until(p.name+" warns of its end", func(s *pb.StatusResponse) bool {
		return strings.Contains(s.GetCertificate().GetWarning(), "/node/"+p.name+" expires in ")
	}, p)
	c.eventually(p.name+" says that it serves nothing", func() bool {
		return strings.Contains(p.output(), "serves nothing") && strings.Contains(p.output(), "this node's certificate expired at ")
	}, p)
	c.eventually("who does not look at certificates is cut off too", func() bool { return status.Code(call()) == codes.Unavailable }, p)
	_, err := c.dial(operatorID, p).Cluster().Status(ctx, &pb.StatusRequest{})
	if !errors.Is(err, client.ErrServerRefused) || !strings.Contains(err.Error(), "certificate has expired") {
		c.t.Errorf("a call to it: %v", err)
	}
	goesOn("while a node's certificate has expired")
	r.again("/node/" + p.name)
	c.until(p.name+" serves with a new certificate", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	goesOn("when it has a new one")
}

// halfWritten spoils a node's key file for a while.
func (c *testCluster) halfWritten(r *renewer) {
	c.t.Helper()
	p := c.nodes[1]
	r.except("/node/"+p.name, shortLife)
	c.until(p.name+" has the certificate", func(s *pb.StatusResponse) bool { return presents(p, s) }, p)
	file := c.tlsFiles(p.name).Key
	good, err := os.ReadFile(file)
	must(c.t, err)
	must(c.t, os.WriteFile(file, good[:len(good)/2], 0o600))
	c.eventually(p.name+" complains", func() bool {
		return strings.Contains(p.output(), "has changed and cannot be used: what was read before stays in use") && strings.Contains(p.output(), file)
	}, p)
	c.until(p.name+" serves all the same", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
	must(c.t, os.WriteFile(file, good, 0o600))
	r.again("/node/" + p.name)
	c.until(p.name+" has read the files again", func(s *pb.StatusResponse) bool { return presents(p, s) }, p)
}
