// Package kms is the key service: keys, cryptography, the rules of who may, and
// the ciphertext format. It knows neither Raft nor PKCS#11 nor gRPC.
//
// Reading order: service.go, caller.go (roles), authorise.go and policies.go (who may),
// reference.go (how a key is named), target.go, usage.go, crypto.go, batch.go and batchwork.go, resident.go, secret.go and datapair.go
// (what is done with keys, through the gate),
// blob.go and context.go (the formats), keys.go (what is done to keys, through the log),
// keylife.go, import.go, aliases.go, grants.go, policy.go, tenants.go, servicekey.go, read.go,
// watch.go (what caches are told), trails.go (who may read the audit trail), trailkey.go (how a node seals it), denials.go (who is denied
// again and again) and duty.go (what the cluster does by itself),
// uses.go.
package kms

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/gate"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// Log is the replicated log as the key service sees it.
type Log interface {
	// Propose returns when the command has been applied here; an error that wraps
	// a sentinel of fsm is the command's refusal.
	Propose(ctx context.Context, p fsm.Proposal) (fsm.Result, error)
	State() *fsm.State
	Wait(ctx context.Context, index uint64) (*fsm.State, error)
	// Restricted is closed when the state's Restricted moves; it may be nil while there is
	// no state.
	Restricted() <-chan struct{}
}

// KeyMaker makes keys in the HSM, takes material in, and knows what can be done with them there.
type KeyMaker interface {
	Supports(a hsm.Algorithm) bool
	GenerateKey(ctx context.Context, s hsm.KeySpec) (hsm.NewKey, error)
	NewImportPair(ctx context.Context, s hsm.ImportPairSpec) (hsm.NewKey, error)
	ImportsInside(a hsm.ImportAlgorithm) bool
	ImportKey(ctx context.Context, r hsm.ImportRequest) (hsm.NewKey, error)
	Random(ctx context.Context, b []byte) error
}

// Opener has others open what this node's HSM has made.
type Opener interface {
	// Opened returns when a majority of the cluster's HSM partitions have opened a new
	// key version, this node's own included.
	Opened(ctx context.Context, key fsm.ID, version uint32, kind hsm.Kind, made hsm.NewKey) error
}

// Deriver uses keys in the HSM: it derives the keys of one message under symmetric ones,
// has resident ones encrypt and decrypt, and applies the others.
type Deriver interface {
	Apply(ctx context.Context, ref hsm.Ref, a hsm.Algorithm, input []byte) ([]byte, error)
	Derive(ctx context.Context, ref hsm.Ref, in hsm.MessageInput, use hsm.Use) (hsm.MessageKeys, error)
	DeriveAll(ctx context.Context, ref hsm.Ref, in []hsm.MessageInput, use hsm.Use) ([]hsm.MessageKeys, error)
	Encrypt(ctx context.Context, ref hsm.Ref, plaintext []byte, bind hsm.Binding) ([]byte, error)
	Decrypt(ctx context.Context, ref hsm.Ref, iv [hsm.IVSize]byte, t [32]byte, ciphertext []byte, verify func(com *[32]byte) ([]byte, error)) ([]byte, error)
}

// Config is what a Service needs; all of it is required.
type Config struct {
	Log     Log
	Fresh   gate.Freshness
	Keys    KeyMaker
	Opener  Opener
	Rewrap  Rewrapper
	Deriver Deriver
	Audit   gate.Recorder
	Out     *gate.Releases
	Now     func() time.Time     // wall clock, for the creation date in tokens
	Clock   func() time.Duration // monotonic
	// Principal takes a SPIFFE URI of this cluster apart.
	Principal func(uri string) (Caller, error)
	Leader    Leadership
	Limits    *limit.Limiter
	// MinRotation is the shortest rotation period that may be asked for.
	MinRotation time.Duration
	// Self is the SPIFFE URI that this node's own acts are recorded under.
	Self   string
	Logger *slog.Logger
	// Quorum makes every call behave as one with ConsistencyQuorum: for hosts whose
	// clock may stand still, such as virtual machines that are paused. The only field
	// that is not required.
	Quorum bool
}

// Service is the key service of one node. Its methods may be called from any
// goroutine.
type Service struct {
	log       Log
	fresh     gate.Freshness
	keys      KeyMaker
	opener    Opener
	rewrapper Rewrapper
	deriver   Deriver
	audit     gate.Recorder
	gate      *gate.Gate
	random    *entropy
	pairs     chan struct{} // holds a token for each data key pair that is being made
	now       func() time.Time
	quorum    bool

	principal   func(uri string) (Caller, error)
	leader      Leadership
	limits      *limit.Limiter
	minRotation time.Duration
	self        string
	logger      *slog.Logger
	policies    *policies
	uses        *uses
	meters      *meters
	unsettled   []openAct     // of RunDuties alone
	troubles    troubles      // of RunRewraps alone
	unrecorded  atomic.Uint64 // refusals without a record of their own
	denials     *denials
}

// Leadership is what the duties need to know of this node's place in the cluster.
type Leadership interface {
	// Leads tells whether this node leads, as far as it knows.
	Leads() bool
	// MajorityTime is the latest time that the clocks of a majority of voters have
	// reached; ok is false if too few were heard of lately.
	MajorityTime() (at time.Time, ok bool)
}

// New makes the key service.
func New(c Config) *Service {
	return &Service{
		log: c.Log, fresh: c.Fresh, keys: c.Keys, opener: c.Opener, rewrapper: c.Rewrap, deriver: c.Deriver, audit: c.Audit,
		gate:   gate.New(c.Fresh, c.Audit, c.Out, c.Clock),
		random: newEntropy(c.Keys),
		pairs:  make(chan struct{}, maxPairs),
		now:    c.Now,
		quorum: c.Quorum,

		principal: c.Principal, leader: c.Leader, limits: c.Limits, minRotation: c.MinRotation, self: c.Self, logger: c.Logger,
		policies: newPolicies(), uses: newUses(), meters: newMeters(), denials: newDenials(),
	}
}

// begin starts a call's audit record.
func begin(name string, c Call) audit.Event {
	return audit.Event{
		Name: name, RequestID: c.RequestID, DryRun: c.DryRun,
		Principal: c.Caller.Principal, Class: string(c.Caller.Class), Tenant: c.Tenant, Source: c.Caller.Source,
	}
}

// early is why a call was refused before it was counted with its lane.
type early struct{ error }

func (e early) Unwrap() error { return e.error }

// admit is the way in of every call: what it carries, its class, whether its principal is
// disabled, and how many there may be. A call that is refused in any case takes nothing from
// a quota that it has in common with others.
func (s *Service) admit(ctx context.Context, c Call, needs permission, lane limit.Lane, e *audit.Event) error {
	return s.admitMany(ctx, c, needs, lane, 1, e)
}

// admitMany is admit for a call that counts as n.
func (s *Service) admitMany(ctx context.Context, c Call, needs permission, lane limit.Lane, n int, e *audit.Event) error {
	if err := c.syntax(); err != nil {
		return early{err}
	}
	if err := c.Caller.may(needs); err != nil {
		e.DecidedBy = "role"
		return early{err}
	}
	return s.count(ctx, c, lane, n, e)
}

// count counts a call as n with its lane, if its principal is not disabled.
func (s *Service) count(ctx context.Context, c Call, lane limit.Lane, n int, e *audit.Event) error {
	if enabled(s.log.State(), c.Caller) != nil {
		if err := s.disabled(ctx, c); err != nil {
			e.DecidedBy = "principal"
			return early{err}
		}
	}
	// Not the tenant that it names: that would be another's quota.
	if err := s.limits.AdmitMany(lane, n, cmp.Or(c.Caller.Tenant, c.Caller.Principal), c.Caller.Principal); err != nil {
		return early{err}
	}
	return nil
}

// disabled is enabled of a state that is as new as the caller has seen: it may have been
// enabled again.
func (s *Service) disabled(ctx context.Context, c Call) error {
	if _, err := s.await(ctx, c.IndexToken); err != nil {
		return err
	}
	st, err := s.present()
	if err != nil {
		return err
	}
	return enabled(st, c.Caller)
}

// confirm waits for a tick of its own if the call or this node wants one.
func (s *Service) confirm(ctx context.Context, c Call) error {
	if c.Consistency != ConsistencyQuorum && !s.quorum {
		return nil
	}
	return s.fresh.Confirm(ctx)
}

// refuse records a call that ends without a result and returns why. A record that
// cannot be written takes the place of the reason: the caller learns nothing.
//
// What was refused before it was counted with a lane is counted here, with its principal
// alone: nobody fills the record with what costs it nothing, or takes the room of others.
func (s *Service) refuse(e audit.Event, err error) error {
	first, ok := errors.AsType[early](err)
	if ok {
		err = first.error
		if over := s.limits.Admit(limit.Refused, "", e.Principal); over != nil {
			s.noteDenial(&e, err) // it has no record of its own
			s.unrecorded.Add(1)
			if !errors.Is(err, limit.ErrExceeded) {
				err = over
			}
			return err
		}
	}
	s.refusal(&e, err)
	if failed := s.audit.Record(e); failed != nil {
		return failed
	}
	return err
}

// refusal completes the record of what ends without a result.
func (s *Service) refusal(e *audit.Event, err error) {
	denied := s.noteDenial(e, err)
	e.Reason, e.Unrecorded = err.Error(), s.unrecorded.Swap(0)
	switch {
	case errors.Is(err, ErrDryRun):
		e.Result, e.Reason = audit.Success, ""
	case denied:
		e.Result = audit.Denied
	default:
		e.Result = audit.Failed
	}
	if e.StateIndex == 0 {
		e.StateIndex = s.log.State().Index()
	}
}

// noteDenial tells whether an error is a denial, which is counted.
func (s *Service) noteDenial(e *audit.Event, err error) bool {
	denied := !errors.Is(err, ErrDryRun) && (errors.Is(err, ErrDenied) || errors.Is(err, fsm.ErrPrincipalDisabled))
	if denied {
		s.denials.note(e, s.now())
	}
	return denied
}

// Refuse records a call that is refused before it reaches the service and returns
// the error to answer with.
func (s *Service) Refuse(name string, c Call, err error) error {
	return s.refuse(begin(name, c), early{err})
}

// succeed records a call that was answered from metadata.
func (s *Service) succeed(e audit.Event, st *fsm.State) error {
	e.Result, e.StateIndex = audit.Success, st.Index()
	return s.audit.Record(e)
}
