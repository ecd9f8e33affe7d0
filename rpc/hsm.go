package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

type hsmServer struct {
	pb.UnimplementedHsmServiceServer
	kms    *kms.Service
	member *cluster.Member
	node   NodeView
}

// DescribeHsm asks neither the token nor another node: it is for when these fail.
func (s *hsmServer) DescribeHsm(ctx context.Context, r *pb.DescribeHsmRequest) (*pb.DescribeHsmResponse, error) {
	return kms.Operate(ctx, s.kms, kms.Operation[*pb.DescribeHsmResponse]{
		Name: "DescribeHsm", Call: call(ctx, r),
		Check:  func() error { return nil },
		Repeat: func(fsm.Result) (*pb.DescribeHsmResponse, error) { return nil, fsm.ErrRequestReused },
		Run: func(context.Context, fsm.Proposal, kms.Propose) (*pb.DescribeHsmResponse, error) {
			out := describeHSM(s.node.Partition.Activity(), s.node.Keyring())
			out.RaftId, out.NodeName, out.Hsm = s.member.ID(), s.node.Name, s.node.hsm()
			out.IndexToken = kms.IndexToken(s.member.State())
			return out, nil
		},
	})
}

func describeHSM(a hsm.Activity, k hsm.Stats) *pb.DescribeHsmResponse {
	out := &pb.DescribeHsmResponse{
		Algorithms:       each(a.Algorithms, func(a hsm.Algorithm) string { return string(a) }),
		KeyWrapMechanism: a.KeyWrap, OaepHashes: a.OAEPHashes,
		Sessions: &pb.HsmSessions{
			Limit: uint32(a.Sessions), Busy: uint32(a.Busy), Waiting: uint32(a.Waiting), MaxWaiting: uint32(a.MaxWaiting), //nolint:gosec // small, not negative
		},
		Cache: &pb.HsmCache{
			Loaded: uint64(k.Loaded), Limit: uint64(k.MaxKeys), Waiting: uint64(k.Waiting), MaxWaiting: uint64(k.MaxWaiting), //nolint:gosec // not negative
			Hits: k.Hits, Misses: k.Loads, Evictions: k.Evictions, Messages: k.Messages, Calls: k.Calls, WrongAnswers: k.Wrong,
		},
		Calls: each(a.Calls, func(c hsm.CallCount) *pb.HsmCalls {
			return &pb.HsmCalls{Kind: c.Kind.String(), Count: c.Count, Errors: c.Errors, Time: durationpb.New(c.Time)}
		}),
		Losses: a.Losses, Returns: a.Returns, Lost: moment(a.Lost), Returned: moment(a.Returned),
	}
	if a.LastError != "" {
		out.LastError = &pb.HsmFault{Text: a.LastError, Time: moment(a.LastFault)}
	}
	return out
}

// moment is a time; the zero time is none.
func moment(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
