package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// secretMode: only the owner reads.
const secretMode fs.FileMode = 0o600

// target is an output: a file that appears complete or not at all, or something
// that is written to as it comes, such as a pipe.
type target struct {
	io.Writer
	file *os.File // what is open, or nil for standard output
	path string   // to rename file to, or ""
}

// create opens an output file. A regular file is written beside its final place,
// readable by its owner only, or, where it replaces one, by those that one was
// readable by. "" and "-" are standard output.
func (a *app) create(path string) (*target, error) {
	if path == "" || path == stdio {
		return &target{Writer: a.stdout}, nil
	}
	mode := secretMode
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil, usagef("%s is a directory", path)
	case err == nil && !info.Mode().IsRegular():
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		return &target{Writer: f, file: f}, nil
	case err == nil:
		mode = info.Mode().Perm()
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return nil, err
	}
	t := &target{Writer: f, file: f, path: path}
	if err := f.Chmod(mode); err != nil {
		return nil, errors.Join(err, t.discard())
	}
	return t, nil
}

// commit makes the output final.
func (t *target) commit() error {
	if t.file == nil {
		return nil
	}
	if t.path == "" {
		return t.file.Close()
	}
	err := t.file.Sync()
	if err == nil {
		err = t.file.Close()
	}
	if err == nil {
		err = os.Rename(t.file.Name(), t.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", t.path, err), t.discard())
	}
	return syncDir(filepath.Dir(t.path))
}

// discard leaves no trace of a file that was not committed.
func (t *target) discard() error {
	if t.file == nil {
		return nil
	}
	err := t.file.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if t.path == "" {
		return err
	}
	return errors.Join(err, os.Remove(t.file.Name()))
}

// finish commits the output of what ended with err, or discards it.
func (t *target) finish(err error) error {
	if err != nil {
		return errors.Join(err, t.discard())
	}
	return t.commit()
}

// absent refuses a directory that is there and not empty, and the one that the command is
// run in, which cannot be replaced below it.
func absent(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s exists and is not empty: name a directory that is to be made", dir)
	}
	is, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if here, err := os.Stat("."); err == nil && os.SameFile(here, is) {
		return usagef("%s is the directory that this is run in: name one that is to be made", dir)
	}
	return nil
}

// wholeDir has f fill a directory beside the one that is asked for, which appears when all
// is written, or not at all. Nothing is left of what failed or was interrupted; only what
// ends the process at once (SIGKILL, a power loss) leaves the other directory, whose name
// begins with a dot.
func wholeDir(ctx context.Context, dir string, f func(dir string) error) (err error) {
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	beside, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(beside))
		}
	}()
	if err := f(beside); err != nil {
		return err
	}
	if err := errors.Join(ctx.Err(), syncDir(beside)); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // an empty one
		return err
	}
	if err := os.Rename(beside, dir); err != nil {
		return err
	}
	return syncDir(parent)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeFile writes a file in one piece.
func (a *app) writeFile(path string, data []byte) error {
	t, err := a.create(path)
	if err != nil {
		return err
	}
	_, err = t.Write(data)
	return t.finish(err)
}

// writeSecret is writeFile to a file that only its owner can read, also where it
// replaces one.
func (a *app) writeSecret(path string, data []byte) error {
	t, err := a.create(path)
	if err != nil {
		return err
	}
	if t.path != "" {
		err = t.file.Chmod(secretMode)
	}
	if err == nil {
		_, err = t.Write(data)
	}
	return t.finish(err)
}

// writeData writes the bytes that are a command's result. On a terminal, only text
// is shown, unless standard output is named as "-".
func (a *app) writeData(path string, data []byte) error {
	if path == "" && isTerminal(a.stdout) && !printable(data) {
		return usagef("the result is binary, which a terminal cannot show: use --out FILE, --output json, a pipe, or --out - to have it anyway")
	}
	return a.writeFile(path, data)
}
