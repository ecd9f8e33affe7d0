package main

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// fakeHSM is the HSM of one member: n2's is lost.
type fakeHSM struct {
	quorumkmsv1.UnimplementedHsmServiceServer
	name string
}

func (h *fakeHSM) DescribeHsm(context.Context, *quorumkmsv1.DescribeHsmRequest) (*quorumkmsv1.DescribeHsmResponse, error) {
	out := &quorumkmsv1.DescribeHsmResponse{
		RaftId: "raft-" + h.name, NodeName: h.name,
		Hsm: &quorumkmsv1.HsmStatus{
			Kind: "pkcs11", Manufacturer: "Acme", Model: "Safe\x1b", Serial: "17", Label: h.name, Healthy: true,
			Probes: []*quorumkmsv1.HsmProbe{{Name: "known-answers", Passed: true, Detail: "RFC 5649 is mechanism 0x210b"}, {Name: "domain-key-leaves", Accepted: true, Detail: "it leaves"}},
		},
		Algorithms: []string{"HMAC_SHA_256", "ECDSA_SHA_256"}, KeyWrapMechanism: 0x210b, OaepHashes: []string{"SHA-1", "SHA-256"},
		Sessions: &quorumkmsv1.HsmSessions{Limit: 8, Busy: 3, Waiting: 1, MaxWaiting: 1024},
		Cache:    &quorumkmsv1.HsmCache{Loaded: 5, Limit: 4096, Hits: 90, Misses: 7, Evictions: 2, Messages: 97, Calls: 11, Waiting: 4, MaxWaiting: 8192},
		Calls: []*quorumkmsv1.HsmCalls{
			{Kind: "encrypt", Count: 4, Errors: 1, Time: durationpb.New(10 * time.Millisecond)}, {Kind: "decrypt"},
		},
	}
	if h.name == "n2" {
		out.Hsm.Healthy, out.Hsm.Problem = false, "token lost"
		out.Losses, out.Returns, out.Lost, out.Returned = 2, 1, timestamppb.New(fakeEpoch.Add(time.Hour)), timestamppb.New(fakeEpoch)
		out.LastError = &quorumkmsv1.HsmFault{Text: "sign: gone", Time: timestamppb.New(fakeEpoch)}
		out.Cache.WrongAnswers = 6
	}
	return out, nil
}
