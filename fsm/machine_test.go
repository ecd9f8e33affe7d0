package fsm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/hashicorp/raft"
)

// machine is a machine under the test's log key, and the errors it halted with.
func machine() (*Machine, *[]error) {
	var halts []error
	return NewMachine(logKey(), func(err error) { halts = append(halts, err) }), &halts
}

// fed is a machine that has applied w's log, and must not halt.
func fed(t *testing.T, w *world) *Machine {
	t.Helper()
	m, halts := machine()
	m.ApplyBatch(w.log)
	if len(*halts) != 0 {
		t.Fatalf("halted: %v", *halts)
	}
	return m
}

// reader is what raft hands to Restore.
type reader struct {
	io.Reader
	closing error
	closed  int
}

func (r *reader) Close() error { r.closed++; return r.closing }

func TestMachineApply(t *testing.T) {
	w := oneKey(t)
	m := fed(t, w)
	changed := m.Changed()
	last := &raft.Log{Index: 9, Term: 4, Type: raft.LogCommand, Data: seal(t, w.entry(), &DisableKey{ref(1)})}
	if got, want := m.Apply(last).(Outcome), (Outcome{Result{9, keyID(1).String(), 1}, 4, nil}); got != want {
		t.Errorf("outcome %+v, want %+v", got, want)
	}
	select {
	case <-changed:
	default:
		t.Error("the state moved, its channel is open")
	}
	if s := m.State(); s.Index() != 9 || s.Term() != 4 || m.Changed() == changed {
		t.Errorf("state at %d of term %d", s.Index(), s.Term())
	}
	last.Index, last.Term = 10, 5
	last.Data = seal(t, w.entry(), rotateKey(1, 2))
	got := m.Apply(last).(Outcome)
	wantError(t, got.Err, ErrDisabled, keyID(1).String())
	if got.Result != (Result{Index: 10}) || got.Term != 5 || m.State().Index() != 10 {
		t.Errorf("outcome %+v, state at %d", got, m.State().Index())
	}
}

// TestMachineLeavesOtherLogs: raft hands configurations to a batching machine too.
func TestMachineLeavesOtherLogs(t *testing.T) {
	w := oneKey(t)
	m := fed(t, w)
	good := seal(t, w.entry(), &DisableKey{ref(1)})
	out := m.ApplyBatch([]*raft.Log{
		{Index: 3, Type: raft.LogConfiguration, Data: []byte("x")},
		{Index: 4, Type: raft.LogCommand, Data: good},
		{Index: 5, Type: raft.LogConfiguration},
	})
	if len(out) != 3 || out[0] != nil || out[1].(Outcome).Err != nil || out[2] != nil || m.State().Index() != 4 {
		t.Errorf("outcomes %+v, state at %d", out, m.State().Index())
	}
	if out := m.ApplyBatch(nil); len(out) != 0 || m.State().Index() != 4 {
		t.Errorf("no entries gave %+v", out)
	}
}

// TestBatchIsOneStep: nobody sees a state inside a batch, and everybody who waits
// for an index gets a state that has it.
func TestBatchIsOneStep(t *testing.T) {
	const batch, batches, waiters = 10, 30, 8
	w := initialized(t)
	for n := uint64(1); n < batch*batches; n++ {
		w.do(createKey(n))
	}
	m, _ := machine()
	var wg sync.WaitGroup
	for n := range waiters {
		wg.Go(func() {
			for i := uint64(n); i <= batch*batches; i += waiters {
				s, err := m.Wait(t.Context(), i)
				if err != nil || s.Index() < i || s.Index()%batch != 0 || s.KeyCount() != max(1, int(s.Index()))-1 {
					t.Errorf("waiting for %d: state at %d with %d keys, %v", i, s.Index(), s.KeyCount(), err)
					return
				}
			}
		})
		wg.Go(func() {
			for {
				changed := m.Changed()
				s := m.State()
				if err := s.Check(); err != nil {
					t.Errorf("state at %d: %v", s.Index(), err)
				}
				if s.Index() == batch*batches {
					return
				}
				<-changed
			}
		})
	}
	for i := 0; i < len(w.log); i += batch {
		m.ApplyBatch(w.log[i : i+batch])
	}
	wg.Wait()
	if !bytes.Equal(m.State().Hash(), w.s.Hash()) {
		t.Error("the machine has another hash")
	}
}

// TestReadersWhileApplying: readers of a state, tries and snapshots among them,
// need no lock against the next entries.
func TestReadersWhileApplying(t *testing.T) {
	w := goldenScript(t)
	m := fed(t, w)
	old := m.State()
	before := snapshotOf(t, old)
	next := &world{t: t, s: w.s, clock: w.clock}
	for range 100 {
		next.do(&EnableKey{ref(2)})
		next.do(&TagKey{ref(5), tags(0, 3)})
		next.ask(next.clockID(), "", &UpdateAlias{alias("alias/db", 5)})
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for running := true; running; {
				select {
				case <-done:
					running = false
				default:
				}
				for _, s := range []*State{old, m.State()} {
					if _, err := s.Try(&DisableKey{ref(2)}); err != nil {
						t.Errorf("trying: %v", err)
					}
					if k, ok := s.Key(keyID(2)); !ok || k.State != KeyEnabled || len(s.Keys(DefaultTenant, ID{}, 10)) < 5 || len(s.AliasesOf(keyID(5))) != 1 {
						t.Error("a reader sees something else")
					}
				}
				if !bytes.Equal(snapshotOf(t, old), before) {
					t.Error("an old state changed")
				}
			}
		})
	}
	for i := range next.log {
		m.Apply(next.log[i])
	}
	close(done)
	wg.Wait()
	if !bytes.Equal(m.State().Hash(), next.s.Hash()) {
		t.Error("the machine has another hash")
	}
}

// clockID is a request id that was not used before.
func (w *world) clockID() string {
	w.clock++
	return strings.Repeat("i", int(w.clock%100)+1)
}

func TestWaitEndsWithItsContext(t *testing.T) {
	m := fed(t, oneKey(t))
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error)
	go func() {
		_, err := m.Wait(ctx, 3)
		errs <- err
	}()
	cancel()
	err := <-errs
	wantError(t, err, context.Canceled, "waiting for index 3")
	if s, err := m.Wait(ctx, 2); err != nil || s != m.State() {
		t.Errorf("an index that is reached needs no context: %v", err)
	}
}

func TestRestore(t *testing.T) {
	w := goldenScript(t)
	m, halts := machine()
	waiting := make(chan *State)
	go func() {
		s, err := m.Wait(t.Context(), w.s.Index())
		if err != nil {
			t.Error(err)
		}
		waiting <- s
	}()
	changed := m.Changed()
	r := &reader{Reader: iotest.OneByteReader(bytes.NewReader(snapshotOf(t, w.s)))}
	if err := m.Restore(r); err != nil || r.closed != 1 {
		t.Fatalf("restoring: %v; closed %d times", err, r.closed)
	}
	<-changed
	if s := <-waiting; s != m.State() {
		t.Error("the waiter got another state")
	}
	if err := m.State().Check(); err != nil {
		t.Error(err)
	}
	wantSame(t, "snapshot", snapshotOf(t, m.State()), snapshotOf(t, w.s))
	wantTwins(t, m.State(), w.s)
	if len(*halts) != 0 {
		t.Errorf("halted: %v", *halts)
	}
}

// TestRestoreRefused: the state stays as it was, and the machine halts once.
func TestRestoreRefused(t *testing.T) {
	w := goldenScript(t)
	good := snapshotOf(t, w.s)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-20] ^= 1
	broken := errors.New("disk on fire")
	faulty := goldenScript(t)
	faulty.edit(func(t *tx) { t.putAlias(&Alias{Tenant: DefaultTenant, Name: "alias/faulty", Key: keyID(9)}) })
	for _, row := range []struct {
		name string
		r    *reader
		also error // what else the error wraps
		text string
	}{
		{"cut", &reader{Reader: bytes.NewReader(good[:len(good)-1])}, io.ErrUnexpectedEOF, "cut off"},
		{"flipped", &reader{Reader: bytes.NewReader(flipped)}, nil, ""},
		{"empty", &reader{Reader: bytes.NewReader(nil)}, nil, "does not begin with QKS1"},
		{"reading fails", &reader{Reader: io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(broken))}, broken, "disk on fire"},
		{"closing fails", &reader{Reader: bytes.NewReader(good), closing: broken}, broken, "closing it"},
		{"invariant broken", &reader{Reader: bytes.NewReader(snapshotOf(t, faulty.s))}, nil, "alias/faulty of tenant default names key"},
	} {
		t.Run(row.name, func(t *testing.T) {
			m, halts := machine()
			m.ApplyBatch(oneKey(t).log)
			before, changed := m.State(), m.Changed()
			err := m.Restore(row.r)
			wantError(t, err, ErrSnapshot, "snapshot refused")
			wantError(t, err, ErrSnapshot, row.text)
			if row.also != nil && !errors.Is(err, row.also) {
				t.Errorf("%v does not wrap %v", err, row.also)
			}
			if m.State() != before || m.Changed() != changed || row.r.closed != 1 {
				t.Errorf("the state moved, or the reader was closed %d times", row.r.closed)
			}
			if len(*halts) != 1 || !errors.Is((*halts)[0], ErrSnapshot) {
				t.Errorf("halted with %v", *halts)
			}
			again := &reader{Reader: bytes.NewReader(good)}
			if err := m.Restore(again); !errors.Is(err, ErrHalted) || again.closed != 1 || m.State() != before {
				t.Errorf("a halted machine restored: %v", err)
			}
			if out := m.Apply(w.log[2]).(Outcome); !errors.Is(out.Err, ErrHalted) || m.State() != before {
				t.Errorf("a halted machine applied: %+v", out)
			}
			if _, err := m.Snapshot(); !errors.Is(err, ErrHalted) {
				t.Errorf("a halted machine gave a snapshot: %v", err)
			}
			if len(*halts) != 1 {
				t.Errorf("halted again: %v", *halts)
			}
		})
	}
}

// TestRestoreNeverGoesBack: a snapshot older than the state is refused, and the
// machine goes on from where it is.
func TestRestoreNeverGoesBack(t *testing.T) {
	w := oneKey(t)
	older := snapshotOf(t, w.s)
	w.do(&DisableKey{ref(1)})
	m := fed(t, w)
	m.halt = func(err error) { t.Errorf("halted: %v", err) }
	before, changed := m.State(), m.Changed()
	for _, row := range []struct {
		snapshot []byte
		text     string
	}{
		{older, "it is of index 2, the state is at 3"},
		{snapshotOf(t, NewState()), "it is of index 0, the state is at 3"},
	} {
		r := &reader{Reader: bytes.NewReader(row.snapshot)}
		err := m.Restore(r)
		wantError(t, err, ErrSnapshot, row.text)
		if m.State() != before || m.Changed() != changed || r.closed != 1 {
			t.Errorf("the state moved, or the reader was closed %d times", r.closed)
		}
	}
	if err := m.Restore(&reader{Reader: bytes.NewReader(snapshotOf(t, w.s))}); err != nil {
		t.Errorf("a snapshot as old as the state: %v", err)
	}
	w.do(&EnableKey{ref(1)})
	if out := m.Apply(w.log[3]).(Outcome); out.Err != nil || !bytes.Equal(m.State().Hash(), w.s.Hash()) {
		t.Errorf("the entry behind it: %+v", out)
	}
	w.do(rotateKey(1, 2))
	if err := m.Restore(&reader{Reader: bytes.NewReader(snapshotOf(t, w.s))}); err != nil || !bytes.Equal(m.State().Hash(), w.s.Hash()) {
		t.Errorf("a newer snapshot: %v", err)
	}
}

// sink is raft's side of a snapshot.
type sink struct {
	bytes.Buffer
	limit, closed, cancelled int
}

var errFull = errors.New("no space left")

func (s *sink) Write(b []byte) (int, error) {
	if s.Len()+len(b) > s.limit {
		return 0, errFull
	}
	return s.Buffer.Write(b)
}

func (s *sink) ID() string    { return "sink" }
func (s *sink) Close() error  { s.closed++; return nil }
func (s *sink) Cancel() error { s.cancelled++; return nil }

func TestMachineSnapshot(t *testing.T) {
	w := goldenScript(t)
	m := fed(t, w)
	snap, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	m.Apply(&raft.Log{Index: w.s.Index() + 1, Term: 1, Type: raft.LogCommand, Data: seal(t, w.entry(), &DisableKey{ref(2)})})
	want := snapshotOf(t, w.s)
	full := &sink{limit: len(want)}
	if err := snap.Persist(full); err != nil || full.closed != 1 || full.cancelled != 0 {
		t.Errorf("persisting: %v, closed %d times, cancelled %d times", err, full.closed, full.cancelled)
	}
	wantSame(t, "snapshot", full.Bytes(), want)
	for _, limit := range []int{0, len(want) / 2, len(want) - 1} {
		small := &sink{limit: limit}
		if err := snap.Persist(small); !errors.Is(err, errFull) || small.closed != 0 || small.cancelled != 1 {
			t.Errorf("persisting to a full disk: %v, closed %d times, cancelled %d times", err, small.closed, small.cancelled)
		}
	}
	snap.Release()
}

// TestBrokenStateIsNotPersisted: a state that no restore would take does not take the
// log's place.
func TestBrokenStateIsNotPersisted(t *testing.T) {
	w := goldenScript(t)
	m, halts := machine()
	m.ApplyBatch(w.log)
	w.edit(func(t *tx) { t.putAlias(&Alias{Tenant: DefaultTenant, Name: "alias/faulty", Key: keyID(9)}) })
	m.publish(w.s)
	snap, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	to := &sink{limit: 1 << 20}
	wantError(t, snap.Persist(to), ErrHalted, "alias/faulty of tenant default names key")
	if to.Len() != 0 || to.closed != 0 || to.cancelled != 1 || len(*halts) != 1 {
		t.Errorf("%d bytes written, closed %d times, cancelled %d times, halted with %v", to.Len(), to.closed, to.cancelled, *halts)
	}
}
