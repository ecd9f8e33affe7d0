package node

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/quorumkms/quorumkms"

// floors says, for every package, which packages of this module it may import,
// itself or through others. What has no row may import none.
var floors = map[string][]string{
	"fsm":             {},
	"hsm":             {},
	"transport":       {},
	"node/rules":      {},
	"node/policy":     {},
	"node/kms/limit":  {},
	"rpc/quorumkmsv1": {},
	"rpc/peerv1":      {},
	// The format of backups: the SDK's, so that kmsctl can check one without a node.
	"rpc/client/backup":     {},
	"rpc/client/rewrapfile": {},
	// The form of audit trails, so that kmsctl can verify one without a node.
	"rpc/client/trail": {},
	// The files of a recovery of the domain key: what is made offline, with kmsctl too.
	"rpc/client/recovery": {},

	"hsm/soft":    {"hsm"},
	"hsm/p11":     {"hsm"},
	"hsm/hsmtest": {"hsm"},

	"node/audit":      {"rpc/client/trail"},
	"node/audit/sink": {"node/audit", "rpc/client/trail"},
	"node/cluster":    {"fsm", "hsm", "transport", "node/rules", "rpc/client/trail"},
	"node/archive":    {"fsm", "rpc/client/backup"},
	"node/kms/gate":   {"fsm", "node/audit", "node/rules", "rpc/client/trail"},
	"node/kms":        {"fsm", "hsm", "node/audit", "node/kms/gate", "node/kms/limit", "node/policy", "node/rules", "rpc/client/trail"},

	"node/metrics": {
		"fsm", "hsm", "transport", "node/archive", "node/audit", "node/audit/sink", "node/cluster", "node/rules", "rpc/client/backup", "rpc/client/trail",
	},
	"node/tracing": {
		"fsm", "hsm", "node/audit", "node/kms", "node/kms/gate", "node/kms/limit", "node/policy", "node/rules", "rpc/client/trail",
	},
	"node/nodetest": {
		"fsm", "hsm", "transport", "node/audit", "node/cluster", "node/kms", "node/kms/gate", "node/kms/limit", "node/nodetest/history",
		"node/policy", "node/rules", "rpc/client/trail",
	},
	"node/nodetest/history": {},

	"rpc": {
		"fsm", "hsm", "transport", "node/audit", "node/audit/sink", "node/archive", "node/cluster", "node/kms", "node/kms/gate", "node/kms/limit",
		"node/policy", "node/rules", "rpc/client/backup", "rpc/client/recovery", "rpc/client/trail", "rpc/quorumkmsv1", "rpc/peerv1",
	},
	"node": {
		"fsm", "hsm", "hsm/soft", "hsm/p11", "hsm/hsmtest", "transport", "node/audit", "node/audit/sink", "node/archive", "node/cluster", "node/kms", "node/kms/gate", "node/kms/limit",
		"node/metrics", "node/tracing", "node/policy", "node/rules",
		"rpc/client/backup", "rpc/client/envelope", "rpc/client/recovery", "rpc/client/rewrapfile", "rpc/client/trail", "rpc", "rpc/quorumkmsv1", "rpc/peerv1",
	},
	"cli/kmsd": {
		"fsm", "hsm", "hsm/soft", "hsm/p11", "hsm/hsmtest", "transport", "node", "node/audit", "node/audit/sink", "node/archive", "node/cluster", "node/kms", "node/kms/gate", "node/kms/limit",
		"node/metrics", "node/tracing", "node/policy", "node/rules",
		"rpc/client/backup", "rpc/client/envelope", "rpc/client/recovery", "rpc/client/rewrapfile", "rpc/client/trail", "rpc", "rpc/quorumkmsv1", "rpc/peerv1",
	},

	"rpc/client":            {"rpc/quorumkmsv1"},
	"rpc/client/envelope":   {},
	"rpc/client/clienttest": {"rpc/client", "rpc/quorumkmsv1"},
	"cli/kmsctl":            {"rpc/quorumkmsv1", "rpc/client", "rpc/client/envelope", "rpc/client/backup", "rpc/client/recovery", "rpc/client/rewrapfile", "rpc/client/trail"},
}

// strangers are packages of others that must not be reached, directly, from some
// of ours.
var strangers = map[string][]string{
	"fsm":             {"google.golang.org/grpc", "github.com/miekg/pkcs11", "github.com/hashicorp/memberlist"},
	"hsm":             {"github.com", "google.golang.org", "golang.org"},
	"transport":       {"google.golang.org/grpc", "github.com/miekg/pkcs11"},
	"node/cluster":    {"google.golang.org/grpc", "github.com/miekg/pkcs11"},
	"node/kms":        {"google.golang.org/grpc", "github.com/miekg/pkcs11", "github.com/hashicorp/raft"},
	"node/kms/gate":   {"google.golang.org/grpc", "github.com/miekg/pkcs11", "github.com/hashicorp/raft"},
	"node/kms/limit":  {"github.com", "google.golang.org"},
	"node/audit":      {"google.golang.org/grpc"},
	"node/audit/sink": {"google.golang.org/grpc"},
	"node/policy":     {"google.golang.org/grpc", "github.com/miekg/pkcs11", "github.com/hashicorp/raft"},
	"node/metrics":    {"github.com/miekg/pkcs11", "github.com/hashicorp/raft", "go.opentelemetry.io"},
	"node/tracing":    {"github.com/miekg/pkcs11", "github.com/hashicorp/raft", "github.com/prometheus"},
}

// TestFloors proves that imports point down (ARCHITECTURE.md).
func TestFloors(t *testing.T) {
	seen := map[string]bool{}
	for line := range strings.Lines(goList(t, "-f", "{{.ImportPath}} {{join .Deps \",\"}}", module+"/...")) {
		path, deps, _ := strings.Cut(strings.TrimSpace(line), " ")
		name := strings.TrimPrefix(path, module+"/")
		allowed, ok := floors[name]
		if !ok {
			t.Errorf("package %s has no floor: give it a row", name)
			continue
		}
		seen[name] = true
		for d := range strings.SplitSeq(deps, ",") {
			if ours, ok := strings.CutPrefix(d, module+"/"); ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s must not import %s", name, ours)
			}
		}
	}
	for name := range floors {
		if !seen[name] {
			t.Errorf("there is no package %s any more: remove its row", name)
		}
	}
	for name, forbidden := range strangers {
		for d := range strings.SplitSeq(strings.TrimSpace(goList(t, "-f", "{{join .Imports \",\"}}", module+"/"+name)), ",") {
			for _, f := range forbidden {
				if d == f || strings.HasPrefix(d, f+"/") {
					t.Errorf("%s must not import %s", name, d)
				}
			}
		}
	}
}

// TestStatic proves that what storage nodes link and what administrators run
// builds without cgo.
func TestStatic(t *testing.T) {
	for _, name := range []string{"rpc/client", "rpc/client/envelope", "cli/kmsctl", "cli/kmsd"} {
		c := exec.Command("go", "build", "-o", os.DevNull, module+"/"+name)
		c.Env = append(c.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s without cgo: %v\n%s", name, err, out)
		}
	}
}

func goList(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return string(out)
}
