package client_test

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/quorumkms/quorumkms"

// TestFloor: the SDK and the tool know nothing of the servers, and need no C.
func TestFloor(t *testing.T) {
	allowed := []string{"rpc/quorumkmsv1", "rpc/client", "rpc/client/envelope", "rpc/client/backup", "rpc/client/recovery", "rpc/client/rewrapfile", "rpc/client/trail"}
	for target, also := range map[string]string{"rpc/client": "", "rpc/client/envelope": "", "cli/kmsctl": "cli/kmsctl"} {
		for dep := range strings.FieldsSeq(run(t, "list", "-deps", module+"/"+target)) {
			ours, ok := strings.CutPrefix(dep, module+"/")
			if ok && ours != also && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s", target, ours)
			}
		}
	}
}

func TestBuildsWithoutC(t *testing.T) {
	for _, target := range []string{"rpc/client", "rpc/client/envelope"} {
		run(t, "build", "-o", filepath.Join(t.TempDir(), "out"), module+"/"+target)
	}
}

// run runs the go tool without cgo.
func run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}
