package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quorumkms/quorumkms/node/audit"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// answers are the ids of calls that a node has answered, and how.
type answers struct {
	mu  sync.Mutex
	ids map[string]audit.Result
}

func (a *answers) add(id string, r audit.Result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ids[id] = r
}

func (a *answers) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.ids)
}

// ask makes calls at one node until ctx ends, each with an id of its own: the request id, or in
// the encryption context.
func (a *answers) ask(ctx context.Context, key string, crypto pb.CryptoServiceClient, keys pb.KeyServiceClient) {
	for ctx.Err() == nil {
		id := uuid.NewString()
		made, err := crypto.GenerateDataKey(ctx, &pb.GenerateDataKeyRequest{KeyId: key, Spec: 1, EncryptionContext: []*pb.ContextPair{{Key: "call", Value: id}}})
		if err != nil {
			continue
		}
		a.add(id, audit.Success)
		id = uuid.NewString() // a context that the ciphertext was not made with
		if _, err := crypto.Decrypt(ctx, &pb.DecryptRequest{Ciphertext: made.GetCiphertext(), EncryptionContext: []*pb.ContextPair{{Key: "call", Value: id}}}); err != nil && status.Code(err) == codes.InvalidArgument {
			a.add(id, audit.Failed)
		}
		id = uuid.NewString()
		if _, err := keys.TagResource(ctx, &pb.TagResourceRequest{KeyId: key, RequestId: id, Tags: []*pb.Tag{{Key: "last", Value: id}}}); err == nil {
			a.add(id, audit.Success)
		}
	}
}

// TestTrailIsComplete kills nodes at work, one that has its records on the disk after a moment
// and one that has them there before it answers. Every call that was answered is in the trail,
// and in the file of a sink, which goes on where it was. Another sink, whose collector takes
// connections and then nothing, holds nothing up.
func TestTrailIsComplete(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	hung, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer hung.Close() // nobody accepts
	for i, strict := range map[int]bool{1: false, 2: true} {
		p := c.nodes[i]
		must(t, os.Mkdir(p.path("out"), 0o700))
		p.extra = fmt.Sprintf("audit: {strict: %t, sinks: [{type: file, path: %s}, {type: webhook, url: %q}]}",
			strict, p.path("out/audit.log"), "http://"+hung.Addr().String())
	}
	c.begin()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	key := c.createKey(ctx, c.nodes[0])
	const rounds, workers, calls = 4, 4, 150
	all := map[*process]*answers{}
	for _, p := range c.nodes[1:] {
		all[p] = &answers{ids: map[string]audit.Result{}}
	}
	for round := range rounds {
		for p, a := range all {
			crypto, keys := c.crypto(p), pb.NewKeyServiceClient(c.connect(p.client, c.clientTLS(filepath.Join(c.certs(), filepath.Base(adminID)))))
			asking, stop := context.WithCancel(ctx)
			var work sync.WaitGroup
			for range workers {
				work.Go(func() { a.ask(asking, key, crypto, keys) })
			}
			enough := a.count() + calls
			c.eventually(fmt.Sprintf("%s has answered, round %d", p.name, round), func() bool { return a.count() >= enough }, p)
			p.kill() // in the middle of calls
			stop()
			work.Wait()
			p.start()
			c.until(p.name+" serves again", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
			c.complete(p, a)
		}
	}
	for p := range all {
		c.eventually("the sink of "+p.name+" has every record", func() bool { return c.delivered(p) }, p)
	}
}

// complete compares what clients were answered with the trail.
func (c *testCluster) complete(p *process, a *answers) {
	c.t.Helper()
	recorded := map[string]audit.Result{}
	for _, e := range c.trail(p) {
		id := e.RequestID
		if call, ok := e.Context["call"]; ok {
			id = call
		}
		recorded[id] = e.Result
	}
	missing, kinds := 0, map[audit.Result]int{}
	for id, want := range a.ids {
		kinds[want]++
		if recorded[id] != want {
			missing++
		}
	}
	if kinds[audit.Success] == 0 || kinds[audit.Failed] == 0 {
		c.t.Errorf("%s has answered %v", p.name, kinds)
	}
	if missing > 0 {
		c.t.Errorf("%s: %d of %d answered calls are not in the trail as they were answered", p.name, missing, len(a.ids))
	}
}

// delivered tells whether the file of a node's sink has every record, in order: some twice,
// since the node was killed.
func (c *testCluster) delivered(p *process) bool {
	c.t.Helper()
	text, err := os.ReadFile(p.path("out/audit.log"))
	must(c.t, err)
	next := uint64(1)
	lines := bufio.NewScanner(bytes.NewReader(text[:bytes.LastIndexByte(text, '\n')+1]))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e audit.Event
		must(c.t, json.Unmarshal(lines.Bytes(), &e))
		if e.Sequence > next {
			c.t.Fatalf("%s: the sink has record %d where %d must be", p.name, e.Sequence, next)
		}
		next = max(next, e.Sequence+1)
	}
	must(c.t, lines.Err())
	return next == uint64(len(c.trail(p)))+1
}
