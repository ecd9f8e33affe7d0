package rpc

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/archive"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
	"github.com/quorumkms/quorumkms/transport"
)

// NodeView is what Status tells of the node beside the cluster.
type NodeView struct {
	Name        string
	TrustDomain string
	Version     string
	Partition   interface {
		Info() hsm.Info
		Activity() hsm.Activity
		Healthy() error
	}
	// Ready is nil while the node answers cryptographic calls.
	Ready       func() error
	Keyring     func() hsm.Stats
	Reachable   func(raftID string) bool
	Credentials *transport.Credentials
	Now         func() time.Time
	// Disk is the file system of the data directory.
	Disk  func() Disk
	Audit func() AuditHealth
	// Alarms are those that hold at this node.
	Alarms func() []Alarm
}

// Disk is the room that a file system has, in bytes.
type Disk struct {
	Dir         string
	Free, Total uint64
	Device      uint64 // names the file system
	Err         error  // why that is not known
}

type clusterServer struct {
	pb.UnimplementedClusterServiceServer
	kms     *kms.Service
	member  *cluster.Member
	archive *archive.Archive
	node    NodeView
}

var memberStates = map[fsm.MemberState]pb.MemberState{
	fsm.MemberAdmitted: pb.MemberState_MEMBER_STATE_ADMITTED,
	fsm.MemberActive:   pb.MemberState_MEMBER_STATE_ACTIVE,
	fsm.MemberLeaving:  pb.MemberState_MEMBER_STATE_LEAVING,
	fsm.MemberGone:     pb.MemberState_MEMBER_STATE_GONE,
}

func (s *clusterServer) Status(ctx context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	c := call(ctx, r)
	if err := s.kms.Observe(ctx, "Status", c); err != nil {
		return nil, err
	}
	st := s.member.Status(ctx)
	out := &pb.StatusResponse{
		TrustDomain: s.node.TrustDomain, RaftId: st.ID, NodeName: s.node.Name, Version: s.node.Version,
		LeaderId: st.LeaderID, Term: st.Term, AppliedIndex: st.Applied, LastLogIndex: st.LastLog,
		LeaseLeft: durationpb.New(st.LeaseLeft), Hsm: s.node.hsm(), KnownRelease: fsm.NewestRelease,
		Certificate: s.certificate(s.node.Credentials.Certificate()), CaCertificates: each(s.node.Credentials.CAs(), s.certificate),
	}
	out.CertificateExpiry = out.GetCertificate().GetNotAfter()
	out.Splits, out.RefusedJoins = append(st.Splits, trailAlarms(st.State)...), st.RefusedJoins
	if err := s.node.Ready(); err != nil {
		out.NotServingReason = err.Error()
	} else {
		out.Serving = true
	}
	if st.Joined {
		out.ClusterId = st.Cluster.String()
	}
	if st.State.Initialized() {
		c := st.State.Cluster()
		out.Created, out.Release = date(c.Created), uint32(c.Release) //nolint:gosec // a small number
		out.TransferProfile = c.TransferProfile()
		out.RecoveryEpoch, out.RunningHash = c.RecoveryEpoch, st.State.Hash()
		out.KeyCount, out.IndexToken = uint64(st.State.KeyCount()), kms.IndexToken(st.State) //nolint:gosec // not negative
		if g, err := st.State.ActiveGeneration(); err == nil {
			out.DomainGeneration = g.Number
		}
	}
	out.ExposedTo = st.State.Exposed()
	recovery := st.State.Recovery()
	out.RecoveryRecipients, out.RecoveryRequired = describeRecipients(recovery), uint32(recovery.Required) //nolint:gosec // a small number
	out.RecoveryAlarms = st.State.RecoveryAlarms(s.node.Now().Unix())
	out.Backup = backupStatus(s.archive.Status())
	s.health(out, st, c.Caller)
	out.Members = each(st.Members, func(m cluster.MemberStatus) *pb.Member {
		lag := uint64(0)
		if m.Applied != 0 {
			lag = st.LastLog - min(m.Applied, st.LastLog)
		}
		return &pb.Member{
			LeaseLeft: durationpb.New(m.LeaseLeft), Lag: lag,
			RaftId: m.ID, Name: m.Name, PeerAddress: m.PeerAddress, ClientAddress: m.ClientAddress, State: memberStates[m.State],
			Voter: m.Votes, Leader: m.Leader, Reachable: m.ID == st.ID || m.Heard || s.node.Reachable(m.ID), AppliedIndex: m.Applied,
			Since: date(m.Since), IdentityFingerprint: hsm.Fingerprint(m.Identity),
		}
	})
	return out, nil
}

func (s *clusterServer) certificate(c transport.Certificate) *pb.Certificate {
	return &pb.Certificate{
		Subject: c.Subject(), Issuer: c.Issuer(), KeyHash: hex.EncodeToString(c.KeyHash()),
		NotBefore: timestamppb.New(c.NotBefore()), NotAfter: timestamppb.New(c.NotAfter()), Warning: c.Warning(s.node.Now()),
	}
}

// health is what else may be wrong with the node, or wait in the cluster.
func (s *clusterServer) health(out *pb.StatusResponse, st cluster.Status, to kms.Caller) {
	out.Disk, out.Audit = diskStatus(s.node.Disk()), s.node.Audit().status(to)
	out.Alarms = alarmStatus(s.node.Alarms(), to)
	if st.State.Initialized() {
		for _, g := range st.State.Cluster().Generations {
			if g.State == fsm.GenerationProposed {
				out.ProposedGeneration, out.ProposedWaitsFor = g.Number, waitsFor(st.State, g)
			}
		}
		if now, ok := st.State.Rewrapping(); ok {
			out.Rewrap = &pb.Rewrap{Generation: now.Generation, RaftId: now.Node, Operator: now.By, Since: date(now.Since)}
		}
	}
	if h, err := s.member.HandleDomain(); err == nil {
		out.DomainProblem, out.RecoveryCopyProblem = h.Problem, s.member.RecoveryCopyProblem()
		if w := h.Waiting; w != nil {
			out.WaitsForGeneration, out.WaitsForTwin = w.Generation, w.Twin
		}
	}
	out.WallClock = timestamppb.New(s.node.Now()) // last: it is compared with when the answer arrives
}

func (n NodeView) hsm() *pb.HsmStatus {
	i, stats := n.Partition.Info(), n.Keyring()
	out := &pb.HsmStatus{
		Kind: i.Kind, Manufacturer: i.Manufacturer, Model: i.Model, Serial: i.Serial, Label: i.Label, Healthy: true,
		LoadedKeys: uint64(stats.Loaded), Calls: stats.Calls, Messages: stats.Messages, //nolint:gosec // not negative
		Probes: each(i.Probes, func(p hsm.Probe) *pb.HsmProbe {
			return &pb.HsmProbe{Name: p.Name, Passed: p.Passed, Accepted: p.Accepted, Detail: p.Detail}
		}),
	}
	if err := n.Partition.Healthy(); err != nil {
		out.Healthy, out.Problem = false, err.Error()
	}
	return out
}

func (s *clusterServer) Init(ctx context.Context, r *pb.InitRequest) (*pb.InitResponse, error) {
	c := call(ctx, r)
	answer := func(id string) *pb.InitResponse {
		return &pb.InitResponse{ClusterId: id, RaftId: s.member.ID(), IndexToken: kms.IndexToken(s.member.State())}
	}
	lease := cluster.DefaultLease
	if r.GetLeaseDuration() != nil {
		lease = r.GetLeaseDuration().AsDuration()
	}
	params := append([]any{r.GetAdministrator(), lease}, recoveryParams(r)...)
	if r.GetProfile() != "" {
		params = append(params, r.GetProfile())
	}
	var first *fsm.FirstRecovery
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.InitResponse]{
		Name: "Init", Target: r.GetAdministrator(), Call: c, Params: params,
		Check: func() (err error) {
			if err := s.checkInit(r, lease); err != nil {
				return err
			}
			if first, err = firstRecovery(r); err != nil {
				return err
			}
			return s.member.TrustsRecovery(ctx, first.Recipients)
		},
		Repeat: func(first fsm.Result) (*pb.InitResponse, error) { return answer(first.ID), nil },
		Run: func(ctx context.Context, p fsm.Proposal, _ kms.Propose) (*pb.InitResponse, error) {
			id, err := s.member.Found(ctx, cluster.Founding{
				Operator: p.Principal, Administrator: r.GetAdministrator(), Lease: lease, Recovery: first, NoRecovery: r.GetNoRecovery(), Request: p.Request, Digest: p.Digest,
			})
			if err != nil {
				return nil, err
			}
			return answer(id.String()), nil
		},
	})
}

func (s *clusterServer) checkInit(r *pb.InitRequest, lease time.Duration) error {
	admin, err := transport.ParseIdentity(r.GetAdministrator())
	if err != nil || admin.Class != transport.ClassAdmin || admin.Tenant != fsm.DefaultTenant || admin.TrustDomain != s.node.TrustDomain {
		return fmt.Errorf("%w: administrator %.200q: want spiffe://%s/tenant/%s/admin/<name>", fsm.ErrInvalid, r.GetAdministrator(), s.node.TrustDomain, fsm.DefaultTenant)
	}
	if ms := lease.Milliseconds(); ms < fsm.MinLeaseMillis || ms > fsm.MaxLeaseMillis {
		return fmt.Errorf("%w: lease of %s: must be %d ms to %d ms", fsm.ErrInvalid, lease, fsm.MinLeaseMillis, fsm.MaxLeaseMillis)
	}
	if p := r.GetProfile(); p != "" && p != s.member.Profile() {
		return fmt.Errorf("%w: profile %.80q: this node is configured for %s (hsm.profile)", fsm.ErrInvalid, p, s.member.Profile())
	}
	if s.member.Profile() == fsm.ProfileCloned && len(r.GetRecoveryKeys()) > 0 {
		return fmt.Errorf("%w: in the transfer profile %s nothing wraps the domain key for a recovery key: the HSM vendor's backup recovers it; say no_recovery (--no-recovery)", fsm.ErrInvalid, fsm.ProfileCloned)
	}
	return nil
}

func (s *clusterServer) Invite(ctx context.Context, r *pb.InviteRequest) (*pb.InviteResponse, error) {
	validFor := kms.DefaultInvitation
	if r.GetValidFor() != nil {
		validFor = r.GetValidFor().AsDuration()
	}
	identity, malformed := identityHash(r.GetIdentity())
	params := []any{r.GetNodeName(), validFor, r.GetNonVoter()}
	if identity != nil {
		params = append(params, identity)
	}
	invitation := cluster.Invitation{Name: r.GetNodeName(), ValidFor: validFor, Voter: !r.GetNonVoter(), Identity: identity}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.InviteResponse]{
		Name: "Invite", Target: r.GetNodeName(), Call: call(ctx, r), Params: params,
		Check: func() error {
			if malformed != nil {
				return malformed
			}
			if validFor < time.Second || validFor > kms.MaxInvitation {
				return fmt.Errorf("%w: an invitation valid for %s: must be 1s to %s", fsm.ErrInvalid, validFor, kms.MaxInvitation)
			}
			return s.member.MayInvite(invitation)
		},
		Repeat: func(first fsm.Result) (*pb.InviteResponse, error) {
			return nil, fmt.Errorf("%w: this request made ticket %s before; its token was shown once and is stored nowhere: invite again with a new request id", fsm.ErrExists, first.ID)
		},
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.InviteResponse, error) {
			token, t, err := s.member.Invite(ctx, invitation, propose)
			if err != nil {
				return nil, err
			}
			self, _ := s.member.State().Member(s.member.ID())
			return &pb.InviteResponse{
				JoinToken: token.String(), TicketId: t.ID, Expires: date(t.Expires), NeedsApproval: t.Guarded && len(t.Identity) == 0,
				PeerAddresses: append([]string{self.PeerAddress}, s.member.OtherPeers()...),
				IndexToken:    kms.IndexToken(s.member.State()),
			}, nil
		},
	})
}

func (s *clusterServer) Remove(ctx context.Context, r *pb.RemoveRequest) (*pb.RemoveResponse, error) {
	answer := func(id string) *pb.RemoveResponse {
		return &pb.RemoveResponse{RaftId: id, IndexToken: kms.IndexToken(s.member.State())}
	}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.RemoveResponse]{
		Name: "Remove", Target: r.GetNode(), Call: call(ctx, r), Params: r.GetNode(),
		Check: func() error {
			m, err := s.member.Find(r.GetNode())
			if err == nil {
				_, err = s.member.State().Try(&fsm.RemoveNode{ID: m.ID})
			}
			return err
		},
		Repeat: func(first fsm.Result) (*pb.RemoveResponse, error) {
			if err := s.member.WaitGone(ctx, first.ID); err != nil {
				return nil, err
			}
			return answer(first.ID), nil
		},
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.RemoveResponse, error) {
			m, err := s.member.Find(r.GetNode())
			if err != nil {
				return nil, err
			}
			if err := s.member.Remove(ctx, m.ID, propose); err != nil {
				return nil, err
			}
			return answer(m.ID), nil
		},
	})
}

func (s *clusterServer) TransferLeadership(ctx context.Context, r *pb.TransferLeadershipRequest) (*pb.TransferLeadershipResponse, error) {
	to := ""
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.TransferLeadershipResponse]{
		Name: "TransferLeadership", Target: r.GetNode(), Call: call(ctx, r), Params: r.GetNode(),
		Check: func() error {
			if r.GetNode() == "" {
				return nil
			}
			m, err := s.member.Find(r.GetNode())
			if err == nil {
				to = m.ID
			}
			return err
		},
		Repeat: func(fsm.Result) (*pb.TransferLeadershipResponse, error) { return nil, fsm.ErrRequestReused },
		Run: func(ctx context.Context, _ fsm.Proposal, _ kms.Propose) (*pb.TransferLeadershipResponse, error) {
			leader, err := s.member.TransferLeadership(ctx, to)
			if err != nil {
				return nil, err
			}
			return &pb.TransferLeadershipResponse{LeaderId: leader, IndexToken: kms.IndexToken(s.member.State())}, nil
		},
	})
}

func (s *clusterServer) Upgrade(ctx context.Context, r *pb.UpgradeRequest) (*pb.UpgradeResponse, error) {
	release := int(r.GetRelease())
	if release == 0 {
		release = fsm.NewestRelease
	}
	before := s.member.State().Cluster().Release
	answer := func() *pb.UpgradeResponse {
		return &pb.UpgradeResponse{
			Release: uint32(release), PreviousRelease: uint32(before), //nolint:gosec // small numbers
			IndexToken: kms.IndexToken(s.member.State()),
		}
	}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.UpgradeResponse]{
		Name: "Upgrade", Target: fmt.Sprintf("release %d", release), Call: call(ctx, r), Params: r.GetRelease(),
		Check:  func() error { return s.member.MayUpgrade(release) },
		Repeat: func(fsm.Result) (*pb.UpgradeResponse, error) { return answer(), nil },
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.UpgradeResponse, error) {
			if err := s.member.Upgrade(ctx, release, propose); err != nil {
				return nil, err
			}
			return answer(), nil
		},
	})
}

func (s *clusterServer) SetVoter(ctx context.Context, r *pb.SetVoterRequest) (*pb.SetVoterResponse, error) {
	answer := func(id string) *pb.SetVoterResponse {
		return &pb.SetVoterResponse{RaftId: id, IndexToken: kms.IndexToken(s.member.State())}
	}
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.SetVoterResponse]{
		Name: "SetVoter", Target: r.GetNode(), Call: call(ctx, r), Params: []any{r.GetNode(), r.GetVoter()},
		Check: func() error {
			m, err := s.member.Find(r.GetNode())
			if err == nil {
				_, err = s.member.State().Try(&fsm.SetVoter{ID: m.ID, Voter: r.GetVoter()})
			}
			return err
		},
		Repeat: func(first fsm.Result) (*pb.SetVoterResponse, error) {
			if err := s.member.WaitVoter(ctx, first.ID, r.GetVoter()); err != nil {
				return nil, err
			}
			return answer(first.ID), nil
		},
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.SetVoterResponse, error) {
			m, err := s.member.Find(r.GetNode())
			if err != nil {
				return nil, err
			}
			if err := s.member.SetVoter(ctx, m.ID, r.GetVoter(), propose); err != nil {
				return nil, err
			}
			return answer(m.ID), nil
		},
	})
}
