// Package audit is the record of what was asked of this node and what it
// answered: one JSON object a line, written before the answer leaves.
package audit

import "time"

// Result is how a call ended.
type Result string

// The results of a call.
const (
	Success  Result = "SUCCESS"
	Denied   Result = "DENIED"   // the caller may not
	Failed   Result = "FAILED"   // anything else that is no success
	Withheld Result = "WITHHELD" // computed, recorded as success, and then not handed over
	Unknown  Result = "UNKNOWN"  // asked of the log, and not known to be done; a record follows if it is found done
)

// Alarm marks a record that somebody should look at. README.md says what to do about each.
type Alarm string

// The alarms.
const (
	// UseOfDoomedKey marks that somebody wanted to use a key that is to be deleted.
	UseOfDoomedKey Alarm = "USE_OF_KEY_PENDING_DELETION"
	// RepeatedDenials marks that a principal was denied again and again.
	RepeatedDenials Alarm = "REPEATED_DENIALS"
	// MaterialExpiring marks that imported material ends soon.
	MaterialExpiring Alarm = "KEY_MATERIAL_EXPIRING"
	// StateDiverged marks that a node's state is not that of the others.
	StateDiverged Alarm = "STATE_DIVERGED"
	// DrillOld marks that nobody has tried a recovery for too long.
	DrillOld Alarm = "RECOVERY_DRILL_OLD"
	// SinkFailing marks that a sink, which takes the records elsewhere, has taken nothing for
	// a while, SinkGap that records were removed before one had them.
	SinkFailing Alarm = "AUDIT_SINK_FAILING"
	SinkGap     Alarm = "AUDIT_SINK_GAP"
	// HeadStale marks that a node's trail is not signed, or that the cluster does not
	// remember its signatures.
	HeadStale Alarm = "AUDIT_HEAD_STALE"
	// NotSealed marks that whole segments should be sealed (audit.seal) and cannot be.
	NotSealed Alarm = "AUDIT_SEGMENTS_NOT_SEALED"
	// TrailRewritten marks that the cluster has convicted a node: what its audit trail is now
	// does not go on from what it had signed.
	TrailRewritten Alarm = "AUDIT_TRAIL_REWRITTEN"
)

// Alarms are all that there are.
func Alarms() []Alarm {
	return []Alarm{UseOfDoomedKey, RepeatedDenials, MaterialExpiring, StateDiverged, DrillOld, SinkFailing, SinkGap, HeadStale, NotSealed, TrailRewritten}
}

// Event is one record. It never holds a plaintext, a key, a PIN, a ticket's
// secret or a ciphertext's body.
type Event struct {
	Time             time.Time         `json:"eventTime"`
	Sequence         uint64            `json:"sequence"` // per node, without gaps
	Node             string            `json:"node"`     // raft id, or the node's name before it has one
	Name             string            `json:"eventName"`
	RequestID        string            `json:"requestId,omitempty"`
	Principal        string            `json:"principal"`
	Class            string            `json:"principalClass"`
	Tenant           string            `json:"tenant,omitempty"`
	Source           string            `json:"sourceAddress,omitempty"`
	KeyID            string            `json:"keyId,omitempty"`
	KeyVersion       uint32            `json:"keyVersion,omitempty"`
	Alias            string            `json:"alias,omitempty"`
	Context          map[string]string `json:"encryptionContext,omitempty"`
	CiphertextSHA256 string            `json:"ciphertextSha256,omitempty"`
	// Of ReEncrypt: what the ciphertext was moved to. The fields above are of its source.
	DestinationKeyID     string            `json:"destinationKeyId,omitempty"`
	DestinationVersion   uint32            `json:"destinationKeyVersion,omitempty"`
	DestinationAlias     string            `json:"destinationAlias,omitempty"`
	DestinationContext   map[string]string `json:"destinationEncryptionContext,omitempty"`
	DestinationSHA256    string            `json:"destinationCiphertextSha256,omitempty"`
	DestinationDecidedBy string            `json:"destinationDecidedBy,omitempty"`

	Algorithm  string `json:"algorithm,omitempty"` // as it was named
	Target     string `json:"target,omitempty"`    // of calls that are about no key: a node, a tenant
	Grant      string `json:"grantId,omitempty"`
	Alarm      Alarm  `json:"alarm,omitempty"`
	DryRun     bool   `json:"dryRun,omitempty"`
	DecidedBy  string `json:"decidedBy,omitempty"` // the rule that allowed or denied
	Result     Result `json:"result"`
	Reason     string `json:"reason,omitempty"`
	StateIndex uint64 `json:"stateIndex"` // of the state it was decided on
	// Unrecorded is how many calls were refused since the last record without one of their
	// own, because their principals were refused too often.
	Unrecorded uint64 `json:"unrecordedRefusals,omitempty"`
	// Previous is the hash of the record before, as package trail documents it; left out in
	// the first.
	Previous string `json:"previous,omitempty"`

	// Durable has the record on the disk before the call is answered. It is not written.
	Durable bool `json:"-"`
}
