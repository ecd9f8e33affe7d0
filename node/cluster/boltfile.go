package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
)

// The layout of bbolt's file (go.etcd.io/bbolt/internal/common): integers in the
// machine's order; a page begins with id u64, flags u16, count u16, overflow u32.
const (
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
	boltHead       = 16
	boltElement    = 16
	boltMetaSize   = 64
	boltBranch     = 0x01
	boltLeaf       = 0x02
	boltFreelist   = 0x10
	boltBucket     = 0x01       // flag of a leaf's element: its value is a bucket
	boltManyFree   = 0xFFFF     // as the count of a freelist: the count is its first element
	boltUnlisted   = ^uint64(0) // as its page: free pages are found by walking
	boltBucketHead = 16
	boltMinPage    = 1 << 10 // bytes
	boltMaxPage    = 1 << 24 // bytes
	boltMaxDepth   = 64      // pages on the way from the root to a leaf, nested buckets included
)

var native = binary.NativeEndian

// boltFile walks over a database file before bbolt does: bbolt meets a damaged page
// with a panic, in part in goroutines of its own, an endless walk, or a fault.
type boltFile struct {
	r     io.ReaderAt
	page  uint64 // size of one, in bytes
	pages uint64 // in use, by the meta page
	free  uint64 // page of the freelist, or boltUnlisted
	seen  map[uint64]bool
}

// checkBoltFile returns what is wrong with the structure of a database file. One that
// is absent or empty is about to be made.
func checkBoltFile(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		err = checkBolt(f, uint64(info.Size())) //nolint:gosec // positive
	}
	return errors.Join(err, f.Close())
}

func checkBolt(r io.ReaderAt, size uint64) error {
	b := &boltFile{r: r, seen: map[uint64]bool{}}
	root, err := b.meta(size)
	if err != nil {
		return err
	}
	if err := b.walk(root, nil, nil, 0); err != nil {
		return err
	}
	return b.freelist()
}

// meta finds the newer of the two meta pages that are whole.
func (b *boltFile) meta(size uint64) (root uint64, err error) {
	newest, found := uint64(0), false
	take := func(at uint64) {
		m := make([]byte, boltMetaSize)
		if _, err := b.r.ReadAt(m, int64(at+boltHead)); err != nil { //nolint:gosec // within the file
			return
		}
		page := uint64(native.Uint32(m[8:]))
		sum := fnv.New64a()
		_, _ = sum.Write(m[:56])
		if native.Uint32(m) != boltMagic || native.Uint32(m[4:]) != boltVersion || native.Uint64(m[56:]) != sum.Sum64() ||
			page < boltMinPage || page > boltMaxPage || at != 0 && at != page {
			return
		}
		if tx := native.Uint64(m[48:]); !found || tx > newest {
			newest, found = tx, true
			b.page, b.pages, b.free, root = page, native.Uint64(m[40:]), native.Uint64(m[32:]), native.Uint64(m[16:])
		}
	}
	take(0)
	if found {
		take(b.page)
	}
	for page := uint64(boltMinPage); !found && page <= boltMaxPage; page *= 2 {
		take(page)
	}
	switch {
	case !found:
		return 0, errors.New("both meta pages are damaged")
	case b.pages > size/b.page:
		return 0, fmt.Errorf("it has %d pages of %d bytes, there should be %d", size/b.page, b.page, b.pages)
	}
	return root, nil
}

// load reads a page with those that it flows over to.
func (b *boltFile) load(id uint64) ([]byte, error) {
	if id < 2 || id >= b.pages {
		return nil, fmt.Errorf("page %d: there is none", id)
	}
	at := int64(id * b.page) //nolint:gosec // within the file
	page := make([]byte, b.page)
	if _, err := b.r.ReadAt(page, at); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	over := uint64(native.Uint32(page[12:]))
	if native.Uint64(page) != id || over >= b.pages-id {
		return nil, fmt.Errorf("page %d: its header is damaged", id)
	}
	for i := id; i <= id+over; i++ {
		if b.seen[i] {
			return nil, fmt.Errorf("page %d: reached twice", i)
		}
		b.seen[i] = true
	}
	if over > 0 {
		page = make([]byte, (over+1)*b.page)
		if _, err := b.r.ReadAt(page, at); err != nil {
			return nil, fmt.Errorf("page %d: %w", id, err)
		}
	}
	return page, nil
}

// walk checks a page and all below it. Its keys are at least from, and below to if
// that is not nil.
func (b *boltFile) walk(id uint64, from, to []byte, depth int) error {
	if depth > boltMaxDepth {
		return fmt.Errorf("page %d: too far from the root", id)
	}
	page, err := b.load(id)
	if err != nil {
		return err
	}
	if err := b.elements(page, from, to, depth); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// freelist checks the list of free pages, if there is one: none of them is in use.
func (b *boltFile) freelist() error {
	if b.free == boltUnlisted {
		return nil
	}
	page, err := b.load(b.free)
	if err != nil {
		return err
	}
	ids, count := page[boltHead:], uint64(native.Uint16(page[10:]))
	if count == boltManyFree {
		count, ids = native.Uint64(ids), ids[8:]
	}
	if native.Uint16(page[8:]) != boltFreelist || count > uint64(len(ids))/8 {
		return fmt.Errorf("page %d: no list of free pages", b.free)
	}
	for i := range count {
		id := native.Uint64(ids[i*8:])
		if id < 2 || id >= b.pages || b.seen[id] {
			return fmt.Errorf("page %d: it lists page %d as free", b.free, id)
		}
		b.seen[id] = true
	}
	return nil
}

func (b *boltFile) elements(page, from, to []byte, depth int) error {
	flags, count := native.Uint16(page[8:]), int(native.Uint16(page[10:]))
	if flags != boltBranch && flags != boltLeaf || flags == boltBranch && count == 0 || boltHead+count*boltElement > len(page) {
		return errors.New("its header is damaged")
	}
	var keys [][]byte
	var children []uint64
	for i := range count {
		element := page[boltHead+i*boltElement:]
		key, value, err := boltItem(element, flags)
		if err != nil {
			return err
		}
		if i > 0 && bytes.Compare(keys[i-1], key) >= 0 || bytes.Compare(from, key) > 0 || to != nil && bytes.Compare(key, to) >= 0 {
			return errors.New("its keys are not in order")
		}
		keys = append(keys, key)
		switch {
		case flags == boltBranch:
			children = append(children, native.Uint64(element[8:]))
		case native.Uint32(element)&boltBucket != 0:
			if err := b.bucket(value, depth+1); err != nil {
				return err
			}
		}
	}
	for i, child := range children {
		end := to
		if i+1 < count {
			end = keys[i+1]
		}
		if err := b.walk(child, keys[i], end, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// boltItem gives the key of an element, and its value if it is a leaf's.
func boltItem(element []byte, flags uint16) (key, value []byte, err error) {
	var at, k, v uint64
	if flags == boltBranch {
		at, k = uint64(native.Uint32(element)), uint64(native.Uint32(element[4:]))
	} else {
		at, k, v = uint64(native.Uint32(element[4:])), uint64(native.Uint32(element[8:])), uint64(native.Uint32(element[12:]))
	}
	if k == 0 || at+k+v > uint64(len(element)) {
		return nil, nil, errors.New("an element is damaged")
	}
	return element[at : at+k], element[at+k : at+k+v], nil
}

func (b *boltFile) bucket(value []byte, depth int) error {
	if len(value) < boltBucketHead {
		return errors.New("a bucket is damaged")
	}
	if root := native.Uint64(value); root != 0 {
		return b.walk(root, nil, nil, depth)
	}
	inline := value[boltBucketHead:]
	if len(inline) < boltHead || native.Uint16(inline[8:]) != boltLeaf || native.Uint64(inline) != 0 {
		return errors.New("a bucket is damaged")
	}
	return b.elements(inline, nil, nil, depth)
}
