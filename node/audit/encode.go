package audit

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A record is encoding/json's form of Event, made field by field: one is made for every call, and
// reflection would take more than all the rest of recording it.

// encode adds what of a record does not depend on its place in the trail; what callers made too
// long is clipped.
func (e *Event) encode(b []byte) []byte {
	e.clip()
	b = appendString(append(b, `,"eventName":`...), e.Name)
	b = optional(b, "requestId", e.RequestID)
	b = appendString(append(b, `,"principal":`...), e.Principal)
	b = appendString(append(b, `,"principalClass":`...), e.Class)
	b = optional(b, "tenant", e.Tenant)
	b = optional(b, "sourceAddress", e.Source)
	b = optional(b, "keyId", e.KeyID)
	b = number(b, "keyVersion", uint64(e.KeyVersion))
	b = optional(b, "alias", e.Alias)
	b = pairs(b, "encryptionContext", e.Context)
	b = optional(b, "ciphertextSha256", e.CiphertextSHA256)
	b = optional(b, "destinationKeyId", e.DestinationKeyID)
	b = number(b, "destinationKeyVersion", uint64(e.DestinationVersion))
	b = optional(b, "destinationAlias", e.DestinationAlias)
	b = pairs(b, "destinationEncryptionContext", e.DestinationContext)
	b = optional(b, "destinationCiphertextSha256", e.DestinationSHA256)
	b = optional(b, "destinationDecidedBy", e.DestinationDecidedBy)
	b = optional(b, "algorithm", e.Algorithm)
	b = optional(b, "target", e.Target)
	b = optional(b, "grantId", e.Grant)
	b = optional(b, "alarm", string(e.Alarm))
	if e.DryRun {
		b = append(b, `,"dryRun":true`...)
	}
	b = optional(b, "decidedBy", e.DecidedBy)
	b = appendString(append(b, `,"result":`...), string(e.Result))
	b = optional(b, "reason", e.Reason)
	b = strconv.AppendUint(append(b, `,"stateIndex":`...), e.StateIndex, 10)
	return number(b, "unrecordedRefusals", e.Unrecorded)
}

// placed is the record at its place in the trail, a line.
func placed(b []byte, at time.Time, sequence uint64, node string, rest []byte, previous string) []byte {
	b = at.AppendFormat(append(b, `{"eventTime":"`...), time.RFC3339Nano)
	b = strconv.AppendUint(append(b, `","sequence":`...), sequence, 10)
	b = appendString(append(b, `,"node":`...), node)
	b = optional(append(b, rest...), "previous", previous)
	return append(b, "}\n"...)
}

// clip shortens what callers made too long.
func (e *Event) clip() {
	for _, field := range [...]*string{
		&e.Name, &e.RequestID, &e.Principal, &e.Tenant, &e.Source, &e.KeyID, &e.Alias, &e.Target, &e.Grant, &e.DecidedBy, &e.Reason,
		&e.DestinationKeyID, &e.DestinationAlias, &e.DestinationDecidedBy,
	} {
		if len(*field) > maxField {
			*field = strings.ToValidUTF8((*field)[:maxField], "") + "… (clipped)"
		}
	}
	for _, pairs := range [...]*map[string]string{&e.Context, &e.DestinationContext} {
		size := 0
		for k, v := range *pairs {
			size += len(k) + len(v)
		}
		if size > maxContext {
			*pairs = map[string]string{"(clipped)": fmt.Sprintf("%d pairs, %d bytes", len(*pairs), size)}
		}
	}
}

// optional adds a field, unless it is empty.
func optional(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendString(named(b, name), value)
}

func number(b []byte, name string, value uint64) []byte {
	if value == 0 {
		return b
	}
	return strconv.AppendUint(named(b, name), value, 10)
}

func pairs(b []byte, name string, of map[string]string) []byte {
	if len(of) == 0 {
		return b
	}
	b = append(named(b, name), '{')
	for i, k := range slices.Sorted(maps.Keys(of)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(append(appendString(b, k), ':'), of[k])
	}
	return append(b, '}')
}

func named(b []byte, name string) []byte {
	return append(append(append(b, `,"`...), name...), `":`...)
}

// appendString adds a string as encoding/json has it, which is asked where it is more than
// what stands for itself.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if !plain[s[i]] {
			quoted, _ := json.Marshal(s) // a string always has a form
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// plain are the bytes that stand for themselves in JSON, as encoding/json writes it.
var plain = func() (table [256]bool) {
	for c := ' '; c <= '~'; c++ {
		table[c] = !strings.ContainsRune(`"\<>&`, c)
	}
	return table
}()
