//go:build linux && chaos

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asSandbox is set in the environment of a test that runs inside its sandbox: to the
// directory for what is to outlive it.
const asSandbox = "KMSD_TEST_SANDBOX"

// sandboxed runs the calling test again in mount, network and process namespaces of
// its own, as their first process: whatever it mounts, connects and starts goes when
// it ends, however it ends, and nothing of the machine's network is touched. It
// reports whether the caller is inside; outside, the test is over when it returns.
func sandboxed(t *testing.T) bool {
	t.Helper()
	if os.Getenv(asSandbox) != "" {
		enter(t)
		return true
	}
	if os.Geteuid() != 0 {
		t.Fatal("network namespaces, mounts and loop devices take root: run it with `make chaos` or `make powerloss`")
	}
	dir := t.TempDir()
	alive, held, err := os.Pipe()
	must(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), asSandbox+"="+os.TempDir(), "TMPDIR="+dir)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{held}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is the death of this thread
	defer runtime.UnlockOSThread()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	must(t, cmd.Start())
	must(t, held.Close())
	go func() {
		for s := range stop {
			_ = cmd.Process.Signal(s)
		}
	}()
	_, _ = io.Copy(io.Discard, alive) // ends when the first process does
	signal.Stop(stop)
	close(stop)
	sweep(t, dir)
	if err := cmd.Wait(); err != nil {
		t.Errorf("in its sandbox the test failed: %v", err)
	}
	return false
}

// enter completes the sandbox from inside.
func enter(t *testing.T) {
	t.Helper()
	syscall.CloseOnExec(3) // the pipe that says that this process lives
	must(t, syscall.Mount("proc", "/proc", "proc", 0, ""))
	must(t, syscall.Mount("tmpfs", "/run", "tmpfs", 0, "")) // where ip keeps its network namespaces
	run(t, "ip", "link", "set", "lo", "up")
}

// interruptible is a context that ends with the test, or when somebody stops it.
func interruptible(t *testing.T) context.Context {
	ctx, cancel := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(cancel)
	return ctx
}

// loops are the loop devices of files in a directory.
func loops(t *testing.T, dir string) (devices []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir+"/") {
			devices = append(devices, "/dev/"+strings.Split(f, "/")[3])
		}
	}
	return devices
}

// sweep thaws the file systems that a test left frozen: processes in the middle of
// writing there could not end, and the loop devices would stay.
func sweep(t *testing.T, dir string) {
	t.Helper()
	at := filepath.Join(dir, "sweep")
	must(t, os.Mkdir(at, 0o700))
	for _, device := range loops(t, dir) {
		if out, err := asRoot("mount", device, at); err != nil {
			t.Logf("mount %s: %v: %s", device, err, out) // it went by itself
			continue
		}
		_, _ = asRoot("fsfreeze", "--unfreeze", at)
		run(t, "umount", at)
	}
	deadline := time.Now().Add(patience)
	for len(loops(t, dir)) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("loop devices are left: %v", loops(t, dir))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// run runs a command that must succeed.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// setting reads a value of a test from its environment.
func setting[T any](t *testing.T, name string, value T, parse func(string) (T, error)) T {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return value
	}
	v, err := parse(text)
	if err != nil {
		t.Fatalf("%s=%s: %v", name, text, err)
	}
	return v
}

// say prints a line of progress.
func say(began time.Time, format string, args ...any) {
	fmt.Printf("%6.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}
