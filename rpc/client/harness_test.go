package client_test

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/client/clienttest"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const userURI = "spiffe://" + clienttest.TrustDomain + "/tenant/default/user/storage"

// answer is how a test node answers its nth request, counted from 1.
type answer func(ctx context.Context, n int, request proto.Message) (proto.Message, error)

// node is a server that keeps what it was asked, for members that excepted.
type node struct {
	address string
	server  *grpc.Server
	health  *health.Server

	mu       sync.Mutex
	requests []proto.Message
	members  []string      // client addresses; none: it says that it does not serve
	watched  *watched      // nil: it knows no watches
	distance time.Duration // that its health checks take
}

func (n *node) intercept(reply answer) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		m := request.(proto.Message)
		switch m.(type) {
		case *quorumkmsv1.StatusRequest:
			return n.status(), nil
		case *grpc_health_v1.HealthCheckRequest:
			n.mu.Lock()
			distance := n.distance
			n.mu.Unlock()
			time.Sleep(distance)
			return next(ctx, request)
		}
		n.mu.Lock()
		n.requests = append(n.requests, m)
		count := len(n.requests)
		n.mu.Unlock()
		return reply(ctx, count, m)
	}
}

func (n *node) status() *quorumkmsv1.StatusResponse {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := &quorumkmsv1.StatusResponse{Serving: n.members != nil}
	for _, a := range n.members {
		r.Members = append(r.Members, &quorumkmsv1.Member{ClientAddress: a, State: quorumkmsv1.MemberState_MEMBER_STATE_ACTIVE})
	}
	return r
}

func (n *node) names(members ...*node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.members = nil
	for _, m := range members {
		n.members = append(n.members, m.address)
	}
}

func (n *node) asked() []proto.Message {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]proto.Message(nil), n.requests...)
}

// startNode runs a node; without a reply it answers every request well.
func startNode(t testing.TB, config *tls.Config, reply answer) *node {
	t.Helper()
	if reply == nil {
		reply = well
	}
	n := &node{health: health.NewServer()}
	n.address = clienttest.Serve(t, config, func(s *grpc.Server) {
		n.server = s
		grpc_health_v1.RegisterHealthServer(s, n.health)
		quorumkmsv1.RegisterKeyServiceServer(s, quorumkmsv1.UnimplementedKeyServiceServer{})
		quorumkmsv1.RegisterCryptoServiceServer(s, cryptoServer{n: n})
		quorumkmsv1.RegisterClusterServiceServer(s, quorumkmsv1.UnimplementedClusterServiceServer{})
		quorumkmsv1.RegisterGrantServiceServer(s, quorumkmsv1.UnimplementedGrantServiceServer{})
		quorumkmsv1.RegisterPolicyServiceServer(s, quorumkmsv1.UnimplementedPolicyServiceServer{})
		quorumkmsv1.RegisterTenantServiceServer(s, quorumkmsv1.UnimplementedTenantServiceServer{})
	}, grpc.UnaryInterceptor(n.intercept(reply)))
	return n
}

// well is a good answer to any request the tests make.
func well(_ context.Context, _ int, request proto.Message) (proto.Message, error) {
	switch r := request.(type) {
	case *quorumkmsv1.EncryptRequest:
		return &quorumkmsv1.EncryptResponse{Ciphertext: append([]byte("sealed "), r.GetPlaintext()...)}, nil
	case *quorumkmsv1.DecryptRequest:
		return &quorumkmsv1.DecryptResponse{Plaintext: []byte(strings.TrimPrefix(string(r.GetCiphertext()), "sealed "))}, nil
	case *quorumkmsv1.ReEncryptRequest:
		return &quorumkmsv1.ReEncryptResponse{Ciphertext: append([]byte("again "), r.GetCiphertext()...)}, nil
	case *quorumkmsv1.GenerateDataKeyRequest:
		return &quorumkmsv1.GenerateDataKeyResponse{Plaintext: []byte("key"), Ciphertext: []byte("blob")}, nil
	case *quorumkmsv1.CreateKeyRequest:
		return &quorumkmsv1.CreateKeyResponse{Key: &quorumkmsv1.KeyMetadata{KeyId: "k1"}}, nil
	case *quorumkmsv1.DescribeKeyRequest:
		return &quorumkmsv1.DescribeKeyResponse{}, nil
	case *quorumkmsv1.CreateGrantRequest:
		return &quorumkmsv1.CreateGrantResponse{GrantId: "g1"}, nil
	case *quorumkmsv1.PutPolicyRequest:
		return &quorumkmsv1.PutPolicyResponse{Revision: 1}, nil
	case *quorumkmsv1.DisablePrincipalRequest:
		return &quorumkmsv1.DisablePrincipalResponse{}, nil
	case *quorumkmsv1.InitRequest:
		return &quorumkmsv1.InitResponse{ClusterId: "c1"}, nil
	default:
		return nil, status.Errorf(codes.Unimplemented, "%T", request)
	}
}

// refuse answers with the error of a reason and, if there are any, other nodes.
func refuse(code codes.Code, reason quorumkmsv1.Reason, nodes ...string) answer {
	return refuseWith(reasonError(code, reason, nodes...))
}

func refuseWith(err error) answer {
	return func(context.Context, int, proto.Message) (proto.Message, error) { return nil, err }
}

func reasonError(code codes.Code, reason quorumkmsv1.Reason, nodes ...string) error {
	info := &errdetails.ErrorInfo{Domain: "quorumkms", Reason: strings.TrimPrefix(reason.String(), "REASON_")}
	if nodes != nil {
		info.Metadata = map[string]string{"nodes": strings.Join(nodes, ",")}
	}
	s, err := status.New(code, "refused by the test").WithDetails(info)
	if err != nil {
		panic(err)
	}
	return s.Err()
}

// frozen takes requests and answers none.
func frozen(ctx context.Context, _ int, _ proto.Message) (proto.Message, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// world is a CA, and the identity of the client under test.
type world struct {
	ca   *clienttest.CA
	cert tls.Certificate
}

func newWorld(t *testing.T) *world {
	ca := clienttest.NewCA(t)
	return &world{ca: ca, cert: ca.Issue(t, nil, userURI)}
}

func (w *world) node(t *testing.T, name string, reply answer) *node {
	return startNode(t, w.ca.ServerTLS(w.ca.Node(t, name)), reply)
}

// client makes a client of the addresses, which edit may change.
func (w *world) client(t *testing.T, edit func(*client.Config), addresses ...string) *client.Client {
	t.Helper()
	config := client.Config{
		Addresses:   addresses,
		TrustDomain: clienttest.TrustDomain,
		TLS:         &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: w.ca.Pool(), Certificates: []tls.Certificate{w.cert}},
	}
	if edit != nil {
		edit(&config)
	}
	c, err := client.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

// patient is a context with far more time than any call needs.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// deadAddress is one where nothing listens.
func deadAddress(t *testing.T) string {
	l := listen(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

func listen(t *testing.T) net.Listener {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func encrypt(ctx context.Context, c *client.Client) error {
	_, err := c.Encrypt(ctx, "k1", []byte("text"), nil)
	return err
}

func createKey(ctx context.Context, c *client.Client) error {
	_, err := c.Keys().CreateKey(ctx, &quorumkmsv1.CreateKeyRequest{})
	return err
}

// calls are a call without effect and a mutation.
var calls = map[string]func(context.Context, *client.Client) error{"encrypt": encrypt, "create key": createKey}

func requestID(m proto.Message) string {
	if r, ok := m.(interface{ GetRequestId() string }); ok {
		return r.GetRequestId()
	}
	return ""
}
