package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func holds(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestWholeDir: a directory is there with all its files, or nothing is.
func TestWholeDir(t *testing.T) {
	failed := errors.New("the disk is full")
	for _, row := range []struct {
		what string
		f    func(stop context.CancelFunc) error
		want error
	}{
		{"all is well", func(context.CancelFunc) error { return nil }, nil},
		{"a file fails", func(context.CancelFunc) error { return failed }, failed},
		{"an interrupt", func(stop context.CancelFunc) error { stop(); return nil }, context.Canceled},
	} {
		for _, there := range []bool{false, true} { // an empty directory of that name
			work := t.TempDir()
			dir := filepath.Join(work, "shares")
			if there {
				mkdir(t, work, "shares")
			}
			ctx, stop := context.WithCancel(t.Context())
			err := wholeDir(ctx, dir, func(beside string) error {
				if got := holds(t, work); !slices.Contains(got, filepath.Base(beside)) || there != slices.Contains(got, "shares") {
					t.Errorf("%s: at work on %v", row.what, got)
				}
				return errors.Join(writeNew(filepath.Join(beside, "a"), []byte("x")), row.f(stop), writeNew(filepath.Join(beside, "b"), nil))
			})
			stop()
			if !errors.Is(err, row.want) {
				t.Errorf("%s: %v", row.what, err)
			}
			switch got := holds(t, work); {
			case row.want == nil && (!slices.Equal(got, []string{"shares"}) || !slices.Equal(holds(t, dir), []string{"a", "b"})):
				t.Errorf("%s: %v", row.what, got)
			case row.want != nil && there && (!slices.Equal(got, []string{"shares"}) || len(holds(t, dir)) > 0), row.want != nil && !there && len(got) > 0:
				t.Errorf("%s: left behind %v", row.what, got)
			}
		}
	}
	work := t.TempDir()
	err := wholeDir(t.Context(), filepath.Join(work, "shares"), func(string) error { // whoever comes first
		return writeNew(filepath.Join(mkdir(t, work, "shares"), "a"), nil)
	})
	if got := holds(t, work); err == nil || !slices.Equal(got, []string{"shares"}) {
		t.Errorf("over another's files: %v, left %v", err, got)
	}
}

// TestInitInterrupted: a signal in a ceremony leaves no share behind.
func TestInitInterrupted(t *testing.T) {
	work := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stderr bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{
			"recovery", "init", "--name", "vault", "--threshold", "2", "--out", filepath.Join(work, "shares"),
			"--holder", "age1tc2t2mnnuuk2prf0azes9afmdkl8tffkuhyt9el3q2tm6xfp85ysu06nz4",
			"--holder", "age12jkczsn4t7v7tzrh5q35nqd692pea558jdvc5sj8l083cpplpaxsyhxef2",
		}, func(string) string { return "" }, nil, io.Discard, &stderr)
	}()
	for len(holds(t, work)) == 0 { // it makes the key
		if len(done) > 0 {
			t.Fatalf("exit code %d: %s", <-done, stderr.String())
		}
	}
	cancel()
	if code := <-done; code == exitOK || !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	if left := holds(t, work); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
