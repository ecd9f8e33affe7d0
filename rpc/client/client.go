// Package client is the SDK of QuorumKMS: what a storage node or a tool needs to
// use a cluster. It is pure Go and imports nothing of the servers.
//
//	kms, err := client.New(client.Config{
//		Addresses:   []string{"kms1.example.org:7300", "kms2.example.org:7300", "kms3.example.org:7300"},
//		Files:       client.Files{Cert: "node.pem", Key: "node.key", CA: "ca.pem"},
//		TrustDomain: "kms.example.org",
//	})
//	…
//	defer kms.Close()
//	key, blob, err := kms.GenerateDataKey(ctx, "alias/volumes", map[string]string{"volume": "v-17"})
//
// A Client is also what package envelope needs to seal objects.
//
// # Failover
//
// Every node answers every call. A call goes to the node in use and, where a
// repetition cannot do harm, to the next one after a failure, again and again until
// the deadline of the call's context: with a jittered, growing pause after each round
// over all nodes, and with a limit for each attempt, so that a node that accepts a
// call and never answers does not use up the whole time.
//
// A node that failed is tried last until it has answered again; its connection is made
// anew meanwhile. While calls are made, the client asks a node now and then, and after
// each failure, which members the cluster has: a running client goes on when all the
// nodes it was configured with have been replaced. It returns to an earlier node of its
// order when that one is healthy again.
//
// A call without effect (cryptography, reading) may always be repeated. A mutation
// carries a request id, by which the cluster knows it again; every attempt carries
// the same one. Set it in the request to be able to repeat the call by yourself;
// otherwise the client makes one for each call. What is repeated: Unavailable,
// broken connections, an attempt that got no answer in time, a node that belongs to no
// cluster while there are others, and, a few times, BUSY and RATE_LIMITED: the latter at
// the same node, after the pause that it named, if the call has that much time left.
// Every other answer is final. Init is never taken to another node: it would make a
// second cluster there.
//
// # Order of reads and writes
//
// An answer carries an index token, the client remembers the newest one it received
// and sends it with the next call, so that a node that has not seen an earlier
// change yet does not answer from before it.
//
// # Near nodes and late answers
//
// The first node in the order of Addresses that is well is used for all calls: give the nearest
// first. With Config.Nearest the client finds that out by itself, by measuring; the cluster
// knows no zones. With Config.Hedge a call without effect that is late is sent to a second node,
// too. [Config.Called] is told of every call, for metrics; without it that costs nothing.
//
// # Data keys that are kept
//
// A [KeyCache] keeps data keys that were decrypted, or that seal many messages; a [DataKeyPool]
// has new ones before they are needed. Both are of use where calls are too many or must not
// wait, and both weaken what the cluster promises: with them a restriction holds in this process
// at most [StaleAfter] after it has returned, and not at once. Read their documentation first.
// Nothing is kept unless one of them is made.
//
// # Secrets
//
// Plaintexts belong to the caller, who overwrites them after use. Copies in the
// buffers of gRPC and TLS stay until the memory is used again.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// The defaults of Config.
const (
	DefaultTimeout = 3 * time.Second
	// DefaultMutationTimeout covers the longest wait of a restriction, such as
	// DisableKey, for the lease of a node that cannot be reached.
	DefaultMutationTimeout = 10 * time.Second
	// DefaultRefresh keeps the calls that ask for members few.
	DefaultRefresh = 30 * time.Second
)

const (
	// MaxAddresses is the number of nodes one client is configured with at most. It
	// learns as many others at most.
	MaxAddresses = 16
	// maxAddress is the longest address in bytes: a DNS name and a port.
	maxAddress = 253 + 1 + 5
	// deadlineFactor times the timeout of an attempt is the default of Deadline.
	deadlineFactor = 3
)

// Config says how to reach a cluster. Addresses, TrustDomain, and either Files or
// TLS are required.
type Config struct {
	// Addresses of nodes, "host:port", in order of preference; at most
	// MaxAddresses. To spread the load, give each client an order of its own.
	Addresses []string

	// TrustDomain is the cluster's SPIFFE trust domain, such as kms.example.org.
	TrustDomain string

	// Files are the client's PEM files. They are read again when they change, and the
	// connections are made anew with what they hold then, without loss of a call. CA
	// may hold several certificates, while one is being replaced.
	Files Files

	// TLS is used if Files is empty. It must have RootCAs, and Certificates or
	// GetClientCertificate. What else decides who the server is gets replaced:
	// TLS 1.3, and the check that New describes.
	TLS *tls.Config

	// Timeout limits one attempt of a call without effect, MutationTimeout one of
	// a mutation or of what makes a pair. Zero means the default.
	Timeout         time.Duration
	MutationTimeout time.Duration

	// Deadline limits a call in all whose context has no deadline. Zero means
	// three times the limit of its attempts.
	Deadline time.Duration

	// Refresh is how often, while calls are made, the client asks which members the
	// cluster has and whether it can return to an earlier node. Zero means the default.
	Refresh time.Duration

	// Tenant is the acting tenant of requests that name none: for callers that belong
	// to no tenant, and for those that use another tenant's keys by grants. A ciphertext
	// names its key without the tenant, so that opening it wants this too.
	Tenant string

	// Consistency is how nodes make sure that the state they answer from is fresh:
	// ConsistencyLease (the default) or ConsistencyQuorum. WithConsistency sets it for
	// one call.
	Consistency Consistency

	// Fixed restricts the client to Addresses. Without it, other members that a node
	// names are tried too, after the others.
	Fixed bool

	// Nearest has the client prefer the node that answers it soonest, by the smoothed round
	// trip of health checks, to the first in the order of Addresses. It looks with its first
	// call and then every Refresh, and leaves a node that answers for one that is nearer by a
	// quarter at least.
	Nearest bool

	// Hedge has a call that is late sent to a second node, too, and the first answer counts:
	// one that is cryptography or reads keys' metadata, never a mutation, and has not been
	// answered after the 99th percentile of its method's latest calls, 5 ms at least. At most
	// about 5 % of the calls are sent twice; both nodes record and count such a call.
	Hedge bool

	// Called, if set, is told of each call that has ended, streams excepted. Retrying, if set,
	// is told of each failed attempt after which the call goes
	// on. They must not block and are called from the goroutines of the calls. What caches and
	// pools do their Stats tell.
	Called   func(Called)
	Retrying func(address string, err error)
}

// Called is what Config.Called is told of a call.
type Called struct {
	Method   string // "/quorumkms.v1.CryptoService/Decrypt"
	Address  string // of the node that answered, or was tried last; empty if none was
	Duration time.Duration
	Attempts int   // at nodes; more than one: it was repeated, or sent to two
	Hedged   bool  // it was late and sent to a second node, too
	HedgeWon bool  // whose answer it is
	Err      error // nil: it was answered well
}

func (c Config) check() error {
	switch {
	case len(c.Addresses) == 0:
		return errors.New("client: no address of a node")
	case len(c.Addresses) > MaxAddresses:
		return fmt.Errorf("client: %d addresses, at most %d", len(c.Addresses), MaxAddresses)
	case c.Consistency != "" && c.Consistency != ConsistencyLease && c.Consistency != ConsistencyQuorum:
		return fmt.Errorf("client: consistency %q: want %s or %s", c.Consistency, ConsistencyLease, ConsistencyQuorum)
	case c.Timeout < 0 || c.MutationTimeout < 0 || c.Deadline < 0 || c.Refresh < 0:
		return errors.New("client: negative time")
	}
	for i, a := range c.Addresses {
		if err := checkAddress(a); err != nil {
			return err
		}
		if slices.Contains(c.Addresses[:i], a) {
			return fmt.Errorf("client: address %s twice", a)
		}
	}
	return nil
}

func checkAddress(address string) error {
	if len(address) > maxAddress {
		return fmt.Errorf("client: address of %d bytes, at most %d", len(address), maxAddress)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("client: address %q: want host:port", address)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if host == "" || err != nil || number == 0 {
		return fmt.Errorf("client: address %q: want host:port with a port of 1 to 65535", address)
	}
	return nil
}

// Client is a connection to a cluster. It is safe for concurrent use, and one is
// enough for a process. Close it after use.
type Client struct {
	config Config
	tls    *tls.Config
	files  *reloader // of tls; nil if it comes from no files

	ctx    context.Context //nolint:containedctx // the client's own life
	cancel context.CancelFunc
	wait   sync.WaitGroup // of what runs beside the calls

	hedges hedges

	mu        sync.Mutex
	endpoints []*endpoint // the configured ones first, then those learned
	inUse     *endpoint   // nil until a node has answered
	refreshed time.Time   // when the client last began to look at the nodes
	looking   bool        // does so now
	doubt     bool        // a node has failed since
	token     []byte      // the newest index token received
	watch     *watcher    // for restrictions; nil while nobody keeps data keys
	closed    bool
}

// New checks the configuration and reads the files. It connects to nothing: each
// connection is made when it is first needed, and shared by all calls.
//
// A server is accepted only if its certificate chains to the CA for server
// authentication and its only URI SAN is the SPIFFE ID of a node of the trust
// domain, spiffe://<trust domain>/node/<id>. DNS names and addresses say nothing
// about identity here and are not looked at: crypto/tls can verify only those, so
// its verification is switched off (InsecureSkipVerify) and VerifyConnection does
// all of it. A certificate of another class, such as another client's, cannot
// pose as a server.
func New(config Config) (*Client, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	if config.Timeout == 0 {
		config.Timeout = DefaultTimeout
	}
	if config.MutationTimeout == 0 {
		config.MutationTimeout = DefaultMutationTimeout
	}
	if config.Refresh == 0 {
		config.Refresh = DefaultRefresh
	}
	config.Addresses = slices.Clone(config.Addresses)
	tlsConfig, files, err := config.clientTLS()
	if err != nil {
		return nil, err
	}
	c := &Client{config: config, tls: tlsConfig, files: files, refreshed: time.Now()}
	if config.Nearest {
		c.refreshed = time.Time{} // with the first call
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for _, a := range config.Addresses {
		e, err := newEndpoint(a, c.tls, c.files)
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		e.configured = true
		c.endpoints = append(c.endpoints, e)
	}
	return c, nil
}

// Keys returns the calls on the life of keys. Their errors, as those of the other
// services, are what this package describes.
func (c *Client) Keys() quorumkmsv1.KeyServiceClient { return quorumkmsv1.NewKeyServiceClient(c) }

// Crypto returns the calls that use keys.
func (c *Client) Crypto() quorumkmsv1.CryptoServiceClient {
	return quorumkmsv1.NewCryptoServiceClient(c)
}

// Cluster returns the calls on the cluster itself.
func (c *Client) Cluster() quorumkmsv1.ClusterServiceClient {
	return quorumkmsv1.NewClusterServiceClient(c)
}

// Hsm returns the calls on the HSM partition of the node that answers.
func (c *Client) Hsm() quorumkmsv1.HsmServiceClient { return quorumkmsv1.NewHsmServiceClient(c) }

// Grants returns the calls that let one principal use one key.
func (c *Client) Grants() quorumkmsv1.GrantServiceClient { return quorumkmsv1.NewGrantServiceClient(c) }

// Policies returns the calls on who may use and administer keys.
func (c *Client) Policies() quorumkmsv1.PolicyServiceClient {
	return quorumkmsv1.NewPolicyServiceClient(c)
}

// Tenants returns the calls on tenants and on principals that may do nothing.
func (c *Client) Tenants() quorumkmsv1.TenantServiceClient {
	return quorumkmsv1.NewTenantServiceClient(c)
}

// Recovery returns the calls on who can recover the domain key.
func (c *Client) Recovery() quorumkmsv1.RecoveryServiceClient {
	return quorumkmsv1.NewRecoveryServiceClient(c)
}

// Close ends all connections. Calls under way fail, as later ones do, with
// ErrClosed. Closing again does nothing.
func (c *Client) Close() error {
	err := c.shut()
	c.wait.Wait()
	return err
}

func (c *Client) shut() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.cancel()
	var errs []error
	for _, e := range c.endpoints {
		errs = append(errs, e.close())
	}
	return errors.Join(errs...)
}

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// NewStream implements grpc.ClientConnInterface. The streams of the protocol are
// CreateBackup, VerifyBackup, RestoreBackup, ReadTrail and SearchRecords, and that of a KeyCache.
func (c *Client) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("client: streaming calls are CreateBackup, VerifyBackup, RestoreBackup, ReadTrail and SearchRecords")
}
