package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/client/clienttest"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// failures are key names that the fake answers with an error, and how.
const failures = "alias/fail/"

// limitedKey is refused twice, for a little time.
const limitedKey = "alias/limited"

var fakeEpoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fake is a cluster in memory with the members n1, which leads, n2, and n3, which
// cannot be reached. What is no concern of a client's it does not do.
type fake struct {
	quorumkmsv1.UnimplementedKeyServiceServer
	quorumkmsv1.UnimplementedCryptoServiceServer
	quorumkmsv1.UnimplementedGrantServiceServer
	quorumkmsv1.UnimplementedPolicyServiceServer
	quorumkmsv1.UnimplementedTenantServiceServer
	addresses []string // of n1, n2 and n3

	mu       sync.Mutex
	cluster  string
	release  uint32
	removed  map[string]bool
	keys     []*fakeKey
	aliases  map[string]string // to key ids
	answered map[string]proto.Message
	lost     bool   // a majority, for good: from the leadership's transfer to "nobody" on
	epoch    uint32 // of the last recovery
	limited  int    // calls of limitedKey that were refused
	grants   []*quorumkmsv1.Grant
	policies map[string][]*quorumkmsv1.Policy // by key, or "" for the tenant's; the oldest first
	tenants  []*quorumkmsv1.Tenant
	disabled []*quorumkmsv1.DisabledPrincipal
	domain   fakeDomain
	recovery fakeRecovery
}

type fakeKey struct {
	meta     *quorumkmsv1.KeyMetadata
	tags     map[string]string
	versions []cipher.AEAD
	states   []*quorumkmsv1.KeyVersion
	period   *durationpb.Duration
	bound    []*quorumkmsv1.Resource
}

// fakeNode is one member's face.
type fakeNode struct {
	quorumkmsv1.UnimplementedClusterServiceServer
	f    *fake
	name string
}

// newFake starts the cluster.
func newFake(t *testing.T, ca *clienttest.CA) *fake {
	f := &fake{release: 1, removed: map[string]bool{}, aliases: map[string]string{}, answered: map[string]proto.Message{}, policies: map[string][]*quorumkmsv1.Policy{}}
	f.tenants = []*quorumkmsv1.Tenant{{Name: "default", Administrator: adminURI, CreationDate: timestamppb.New(fakeEpoch), KeyCount: 3}}
	var trails []*fakeAudit
	for i, name := range []string{"n1", "n2"} {
		trail := newFakeAudit(name, time.Duration(i)*time.Second, &trails)
		f.addresses = append(f.addresses, clienttest.Serve(t, ca.ServerTLS(ca.Node(t, name)), func(s *grpc.Server) {
			quorumkmsv1.RegisterKeyServiceServer(s, f)
			quorumkmsv1.RegisterCryptoServiceServer(s, f)
			quorumkmsv1.RegisterGrantServiceServer(s, f)
			quorumkmsv1.RegisterPolicyServiceServer(s, f)
			quorumkmsv1.RegisterTenantServiceServer(s, f)
			quorumkmsv1.RegisterRecoveryServiceServer(s, &f.recovery)
			quorumkmsv1.RegisterClusterServiceServer(s, &fakeNode{f: f, name: name})
			quorumkmsv1.RegisterHsmServiceServer(s, &fakeHSM{name: name})
			quorumkmsv1.RegisterAuditServiceServer(s, trail)
			quorumkmsv1.RegisterBackupServiceServer(s, &fakeBackups{name: name, golden: readGolden()})
		}, grpc.UnaryInterceptor(f.intercept)))
	}
	f.addresses = append(f.addresses, "127.0.0.1:1")
	return f
}

// intercept does what all calls have in common.
func (f *fake) intercept(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r, ok := request.(interface{ GetKeyId() string }); ok {
		if name, ok := strings.CutPrefix(r.GetKeyId(), failures); ok {
			return nil, fakeFailure(name)
		}
		if r.GetKeyId() == limitedKey && f.limited < 2 {
			f.limited++
			return nil, rateLimited("20")
		}
	}
	if tenantOf(ctx, request) == "" {
		return nil, fakeError(codes.PermissionDenied, quorumkmsv1.Reason_REASON_DENIED, "name a tenant")
	}
	id := ""
	if r, ok := request.(interface{ GetRequestId() string }); ok {
		id = r.GetRequestId()
	}
	if known := f.answered[id]; id != "" && known != nil {
		return known, nil
	}
	dry, ok := request.(interface{ GetDryRun() bool })
	if x, ok := request.(*quorumkmsv1.ApplyRewrapsRequest); ok && x.GetDryRun() { // which answers what would become of each item
		return handler(ctx, request)
	}
	if ok && dry.GetDryRun() {
		if r, ok := request.(*quorumkmsv1.ScheduleKeyVersionDestructionRequest); ok && f.isCurrent(r) {
			return nil, currentVersion()
		}
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_DRY_RUN, "dry run")
	}
	response, err := handler(ctx, request)
	m, ok := response.(proto.Message)
	if !ok || err != nil {
		return nil, err
	}
	m = proto.Clone(m) // it is sent while the next call changes what it came from
	if id != "" {
		f.answered[id] = m
	}
	return m, nil
}

// tenantOf is the caller's tenant, or the one in the request.
func tenantOf(ctx context.Context, request any) string {
	if r, ok := request.(interface{ GetTenant() string }); ok && r.GetTenant() != "" {
		return r.GetTenant()
	}
	p, _ := peer.FromContext(ctx)
	path := strings.Split(p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].URIs[0].Path, "/")
	switch path[1] {
	case "tenant":
		return path[2]
	case "operator":
		return "none needed"
	default:
		return ""
	}
}

func fakeError(code codes.Code, reason quorumkmsv1.Reason, text string) error {
	s, err := status.New(code, text).WithDetails(&errdetails.ErrorInfo{
		Domain: "quorumkms", Reason: strings.TrimPrefix(reason.String(), "REASON_"),
	})
	if err != nil {
		panic(err)
	}
	return s.Err()
}

// fakeFailure is the error of a reason named like "no-lease".
func fakeFailure(name string) error {
	reason := quorumkmsv1.Reason(quorumkmsv1.Reason_value["REASON_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))])
	code := codes.FailedPrecondition
	switch {
	case reason == quorumkmsv1.Reason_REASON_RATE_LIMITED:
		return rateLimited("3000000")
	case reason == quorumkmsv1.Reason_REASON_PRINCIPAL_DISABLED:
		code = codes.PermissionDenied
	case reason == quorumkmsv1.Reason_REASON_POLICY_INVALID:
		code = codes.InvalidArgument
	case reason >= quorumkmsv1.Reason_REASON_NO_LEADER:
		code = codes.Unavailable
	case reason >= quorumkmsv1.Reason_REASON_LIMIT:
		code = codes.ResourceExhausted
	}
	return fakeError(code, reason, "as the test asked")
}

func rateLimited(ms string) error {
	s, err := status.New(codes.ResourceExhausted, "too many calls").WithDetails(&errdetails.ErrorInfo{
		Domain: "quorumkms", Reason: "RATE_LIMITED", Metadata: map[string]string{"retry_after_ms": ms},
	})
	if err != nil {
		panic(err)
	}
	return s.Err()
}

func notFound(name string) error {
	return fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, fmt.Sprintf("key %q not found", name))
}

func (f *fake) find(name string) (*fakeKey, error) {
	if id, ok := f.aliases[name]; ok {
		name = id
	}
	for _, k := range f.keys {
		if k.meta.GetKeyId() == name || k.meta.GetArn() == name {
			return k, nil
		}
	}
	return nil, notFound(name)
}

// change finds a key and lets edit change it, if it has the expected revision.
func (f *fake) change(name string, revision uint64, edit func(k *fakeKey) error) (*fakeKey, error) {
	k, err := f.find(name)
	if err != nil {
		return nil, err
	}
	if revision != 0 && revision != k.meta.GetRevision() {
		return nil, fakeError(codes.Aborted, quorumkmsv1.Reason_REASON_CONFLICT, "the key has another revision")
	}
	if err := edit(k); err != nil {
		return nil, err
	}
	k.meta.Revision++
	return k, nil
}

func (k *fakeKey) newVersion() error {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCMWithNonceSize(block, 24)
	if err != nil {
		return err
	}
	k.versions = append(k.versions, aead)
	k.meta.CurrentVersion++
	cause := quorumkmsv1.RotationCause_ROTATION_CAUSE_ON_DEMAND
	if k.meta.GetCurrentVersion() == 1 {
		cause = quorumkmsv1.RotationCause_ROTATION_CAUSE_CREATED
	}
	k.states = append(k.states, &quorumkmsv1.KeyVersion{
		Version: k.meta.GetCurrentVersion(), State: quorumkmsv1.KeyVersionState_KEY_VERSION_STATE_ENABLED,
		Cause: cause, CreationDate: timestamppb.New(fakeEpoch),
	})
	return nil
}

// described is the key as clients see it.
func (f *fake) described(k *fakeKey) *quorumkmsv1.KeyMetadata {
	m := proto.CloneOf(k.meta)
	m.ResourceCount = uint64(len(k.bound))
	if p := f.policies[m.GetKeyId()]; p != nil {
		m.PolicyRevision = p[len(p)-1].GetRevision()
	}
	for _, t := range f.tenants {
		if t.GetName() == m.GetTenant() && t.GetFrozenByTenant() {
			m.TenantFrozen = "by its administrator"
		}
	}
	for _, alias := range slices.Sorted(maps.Keys(f.aliases)) {
		if f.aliases[alias] == m.GetKeyId() {
			m.Aliases = append(m.Aliases, alias)
		}
	}
	return m
}

func (f *fake) usable(name string) (*fakeKey, error) {
	k, err := f.find(name)
	switch {
	case err != nil:
		return nil, err
	case k.meta.GetState() == quorumkmsv1.KeyState_KEY_STATE_DISABLED:
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_DISABLED, "key is disabled")
	case k.meta.GetState() == quorumkmsv1.KeyState_KEY_STATE_PENDING_DELETION:
		k.meta.RefusedUse = timestamppb.New(fakeEpoch)
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_PENDING_DELETION, "key is pending deletion")
	}
	return k, nil
}

// seal makes a blob of the public format; its commitment is a constant.
func (f *fake) seal(name string, plaintext []byte, ec []*quorumkmsv1.ContextPair) ([]byte, *fakeKey, error) {
	k, err := f.usable(name)
	if err != nil {
		return nil, nil, err
	}
	if k.meta.GetState() == quorumkmsv1.KeyState_KEY_STATE_DECRYPT_ONLY {
		return nil, nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_DECRYPT_ONLY, "key only decrypts")
	}
	k.meta.LastUsed = timestamppb.New(fakeEpoch)
	id := uuid.MustParse(k.meta.GetKeyId())
	blob := append([]byte(blobMagic), 1, 0)
	blob = append(blob, id[:]...)
	blob = binary.BigEndian.AppendUint32(blob, k.meta.GetCurrentVersion())
	nonce := make([]byte, 24)
	if _, err := rand.Read(nonce); err != nil {
		return nil, nil, err
	}
	blob = append(blob, nonce...)
	blob = append(blob, bytes.Repeat([]byte{0xc0}, 32)...)
	return k.versions[len(k.versions)-1].Seal(blob, nonce, plaintext, additional(blob, ec)), k, nil
}

func (f *fake) open(blob []byte, ec []*quorumkmsv1.ContextPair) (plaintext []byte, k *fakeKey, version uint32, err error) {
	id, version, ok := parseBlob(blob)
	if !ok {
		return nil, nil, 0, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_MALFORMED_CIPHERTEXT, "malformed ciphertext")
	}
	if k, err = f.usable(id.String()); err != nil {
		return nil, nil, 0, err
	}
	if version >= 1 && int(version) <= len(k.versions) && k.states[version-1].GetState() != quorumkmsv1.KeyVersionState_KEY_VERSION_STATE_ENABLED {
		return nil, nil, 0, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_KEY_VERSION_DISABLED, "key version is disabled")
	}
	if version >= 1 && int(version) <= len(k.versions) {
		plaintext, err = k.versions[version-1].Open(nil, blob[26:50], blob[82:], additional(blob[:82], ec))
	}
	if err != nil || plaintext == nil {
		return nil, nil, 0, fakeError(codes.InvalidArgument, quorumkmsv1.Reason_REASON_INVALID_CIPHERTEXT, "ciphertext does not verify")
	}
	return plaintext, k, version, nil
}

func additional(header []byte, ec []*quorumkmsv1.ContextPair) []byte {
	sorted := slices.SortedFunc(slices.Values(ec), func(a, b *quorumkmsv1.ContextPair) int {
		return strings.Compare(a.GetKey(), b.GetKey())
	})
	b := bytes.Clone(header)
	for _, p := range sorted {
		b = fmt.Appendf(b, "%q=%q,", p.GetKey(), p.GetValue())
	}
	return b
}

func (n *fakeNode) Status(context.Context, *quorumkmsv1.StatusRequest) (*quorumkmsv1.StatusResponse, error) {
	hsm := &quorumkmsv1.HsmStatus{
		Kind: "pkcs11", Manufacturer: "SoftHSM project", Label: "kms " + n.name, Healthy: n.name == "n1",
		LoadedKeys: 2, Calls: 10, Messages: 70,
		Probes: []*quorumkmsv1.HsmProbe{
			{Name: "fine", Passed: true},
			{Name: "oaep-sha256", Accepted: true, Detail: "the token has SHA-1 only"},
			{Name: "wrap-with-trusted", Detail: "ignored"},
		},
	}
	if n.name != "n1" {
		hsm.Problem = "token\x1b[31m lost"
	}
	r := &quorumkmsv1.StatusResponse{
		ClusterId: n.f.cluster, TrustDomain: clienttest.TrustDomain, RaftId: "raft-" + n.name, NodeName: n.name,
		Version: "v1.2.3", Hsm: hsm,
	}
	if n.f.cluster == "" {
		return r, nil
	}
	r.LeaderId, r.Term, r.Release, r.DomainGeneration, r.KeyCount = "raft-n1", 7, n.f.release, 1, uint64(len(n.f.keys))
	if r.KnownRelease = 2; n.name == "n2" {
		r.KnownRelease, r.Version = 0, "v0.1.0"
	}
	if r.Backup = (&quorumkmsv1.BackupStatus{}); n.name == "n1" {
		r.Backup = &quorumkmsv1.BackupStatus{
			Directory: "/mnt/backups", LastBackup: timestamppb.New(fakeEpoch), LastIndex: 110, BackupProblem: "no space left",
			JournalIndex: 119, JournalTime: timestamppb.New(fakeEpoch),
		}
	}
	r.LastLogIndex, r.AppliedIndex, r.RunningHash = 120, 120, bytes.Repeat([]byte{0xab}, 32)
	r.Created, r.CertificateExpiry = timestamppb.New(fakeEpoch), timestamppb.New(time.Now().Add(100*time.Hour))
	r.Certificate = &quorumkmsv1.Certificate{Warning: "the certificate of x expires in 4 days"}
	r.CaCertificates = []*quorumkmsv1.Certificate{{KeyHash: "0123456789abcdef"}, {KeyHash: "ba9876543210"}}
	r.Serving, r.LeaseLeft = n.name == "n1", durationpb.New(4200*time.Millisecond)
	if !r.GetServing() {
		r.NotServingReason, r.AppliedIndex, r.LastLogIndex = "HSM unavailable", 90, 90
	}
	for i, name := range []string{"n1", "n2", "n3"} {
		if n.f.removed[name] {
			continue
		}
		r.Members = append(r.Members, &quorumkmsv1.Member{
			RaftId: "raft-" + name, Name: name, ClientAddress: n.f.addresses[i], Voter: i < 2, Leader: i == 0,
			State: quorumkmsv1.MemberState_MEMBER_STATE_ACTIVE, Reachable: i < 2, AppliedIndex: 100,
		})
	}
	return r, nil
}

func (n *fakeNode) Init(_ context.Context, r *quorumkmsv1.InitRequest) (*quorumkmsv1.InitResponse, error) {
	switch {
	case n.f.cluster != "":
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_ALREADY_INITIALIZED, "already initialized")
	case !r.GetNoRecovery() && len(r.GetRecoveryKeys()) == 0:
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_UNSUPPORTED, "no recovery partition: say --no-recovery")
	}
	n.f.cluster = "c1"
	return &quorumkmsv1.InitResponse{ClusterId: "c1", RaftId: "raft-" + n.name}, nil
}

func (n *fakeNode) Invite(_ context.Context, r *quorumkmsv1.InviteRequest) (*quorumkmsv1.InviteResponse, error) {
	return &quorumkmsv1.InviteResponse{
		JoinToken: fmt.Sprintf("TOKEN-%s-%s-%t", r.GetNodeName(), r.GetValidFor().AsDuration(), r.GetNonVoter()),
		TicketId:  "ticket-1", Expires: timestamppb.New(time.Now().Add(r.GetValidFor().AsDuration())),
		PeerAddresses: []string{"10.0.0.1:7444", "10.0.0.2:7444"}, NeedsApproval: r.GetIdentity() == "" && r.GetNodeName() != "old",
	}, nil
}

func (n *fakeNode) ListJoins(context.Context, *quorumkmsv1.ListJoinsRequest) (*quorumkmsv1.ListJoinsResponse, error) {
	expires := timestamppb.New(time.Now().Add(10 * time.Minute))
	return &quorumkmsv1.ListJoinsResponse{Joins: []*quorumkmsv1.Join{
		{NodeName: "n5", State: quorumkmsv1.JoinState_JOIN_STATE_INVITED, Expires: expires},
		{NodeName: "n6", State: quorumkmsv1.JoinState_JOIN_STATE_PINNED, Expires: expires},
		{
			NodeName: "n7", State: quorumkmsv1.JoinState_JOIN_STATE_WAITING, Expires: expires, RaftId: "raft-n7",
			PeerAddress: "10.0.0.7:7444\x1b", ClientAddress: "10.0.0.7:7300", Since: timestamppb.New(fakeEpoch),
		},
	}}, nil
}

func (n *fakeNode) ApproveJoin(_ context.Context, r *quorumkmsv1.ApproveJoinRequest) (*quorumkmsv1.ApproveJoinResponse, error) {
	if r.GetIdentity() != "SHA256:77" {
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_IDENTITY_REFUSED, "the node that waits has another identity key")
	}
	return &quorumkmsv1.ApproveJoinResponse{RaftId: "raft-" + r.GetNodeName()}, nil
}

func (n *fakeNode) RejectJoin(_ context.Context, r *quorumkmsv1.RejectJoinRequest) (*quorumkmsv1.RejectJoinResponse, error) {
	if r.GetNodeName() != "n7" {
		return nil, fakeError(codes.NotFound, quorumkmsv1.Reason_REASON_NOT_FOUND, "there is no open invitation")
	}
	return &quorumkmsv1.RejectJoinResponse{}, nil
}

func (n *fakeNode) Remove(_ context.Context, r *quorumkmsv1.RemoveRequest) (*quorumkmsv1.RemoveResponse, error) {
	if !slices.Contains([]string{"n2", "raft-n2", "n3"}, r.GetNode()) {
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_MEMBERSHIP_REFUSED, "no such member to remove")
	}
	n.f.removed[strings.TrimPrefix(r.GetNode(), "raft-")] = true
	return &quorumkmsv1.RemoveResponse{RaftId: "raft-" + strings.TrimPrefix(r.GetNode(), "raft-")}, nil
}

func (n *fakeNode) SetVoter(_ context.Context, r *quorumkmsv1.SetVoterRequest) (*quorumkmsv1.SetVoterResponse, error) {
	if r.GetNode() == "n1" && !r.GetVoter() {
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_MEMBERSHIP_REFUSED, "n1 is the last voter")
	}
	return &quorumkmsv1.SetVoterResponse{RaftId: "raft-" + r.GetNode()}, nil
}

func (n *fakeNode) TransferLeadership(_ context.Context, r *quorumkmsv1.TransferLeadershipRequest) (*quorumkmsv1.TransferLeadershipResponse, error) {
	to := r.GetNode()
	switch to {
	case "":
		to = "n2"
	case "nobody":
		n.f.lost = true
	}
	return &quorumkmsv1.TransferLeadershipResponse{LeaderId: "raft-" + to}, nil
}

func (n *fakeNode) Upgrade(_ context.Context, r *quorumkmsv1.UpgradeRequest) (*quorumkmsv1.UpgradeResponse, error) {
	out := &quorumkmsv1.UpgradeResponse{Release: r.GetRelease(), PreviousRelease: n.f.release}
	n.f.release = r.GetRelease()
	return out, nil
}

// RecoveryPlan shows five members, of which three are dead; n1 is the most advanced.
func (n *fakeNode) RecoveryPlan(context.Context, *quorumkmsv1.RecoveryPlanRequest) (*quorumkmsv1.RecoveryPlanResponse, error) {
	r := &quorumkmsv1.RecoveryPlanResponse{
		ClusterId: n.f.cluster, RecoveryEpoch: n.f.epoch, RaftId: "raft-" + n.name, NodeName: n.name,
		Wait: durationpb.New(7500 * time.Millisecond), KeyCount: 12,
	}
	switch {
	case !n.f.lost:
		r.Refusal = "recovery refused: node n1 knows a leader (raft-n1): the cluster is alive"
	case n.name == "n2":
		r.Refusal = "recovery refused: node n1 has more: recover from n1"
	}
	for i, name := range []string{"n1", "n2", "n3", "n4", "n5"} {
		m := &quorumkmsv1.Survivor{RaftId: "raft-" + name, Name: name, ClientAddress: "127.0.0.1:1", Votes: true}
		if i < 2 {
			m.Answers, m.ClientAddress = true, n.f.addresses[i]
			m.LastLogTerm, m.LastLogIndex, m.AppliedIndex = 7, uint64(120-30*i), uint64(110-30*i)
		}
		r.Members = append(r.Members, m)
	}
	return r, nil
}

func (n *fakeNode) Recover(_ context.Context, r *quorumkmsv1.RecoverRequest) (*quorumkmsv1.RecoverResponse, error) {
	if !n.f.lost || r.GetClusterId() != n.f.cluster || r.GetRecoveryEpoch() != n.f.epoch || r.GetNode() != "raft-n1" || n.name != "n1" ||
		!slices.Equal(r.GetDeadNodes(), []string{"n3", "n4", "n5"}) {
		return nil, fakeError(codes.FailedPrecondition, quorumkmsv1.Reason_REASON_MEMBERSHIP_REFUSED, fmt.Sprintf("recovery refused: %v", r))
	}
	n.f.lost, n.f.epoch = false, n.f.epoch+1
	return &quorumkmsv1.RecoverResponse{RaftId: "raft-n1", RecoveryEpoch: n.f.epoch}, nil
}
