package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/rpc/client"
	peerpb "github.com/quorumkms/quorumkms/rpc/peerv1"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

// craft makes a certificate that the CA in dir would not issue, beside it.
func (c *testCluster) craft(dir, name string, edit func(*x509.Certificate)) (file string) {
	c.t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join(dir, transport.DevCACert), filepath.Join(dir, transport.DevCAKey))
	must(c.t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(c.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "storage-1"},
		URIs: uris(userID), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	edit(template)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, &key.PublicKey, ca.PrivateKey)
	must(c.t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(c.t, err)
	file = filepath.Join(dir, name)
	must(c.t, os.WriteFile(file+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(c.t, os.WriteFile(file+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	return file
}

func uris(paths ...string) (out []*url.URL) {
	for _, path := range paths {
		out = append(out, &url.URL{Scheme: "spiffe", Host: testDomain, Path: path})
	}
	return out
}

// dialFiles is dial with a certificate file, without the ending.
func (c *testCluster) dialFiles(file string, to ...*process) *client.Client {
	c.t.Helper()
	var addresses []string
	for _, p := range to {
		addresses = append(addresses, p.client)
	}
	x, err := client.New(client.Config{
		Addresses: addresses, TrustDomain: testDomain, Fixed: true,
		Files: client.Files{Cert: file + ".crt", Key: file + ".key", CA: filepath.Join(c.certs(), transport.DevCACert)},
	})
	must(c.t, err)
	c.t.Cleanup(func() { _ = x.Close() })
	return x
}

func handshakeRefused(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, client.ErrClientRefused) || status.Code(err) != codes.Unavailable {
		t.Errorf("%s: %v; want the handshake refused", what, err)
	}
}

// testCertificates shows certificates that name nobody.
func testCertificates(ctx context.Context, c *testCluster) {
	foreign := filepath.Join(c.t.TempDir(), "ca")
	must(c.t, transport.NewDevCA(foreign, testDomain))
	td := &url.URL{Scheme: "spiffe", Host: "elsewhere.test", Path: userID}
	own := c.certs()
	for what, file := range map[string]string{
		"another CA":           c.craft(foreign, "foreign", func(*x509.Certificate) {}),
		"two URI SANs":         c.craft(own, "two", func(t *x509.Certificate) { t.URIs = uris(userID, adminID) }),
		"the same URI twice":   c.craft(own, "twice", func(t *x509.Certificate) { t.URIs = uris(userID, userID) }),
		"no URI SAN":           c.craft(own, "none", func(t *x509.Certificate) { t.URIs, t.DNSNames = nil, []string{"storage-1"} }),
		"another trust domain": c.craft(own, "domain", func(t *x509.Certificate) { t.URIs = []*url.URL{td} }),
		"a path of no class":   c.craft(own, "class", func(t *x509.Certificate) { t.URIs = uris("/tenant/default/root/r") }),
		"a user of no tenant":  c.craft(own, "tenantless", func(t *x509.Certificate) { t.URIs = uris("/user/u") }),
		"no client usage":      c.craft(own, "usage", func(t *x509.Certificate) { t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"any usage":            c.craft(own, "any", func(t *x509.Certificate) { t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }),
		"a CA of its own":      c.craft(own, "is-ca", func(t *x509.Certificate) { t.IsCA = true }),
		"a URI that is no SPIFFE ID": c.craft(own, "https", func(t *x509.Certificate) {
			t.URIs = []*url.URL{{Scheme: "https", Host: testDomain, Path: userID}}
		}),
	} {
		_, err := c.dialFiles(file, c.nodes[0]).Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1})
		handshakeRefused(c.t, what, err)
	}
	for text, file := range map[string]string{ // the client sees the reason in its own files
		" expired at ":          c.craft(own, "expired", func(t *x509.Certificate) { t.NotAfter = time.Now().Add(-time.Minute) }),
		" is not valid before ": c.craft(own, "early", func(t *x509.Certificate) { t.NotBefore = time.Now().Add(time.Minute) }),
	} {
		_, err := c.dialFiles(file, c.nodes[0]).Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1})
		refused(codes.Unauthenticated, client.ErrClientRefused, text).check(c.t, "a certificate that"+text+"now", err)
	}
	control := c.craft(own, "control", func(*x509.Certificate) {})
	must(c.t, second(c.dialFiles(control, c.nodes[0]).Crypto().GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1})))
	c.anonymous(ctx)
}

// anonymous calls everything without a certificate.
func (c *testCluster) anonymous(ctx context.Context) {
	conn := c.connect(c.nodes[0].client, c.clientTLS(""))
	refusedStatus := func(what string, err error) {
		c.t.Helper()
		x := fromStatus(err)
		refused(codes.Unauthenticated, client.ErrNoCertificate, "no client certificate").check(c.t, what, x)
	}
	_, err := pb.NewCryptoServiceClient(conn).GenerateRandom(ctx, &pb.GenerateRandomRequest{NumberOfBytes: 1})
	refusedStatus("GenerateRandom", err)
	_, err = pb.NewKeyServiceClient(conn).ListKeys(ctx, &pb.ListKeysRequest{Tenant: "default"})
	refusedStatus("ListKeys", err)
	_, err = pb.NewClusterServiceClient(conn).Status(ctx, &pb.StatusRequest{})
	refusedStatus("Status", err)
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	refusedStatus("Check", err)
	watch, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	must(c.t, err)
	refusedStatus("Watch", second(watch.Recv()))
	reflected, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	must(c.t, err)
	_ = reflected.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}) // io.EOF if the refusal came first
	refusedStatus("reflection", second(reflected.Recv()))
}

// testClasses makes every call as every class that may not.
func testClasses(ctx context.Context, c *testCluster) {
	o := c.fullObject(ctx, "alias/classes")
	c.level(ctx)
	c.issue("/tenant/default/auditor/anna", "anna")
	readers := []group{groupRead, groupOwn, groupDescribe}
	allowed := map[string][]group{
		operatorID:                     {groupOperate, groupGovern, groupDescribe, groupListTenants},
		adminID:                        append(readers, groupAdminister, groupDelegate, groupRegister, groupGovern),
		userID:                         append(readers, groupUse, groupRandom, groupRegister),
		auditorID:                      append(readers, groupListTenants),
		"/tenant/default/auditor/anna": readers,
		serviceID:                      {groupOwn, groupRandom},
		"/node/kms-2":                  nil,
	}
	calls := append(catalogue(o), wholeCalls(o)...)
	members := func() string {
		s, err := c.status(c.nodes[0])
		must(c.t, err)
		return fmt.Sprint(s.GetMembers()[0].GetRaftId(), s.GetMembers()[1].GetRaftId(), s.GetMembers()[2].GetRaftId(), s.GetLeaderId())
	}
	before := members()
	for id, groups := range allowed {
		may := map[group]bool{}
		for _, g := range groups {
			may[g] = true
		}
		c.unchanged("a call by "+id, func() {
			for _, p := range c.nodes[:2] {
				x := c.dial(id, p)
				for _, call := range calls {
					switch {
					case !may[call.group]:
						text := "may not"
						if id == serviceID || call.group == groupDelegate {
							text = "" // it lacks a grant, or the context that services call with
						}
						refused(codes.PermissionDenied, client.ErrDenied, text).check(c.t, call.name+" by "+id, call.call(ctx, x))
					case call.group.harmless():
						if err := call.call(ctx, x); err != nil {
							c.t.Errorf("%s by %s: %v", call.name, id, err)
						}
					}
				}
				if _, err := x.Cluster().Status(ctx, &pb.StatusRequest{}); err != nil {
					c.t.Errorf("Status by %s: %v", id, err)
				}
			}
		})
	}
	if after := members(); after != before {
		c.t.Errorf("the members were %s and are %s", before, after)
	}
}

// testOtherTenant lets callers of another tenant look for what is the default's.
func testOtherTenant(ctx context.Context, c *testCluster) {
	o := c.fullObject(ctx, "alias/secret")
	arn := fmt.Sprintf("arn:quorumkms:kms:%s:default:key/%s", c.clusterID(), o.key)
	c.issue("/tenant/other/user/mallory", "mallory")
	c.issue("/tenant/other/admin/molly", "molly")
	user, admin := c.dial("/tenant/other/user/mallory", c.nodes[0]), c.dial("/tenant/other/admin/molly", c.nodes[0])
	denied := refused(codes.PermissionDenied, client.ErrDenied)
	ask := func(x *client.Client, o object, g group, want *refusal) {
		c.t.Helper()
		for _, call := range catalogue(o) {
			if call.group == g && call.name != "CreateKey" {
				want.check(c.t, fmt.Sprintf("%s on %.40s", call.name, o.key), call.call(ctx, x))
			}
		}
	}
	c.unchanged("another tenant", func() {
		ask(user, o, groupUse, notFound)
		ask(user, o, groupRead, notFound)
		ask(user, o, groupRegister, notFound)
		ask(admin, o, groupAdminister, notFound)
		ask(admin, o, groupDelegate, notFound)
		byARN := o
		byARN.key = arn
		ask(user, byARN, groupRead, denied)
		ask(user, byARN, groupRegister, denied)
		ask(admin, byARN, groupDelegate, denied)
		refused(codes.PermissionDenied, client.ErrDenied, "of tenant default: no grant of yours allows it").check(c.t, "Encrypt by ARN", second(user.Encrypt(ctx, arn, []byte("x"), nil)))
		notFound.check(c.t, "Encrypt by alias", second(user.Encrypt(ctx, o.alias, []byte("x"), nil)))
		_, err := user.Crypto().Encrypt(ctx, &pb.EncryptRequest{KeyId: o.key, Plaintext: []byte("x"), Tenant: "default"})
		refused(codes.PermissionDenied, client.ErrDenied, "of tenant default: no grant of yours allows it").check(c.t, "naming the tenant", err)
		_, err = admin.Keys().CreateKey(ctx, &pb.CreateKeyRequest{})
		refused(codes.NotFound, client.ErrNotFound, `tenant "other"`).check(c.t, "CreateKey in a tenant that is not there", err)
	})
	noTenant := refused(codes.NotFound, client.ErrNotFound, `tenant "other"`)
	noTenant.check(c.t, "ListKeys", second(user.Keys().ListKeys(ctx, &pb.ListKeysRequest{})))
	noTenant.check(c.t, "ListAliases", second(user.Keys().ListAliases(ctx, &pb.ListAliasesRequest{})))
	denied.check(c.t, "ListKeys of the other", second(user.Keys().ListKeys(ctx, &pb.ListKeysRequest{Tenant: "default"})))
	denied.check(c.t, "ListKeys of none", second(user.Keys().ListKeys(ctx, &pb.ListKeysRequest{Tenant: "nowhere"})))
}

// testPeerListener knocks at the node listener.
func testPeerListener(ctx context.Context, c *testCluster) {
	p := c.nodes[0]
	knock := func(address, file, alpn string, wait time.Duration) error {
		config := c.clientTLS(file)
		if alpn != "" {
			config.NextProtos = []string{alpn}
		}
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", address, config)
		if err != nil {
			return err
		}
		defer conn.Close()
		must(c.t, conn.SetDeadline(time.Now().Add(wait))) // nobody speaks first but the one who refuses, and gRPC
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		return nil
	}
	protocols := []string{transport.ALPNRaft, transport.ALPNGossip, transport.ALPNPeer}
	for _, alpn := range append(protocols, "", "h3") {
		for _, file := range []string{"", "olga", "alice", "storage-1", "axel", "obs"} {
			if file != "" {
				file = filepath.Join(c.certs(), file)
			}
			if err := knock(p.peer, file, alpn, patience); err == nil || errors.Is(err, io.EOF) {
				c.t.Errorf("%q with protocol %q was let in at the node listener: %v", file, alpn, err)
			}
		}
	}
	for _, alpn := range protocols {
		must(c.t, knock(p.peer, filepath.Join(c.certs(), "kms-2"), alpn, time.Second/2))
	}
	for _, alpn := range []string{transport.ALPNRaft, transport.ALPNGossip} {
		if err := knock(p.client, filepath.Join(c.certs(), "kms-2"), alpn, patience); err == nil {
			c.t.Errorf("the client listener speaks %s", alpn)
		}
	}
	c.impostors(ctx, p)
}

// impostors are nodes that are no members, or claim to be another one.
func (c *testCluster) impostors(ctx context.Context, p *process) {
	c.issue("/node/stranger", "stranger")
	s, err := c.status(p)
	must(c.t, err)
	id := s.GetRaftId()
	for _, name := range []string{"stranger", "kms-2"} {
		peer := peerpb.NewPeerServiceClient(c.connect(p.peer, c.clientTLS(filepath.Join(c.certs(), name))))
		for what, err := range map[string]error{
			"Propose": second(peer.Propose(ctx, &peerpb.ProposeRequest{Command: "DisableKey", Proposer: id})),
			"Lease":   second(peer.Lease(ctx, &peerpb.LeaseRequest{Node: id})),
			"Ack":     second(peer.Ack(ctx, &peerpb.AckRequest{Node: id, AppliedIndex: 1 << 40})),
			"Open":    second(peer.Open(ctx, &peerpb.OpenRequest{Node: id})),
			"Domain":  second(peer.Domain(ctx, &peerpb.DomainRequest{Node: id})),
		} {
			refused(codes.PermissionDenied, client.ErrDenied, "is not the member "+id).check(c.t, what+" by "+name, fromStatus(err))
		}
	}
	stranger := peerpb.NewPeerServiceClient(c.connect(p.peer, c.clientTLS(filepath.Join(c.certs(), "stranger"))))
	_, err = stranger.TransferLeadership(ctx, &peerpb.TransferRequest{})
	refused(codes.PermissionDenied, client.ErrDenied, "is no active member").check(c.t, "TransferLeadership by a stranger", fromStatus(err))
	conn := c.connect(p.peer, c.clientTLS(filepath.Join(c.certs(), "kms-2")))
	if _, err := pb.NewClusterServiceClient(conn).Status(ctx, &pb.StatusRequest{}); status.Code(err) != codes.Unimplemented {
		c.t.Errorf("a call for clients at the node listener: %v", err)
	}
	conn = c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), "kms-2")))
	if _, err := peerpb.NewPeerServiceClient(conn).Lease(ctx, &peerpb.LeaseRequest{Node: id}); status.Code(err) != codes.Unimplemented {
		c.t.Errorf("a call for nodes at the client listener: %v", err)
	}
}
