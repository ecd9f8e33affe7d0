package kms

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// Limits of lists.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// conflictTries bounds how often a command is proposed again because the key it
// was decided on changed meanwhile, unless it restricts.
const conflictTries = 5

// Metadata is a key as callers see it.
type Metadata struct {
	Key       *fsm.Key
	ARN       string
	State     fsm.KeyState // its condition now
	Aliases   []string
	Use       fsm.LastUse // what is known of it
	Resources int         // that it protects
	Frozen    string      // why no key of the tenant can be used; empty: it is not frozen
	Hidden    bool        // of a list: the caller may not describe it, and learns no more than its id, tenant and ARN
}

func (s *Service) metadata(st *fsm.State, k *fsm.Key) Metadata {
	m := Metadata{Key: k, State: k.Condition(s.at(st, k)), ARN: KeyARN(st.Cluster().ID, k.Tenant, k.ID), Resources: st.CountBindings(k.ID)}
	for _, a := range st.AliasesOf(k.ID) {
		m.Aliases = append(m.Aliases, a.Name)
	}
	if u, ok := st.LastUse(k.ID); ok {
		m.Use = *u
	}
	if t, ok := st.Tenant(k.Tenant); ok {
		if err := t.Thawed(); err != nil {
			m.Frozen = err.Error()
		}
	}
	return m
}

// change is one mutation: what was asked for (params, for the request id) and how
// to make the command from a state.
type change struct {
	name  string
	call  Call
	needs permission
	// shown is a command of its kind as far as the request says it: its effect gives the
	// lane, and it shows whether the request is well-formed.
	shown   fsm.Command
	wrong   error // what else is wrong with the request, whatever there is
	params  any
	expect  uint64       // revision named by the caller; 0: none
	key     string       // that it names, for the record
	version uint32       // of the key, for the record; 0: the current one
	target  string       // what it is about, for the record
	notKey  bool         // the result names a grant or a policy, not a key
	pinned  bool         // the caller named what else it expects, such as a revision of a policy
	syntax  func() error // says what is wrong and costs more to find out; nil: nothing can be
	build   func(ctx context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error)
}

// question is what a change of one key asks.
func (c change) question() question {
	return question{caller: c.call.Caller, needs: c.needs, operation: c.name}
}

// restricts tells whether the change takes something away. That the command of a grant
// counts as a restriction makes its call wait, and is no reason for it to go ahead of others.
func (c change) restricts() bool {
	_, grants := c.shown.(*fsm.CreateGrant)
	return !grants && fsm.EffectOf(c.shown) == fsm.Restricts
}

func (c change) lane() limit.Lane {
	if c.restricts() {
		return limit.Restrict
	}
	return limit.Control
}

// apply authorises a change, proposes it and records how it ended. The state
// returned is the one in which the change has been applied.
func (s *Service) apply(ctx context.Context, c change) (fsm.Result, *fsm.State, error) {
	e := begin(c.name, c.call)
	e.Target, e.Tenant, e.KeyVersion, e.Durable = c.target, c.call.acting(), c.version, true
	nameKey(&e, c.key)
	result, st, err := s.propose(ctx, c, &e)
	if err != nil {
		return fsm.Result{}, nil, s.refuse(e, err)
	}
	switch {
	case e.Grant != "":
		e.Grant = cmp.Or(result.ID, e.Grant) // a name that is taken answers with the grant that has it
	case e.KeyID != "" && !c.notKey:
		e.KeyID, e.KeyVersion = cmp.Or(result.ID, e.KeyID), cmp.Or(c.version, result.Version) // a repeated CreateKey answers with the first one's key
	}
	if err := s.succeed(e, st); err != nil {
		return fsm.Result{}, nil, err
	}
	return result, st, nil
}

// enter is the way in of a change. What is cheap to check of a request's syntax comes first,
// as with every call; what is not (a policy of 32 KiB takes up to 200 ms) behind the class and
// the quota, and still before anything that tells whether there is a key.
func (c change) enter(ctx context.Context, s *Service, e *audit.Event) error {
	if err := cmp.Or(c.wrong, fsm.WellFormed(c.shown)); err != nil {
		return early{err}
	}
	if err := s.admit(ctx, c.call, c.needs, c.lane(), e); err != nil {
		return err
	}
	if c.syntax == nil {
		return nil
	}
	return c.syntax()
}

func (s *Service) propose(ctx context.Context, c change, e *audit.Event) (fsm.Result, *fsm.State, error) {
	if err := c.enter(ctx, s, e); err != nil {
		return fsm.Result{}, nil, err
	}
	if err := s.audit.Healthy(); err != nil {
		return fsm.Result{}, nil, err // a change is not made that could not be recorded
	}
	st, err := s.await(ctx, c.call.IndexToken)
	if err != nil {
		return fsm.Result{}, nil, err
	}
	p := fsm.Proposal{Principal: c.call.Caller.Principal, Request: c.call.RequestID}
	if p.Request == "" {
		p.Request = uuid.NewString() // so that a lost answer between nodes can be asked for again
	}
	if p.Digest, err = requestDigest(c.name, c.call.acting(), c.params); err != nil {
		return fsm.Result{}, nil, err
	}
	if !c.call.DryRun {
		if first, done, err := s.repeated(ctx, st, p); done || err != nil {
			return first, s.log.State(), err
		}
	}
	for try := 1; ; try++ {
		if st, err = s.present(); err != nil {
			return fsm.Result{}, nil, err
		}
		e.StateIndex = st.Index()
		if p.Command, err = c.build(ctx, st, e); err != nil {
			return fsm.Result{}, nil, err
		}
		if c.call.DryRun {
			if _, err := st.Try(p.Command); err != nil {
				return fsm.Result{}, nil, err
			}
			return fsm.Result{}, nil, ErrDryRun
		}
		result, err := s.log.Propose(ctx, p)
		after := s.log.State()
		if !errors.Is(err, fsm.ErrConflict) || !c.again(ctx, try) && !overtaken(st, after) {
			return result, after, err
		}
	}
}

// again tells whether a change is made again that was decided on a state which is no more,
// where the caller named no revision. A restriction is, as long as there is time: nobody
// holds it up by changing its key.
func (c change) again(ctx context.Context, try int) bool {
	return c.expect == 0 && !c.pinned && ctx.Err() == nil && (c.restricts() || try < conflictTries)
}

// overtaken tells whether another generation of the domain key has become active between
// two states: a token that was made on the first is taken no more, whatever revision the
// caller has named.
func overtaken(before, after *fsm.State) bool {
	a, _ := before.ActiveGeneration() // there is one since the first entry
	b, _ := after.ActiveGeneration()
	return a.Number != b.Number
}

// present is a state that a decision may be made on: the lease first, then the state, as
// at the gate. A restriction that has returned stands in it.
func (s *Service) present() (*fsm.State, error) {
	if err := s.fresh.Usable(); err != nil {
		return nil, err
	}
	st := s.log.State()
	return st, s.fresh.Serves(st)
}

// repeated answers a request id that the state remembers as it was answered first,
// whatever has changed since: the command need not be possible any more. It goes
// through the log all the same, so that a restriction's repetition waits like a
// restriction.
func (s *Service) repeated(ctx context.Context, st *fsm.State, p fsm.Proposal) (fsm.Result, bool, error) {
	if _, known, err := st.Replay(p.Principal, p.Request, p.Digest); !known || err != nil {
		return fsm.Result{}, false, err
	}
	p.Command = &fsm.Repeat{}
	first, err := s.log.Propose(ctx, p)
	return first, true, err
}

// requestDigest identifies what a request id stands for. It is compared between
// releases during an upgrade: new parameters are omitempty.
func requestDigest(name, tenant string, params any) ([]byte, error) {
	b, err := json.Marshal(struct {
		Name   string
		Tenant string
		Params any
	}{name, tenant, params})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return sum[:], nil
}

// keyCommand makes the command of a change of one key. Without a state and a key it makes
// one that shows what is asked for, beside an error too.
type keyCommand func(ctx context.Context, st *fsm.State, k *fsm.Key, ref fsm.KeyRef) (fsm.Command, error)

// onKey changes one existing key.
func (s *Service) onKey(ctx context.Context, name string, c Call, key string, expect uint64, params any, command keyCommand) (fsm.Result, *fsm.State, error) {
	return s.onKeyVersion(ctx, name, c, key, 0, expect, params, command)
}

// onKeyVersion is onKey for a change of one version.
func (s *Service) onKeyVersion(ctx context.Context, name string, c Call, key string, version uint32, expect uint64, params any, command keyCommand) (fsm.Result, *fsm.State, error) {
	x := s.changeOf(name, c, key, expect, params)
	x.version = version
	x.shown, x.wrong = command(ctx, nil, nil, fsm.KeyRef{ID: uuid.Max})
	x.build = func(ctx context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
		k, err := s.named(st, c, key, x.question(), e)
		if err != nil {
			return nil, err
		}
		return command(ctx, st, k, fsm.KeyRef{ID: k.ID, Tenant: k.Tenant, Expect: cmp.Or(expect, k.Revision)})
	}
	return s.apply(ctx, x)
}

// changeOf is a change of one existing key by its administrators, so far as the request
// says it. Without a revision from the caller the command expects the one that it is
// decided on.
func (s *Service) changeOf(name string, c Call, key string, expect uint64, params any) change {
	return change{
		name: name, call: c, needs: mayAdminister, expect: expect, key: key,
		params: struct {
			Key    string
			Expect uint64
			Params any
		}{key, expect, params},
	}
}

// named finds the key that a call names and asks whether the caller may; both go into
// the record.
func (s *Service) named(st *fsm.State, c Call, key string, q question, e *audit.Event) (*fsm.Key, error) {
	ref, err := parseReference(st, c, key)
	if err != nil {
		return nil, err
	}
	k, rule, err := s.lookUp(st, ref, q)
	e.Tenant, e.Alias, e.DecidedBy = ref.tenant, ref.alias, rule
	if k != nil {
		e.KeyID = k.ID.String()
	}
	return k, err
}

// ofTenant asks whether the caller may do something with the acting tenant itself.
func (s *Service) ofTenant(st *fsm.State, c Call, q question, e *audit.Event) (tenant string, err error) {
	q.tenant = c.acting()
	e.Tenant = q.tenant
	e.DecidedBy, err = s.decide(st, q, nil)
	return q.tenant, err
}

// KeyParams says which key to make. Without a usage it is the only one of the spec.
type KeyParams struct {
	Description string         `json:"description,omitempty"`
	Usage       fsm.KeyUsage   `json:"usage,omitempty"`
	Spec        fsm.KeySpec    `json:"spec,omitempty"`
	Tags        []fsm.Tag      `json:"tags,omitempty"`
	Protection  fsm.Protection `json:"protection,omitempty"`
	Origin      fsm.Origin     `json:"origin,omitempty"` // empty: KMS
}

// syntax says what is wrong with the parameters that the command cannot say.
func (p KeyParams) syntax() error {
	switch {
	case p.Protection == fsm.ProtectionRooted:
		return nil
	case p.Protection != fsm.ProtectionResident:
		return invalid("protection level %.80q is unknown", p.Protection)
	case p.Spec != fsm.SpecSymmetric && len(p.Spec.Usages()) > 0:
		return fmt.Errorf("%w: protection level %s is for keys of spec %s: those of spec %s work in the HSM in any case, name no level", fsm.ErrUnsupported, p.Protection, fsm.SpecSymmetric, p.Spec)
	case p.Origin == fsm.OriginExternal:
		return fmt.Errorf("%w: protection level %s is for keys that the HSM makes: whoever imports one has seen it outside", fsm.ErrUnsupported, p.Protection)
	}
	p.Protection = fsm.ProtectionRooted
	same := p.command(uuid.Max, "")
	putKey(same, 1, hsm.NewKey{Token: []byte{0}})
	return fsm.WellFormed(same)
}

// command makes the command that creates the key; its token and public half are missing.
func (p KeyParams) command(id fsm.ID, tenant string) fsm.Command {
	switch {
	case p.Origin == fsm.OriginExternal:
		return &fsm.CreateExternalKey{ID: id, Tenant: tenant, Description: p.Description, Usage: p.Usage, Spec: p.Spec, Tags: p.Tags}
	case p.Protection == fsm.ProtectionResident:
		return &fsm.CreateResidentKey{ID: id, Tenant: tenant, Description: p.Description, Tags: p.Tags}
	case p.Spec == fsm.SpecSymmetric:
		return &fsm.CreateKey{ID: id, Tenant: tenant, Description: p.Description, Usage: p.Usage, Spec: p.Spec, Tags: p.Tags, Version: 1}
	}
	return &fsm.CreateKeyOfSpec{ID: id, Tenant: tenant, Description: p.Description, Usage: p.Usage, Spec: p.Spec, Tags: p.Tags}
}

// CreateKey makes a key in the HSM and returns when a majority of HSMs have opened it and
// it is committed; or one without material, which is to be imported.
func (s *Service) CreateKey(ctx context.Context, c Call, p KeyParams) (Metadata, *fsm.State, error) {
	if usages := p.Spec.Usages(); p.Usage == "" && len(usages) == 1 {
		p.Usage = usages[0] // here, because the request id stands for it too
	}
	shown := p.command(uuid.Max, "")
	putKey(shown, 1, hsm.NewKey{Token: []byte{0}})
	result, st, err := s.apply(ctx, change{
		name: "CreateKey", call: c, needs: mayAdminister, params: p, shown: shown, wrong: p.syntax(),
		build: func(ctx context.Context, st *fsm.State, e *audit.Event) (fsm.Command, error) {
			tenant, err := s.ofTenant(st, c, question{caller: c.Caller, needs: mayAdminister, operation: "CreateKey"}, e)
			if err != nil {
				return nil, err
			}
			id := uuid.New()
			e.KeyID = id.String()
			command := p.command(id, tenant)
			if p.Origin == fsm.OriginExternal {
				return command, nil
			}
			return command, s.makeToken(ctx, st, c, command, id, 1)
		},
	})
	if err != nil {
		return Metadata{}, nil, err
	}
	k, err := s.resultKey(st, result)
	if err != nil {
		return Metadata{}, nil, err
	}
	return s.metadata(st, k), st, nil
}

func (s *Service) resultKey(st *fsm.State, r fsm.Result) (*fsm.Key, error) {
	id, err := uuid.Parse(r.ID)
	if err != nil {
		return nil, err
	}
	k, ok := st.Key(id)
	if !ok {
		return nil, fsm.ErrNotFound
	}
	return k, nil
}

// makeToken puts a wrapped key into a command that would otherwise be accepted, and returns
// when a majority of HSMs have opened it: what the state refuses anyway, and a dry run, cost
// no HSM anything.
func (s *Service) makeToken(ctx context.Context, st *fsm.State, c Call, command fsm.Command, id fsm.ID, version uint32) error {
	g, err := st.ActiveGeneration()
	if err != nil {
		return err
	}
	stand := hsm.NewKey{Token: []byte{0}} // stands for the key in the trial
	kind := putKey(command, g.Number, stand)
	if k, ok := st.Key(id); ok { // another version of it
		kind = kindOfKey(k)
	}
	if _, err := st.Try(command); err != nil || c.DryRun {
		return err
	}
	free := func() {}
	if kind.Class == hsm.ClassRSA {
		if free, err = s.place(ctx); err != nil {
			return err
		}
	}
	made, err := s.keys.GenerateKey(ctx, hsm.KeySpec{
		Cluster: hsm.ID(st.Cluster().ID), Generation: g.Number, Class: kind.Class, Bits: kind.Bits, Decrypts: kind.Decrypts,
		Key: hsm.ID(id), Version: version, Created: s.now(),
	})
	free() // who waits for other members does not hold up who makes data key pairs here
	if err != nil {
		return err
	}
	putKey(command, g.Number, made)
	return s.opener.Opened(ctx, id, version, kind, made)
}

// putKey puts a new key into a command, and tells of which kind it must be.
func putKey(command fsm.Command, generation uint32, made hsm.NewKey) hsm.Kind {
	switch t := command.(type) {
	case *fsm.CreateKey:
		t.Generation, t.Token = generation, made.Token
	case *fsm.RotateKey:
		t.Generation, t.Token = generation, made.Token
	case *fsm.RotateKeyOnSchedule:
		t.Generation, t.Token = generation, made.Token
	case *fsm.RotateKeyAtLimit:
		t.Generation, t.Token = generation, made.Token
	case *fsm.CreateResidentKey:
		t.Generation, t.Token = generation, made.Token
		return hsm.Kind{Class: hsm.ClassResident}
	case *fsm.CreateServiceKey:
		t.Generation, t.Token = generation, made.Token
	case *fsm.CreateKeyOfSpec:
		t.Generation, t.Token, t.Public = generation, made.Token, made.SPKI
		if t.Spec.Pair() && t.Public == nil {
			t.Public = made.Token // of the trial
		}
		return kindOf(t.Spec, t.Usage)
	}
	return hsm.Kind{Class: hsm.ClassAES}
}

// encodeMarker and decodeMarker make a list's place opaque to callers.
func encodeMarker(place string) string { return base64.RawURLEncoding.EncodeToString([]byte(place)) }

func decodeMarker(marker string) (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(marker)
	if err != nil || len(b) > maxReference {
		return "", invalid("marker is none that a list returned")
	}
	return string(b), nil
}

func pageSize(limit uint32) (int, error) {
	if limit == 0 {
		return DefaultPage, nil
	}
	if limit > MaxPage {
		return 0, invalid("limit of %d: must be 1 to %d", limit, MaxPage)
	}
	return int(limit), nil
}
