package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/goleak"

	"github.com/quorumkms/quorumkms/rpc/client/clienttest"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"kmsctl": main})
}

// leakChecked fails tests that leave goroutines behind.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err) //nolint:errcheck // there is nowhere else to say it
		return max(code, 1)
	}
	return code
}

// TestScripts runs the scenarios of testdata/script, each against a cluster of its
// own. They find
//
//	$ADDRESSES  of the nodes n1 and n2
//	$CERTS      with the directories admin, service, operator and stranger
//
// and are the administrator unless they say otherwise.
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("scripts: %v, %v", scripts, err)
	}
	golden, err := filepath.Abs(goldenBackup)
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range scripts {
		ca := clienttest.NewCA(t)
		f := newFake(t, ca)
		certs := t.TempDir()
		for name, uri := range map[string]string{"admin": adminURI, "service": serviceURI, "operator": operatorURI} {
			ca.Write(t, mkdir(t, certs, name), ca.Issue(t, nil, uri))
		}
		stranger := clienttest.NewCA(t)
		stranger.Write(t, mkdir(t, certs, "stranger"), stranger.Issue(t, nil, adminURI))

		testscript.Run(t, testscript.Params{
			Files:               []string{script},
			RequireExplicitExec: true,
			RequireUniqueNames:  true,
			Setup: func(env *testscript.Env) error {
				addresses := strings.Join(f.addresses[:2], ",")
				env.Vars = append(env.Vars, "GOLDEN="+golden,
					"ADDRESSES="+addresses, "CERTS="+certs, "FIRST="+f.addresses[0],
					"KMSCTL_ADDRESSES="+addresses,
					"KMSCTL_CERT="+filepath.Join(certs, "admin", "cert.pem"),
					"KMSCTL_KEY="+filepath.Join(certs, "admin", "key.pem"),
					"KMSCTL_CA="+filepath.Join(certs, "admin", "ca.pem"))
				return nil
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"code":  cmdCode,
				"flip":  cmdFlip,
				"cut":   cmdCut,
				"make":  cmdMake,
				"perm":  cmdPerm,
				"size":  cmdSize,
				"files": cmdFiles,
				"save":  cmdSave,
			},
		})
	}
}

func mkdir(t *testing.T, parent, name string) string {
	t.Helper()
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// cmdCode: code N kmsctl ARGS... runs a command that must exit with N.
func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command [args]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(interface{ ExitCode() int }); ok { //nolint:errorlint // as it comes from os/exec
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// edit changes a file's bytes.
func edit(ts *testscript.TestScript, path string, change func([]byte) []byte) {
	path = ts.MkAbs(path)
	b, err := os.ReadFile(path) //nolint:gosec // a test's own
	ts.Check(err)
	ts.Check(os.WriteFile(path, change(b), 0o600))
}

func atoi(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}

// cmdFlip: flip FILE OFFSET; a negative offset counts from the end.
func cmdFlip(ts *testscript.TestScript, _ bool, args []string) {
	edit(ts, args[0], func(b []byte) []byte {
		at := atoi(ts, args[1])
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 1
		return b
	})
}

// cmdCut: cut FILE N takes N bytes off the end.
func cmdCut(ts *testscript.TestScript, _ bool, args []string) {
	edit(ts, args[0], func(b []byte) []byte { return b[:len(b)-atoi(ts, args[1])] })
}

// cmdMake: make FILE SIZE.
func cmdMake(ts *testscript.TestScript, _ bool, args []string) {
	b := make([]byte, atoi(ts, args[1]))
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// cmdPerm: perm FILE MODE.
func cmdPerm(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

// cmdSize: size FILE N.
func cmdSize(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if info.Size() != int64(atoi(ts, args[1])) {
		ts.Fatalf("%s has %d bytes, want %s", args[0], info.Size(), args[1])
	}
}

// cmdFiles: files DIR NAME... are all that is in a directory.
func cmdFiles(ts *testscript.TestScript, _ bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got, want := strings.Join(names, " "), strings.Join(args[1:], " "); got != want {
		ts.Fatalf("%s holds %q, want %q", args[0], got, want)
	}
}

// cmdSave: save VAR PREFIX sets a variable to what follows PREFIX in a line of the
// last standard output.
func cmdSave(ts *testscript.TestScript, _ bool, args []string) {
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), args[1]); ok {
			ts.Setenv(args[0], strings.Trim(rest, " \","))
			return
		}
	}
	ts.Fatalf("no line begins with %q", args[1])
}

// TestInterrupted: a signal while standard input keeps the command waiting.
func TestInterrupted(t *testing.T) {
	ca := clienttest.NewCA(t)
	f := newFake(t, ca)
	files := ca.Write(t, t.TempDir(), ca.Issue(t, nil, adminURI))
	env := map[string]string{
		"KMSCTL_ADDRESSES": strings.Join(f.addresses, ","),
		"KMSCTL_CERT":      files.Cert, "KMSCTL_KEY": files.Key, "KMSCTL_CA": files.CA,
	}
	getenv := func(name string) string { return env[name] }
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"key", "create", "--alias", "alias/a"}, getenv, nil, io.Discard, &stderr); code != 0 {
		t.Fatal(stderr.String())
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	stdin, typed := io.Pipe()
	done := make(chan int)
	go func() {
		done <- run(ctx, []string{"object", "seal", "alias/a", "--out", filepath.Join(dir, "sealed")}, getenv, stdin, io.Discard, &stderr)
	}()
	if _, err := typed.Write(make([]byte, 1<<20)); err != nil { // the command is at work
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Fatalf("at work on %v, %v", left, err)
	}
	cancel()
	if code := <-done; code != exitRefused || !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := typed.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCommandsAreWhole: each says what it does and how it is called, and none takes a
// flag that means something else everywhere.
func TestCommandsAreWhole(t *testing.T) {
	root := (&app{}).root()
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if root.PersistentFlags().Lookup(f.Name) != nil {
				t.Errorf("%s: --%s is a flag of all commands", c.CommandPath(), f.Name)
			}
		})
		if c.Short == "" || c.Example == "" && !c.HasSubCommands() {
			t.Errorf("%s: no short text or no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			if !strings.Contains(line, c.CommandPath()+" ") && !strings.Contains(line, c.CommandPath()+"\n") && !strings.HasSuffix(line, c.CommandPath()) {
				t.Errorf("%s: the example %q is of another command", c.CommandPath(), line)
			}
		}
		for _, child := range c.Commands() {
			visit(child)
		}
	}
	visit(root)
}
