package cluster

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// mark is how far this node's log, term and vote have come at least. It lies in a
// file of its own, so that a log that was cut off, or replaced by an older copy, is
// noticed at the next start.
type mark struct {
	index uint64 // of the last record written
	seal  seal   // of that record
	term  uint64 // Raft's current term
	vote  uint64 // the term of the last vote
}

// The file: "QKL1", index, seal, term, vote, seal of the mark.
const (
	markMagic = "QKL1"
	markSize  = len(markMagic) + 8 + 32 + 8 + 8 + 32 // bytes: less than a sector, so that it is written whole or not at all
)

func (m mark) encode(k sealKey) []byte {
	b := make([]byte, 0, markSize)
	b = append(b, markMagic...)
	b = binary.BigEndian.AppendUint64(b, m.index)
	b = append(b, m.seal[:]...)
	b = binary.BigEndian.AppendUint64(b, m.term)
	b = binary.BigEndian.AppendUint64(b, m.vote)
	own := k.seal(sealedMark, b)
	return append(b, own[:]...)
}

func decodeMark(b []byte, k sealKey) (mark, error) {
	n := markSize - len(seal{})
	if len(b) != markSize || string(b[:len(markMagic)]) != markMagic {
		return mark{}, errors.New("it is damaged")
	}
	if !k.seal(sealedMark, b[:n]).verifies(b[n:]) {
		return mark{}, errors.New("its seal does not verify")
	}
	m, b := mark{}, b[len(markMagic):]
	m.index = binary.BigEndian.Uint64(b)
	b = b[8+copy(m.seal[:], b[8:]):]
	m.term, m.vote = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	return m, nil
}

// markFile is a MarkStorage: a file that is written over in place. Since it is not
// synced with each batch of records, the mark is behind the log after a power loss,
// never ahead of it.
type markFile struct {
	path string
	file *os.File
}

const markFileName = "mark"

func (f *markFile) open() (err error) {
	if f.file == nil {
		f.file, err = os.OpenFile(f.path, os.O_RDWR, 0)
	}
	return err
}

// Read implements MarkStorage.
func (f *markFile) Read() ([]byte, error) {
	if err := f.open(); err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f.file, 0, int64(markSize)+1))
}

// Write implements MarkStorage.
func (f *markFile) Write(b []byte, sync bool) error {
	err := f.open()
	if errors.Is(err, fs.ErrNotExist) {
		if err := writeSynced(f.path+".new", b); err != nil {
			return err
		}
		return errors.Join(os.Rename(f.path+".new", f.path), syncDir(filepath.Dir(f.path)), f.open())
	}
	if err == nil {
		_, err = f.file.WriteAt(b, 0)
	}
	if err == nil && sync {
		err = f.file.Sync()
	}
	return err
}

// Close implements io.Closer.
func (f *markFile) Close() error {
	if f.file == nil {
		return nil
	}
	err := errors.Join(f.file.Sync(), f.file.Close())
	f.file = nil
	return err
}
