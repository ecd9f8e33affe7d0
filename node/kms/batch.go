package kms

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/gate"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// MaxBatch is the most items of a batch.
const MaxBatch = 256

// A batch is many calls of one kind in one. Each of its items is authorised and recorded as the
// single call would be, under that one's name, and has a result of its own. Its items have in common
// the way in, where they are counted, the state that they begin on, the HSM calls of a key, and the way out,
// where all are decided on one state. Their records have a request id in common that no other call has.

// DataKeyItem is an item of BatchGenerateDataKey.
type DataKeyItem struct {
	Key              string
	Bytes            int // 1..1,024
	Context          []Pair
	WithoutPlaintext bool
	Count            int   // so many data keys, each with a result: 1 at least
	Wrong            error // unless nil: found wrong with it before
}

// EncryptItem is an item of BatchEncrypt.
type EncryptItem struct {
	Key       string
	Plaintext []byte
	Context   []Pair
}

// DecryptItem is an item of BatchDecrypt.
type DecryptItem struct {
	Ciphertext []byte
	Key        string // may be empty
	Context    []Pair
}

// Result is that of an item: a value, or why there is none.
type Result[T any] struct {
	Value T
	Err   error
}

// BatchGenerateDataKey is GenerateDataKey, or GenerateDataKeyWithoutPlaintext, for each item; an
// item that counts as several has as many results.
func (s *Service) BatchGenerateDataKey(ctx context.Context, c Call, items []DataKeyItem) ([]Result[Sealed], error) {
	n := 0
	for _, item := range items {
		n += min(item.Count, MaxBatch+1) // cannot overflow: a message has fewer items
	}
	b, err := s.beginBatch(ctx, c, "BatchGenerateDataKey", n)
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		name := "GenerateDataKey"
		if item.WithoutPlaintext {
			name = "GenerateDataKeyWithoutPlaintext"
		}
		wrong := item.Wrong
		if wrong == nil {
			wrong = checkDataKey(item.Bytes)
		}
		l := b.sealing(ctx, name, item.Key, item.Context, wrong)
		for range item.Count {
			b.units = append(b.units, unit{lot: l, random: item.Bytes, hidden: item.WithoutPlaintext})
		}
	}
	return results(b.run(ctx, b.sealAll), b.units, (*unit).sealed)
}

// BatchEncrypt is Encrypt under a symmetric key for each item.
func (s *Service) BatchEncrypt(ctx context.Context, c Call, items []EncryptItem) ([]Result[Sealed], error) {
	b, err := s.beginBatch(ctx, c, "BatchEncrypt", len(items))
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		l := b.sealing(ctx, "Encrypt", item.Key, item.Context, checkPlaintext(item.Plaintext))
		b.units = append(b.units, unit{lot: l, plaintext: item.Plaintext})
	}
	return results(b.run(ctx, b.sealAll), b.units, (*unit).sealed)
}

// BatchDecrypt is Decrypt under a symmetric key for each item.
func (s *Service) BatchDecrypt(ctx context.Context, c Call, items []DecryptItem) ([]Result[Opened], error) {
	b, err := s.beginBatch(ctx, c, "BatchDecrypt", len(items))
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		b.units = append(b.units, unit{lot: b.opening(item), blob: item.Ciphertext})
	}
	return results(b.run(ctx, b.openAll), b.units, (*unit).opened)
}

func results[T any](err error, units []unit, value func(*unit) T) ([]Result[T], error) {
	if err != nil {
		return nil, err
	}
	out := make([]Result[T], len(units))
	for i := range units {
		if u := &units[i]; u.err != nil {
			out[i].Err = u.err
		} else {
			out[i].Value = value(u)
		}
	}
	return out, nil
}

// batch is a batch on its way.
type batch struct {
	*Service
	call  Call
	st    *fsm.State
	lots  map[lotKey]*lot
	units []unit
}

// lot is what all items have in common that ask the same: they are found, authorised and described
// once, on one state.
type lot struct {
	st     *fsm.State // that it was found in
	t      target
	header blobHeader // of ciphertexts to open: without the nonce
	h      [32]byte
	event  audit.Event
	token  []byte
	err    error // why nothing is done
	now    error // what the state of the release says
}

type lotKey struct {
	operation, key, context string
	header                  blobHeader
}

// unit is one item.
type unit struct {
	*lot
	blob      []byte // to open, or sealed
	plaintext []byte // to encrypt
	random    int    // bytes of a data key that is to be made
	hidden    bool   // and not to be shown
	nonce     [blobNonceSize]byte
	secret    []byte // what was made or opened
	err       error
}

// beginBatch is the way in of a batch of n items.
func (s *Service) beginBatch(ctx context.Context, c Call, name string, n int) (*batch, error) {
	e := begin(name, c)
	e.Target = fmt.Sprintf("%d items", n)
	if n > MaxBatch {
		e.Target = fmt.Sprintf("more than %d items", MaxBatch)
	}
	if n < 1 || n > MaxBatch {
		return nil, s.refuse(e, early{invalid("a batch has 1 to %d items, not %s", MaxBatch, strings.TrimSuffix(e.Target, " items"))})
	}
	st, err := s.enterMany(ctx, c, n, &e)
	if err != nil {
		return nil, s.refuse(e, err)
	}
	c.RequestID = uuid.NewString()
	return &batch{Service: s, call: c, st: st, lots: map[lotKey]*lot{}, units: make([]unit, 0, n)}, nil
}

// lot finds what an item has in common with others; find is asked once for all of them.
func (b *batch) lot(key lotKey, pairs []Pair, find func(*lot) error) *lot {
	key.context = contextText(pairs)
	l := b.lots[key]
	if l == nil {
		l = b.newLot(key, pairs)
		b.lots[key] = l
		if h, err := contextHash(pairs); err != nil {
			l.err = early{err}
		} else {
			l.h, l.err = h, find(l)
		}
		if l.st = b.st; l.err == nil {
			l.token = IndexToken(l.st)
		}
	}
	return l
}

// newLot begins with what the request says.
func (b *batch) newLot(key lotKey, pairs []Pair) *lot {
	l := &lot{st: b.st, header: key.header, event: begin(key.operation, b.call)}
	l.event.Tenant, l.event.StateIndex = b.call.acting(), b.st.Index()
	if len(pairs) <= MaxContextPairs { // others are refused, which each item's record would have at length
		l.event.Context = contextMap(pairs)
	}
	nameKey(&l.event, key.key)
	return l
}

// wrong is the lot of an item that nothing is looked up for.
func (b *batch) wrong(operation, key string, pairs []Pair, err error) *lot {
	l := b.newLot(lotKey{operation: operation, key: key}, pairs)
	l.err = early{err}
	return l
}

// sealing is the lot of an item that seals; wrong is what is wrong with the item itself.
func (b *batch) sealing(ctx context.Context, operation, key string, pairs []Pair, wrong error) *lot {
	if wrong != nil {
		return b.wrong(operation, key, pairs, wrong)
	}
	return b.lot(lotKey{operation: operation, key: key}, pairs, func(l *lot) (err error) {
		l.t, b.st, err = b.findSeal(ctx, b.st, b.call, key, pairs, &l.event)
		return err
	})
}

// opening is the lot of an item to open.
func (b *batch) opening(item DecryptItem) *lot {
	header, err := parseBlob(item.Ciphertext)
	if err != nil {
		return b.wrong("Decrypt", item.Key, item.Context, err)
	}
	header.nonce = [blobNonceSize]byte{}
	return b.lot(lotKey{operation: "Decrypt", key: item.Key, header: header}, item.Context, func(l *lot) error {
		l.event.KeyID, l.event.KeyVersion = header.key.String(), header.version
		src, err := b.findSource(b.st, b.call, header, l.h, item.Key,
			question{caller: b.call.Caller, needs: mayUse, operation: l.event.Name, context: item.Context})
		src.describe(&l.event)
		l.t = src.target
		return err
	})
}

// contextText tells encryption contexts apart.
func contextText(pairs []Pair) string {
	var text []byte
	for _, p := range pairs {
		for _, s := range [...]string{p.Key, p.Value} {
			text = append(binary.AppendUvarint(text, uint64(len(s))), s...)
		}
	}
	return string(text)
}

// run does the work and releases what came of it; with an error, nothing. Every item that has no
// result has its own error.
func (b *batch) run(ctx context.Context, work func(context.Context, []*unit)) error {
	var going []*unit
	for i := range b.units {
		u := &b.units[i]
		switch {
		case u.lot.err != nil:
			u.err = u.lot.err
		case b.call.DryRun:
			u.err = ErrDryRun
		}
		going = append(going, u)
	}
	if going = b.refuseFailed(going); going == nil {
		return nil
	}
	pending, err := gate.Compute(ctx, func(ctx context.Context) ([]*unit, error) {
		worked := false
		defer func() {
			if !worked { // it panicked
				wipeUnits(going)
			}
		}()
		work(ctx, going)
		worked = true
		going = b.refuseFailed(going)
		return going, b.confirm(ctx, b.call)
	}, wipeUnits)
	if err != nil {
		for _, u := range going {
			u.err = err
		}
		b.refuseFailed(going)
		return err
	}
	if len(going) == 0 {
		return nil
	}
	events := make([]audit.Event, len(going))
	for i, u := range going {
		u.describe(&events[i])
	}
	_, withheld, err := gate.ReleaseAll(ctx, b.gate, pending, events, func(st *fsm.State) []error { return b.authorise(st, going, events) })
	if err != nil {
		return err
	}
	b.noteReleased(going, withheld)
	return nil
}

// authorise asks a state for every item that is to go out.
func (b *batch) authorise(st *fsm.State, going []*unit, events []audit.Event) []error {
	for _, l := range b.lots {
		if l.err == nil {
			l.now = l.t.authorise(st)
		}
	}
	errs := make([]error, len(going))
	for i, u := range going {
		errs[i] = u.now
		b.noteDoomed(&events[i], st, u.t, u.now)
	}
	return errs
}

// noteReleased tells the items that were withheld, and notes the keys that were used for others.
func (b *batch) noteReleased(going []*unit, withheld []error) {
	used := map[*lot]bool{}
	for i, u := range going {
		if withheld != nil && withheld[i] != nil {
			u.err = withheld[i]
		} else if !used[u.lot] {
			used[u.lot] = true
			b.uses.note(b.log.State(), u.t.key.ID, u.t.version, b.now())
		}
	}
}

// refuseFailed records, together, the items that end without a result, and returns the others.
func (b *batch) refuseFailed(all []*unit) (others []*unit) {
	over := b.admitEarly(all)
	var failed []*unit
	var events []audit.Event
	for _, u := range all {
		if u.err == nil {
			others = append(others, u)
			continue
		}
		wipeUnits([]*unit{u})
		if first, ok := errors.AsType[early](u.err); ok {
			if u.err = first.error; over != nil {
				u.err = over
				continue
			}
		}
		var e audit.Event
		u.describe(&e)
		b.noteDoomed(&e, u.st, u.t, u.err)
		b.refusal(&e, u.err)
		failed, events = append(failed, u), append(events, e)
	}
	if failed == nil {
		return others
	}
	if err := b.audit.RecordAll(events); err != nil {
		for _, u := range failed {
			u.err = err
		}
	}
	return others
}

// admitEarly counts the items that were refused for what they are, as the single calls would be:
// nobody fills the record with what costs it nothing. With an error they have none.
func (b *batch) admitEarly(all []*unit) error {
	n := 0
	for _, u := range all {
		if _, ok := errors.AsType[early](u.err); ok {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	over := b.limits.AdmitMany(limit.Refused, n, "", b.call.Caller.Principal)
	if over != nil {
		b.unrecorded.Add(uint64(n))
	}
	return over
}

// describe makes the item's audit record.
func (u *unit) describe(e *audit.Event) {
	*e = u.event
	e.CiphertextSHA256 = digest(u.blob)
}

func wipeUnits(units []*unit) {
	for _, u := range units {
		clear(u.secret)
		u.secret = nil
	}
}

func (u *unit) sealed() Sealed {
	return Sealed{Ciphertext: u.blob, Plaintext: u.secret, KeyARN: u.t.arn, Version: u.t.version, IndexToken: u.token}
}

func (u *unit) opened() Opened {
	return Opened{Plaintext: u.secret, KeyARN: u.t.arn, Version: u.header.version, IndexToken: u.token}
}
