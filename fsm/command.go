package fsm

import "reflect"

// Command is the body of an entry.
type Command interface {
	// validate checks what can be checked without a state; it wraps ErrInvalid.
	validate() error
	apply(t *tx) (Result, error)
}

// Result is what a command that was not refused answers.
type Result struct {
	Index   uint64 `json:"index"`             // log index of the entry
	ID      string `json:"id,omitempty"`      // of what was made or changed
	Version uint32 `json:"version,omitempty"` // current key version afterwards
}

// Effect says what a command does to what callers may do.
type Effect int

// Restricts is the effect of every command that is not proved purely loosening:
// its call returns only when every node has applied it or has no lease left.
const (
	Restricts Effect = iota
	Loosens
)

// spec is one row of the table of commands.
type spec struct {
	name   string
	effect Effect
	make   func() Command
}

// commands is the one table of commands. A row, once released, stays as it is.
var commands = []spec{
	{"InitCluster", Loosens, func() Command { return new(InitCluster) }},
	{"Tick", Loosens, func() Command { return new(Tick) }},
	{"Repeat", Restricts, func() Command { return new(Repeat) }},

	{"CreateKey", Loosens, func() Command { return new(CreateKey) }},
	{"UpdateKeyDescription", Loosens, func() Command { return new(UpdateKeyDescription) }},
	{"EnableKey", Loosens, func() Command { return new(EnableKey) }},
	{"DisableKey", Restricts, func() Command { return new(DisableKey) }},
	{"ScheduleKeyDeletion", Restricts, func() Command { return new(ScheduleKeyDeletion) }},
	{"CancelKeyDeletion", Loosens, func() Command { return new(CancelKeyDeletion) }},
	{"RotateKey", Loosens, func() Command { return new(RotateKey) }},
	{"CreateAlias", Restricts, func() Command { return new(CreateAlias) }},
	{"UpdateAlias", Restricts, func() Command { return new(UpdateAlias) }},
	{"DeleteAlias", Restricts, func() Command { return new(DeleteAlias) }},
	{"TagKey", Restricts, func() Command { return new(TagKey) }},
	{"UntagKey", Restricts, func() Command { return new(UntagKey) }},

	{"CreateTicket", Loosens, func() Command { return new(CreateTicket) }},
	{"AdmitNode", Loosens, func() Command { return new(AdmitNode) }},
	{"ActivateNode", Loosens, func() Command { return new(ActivateNode) }},
	{"UpdateMember", Loosens, func() Command { return new(UpdateMember) }},
	{"RemoveNode", Restricts, func() Command { return new(RemoveNode) }},
	{"RetireNode", Loosens, func() Command { return new(RetireNode) }},
}

// EffectOf tells the effect of a command; an unknown one restricts.
func EffectOf(c Command) Effect {
	if s, ok := lookup(NameOf(c)); ok {
		return s.effect
	}
	return Restricts
}

// NameOf is a command's name in entries: its type's name.
func NameOf(c Command) string { return reflect.TypeOf(c).Elem().Name() }

func lookup(name string) (spec, bool) {
	for _, s := range commands {
		if s.name == name {
			return s, true
		}
	}
	return spec{}, false
}
