package kms

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/gate"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// batchWorld is an env with everything that an item can name.
type batchWorld struct {
	*env
	keys  []string // as they are named
	blobs [][]byte // made under a, and what cannot be opened
}

// The contexts of batchWorld's blobs.
var batchContexts = [][]Pair{nil, {{"a", "1"}}, {{"a", "1"}, {"b", "2"}}, {{"a", "1"}, {"a", "2"}}}

func newBatchWorld(t *testing.T) *batchWorld {
	e := newEnv(t)
	ctx := t.Context()
	w := &batchWorld{env: e}
	a, denied, disabled, doomed, inside, required := e.key("default"), e.key("default"), e.key("default"), e.key("default"), e.resident(), e.key("default")
	every := []string{a, denied, disabled, doomed, inside}
	for _, key := range every {
		w.blobs = append(w.blobs, e.sealed(as(uma), key), e.sealed(as(uma), key, batchContexts[1]...))
	}
	w.blobs = append(w.blobs, e.sealed(as(uma), required, batchContexts[1]...), e.sealed(as(una), e.key("acme")))
	e.put(denied, `@id("not-uma") forbid (principal == KMS::User::"`+who(uma)+`", action, resource);`)
	_, _, err := e.DisableKey(ctx, as(ada), disabled, 0)
	e.ok(err)
	_, _, err = e.ScheduleKeyDeletion(ctx, as(ada), doomed, 7, 0)
	e.ok(err)
	_, _, err = e.SetRequiredContext(ctx, as(ada), required, []string{"a"}, 0)
	e.ok(err)
	_, _, err = e.CreateAlias(ctx, as(ada), "alias/a", a, 0)
	e.ok(err)
	absent := uuid.NewString()
	w.keys = append(every, required, "", e.arn("default", a), "alias/a", absent, e.of(fsm.SpecHMAC256, ""), "no key", e.key("acme"), e.arn("acme", absent))
	corrupt := bytes.Clone(w.blobs[0])
	corrupt[len(corrupt)-1] ^= 1
	elsewhere := bytes.Clone(w.blobs[0])
	elsewhere[6] ^= 1 // another key
	later := bytes.Clone(w.blobs[0])
	later[25] = 9 // a version that there is not
	w.blobs = append(w.blobs, corrupt, elsewhere, later, []byte("none"), nil)
	return w
}

// sameRecord compares what a batch has recorded with what the single calls have: but for the id that a
// batch gives, and what is random.
func (w *batchWorld) sameRecord(t *rapid.T, got, want audit.Event) {
	t.Helper()
	got.RequestID = ""
	if want.Result == audit.Failed && want.DecidedBy == "" { // before much of it was read: a batch has read what its items name
		want.Tenant, want.KeyID, want.Alias = cmp.Or(want.Tenant, got.Tenant), cmp.Or(want.KeyID, got.KeyID), cmp.Or(want.Alias, got.Alias)
		if want.Context == nil {
			want.Context = got.Context
		}
	}
	if want.Result == audit.Success && want.Name != "Decrypt" {
		got.CiphertextSHA256, want.CiphertextSHA256 = "", ""
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("recorded\n%+v, the single call\n%+v", got, want)
	}
}

// checkBatch compares each item of a batch with its single call.
func (w *batchWorld) checkBatch(t *rapid.T, n int, all func() []error, single func(i int) error) {
	t.Helper()
	before := len(w.audit.events)
	errs := all()
	records := slices.Clone(w.audit.events[before:])
	if len(errs) != n || len(records) != n {
		t.Fatalf("%d items: %d results, %d records", n, len(errs), len(records))
	}
	id := records[0].RequestID
	for _, r := range records {
		if r.RequestID == "" || r.RequestID != id {
			t.Errorf("a record has the request id %q, another %q", r.RequestID, id)
		}
	}
	// What is refused is recorded before the rest.
	var order []int
	for _, refused := range []bool{true, false} {
		for i, err := range errs {
			if (err != nil) == refused {
				order = append(order, i)
			}
		}
	}
	failedLate := func(err error) bool { return errors.Is(err, ErrCiphertext) } // while others succeed: behind what was refused at first
	slices.SortStableFunc(order, func(i, j int) int {
		rank := func(i int) int {
			switch err := errs[i]; {
			case err == nil:
				return 2
			case failedLate(err):
				return 1
			}
			return 0
		}
		return rank(i) - rank(j)
	})
	for at, i := range order {
		err := single(i)
		if fmt.Sprint(err) != fmt.Sprint(errs[i]) {
			t.Errorf("item %d: %v, the single call: %v", i, errs[i], err)
		}
		w.sameRecord(t, records[at], w.audit.last())
	}
}

// TestBatchIsItsSingleCalls: whatever the items are, each has the result and the record that its single
// call has.
func TestBatchIsItsSingleCalls(t *testing.T) {
	w := newBatchWorld(t)
	ctx := t.Context()
	rapid.Check(t, func(t *rapid.T) {
		c := Call{
			Caller: caller(rapid.SampledFrom([]string{uma, uma, una, ada, tom}).Draw(t, "who")), DryRun: rapid.IntRange(0, 9).Draw(t, "dry") == 0,
			Tenant: rapid.SampledFrom([]string{"", "", "default"}).Draw(t, "tenant"),
		}
		key := rapid.SampledFrom(w.keys)
		pairs := rapid.SampledFrom(batchContexts)
		if c.Caller.may(mayUse) != nil { // it is refused as a whole
			_, err := w.BatchEncrypt(ctx, c, []EncryptItem{{Key: w.keys[0], Plaintext: []byte("x")}})
			if !errors.Is(err, ErrDenied) || w.audit.last().Name != "BatchEncrypt" || w.audit.last().Target != "1 items" {
				t.Errorf("%v, recorded %+v", err, w.audit.last())
			}
			return
		}
		switch rapid.IntRange(0, 2).Draw(t, "operation") {
		case 0:
			items := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) DecryptItem {
				return DecryptItem{
					Ciphertext: rapid.SampledFrom(w.blobs).Draw(t, "blob"), Context: pairs.Draw(t, "context"),
					Key: rapid.OneOf(rapid.Just(""), rapid.Just(""), key).Draw(t, "key"),
				}
			}), 1, 12).Draw(t, "items")
			var out []Result[Opened]
			w.checkBatch(t, len(items), func() []error {
				var err error
				out, err = w.BatchDecrypt(ctx, c, items)
				w.ok(err)
				return errorsOf(out)
			}, func(i int) error {
				single, err := w.Decrypt(ctx, c, items[i].Ciphertext, items[i].Key, items[i].Context, "")
				if !reflect.DeepEqual(single, out[i].Value) {
					t.Errorf("item %d: %+v, the single call: %+v", i, out[i].Value, single)
				}
				return err
			})
		case 1:
			items := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) EncryptItem {
				return EncryptItem{Key: key.Draw(t, "key"), Context: pairs.Draw(t, "context"), Plaintext: bytes.Repeat([]byte("x"), rapid.SampledFrom([]int{0, 1, 32, MaxPlaintext, MaxPlaintext + 1}).Draw(t, "size"))}
			}), 1, 12).Draw(t, "items")
			var out []Result[Sealed]
			w.checkBatch(t, len(items), func() []error {
				var err error
				out, err = w.BatchEncrypt(ctx, c, items)
				w.ok(err)
				return errorsOf(out)
			}, func(i int) error {
				single, err := w.Encrypt(ctx, c, items[i].Key, items[i].Plaintext, items[i].Context, "")
				w.sameSealed(t, c, out[i].Value, single, items[i].Plaintext, items[i].Context, err)
				return err
			})
		default:
			items := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) DataKeyItem {
				return DataKeyItem{
					Key: key.Draw(t, "key"), Context: pairs.Draw(t, "context"), Bytes: rapid.SampledFrom([]int{0, 1, 16, 32, MaxRandom, MaxRandom + 1}).Draw(t, "size"),
					WithoutPlaintext: rapid.Bool().Draw(t, "without"), Count: rapid.IntRange(1, 3).Draw(t, "count"),
				}
			}), 1, 8).Draw(t, "items")
			var each []DataKeyItem
			for _, item := range items {
				each = append(each, slices.Repeat([]DataKeyItem{item}, item.Count)...)
			}
			var out []Result[Sealed]
			w.checkBatch(t, len(each), func() []error {
				var err error
				out, err = w.BatchGenerateDataKey(ctx, c, items)
				w.ok(err)
				return errorsOf(out)
			}, func(i int) error {
				item := each[i]
				make := w.GenerateDataKey
				if item.WithoutPlaintext {
					make = w.GenerateDataKeyWithoutPlaintext
				}
				single, err := make(ctx, c, item.Key, item.Bytes, item.Context)
				if got := out[i].Value.Plaintext; len(got) != len(single.Plaintext) || bytes.Equal(got, make32) {
					t.Errorf("a plaintext of %d bytes, the single call's has %d", len(got), len(single.Plaintext))
				}
				w.sameSealed(t, c, out[i].Value, single, out[i].Value.Plaintext, item.Context, err)
				return err
			})
		}
	})
}

var make32 = make([]byte, 32)

func errorsOf[T any](all []Result[T]) (out []error) {
	for _, r := range all {
		out = append(out, r.Err)
	}
	return out
}

// sameSealed compares new ciphertexts: one of them opens to the plaintext, unless that is not known.
func (w *batchWorld) sameSealed(t *rapid.T, c Call, got, single Sealed, plaintext []byte, pairs []Pair, err error) {
	t.Helper()
	if err != nil {
		return
	}
	if plaintext != nil {
		records := len(w.audit.events)
		opened, err := w.Decrypt(context.Background(), c, got.Ciphertext, "", pairs, "")
		w.audit.events = w.audit.events[:records]
		if err != nil || !bytes.Equal(opened.Plaintext, plaintext) {
			t.Errorf("what a batch has sealed opens to %x: %v", opened.Plaintext, err)
		}
	}
	if len(got.Ciphertext) != len(single.Ciphertext) || bytes.Equal(got.Ciphertext, single.Ciphertext) {
		t.Errorf("ciphertexts of %d and %d bytes", len(got.Ciphertext), len(single.Ciphertext))
	}
	got.Ciphertext, single.Ciphertext, got.Plaintext, single.Plaintext = nil, nil, nil, nil
	if !reflect.DeepEqual(got, single) {
		t.Errorf("%+v, the single call: %+v", got, single)
	}
}

func TestBatchSizes(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	key := e.key("default")
	dataKey := func(count int) DataKeyItem { return DataKeyItem{Key: key, Bytes: 32, Count: count} }
	for _, items := range [][]DataKeyItem{nil, {dataKey(MaxBatch + 1)}, {dataKey(MaxBatch), dataKey(1)}, {dataKey(1 << 40), dataKey(1 << 40)}, slices.Repeat([]DataKeyItem{dataKey(1)}, MaxBatch+1)} {
		_, err := e.BatchGenerateDataKey(ctx, as(uma), items)
		e.refused(err, fsm.ErrInvalid, "1 to 256 items")
	}
	_, err := e.BatchEncrypt(ctx, as(uma), nil)
	e.refused(err, fsm.ErrInvalid, "not 0")
	_, err = e.BatchDecrypt(ctx, as(uma), make([]DecryptItem, MaxBatch+1))
	e.refused(err, fsm.ErrInvalid, "not more than 256")
	if got := e.audit.last(); got.Name != "BatchDecrypt" || got.Result != audit.Failed || got.Target != "more than 256 items" {
		t.Errorf("recorded %+v", got)
	}
	all, err := e.BatchGenerateDataKey(ctx, as(uma), []DataKeyItem{dataKey(MaxBatch)})
	e.ok(err)
	distinct := map[string]bool{}
	for _, r := range all {
		e.ok(r.Err)
		distinct[string(r.Value.Plaintext)], distinct[string(r.Value.Ciphertext)] = true, true
	}
	if len(distinct) != 2*MaxBatch {
		t.Errorf("%d different keys and ciphertexts, want %d", len(distinct), 2*MaxBatch)
	}
}

// lastLook is a lease that does something when it is looked at for the nth time.
type lastLook struct {
	gate.Freshness
	looks int
	do    func() error
}

func (l *lastLook) Usable() error {
	if l.looks--; l.looks == 0 {
		return l.do()
	}
	return l.Freshness.Usable()
}

// decrypting is a batch of ciphertexts of several keys on its way, and the plaintexts that it holds when
// the gate looks, at which moment do happens.
func (e *env) decrypting(c Call, do func() error, blobs ...[]byte) (b *batch, seen [][]byte, err error) {
	e.t.Helper()
	b, err = e.beginBatch(e.t.Context(), c, "BatchDecrypt", len(blobs))
	e.ok(err)
	for _, blob := range blobs {
		b.units = append(b.units, unit{lot: b.opening(DecryptItem{Ciphertext: blob}), blob: blob})
	}
	look := &lastLook{Freshness: e.fresh, looks: 1, do: func() error {
		for i := range b.units {
			seen = append(seen, b.units[i].secret)
		}
		return do()
	}}
	e.gate = gate.New(look, e.Service.audit, gate.NewReleases(), func() time.Duration { return 0 })
	return b, seen, b.run(e.t.Context(), b.openAll)
}

// TestBatchRestrictedMeanwhile: a key that is disabled between the work and the release takes back what was
// opened under it, and nothing else.
func TestBatchRestrictedMeanwhile(t *testing.T) {
	e := newEnv(t)
	one, two := e.key("default"), e.key("default")
	a, b := e.sealed(as(uma), one), e.sealed(as(uma), two)
	before := len(e.audit.events)
	done, seen, err := e.decrypting(as(uma), func() error { return e.disabledNow(two) }, a, b, a, b)
	e.ok(err)
	for i, u := range done.units {
		if ofTwo := i%2 == 1; ofTwo != errors.Is(u.err, fsm.ErrDisabled) || bytes.Equal(seen[i], []byte("plain")) == ofTwo || (u.secret == nil) != ofTwo {
			t.Errorf("item %d: %v, its plaintext is %q", i, u.err, seen[i])
		}
	}
	var results []audit.Result
	for _, r := range e.audit.events[before:] {
		if r.Name == "Decrypt" {
			results = append(results, r.Result)
		}
	}
	if want := []audit.Result{audit.Success, audit.Success, audit.Success, audit.Success, audit.Withheld, audit.Withheld}; !slices.Equal(results, want) {
		t.Errorf("recorded %v, want %v", results, want)
	}
	if r := e.audit.last(); r.KeyID != two || r.Reason != done.units[3].err.Error() {
		t.Errorf("recorded last: %+v", r)
	}
}

func (e *env) disabledNow(key string) error {
	_, _, err := e.DisableKey(context.Background(), as(ada), key, 0)
	return err
}

// TestBatchIsWithheld: without a lease, or a record, nothing leaves.
func TestBatchIsWithheld(t *testing.T) {
	e := newEnv(t)
	blob := e.sealed(as(uma), e.key("default"))
	lost := errors.New("no lease")
	_, seen, err := e.decrypting(as(uma), func() error { return lost }, blob, blob)
	e.refused(err, lost)
	if len(seen) != 2 || !bytes.Equal(slices.Concat(seen...), make([]byte, 10)) {
		t.Errorf("the plaintexts are %q", seen)
	}
	if got := e.audit.of("Decrypt"); len(got) != 4 || got[3].Result != audit.Withheld || got[2].Result != audit.Withheld {
		t.Errorf("recorded %+v", got)
	}
	e.audit.broken = audit.ErrUnavailable
	_, seen, err = e.decrypting(as(uma), func() error { t.Error("the gate has looked"); return nil }, blob)
	e.refused(err, audit.ErrUnavailable)
	if seen != nil {
		t.Errorf("the plaintexts are %q", seen)
	}
	all, err := e.BatchDecrypt(t.Context(), as(uma), []DecryptItem{{Ciphertext: []byte("none")}})
	e.ok(err)
	e.refused(all[0].Err, audit.ErrUnavailable)
}

// failingKey is a deriver that fails for one key.
type failingKey struct {
	Deriver
	key   hsm.ID
	calls int
}

func (f *failingKey) DeriveAll(ctx context.Context, ref hsm.Ref, in []hsm.MessageInput, use hsm.Use) ([]hsm.MessageKeys, error) {
	f.calls++
	if ref.Want.Key == f.key {
		return nil, hsm.ErrUnavailable
	}
	return f.Deriver.DeriveAll(ctx, ref, in, use)
}

// TestBatchKeyFails: where the HSM fails for one key, the items of others have their results; and a key is
// asked for once, whatever the contexts of its items are.
func TestBatchKeyFails(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	one, two := e.key("default"), e.key("default")
	d := &failingKey{Deriver: e.deriver, key: hsm.ID(uuid.MustParse(two))}
	e.deriver = d
	items := []DataKeyItem{{Key: one, Bytes: 32, Count: 2}, {Key: two, Bytes: 32, Count: 2}, {Key: one, Bytes: 16, Count: 1, Context: batchContexts[1]}}
	all, err := e.BatchGenerateDataKey(ctx, as(uma), items)
	e.ok(err)
	for i, r := range all {
		if ofTwo := i == 2 || i == 3; ofTwo != errors.Is(r.Err, hsm.ErrUnavailable) || (r.Value.Plaintext == nil) != ofTwo {
			t.Errorf("item %d: %v, %d bytes", i, r.Err, len(r.Value.Plaintext))
		}
	}
	if d.calls != 2 {
		t.Errorf("the HSM was asked %d times for two keys", d.calls)
	}
}

// TestBatchCounts: every item counts with the quota, and a batch is refused as one.
func TestBatchCounts(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	key := e.key("default")
	e.limited(limit.Config{UsePerTenant: 10})
	batch := func(n int) error {
		_, err := e.BatchGenerateDataKey(ctx, as(uma), []DataKeyItem{{Key: key, Bytes: 32, Count: n}})
		return err
	}
	e.ok(batch(7))
	err := batch(5)
	e.refused(err, limit.ErrExceeded, "try again in 20")
	if got := e.audit.last(); got.Name != "BatchGenerateDataKey" {
		t.Errorf("recorded %+v", got)
	}
	e.ok(batch(3))
	e.refused(e.encrypts(as(uma), key), limit.ErrExceeded)
}

// TestBatchOfAService: a service's own key is made once for a whole batch.
func TestBatchOfAService(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	c := in(obs, "acme")
	all, err := e.BatchGenerateDataKey(ctx, c, []DataKeyItem{
		{Bytes: 32, Count: 1, Context: acting("acme", "a")}, {Bytes: 32, Count: 1, Context: acting("acme", "b")}, {Bytes: 32, Count: 1},
	})
	e.ok(err)
	e.ok(errors.Join(all[0].Err, all[1].Err))
	e.refused(all[2].Err, ErrDenied, "encryption context tenant=acme")
	if n := e.log.count(&fsm.CreateServiceKey{}); n != 1 || all[0].Value.KeyARN != all[1].Value.KeyARN {
		t.Errorf("%d keys were made", n)
	}
}

// TestBatchIsNoticed: denials, uses and alarms count by items.
func TestBatchIsNoticed(t *testing.T) {
	e, ctx := newEnv(t), t.Context()
	key := e.key("default")
	_, err := e.BatchGenerateDataKey(ctx, as(uma), []DataKeyItem{{Key: key, Bytes: 32, Count: 30}})
	e.ok(err)
	e.tellUses(ctx)
	if got := e.told(); len(got) != 1 || got[0].Version != 1 {
		t.Errorf("uses: %+v", got)
	}
	_, _, err = e.ScheduleKeyDeletion(ctx, as(ada), key, 7, 0)
	e.ok(err)
	_, err = e.BatchGenerateDataKey(ctx, as(uma), []DataKeyItem{{Key: key, Bytes: 32, Count: 2}})
	e.ok(err)
	alarms := 0
	for _, r := range e.audit.of("GenerateDataKey") {
		if r.Alarm == audit.UseOfDoomedKey {
			alarms++
		}
	}
	if alarms != 2 {
		t.Errorf("%d alarms, want 2", alarms)
	}
	_, err = e.BatchGenerateDataKey(ctx, as(una), []DataKeyItem{{Key: e.arn("default", key), Bytes: 32, Count: RepeatedDenials}})
	e.ok(err)
	if got := e.Denied(); len(got) != 1 || got[0].Calls != RepeatedDenials || got[0].Last.Operation != "GenerateDataKey" {
		t.Errorf("denied: %+v", got)
	}
}

// BenchmarkBatch: an item, in a service whose HSM and log are in memory.
func BenchmarkBatch(b *testing.B) {
	e, ctx := newEnv(b), b.Context()
	key := e.key("default")
	const n = 128
	blobs := slices.Repeat([]DecryptItem{{Ciphertext: e.sealed(as(uma), key)}}, n)
	for name, f := range map[string]func() error{
		"GenerateDataKey": func() error {
			_, err := e.BatchGenerateDataKey(ctx, as(uma), []DataKeyItem{{Key: key, Bytes: 32, Count: n}})
			return err
		},
		"Decrypt": func() error { _, err := e.BatchDecrypt(ctx, as(uma), blobs); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; i < b.N; i += n { // an operation is an item
				e.ok(f())
				e.audit.events = e.audit.events[:0]
			}
		})
	}
}

// TestBatchOfRefusals: items that are wrong in themselves are counted as refused calls are, and
// recorded as long as that goes; what is wrong is told in few words.
func TestBatchOfRefusals(t *testing.T) {
	e := newEnv(t)
	e.limited(limit.Config{RefusedPerPrincipal: 10})
	long := []Pair{{reservedContext + strings.Repeat("\x01", 1<<20), "v"}}
	before := len(e.audit.events)
	for range 2 {
		results, err := e.BatchGenerateDataKey(t.Context(), as(uma), []DataKeyItem{{Key: "alias/none", Bytes: 32, Context: long, Count: 7}})
		if err != nil || len(results) != 7 {
			t.Fatalf("%d results: %v", len(results), err)
		}
		for _, r := range results {
			if !errors.Is(r.Err, fsm.ErrInvalid) && !errors.Is(r.Err, limit.ErrExceeded) || len(r.Err.Error()) > 1000 {
				t.Fatalf("%.200v", r.Err)
			}
		}
	}
	if n := len(e.audit.events) - before; n != 7 {
		t.Fatalf("%d records of 14 refusals, want 7", n)
	}
}
