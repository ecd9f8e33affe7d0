package sink

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/quorumkms/quorumkms/rpc/client/trail"
)

// readable is the mode of files that others are to read: who that is, the directory's group says.
const readable = 0o640

// file appends records to a file, which is renamed when it is large or old.
type file struct {
	options Options
	now     func() time.Time
	f       *os.File
	length  int64
	begun   time.Time // of its first record
}

func newFile(c Config, o Options) *file { return &file{options: o, now: c.Now} }

// size has no batch larger than the smallest file.
func (s *file) size() size { return size{records: 4096, bytes: 512 << 10} }

func (s *file) deliver(_ context.Context, b batch) (int, error) {
	text := b.text()
	if err := s.ready(int64(len(text))); err != nil {
		return 0, err
	}
	if s.length == 0 {
		s.begun = eventTime(b.lines[0])
	}
	_, err := s.f.Write(text)
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil { // no record is there in part
		return 0, errors.Join(err, s.f.Truncate(s.length), s.close())
	}
	s.length += int64(len(text))
	return 0, nil
}

// ready opens the file, or the next one if so many bytes do not fit.
func (s *file) ready(more int64) error {
	if s.f != nil && !s.same() {
		if err := s.close(); err != nil {
			return err
		}
	}
	if s.f == nil {
		if err := s.open(); err != nil {
			return err
		}
	}
	large := s.length+more > int64(s.options.MaxMegabytes)<<20
	old := s.options.MaxAge > 0 && s.now().Sub(s.begun) >= s.options.MaxAge
	if s.length == 0 || !large && !old {
		return nil
	}
	if err := errors.Join(s.close(), s.rotate()); err != nil {
		return err
	}
	return s.open()
}

// same tells whether the open file still has the name: others may have renamed it.
func (s *file) same() bool {
	named, err := os.Stat(s.options.Path)
	if err != nil {
		return false
	}
	opened, err := s.f.Stat()
	return err == nil && os.SameFile(named, opened)
}

func (s *file) kept(i int) string { return fmt.Sprintf("%s.%d", s.options.Path, i) }

func (s *file) rotate() error {
	for i := s.options.Keep - 1; i >= 1; i-- {
		if err := os.Rename(s.kept(i), s.kept(i+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.Rename(s.options.Path, s.kept(1))
}

// open opens the file and cuts off what a crash has torn.
func (s *file) open() error {
	if info, err := os.Stat(s.options.Path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is no file", errTarget, s.options.Path) // opening a pipe may never end
	}
	f, err := os.OpenFile(s.options.Path, os.O_CREATE|os.O_RDWR|os.O_APPEND, readable)
	if err != nil {
		return err
	}
	s.begun, s.length, err = look(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	s.f = f
	return nil
}

// look finds the time of a file's first record, and its size without a torn one, which it
// cuts off.
func look(f *os.File) (begun time.Time, size int64, err error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return time.Time{}, 0, err
	}
	first, err := bufio.NewReaderSize(io.NewSectionReader(f, 0, info.Size()), trail.MaxLine).ReadSlice('\n')
	if err == nil {
		begun = eventTime(first)
	}
	if begun.IsZero() {
		begun = info.ModTime()
	}
	from := max(0, info.Size()-trail.MaxLine)
	end := make([]byte, info.Size()-from)
	if _, err := f.ReadAt(end, from); err != nil {
		return time.Time{}, 0, err
	}
	whole := bytes.LastIndexByte(end, '\n') + 1
	if whole == 0 && from > 0 {
		return time.Time{}, 0, fmt.Errorf("%w: %s is no file of records", errTarget, f.Name())
	}
	size = from + int64(whole)
	if size < info.Size() {
		err = f.Truncate(size)
	} else {
		err = nil
	}
	return begun, size, err
}

func (s *file) close() error {
	if s.f == nil {
		return nil
	}
	f := s.f
	s.f = nil
	return f.Close()
}
