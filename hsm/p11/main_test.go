//go:build cgo

package p11

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quorumkms/quorumkms/hsm"
)

const (
	testPIN   = "user-1234"
	testSOPIN = "officer-1234"

	// childVar makes the test binary a process of its own that does one step, mostly
	// the Security Officer's. Its value is
	// the step, the token label and an argument.
	childVar = "P11_TEST_STEP"
	// The module that it uses in place of SoftHSM, of whose tokens the user trusts.
	childNSS       = "P11_TEST_NSS"
	childArguments = "P11_TEST_ARGUMENTS"
)

// TestMain gives the binary a SoftHSM of its own: SoftHSM reads its configuration
// once a process.
func TestMain(m *testing.M) {
	if _, err := modulePath(""); err != nil {
		fmt.Fprintln(os.Stderr, "install SoftHSM2: scripts/softhsm.sh:", err)
		os.Exit(1)
	}
	if step, ok := os.LookupEnv(childVar); ok {
		os.Exit(child(step))
	}
	os.Exit(withTokens(m))
}

func withTokens(m *testing.M) int {
	dir, err := os.MkdirTemp("", "p11-test-")
	if err == nil {
		err = configure(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// configure points SoftHSM at dir/tokens.
func configure(dir string) error {
	tokens, conf := filepath.Join(dir, "tokens"), filepath.Join(dir, "softhsm2.conf")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		return err
	}
	text := "directories.tokendir = " + tokens + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Setenv("SOFTHSM2_CONF", conf)
}

// tokenDir is where SoftHSM keeps all tokens.
func tokenDir() string {
	return filepath.Join(filepath.Dir(os.Getenv("SOFTHSM2_CONF")), "tokens")
}

// child does one step and prints what goes wrong.
func child(step string) int {
	parts := strings.SplitN(step, " ", 3)
	cfg := TrustConfig{Token: parts[1], SOPIN: []byte(testSOPIN)}
	if module, ok := os.LookupEnv(childNSS); ok {
		cfg = TrustConfig{
			Module: module, ModuleArguments: os.Getenv(childArguments), Token: parts[1],
			AcceptWeakness: nssWeaknesses(), PIN: []byte(testPIN),
		}
	}
	var err error
	switch parts[0] {
	case "trust":
		var spki []byte
		if spki, err = base64.StdEncoding.DecodeString(parts[2]); err == nil {
			err = Trust(context.Background(), cfg, spki)
		}
	case "open":
		var p *Partition
		if p, err = Open(context.Background(), config(parts[1])); err == nil {
			err = p.Close()
		}
	case "untrust":
		err = Untrust(context.Background(), cfg, parts[2])
	default:
		err = fmt.Errorf("unknown step %q", step)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// inProcess runs a step in a process of its own and returns what it printed.
func inProcess(t *testing.T, step, token, argument string, environment ...string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(self) //nolint:gosec // the test binary
	cmd.Env = append(append(os.Environ(), childVar+"="+step+" "+token+" "+argument), environment...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustTrust(t *testing.T, token string, spki []byte) {
	t.Helper()
	if out, err := inProcess(t, "trust", token, spkiArgument(spki)); err != nil {
		t.Fatalf("trust: %v: %s", err, out)
	}
}

func spkiArgument(spki []byte) string { return base64.StdEncoding.EncodeToString(spki) }

var tokens atomic.Int64 // numbers the labels

// newToken makes a token and returns its label.
func newToken(t testing.TB) string {
	t.Helper()
	label := fmt.Sprintf("token-%d", tokens.Add(1))
	err := InitToken(t.Context(), InitConfig{Label: label, SOPIN: []byte(testSOPIN), PIN: []byte(testPIN)})
	if err != nil {
		t.Fatal(err)
	}
	return label
}

func config(token string) Config {
	return Config{
		Token: token, PIN: []byte(testPIN), ReopenEvery: 10 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler),
	}
}

// mustOpen opens a partition that is closed with the test.
func mustOpen(t testing.TB, cfg Config) *Partition {
	t.Helper()
	p, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// patience bounds the wait for something that never comes.
const patience = time.Minute

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

var testCluster = hsm.ID{0xc1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
