package tracing

import (
	"context"
	"slices"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/node/kms"
)

// key are the attributes of a key version.
func key(id hsm.ID, version uint32) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("quorumkms.key.id", uuid.UUID(id).String()), attribute.Int64("quorumkms.key.version", int64(version)),
	}
}

// Deriver is d with a span for each use of a key, waiting for the HSM included.
func (t *Tracing) Deriver(d kms.Deriver) kms.Deriver { return deriver{d, t} }

type deriver struct {
	kms.Deriver
	t *Tracing
}

func (d deriver) use(ctx context.Context, name string, ref hsm.Ref, attributes ...attribute.KeyValue) (context.Context, func(error)) {
	if !follows(ctx) {
		return ctx, func(error) {}
	}
	ctx, _, end := d.t.within(ctx, name, append(key(ref.Want.Key, ref.Want.Version), attributes...)...)
	return ctx, end
}

// Apply implements kms.Deriver.
func (d deriver) Apply(ctx context.Context, ref hsm.Ref, a hsm.Algorithm, input []byte) (output []byte, err error) {
	ctx, end := d.use(ctx, "hsm.apply", ref, attribute.String("quorumkms.algorithm", string(a)), attribute.Int("quorumkms.input.bytes", len(input)))
	defer func() { end(err) }()
	return d.Deriver.Apply(ctx, ref, a, input)
}

// Derive implements kms.Deriver.
func (d deriver) Derive(ctx context.Context, ref hsm.Ref, in hsm.MessageInput, use hsm.Use) (keys hsm.MessageKeys, err error) {
	ctx, end := d.use(ctx, "hsm.derive", ref)
	defer func() { end(err) }()
	return d.Deriver.Derive(ctx, ref, in, use)
}

// DeriveAll implements kms.Deriver.
func (d deriver) DeriveAll(ctx context.Context, ref hsm.Ref, in []hsm.MessageInput, use hsm.Use) (keys []hsm.MessageKeys, err error) {
	ctx, end := d.use(ctx, "hsm.derive", ref, attribute.Int("quorumkms.messages", len(in)))
	defer func() { end(err) }()
	return d.Deriver.DeriveAll(ctx, ref, in, use)
}

// Encrypt implements kms.Deriver.
func (d deriver) Encrypt(ctx context.Context, ref hsm.Ref, plaintext []byte, bind hsm.Binding) (ciphertext []byte, err error) {
	ctx, end := d.use(ctx, "hsm.encrypt", ref, attribute.Int("quorumkms.input.bytes", len(plaintext)))
	defer func() { end(err) }()
	return d.Deriver.Encrypt(ctx, ref, plaintext, bind)
}

// Decrypt implements kms.Deriver.
func (d deriver) Decrypt(ctx context.Context, ref hsm.Ref, iv [hsm.IVSize]byte, tag [32]byte, ciphertext []byte, verify func(*[32]byte) ([]byte, error)) (plaintext []byte, err error) {
	ctx, end := d.use(ctx, "hsm.decrypt", ref, attribute.Int("quorumkms.input.bytes", len(ciphertext)))
	defer func() { end(err) }()
	return d.Deriver.Decrypt(ctx, ref, iv, tag, ciphertext, verify)
}

// Shared implements hsm.CallTracer: the call is part of the trace of the first caller that
// is followed, and linked with the spans of the others.
func (t *Tracing) Shared(callers []context.Context) (context.Context, func(error)) {
	first := slices.IndexFunc(callers, follows)
	if first < 0 {
		return callers[0], func(error) {}
	}
	seen := []trace.Span{trace.SpanFromContext(callers[first])}
	var links []trace.Link
	for _, c := range callers[first:] {
		span := trace.SpanFromContext(c)
		is := func(s trace.Span) bool { return s.SpanContext().Equal(span.SpanContext()) }
		if follows(c) && !slices.ContainsFunc(seen, is) { // a batch calls once for each of its items
			links = append(links, trace.Link{SpanContext: span.SpanContext()})
			seen = append(seen, span)
		}
	}
	ctx, span := t.tracer.Start(callers[first], "hsm.call", trace.WithLinks(links...),
		trace.WithAttributes(attribute.Int("quorumkms.hsm.messages", len(callers))))
	for _, s := range seen[1:] { // of one that has given up meanwhile: no effect
		s.AddLink(trace.Link{SpanContext: span.SpanContext()})
	}
	return ctx, func(err error) { finish(span, err) }
}

// Keys is k with a span for what the HSM makes and takes in.
func (t *Tracing) Keys(k kms.KeyMaker) kms.KeyMaker { return keyMaker{k, t} }

type keyMaker struct {
	kms.KeyMaker
	t *Tracing
}

// GenerateKey implements kms.KeyMaker.
func (k keyMaker) GenerateKey(ctx context.Context, s hsm.KeySpec) (made hsm.NewKey, err error) {
	ctx, _, end := k.t.within(ctx, "hsm.generate", key(s.Key, s.Version)...)
	defer func() { end(err) }()
	return k.KeyMaker.GenerateKey(ctx, s)
}

// NewImportPair implements kms.KeyMaker.
func (k keyMaker) NewImportPair(ctx context.Context, s hsm.ImportPairSpec) (made hsm.NewKey, err error) {
	ctx, _, end := k.t.within(ctx, "hsm.import-pair")
	defer func() { end(err) }()
	return k.KeyMaker.NewImportPair(ctx, s)
}

// ImportKey implements kms.KeyMaker.
func (k keyMaker) ImportKey(ctx context.Context, r hsm.ImportRequest) (made hsm.NewKey, err error) {
	ctx, _, end := k.t.within(ctx, "hsm.import")
	defer func() { end(err) }()
	return k.KeyMaker.ImportKey(ctx, r)
}

// Random implements kms.KeyMaker.
func (k keyMaker) Random(ctx context.Context, b []byte) (err error) {
	ctx, _, end := k.t.within(ctx, "hsm.random", attribute.Int("quorumkms.output.bytes", len(b)))
	defer func() { end(err) }()
	return k.KeyMaker.Random(ctx, b)
}

// Opener is o with a span for the time until a majority's HSMs have opened a new key.
func (t *Tracing) Opener(o kms.Opener) kms.Opener { return opener{o, t} }

type opener struct {
	kms.Opener
	t *Tracing
}

// Opened implements kms.Opener.
func (o opener) Opened(ctx context.Context, id fsm.ID, version uint32, kind hsm.Kind, made hsm.NewKey) (err error) {
	ctx, _, end := o.t.within(ctx, "hsm.majority", key(hsm.ID(id), version)...)
	defer func() { end(err) }()
	return o.Opener.Opened(ctx, id, version, kind, made)
}

// Log is l with a span from a command's proposal until this node has applied it.
func (t *Tracing) Log(l kms.Log) kms.Log { return log{l, t} }

type log struct {
	kms.Log
	t *Tracing
}

// Propose implements kms.Log.
func (l log) Propose(ctx context.Context, p fsm.Proposal) (result fsm.Result, err error) {
	ctx, span, end := l.t.within(ctx, "raft.propose", attribute.String("quorumkms.command", fsm.NameOf(p.Command)))
	defer func() { end(err) }()
	result, err = l.Log.Propose(ctx, p)
	if follows(ctx) {
		span.SetAttributes(attribute.Int64("quorumkms.index", int64(result.Index))) //nolint:gosec // far below
	}
	return result, err
}

// Commit begins a span for a command that this leader brings into the log, as
// cluster.Observer has it.
func (t *Tracing) Commit(ctx context.Context, command string) (done func(index uint64, err error)) {
	_, span, end := t.within(ctx, "raft.commit", attribute.String("quorumkms.command", command))
	return func(index uint64, err error) {
		span.SetAttributes(attribute.Int64("quorumkms.index", int64(index))) //nolint:gosec // far below
		end(err)
	}
}
