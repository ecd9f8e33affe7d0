package rpc

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/rpc/client/recovery"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

type recoveryServer struct {
	pb.UnimplementedRecoveryServiceServer
	kms    *kms.Service
	member *cluster.Member
	node   NodeView
}

// recoveryKey reads the file of a recovery key.
func recoveryKey(file []byte) (fsm.RecoveryKey, error) {
	k, err := recovery.ParsePublicKey(file)
	if err != nil {
		return fsm.RecoveryKey{}, err
	}
	return fsm.RecoveryKey{Name: k.Name, Kind: k.Kind, SPKI: k.SPKI, Threshold: k.Threshold, Shares: k.Shares, OAEPHash: k.OAEPHash, Identity: k.Identity}, nil
}

// firstRecovery is the recovery that a cluster is to be founded with.
func firstRecovery(r *pb.InitRequest) (*fsm.FirstRecovery, error) {
	f := &fsm.FirstRecovery{
		Required:  small(cmp.Or(r.GetRecoveryRequired(), fsm.DefaultRequired)),
		Approvals: small(cmp.Or(r.GetRecoveryApprovals(), fsm.DefaultApprovals)),
		DrillDays: small(cmp.Or(r.GetRecoveryDrillDays(), fsm.DefaultDrillDays)),
	}
	switch n := len(r.GetRecoveryKeys()); {
	case n > fsm.MaxRecipients:
		return nil, fmt.Errorf("%w: %d recovery keys, at most %d", fsm.ErrInvalid, n, fsm.MaxRecipients)
	case n == 0 && !r.GetNoRecovery():
		return nil, fmt.Errorf("%w: nobody could recover the domain key: if every node's HSM token is lost, so is all data; name recovery keys (--recovery-recipient, made with kmsctl recovery init or kmsd recovery init-token), or say no_recovery (--no-recovery) to accept that", fsm.ErrInvalid)
	case n > 0 && r.GetNoRecovery():
		return nil, fmt.Errorf("%w: recovery keys are named, and no_recovery is said: want one of both", fsm.ErrInvalid)
	}
	for _, file := range r.GetRecoveryKeys() {
		k, err := recoveryKey(file)
		if err != nil {
			return nil, err
		}
		f.Recipients = append(f.Recipients, fsm.FirstRecipient{RecoveryKey: k})
	}
	return f, f.Validate(false)
}

func describeRecipient(k fsm.RecoveryKey) *pb.RecoveryRecipient {
	out := &pb.RecoveryRecipient{
		Name: k.Name, Kind: k.Kind, Fingerprint: hsm.Fingerprint(k.SPKI), Threshold: uint32(k.Threshold), Shares: uint32(k.Shares), //nolint:gosec // small numbers
	}
	if k.Kind == fsm.KindToken {
		out.TokenIdentity = hsm.Fingerprint(k.Identity)
	}
	return out
}

func describeRecipients(r fsm.Recovery) []*pb.RecoveryRecipient {
	return each(r.Recipients, func(x fsm.Recipient) *pb.RecoveryRecipient {
		out := describeRecipient(x.RecoveryKey)
		out.Added = date(x.Added)
		if d := x.Drill; d != nil {
			out.Drill = &pb.RecoveryDrill{
				Time: date(d.At), Generation: d.Generation, BackupIndex: d.Index, BackupSha256: d.Backup, KeyVersions: d.Tokens, Opened: d.Opened,
			}
		}
		return out
	})
}

func (s *recoveryServer) DescribeRecovery(ctx context.Context, r *pb.DescribeRecoveryRequest) (*pb.DescribeRecoveryResponse, error) {
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.DescribeRecoveryResponse]{
		Name: "DescribeRecovery", Call: call(ctx, r),
		Check:  func() error { return nil },
		Repeat: func(fsm.Result) (*pb.DescribeRecoveryResponse, error) { return nil, fsm.ErrRequestReused },
		Run: func(context.Context, fsm.Proposal, kms.Propose) (*pb.DescribeRecoveryResponse, error) {
			st := s.member.State()
			x := st.Recovery()
			out := &pb.DescribeRecoveryResponse{
				Recipients: describeRecipients(x), Required: uint32(x.Required), Approvals: uint32(x.Approvals), DrillDays: uint32(x.DrillDays), //nolint:gosec // small numbers
				Alarms: st.RecoveryAlarms(s.node.Now().Unix()), IndexToken: kms.IndexToken(st),
			}
			if c := x.Change; c != nil {
				out.Change = &pb.RecipientChange{Id: c.ID, Remove: c.Remove, Proposed: date(c.Proposed), Expires: date(c.Expires), ApprovedBy: c.By}
				if c.Add != nil {
					out.Change.Add = describeRecipient(*c.Add)
				}
				if x := c.Settings; x != nil {
					out.Change.Settings = &pb.RecoverySettings{Required: uint32(x.Required), Approvals: uint32(x.Approvals), DrillDays: uint32(x.DrillDays)} //nolint:gosec // small numbers
				}
			}
			return out, nil
		},
	})
}

// change is one step of a change of the recipients: answer is told its id, and whether it
// was made.
func change[T any](ctx context.Context, s *recoveryServer, o kms.Operation[T], command fsm.Command, answer func(id uint64, done bool, token []byte) T) (T, error) {
	reply := func(first fsm.Result) (T, error) {
		st := s.member.State()
		id, err := strconv.ParseUint(first.ID, 10, 64)
		return answer(id, first.Version == fsm.ChangeMade, kms.IndexToken(st)), err
	}
	o.Repeat = reply
	check := o.Check
	o.Check = func() error {
		if err := check(); err != nil {
			return err
		}
		return second(s.member.State().TryAs(o.Call.Caller.Principal, command))
	}
	o.Run = func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (T, error) {
		result, err := propose(ctx, command)
		if err != nil {
			var none T
			return none, err
		}
		return reply(result)
	}
	return kms.Operate(ctx, s.kms, o)
}

func (s *recoveryServer) AddRecoveryRecipient(ctx context.Context, r *pb.AddRecoveryRecipientRequest) (*pb.AddRecoveryRecipientResponse, error) {
	key, bad := recoveryKey(r.GetRecoveryKey())
	command := &fsm.ProposeRecipientChange{Add: &key}
	return change(ctx, s, kms.Operation[*pb.AddRecoveryRecipientResponse]{
		Name: "AddRecoveryRecipient", Target: key.Name, Call: call(ctx, r), Params: sha256.Sum256(r.GetRecoveryKey()),
		Check: func() error { return bad },
	}, command, func(id uint64, done bool, token []byte) *pb.AddRecoveryRecipientResponse {
		return &pb.AddRecoveryRecipientResponse{Change: id, Done: done, IndexToken: token}
	})
}

func (s *recoveryServer) RemoveRecoveryRecipient(ctx context.Context, r *pb.RemoveRecoveryRecipientRequest) (*pb.RemoveRecoveryRecipientResponse, error) {
	command := &fsm.ProposeRecipientChange{Remove: r.GetName()}
	return change(ctx, s, kms.Operation[*pb.RemoveRecoveryRecipientResponse]{
		Name: "RemoveRecoveryRecipient", Target: r.GetName(), Call: call(ctx, r), Params: r.GetName(),
		Check: func() error { return nil },
	}, command, func(id uint64, done bool, token []byte) *pb.RemoveRecoveryRecipientResponse {
		return &pb.RemoveRecoveryRecipientResponse{Change: id, Done: done, IndexToken: token}
	})
}

func (s *recoveryServer) ChangeRecoverySettings(ctx context.Context, r *pb.ChangeRecoverySettingsRequest) (*pb.ChangeRecoverySettingsResponse, error) {
	x := r.GetSettings()
	command := &fsm.ProposeRecoverySettings{RecoverySettings: fsm.RecoverySettings{
		Required: small(x.GetRequired()), Approvals: small(x.GetApprovals()), DrillDays: small(x.GetDrillDays()),
	}}
	return change(ctx, s, kms.Operation[*pb.ChangeRecoverySettingsResponse]{
		Name: "ChangeRecoverySettings", Target: settingsText(x), Call: call(ctx, r), Params: []any{x.GetRequired(), x.GetApprovals(), x.GetDrillDays()},
		Check: func() error { return fsm.WellFormed(command) },
	}, command, func(id uint64, done bool, token []byte) *pb.ChangeRecoverySettingsResponse {
		return &pb.ChangeRecoverySettingsResponse{Change: id, Done: done, IndexToken: token}
	})
}

// small is a number of a request as an int: what is far beyond every limit stays so.
func small(n uint32) int {
	const most = 1 << 20 // fits an int everywhere
	return int(min(n, most))
}

// settingsText is what a change makes of the settings, for the record.
func settingsText(x *pb.RecoverySettings) string {
	var parts []string
	for _, p := range []struct {
		name string
		n    uint32
	}{{"required", x.GetRequired()}, {"approvals", x.GetApprovals()}, {"drill days", x.GetDrillDays()}} {
		if p.n != 0 {
			parts = append(parts, fmt.Sprintf("%s %d", p.name, p.n))
		}
	}
	return strings.Join(parts, ", ")
}

func (s *recoveryServer) ApproveRecipientChange(ctx context.Context, r *pb.ApproveRecipientChangeRequest) (*pb.ApproveRecipientChangeResponse, error) {
	command := &fsm.ApproveRecipientChange{Change: r.GetChange()}
	return change(ctx, s, kms.Operation[*pb.ApproveRecipientChangeResponse]{
		Name: "ApproveRecipientChange", Target: changeName(r.GetChange()), Call: call(ctx, r), Params: r.GetChange(),
		Check: func() error { return nil },
	}, command, func(id uint64, done bool, token []byte) *pb.ApproveRecipientChangeResponse {
		return &pb.ApproveRecipientChangeResponse{Change: id, Done: done, IndexToken: token}
	})
}

func (s *recoveryServer) CancelRecipientChange(ctx context.Context, r *pb.CancelRecipientChangeRequest) (*pb.CancelRecipientChangeResponse, error) {
	command := &fsm.CancelRecipientChange{Change: r.GetChange()}
	return change(ctx, s, kms.Operation[*pb.CancelRecipientChangeResponse]{
		Name: "CancelRecipientChange", Target: changeName(r.GetChange()), Call: call(ctx, r), Params: r.GetChange(),
		Check: func() error { return nil },
	}, command, func(id uint64, _ bool, token []byte) *pb.CancelRecipientChangeResponse {
		return &pb.CancelRecipientChangeResponse{Change: id, IndexToken: token}
	})
}

func changeName(id uint64) string { return "change " + strconv.FormatUint(id, 10) }

func (s *recoveryServer) RecordRecoveryReport(ctx context.Context, r *pb.RecordRecoveryReportRequest) (*pb.RecordRecoveryReportResponse, error) {
	answer := func(name string) *pb.RecordRecoveryReportResponse {
		return &pb.RecordRecoveryReportResponse{Recipient: name, IndexToken: kms.IndexToken(s.member.State())}
	}
	report, bad := recovery.ParseReport(r.GetReport())
	if bad != nil {
		report = &recovery.Report{} // it is refused below
	}
	var command *fsm.RecordDrill
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.RecordRecoveryReportResponse]{
		Name: "RecordRecoveryReport", Target: report.Recipient, Call: call(ctx, r), Params: sha256.Sum256(r.GetReport()),
		Check: func() (err error) {
			if bad != nil {
				return bad
			}
			if command, err = s.drill(report); err != nil {
				return err
			}
			return second(s.member.State().Try(command))
		},
		Repeat: func(first fsm.Result) (*pb.RecordRecoveryReportResponse, error) { return answer(first.ID), nil },
		Run: func(ctx context.Context, _ fsm.Proposal, propose kms.Propose) (*pb.RecordRecoveryReportResponse, error) {
			result, err := propose(ctx, command)
			if err != nil {
				return nil, err
			}
			return answer(result.ID), nil
		},
	})
}

// drill is what a report proves: it must be about this cluster, and signed by the key of a
// recipient, or by the token that the key is in.
func (s *recoveryServer) drill(r *recovery.Report) (*fsm.RecordDrill, error) {
	st := s.member.State()
	if !st.Initialized() {
		return nil, fsm.ErrNotInitialized
	}
	if id := st.Cluster().ID.String(); r.Cluster != id {
		return nil, fmt.Errorf("%w: the report is about cluster %s, this is %s", fsm.ErrInvalid, r.Cluster, id)
	}
	x, ok := st.Recovery().Recipient(r.Recipient)
	if !ok {
		return nil, fmt.Errorf("%w: recovery recipient %s", fsm.ErrNotFound, r.Recipient)
	}
	if err := r.Verify(&recovery.PublicKey{Kind: x.Kind, SPKI: x.SPKI, Identity: x.Identity}); err != nil {
		return nil, err
	}
	// A backup is not known to be the cluster's: only that it has the same domain key tells.
	if g, ok := st.Generation(r.Active); ok && len(g.Checks) > 0 && !bytes.Equal(g.ChecksHash(), r.Checks) {
		return nil, fmt.Errorf("%w: what was opened as generation %d is not the domain key of this cluster: the backup was another's", fsm.ErrInvalid, r.Active)
	}
	sum := sha256.Sum256(x.SPKI)
	return &fsm.RecordDrill{Recipient: x.Name, Key: sum[:], Drill: fsm.Drill{
		At: r.Created, Generation: r.Active, Index: r.BackupIndex, Backup: r.Backup, Tokens: r.Tokens, Opened: r.Opened,
	}}, nil
}

// recoveryParams are what identifies the recovery part of an InitRequest; nothing where
// nothing is asked for.
func recoveryParams(r *pb.InitRequest) (params []any) {
	if len(r.GetRecoveryKeys()) == 0 {
		return nil
	}
	for _, file := range r.GetRecoveryKeys() {
		params = append(params, sha256.Sum256(file))
	}
	return append(params, r.GetRecoveryRequired(), r.GetRecoveryApprovals(), r.GetRecoveryDrillDays())
}
