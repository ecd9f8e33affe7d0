package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/node/kms/gate"
	peerpb "github.com/quorumkms/quorumkms/rpc/peerv1"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

// Limits of the servers.
const (
	// MaxMessage is the largest message, in bytes.
	MaxMessage = 1 << 20
	// maxAnswer is the largest answer, in bytes: that to a batch is larger than the request.
	maxAnswer = 2 * MaxMessage
	// MaxStreams is how many calls one connection may have under way.
	MaxStreams = 1024
	// streamWorkers serve calls one after another on stacks that have grown already; when all are
	// busy, a call gets a goroutine of its own.
	streamWorkers = 128
	// maxHeader is the largest set of request headers, in bytes.
	maxHeader = 16 << 10
	// handshakeTimeout bounds the HTTP/2 preface; the TLS handshake is bounded
	// where the connection is accepted.
	handshakeTimeout = 5 * time.Second
	// callTimeout is the deadline of a call that brings none.
	callTimeout = 30 * time.Second
	// maxCallTimeout is the longest a call may take, whatever its deadline.
	maxCallTimeout = 2 * time.Minute
	keepaliveAt    = 30 * time.Second
	idleAtMost     = 10 * time.Minute
	minPing        = 5 * time.Second
)

// Config is what the servers need.
type Config struct {
	KMS     *kms.Service
	Member  *cluster.Member
	Archive *archive.Archive
	// RestoreDir is a directory of the node's own for files that are being restored.
	RestoreDir string
	Node       NodeView
	Audit      *audit.Log
	Log        *slog.Logger
	// Credentials are the node's own certificate and CA.
	Credentials *transport.Credentials
	// Announce is told the transfer key that waits for the Security Officer.
	Announce func(spki []byte) error
	// Clients and Peers, optional, are called around every call of theirs, and see how it
	// ends.
	Clients, Peers Around
}

// Around is what is called around calls, the first outermost.
type Around struct {
	Unary  []grpc.UnaryServerInterceptor
	Stream []grpc.StreamServerInterceptor
}

// Server is the node's two gRPC servers: for clients and for peers.
type Server struct {
	clients *grpc.Server
	peers   *grpc.Server
	health  *health.Server
	config  Config

	draining     context.Context //nolint:containedctx // ends when the node begins to stop
	beginToDrain context.CancelFunc

	anonymous pacer
}

// NewServer makes the servers; Serve starts them.
func NewServer(c Config) *Server {
	s := &Server{config: c, health: health.NewServer()}
	s.draining, s.beginToDrain = context.WithCancel(context.Background())
	around := slices.Concat(c.Clients.Unary, []grpc.UnaryServerInterceptor{s.errors, s.authenticate})
	s.clients = grpc.NewServer(slices.Concat(options(), []grpc.ServerOption{
		grpc.NumStreamWorkers(streamWorkers), grpc.ChainUnaryInterceptor(around...),
		grpc.ChainStreamInterceptor(slices.Concat(c.Clients.Stream, []grpc.StreamServerInterceptor{s.streamErrors, s.authenticateStream})...),
	})...)
	clients := handingOver{s.clients, chain(around)}
	pb.RegisterKeyServiceServer(clients, &keyServer{kms: c.KMS})
	pb.RegisterGrantServiceServer(clients, &grantServer{kms: c.KMS})
	pb.RegisterPolicyServiceServer(clients, &policyServer{kms: c.KMS})
	pb.RegisterTenantServiceServer(clients, &tenantServer{kms: c.KMS})
	pb.RegisterRecoveryServiceServer(clients, &recoveryServer{kms: c.KMS, member: c.Member, node: c.Node})
	pb.RegisterCryptoServiceServer(clients, &cryptoServer{
		kms: c.KMS, log: c.Log,
		watchers: newSeats("watches for restrictions", maxWatchers, maxWatchersEach),
	})
	pb.RegisterClusterServiceServer(clients, &clusterServer{kms: c.KMS, member: c.Member, archive: c.Archive, node: c.Node})
	pb.RegisterHsmServiceServer(clients, &hsmServer{kms: c.KMS, member: c.Member, node: c.Node})
	pb.RegisterBackupServiceServer(clients, &backupServer{kms: c.KMS, member: c.Member, archive: c.Archive, node: c.Node, restoreDir: c.RestoreDir})
	pb.RegisterAuditServiceServer(clients, &auditServer{
		kms: c.KMS, member: c.Member, trail: c.Audit,
		readers: newSeats("searches and copies of this node's audit trail", maxReaders, maxReadersEach),
	})
	healthpb.RegisterHealthServer(clients, s.health)
	reflection.Register(s.clients)
	s.peers = grpc.NewServer(slices.Concat(options(), []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(append(slices.Clip(c.Peers.Unary), s.errors)...),
		grpc.ChainStreamInterceptor(append(slices.Clip(c.Peers.Stream), s.streamErrors)...),
	})...)
	peerpb.RegisterPeerServiceServer(s.peers, &peerServer{member: c.Member, kms: c.KMS, announce: c.Announce, own: c.Credentials})
	return s
}

func options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(acceptedTLS{}),
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(maxAnswer),
		grpc.MaxConcurrentStreams(MaxStreams), grpc.MaxHeaderListSize(maxHeader), grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveAt, Timeout: keepaliveAt, MaxConnectionIdle: idleAtMost}),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
	}
}

// ServeClients answers clients until Stop.
func (s *Server) ServeClients(l net.Listener) error { return ended(s.clients.Serve(l)) }

// ServePeers answers other nodes until Stop.
func (s *Server) ServePeers(l net.Listener) error { return ended(s.peers.Serve(l)) }

func ended(err error) error {
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// The names of the health checks: "" is alive, the others may be not serving.
const (
	HealthCrypto = "crypto" // this node answers cryptographic calls
	HealthWrite  = "write"  // this node can bring changes into the log
)

// SetHealth publishes a health check.
func (s *Server) SetHealth(name string, ok bool) {
	v := healthpb.HealthCheckResponse_NOT_SERVING
	if ok {
		v = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus(name, v)
}

// Drain takes no more calls from clients and returns when those under way are
// finished, at the latest when ctx ends. Clients are told to go elsewhere: HTTP/2's
// GOAWAY, which loses no call, and the health checks.
func (s *Server) Drain(ctx context.Context) {
	s.health.Shutdown()
	s.beginToDrain()
	done := make(chan struct{})
	go func() {
		s.clients.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.clients.Stop()
		<-done
	}
}

// Stop ends both servers at once. Other nodes repeat what they had asked of this one.
func (s *Server) Stop() {
	s.beginToDrain()
	s.clients.Stop()
	s.peers.Stop()
}

// errors translates every error of a call by the one table.
func (s *Server) errors(ctx context.Context, r any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (answer any, err error) {
	defer s.ending(info.FullMethod, &err)
	limit := maxCallTimeout
	deadline, ok := ctx.Deadline()
	if !ok {
		limit = callTimeout
	}
	if !ok || time.Until(deadline) > limit {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	if answer, err = next(ctx, r); err == nil {
		err = gate.Recheck(ctx)
	}
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// streamErrors is errors for streams.
func (s *Server) streamErrors(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer s.ending(info.FullMethod, &err)
	return next(server, stream)
}

// ending is deferred by every call: it turns a panic into an error and an error into
// a status. What callers are not told goes to the log.
func (s *Server) ending(method string, err *error) {
	if p := recover(); p != nil {
		s.config.Log.Error("a call panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error; the node's log says more")
	}
	if *err == nil {
		return
	}
	if _, direct := (*err).(interface{ GRPCStatus() *status.Status }); direct { // what is wrapped has another meaning here
		return
	}
	translated := toStatus(*err, s.config.Member.OtherClients)
	if status.Code(translated) == codes.Internal {
		s.config.Log.Error("a call failed for a reason that callers are not told", "method", method, "error", *err)
	}
	*err = translated
}

// authenticate finds out who calls, once for every call; a call without an
// identity goes no further, whatever it is.
func (s *Server) authenticate(ctx context.Context, r any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := s.identify(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, r)
}

// authenticateStream is authenticate for streams: backups, audit trails, watches for restrictions, health watches and
// reflection. A node that stops ends them.
func (s *Server) authenticateStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := s.identify(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.draining, cancel)() // who watches the health would hold up the end
	err := next(server, watched{stream, ctx})
	if err != nil && s.draining.Err() != nil && stream.Context().Err() == nil {
		return fmt.Errorf("%w: %w", cluster.ErrShutdown, err)
	}
	return err
}

// watched is a stream with a context of its own.
type watched struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // the stream's
}

// Context implements grpc.ServerStream.
func (w watched) Context() context.Context { return w.ctx }

// identify refuses calls of nobody; they are recorded, a second's worth of them together.
func (s *Server) identify(ctx context.Context, method string) error {
	_, err := callerOf(ctx)
	if err == nil {
		return nil
	}
	unrecorded, due := s.anonymous.due(time.Now())
	if !due {
		return err
	}
	if unrecorded > 0 {
		err = fmt.Errorf("%w (and %d calls like it before)", err, unrecorded)
	}
	name := method[strings.LastIndexByte(method, '/')+1:]
	return s.config.KMS.Refuse(name, kms.Call{Caller: kms.Caller{Principal: "anonymous", Source: sourceOf(ctx)}}, err)
}

// anonymousEvery bounds what callers without a certificate can put into the audit
// trail.
const anonymousEvery = time.Second

// pacer lets one event through each anonymousEvery and counts the others.
type pacer struct {
	mu     sync.Mutex
	last   time.Time
	missed int
}

func (p *pacer) due(now time.Time) (missed int, due bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.last) < anonymousEvery {
		p.missed++
		return 0, false
	}
	missed, p.last, p.missed = p.missed, now, 0
	return missed, true
}
