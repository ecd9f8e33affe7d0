package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// Alarms that other checks tell of, too.
const (
	alarmDrillOld  = "RECOVERY_DRILL_OLD"
	alarmHeadStale = "AUDIT_HEAD_STALE"
	alarmSink      = "AUDIT_SINK_FAILING"
	alarmNotSealed = "AUDIT_SEGMENTS_NOT_SEALED"
)

const (
	// sinkBehind is how far behind a sink may be, in records, that does not fail: what a
	// collector catches up with in minutes.
	sinkBehind = 100_000
	// sinkLate is how long the oldest record may wait for a sink that does not fail yet.
	sinkLate = 30 * time.Second
)

// response is what to do about an alarm, and how bad that is.
type response struct {
	level level
	do    string
}

// responseTo is the response to an alarm of a node; README.md has them in a table.
func responseTo(name, node string) response {
	search := "an auditor: kmsctl audit search --alarm=" + name
	switch name {
	case "REPEATED_DENIALS":
		return response{warning, search + ", then --principal; grant what is missing, or kmsctl principal disable, and have its certificate replaced"}
	case "KEY_MATERIAL_EXPIRING":
		return response{warning, search + "; the key's owner imports the same bytes again with a later end: kmsctl key import"}
	case "STATE_DIVERGED":
		return response{fault, "keep both data directories; the node that differs from the majority stops by itself with exit code 7: find out why, then remove it and let it join anew"}
	case alarmDrillOld:
		return response{warning, doDrill}
	case alarmSink:
		return response{fault, "on " + node + ": does the sink's collector take records? journalctl -u kmsd | grep sink; nothing is lost while audit.keep keeps the trail"}
	case alarmHeadStale:
		return response{fault, "kmsctl hsm status --node " + node + "; is there a leader, and has " + node + " a lease? On " + node + ": df -h, journalctl -u kmsd -n 50"}
	case alarmNotSealed:
		return response{warning, "is the key of audit.seal enabled? An administrator of its tenant: kmsctl grant create KEY --grantee spiffe://<trust domain>/node/" + node + " --operations GenerateDataKey,Decrypt --context-subset purpose=audit-trail"}
	case "AUDIT_TRAIL_REWRITTEN":
		return response{fault, "kmsctl audit verify; keep the node's disk as evidence, then kmsctl cluster remove NODE, and let it join anew"}
	default: // of a later version
		return response{fault, search}
	}
}

// alarms passes on those that hold: what several nodes tell alike, once.
func (s *survey) alarms() {
	seen := map[string]bool{}
	for _, m := range s.members() {
		for _, a := range s.answers[m.GetRaftId()].status.GetAlarms() {
			node := ""
			if ofNode(a.GetName()) {
				node = m.GetName()
			}
			if key := node + a.GetName() + a.GetText(); !seen[key] {
				seen[key] = true
				r := responseTo(a.GetName(), m.GetName())
				s.add("alarm", node, r.level, alarmText(a), r.do)
			}
		}
	}
	if len(seen) == 0 {
		s.add("alarm", "", fine, "no alarm holds", "")
	}
}

// ofNode tells whether an alarm is about the node that tells of it.
func ofNode(name string) bool {
	switch name {
	case alarmHeadStale, alarmSink, alarmNotSealed, "REPEATED_DENIALS":
		return true
	}
	return false
}

func alarmText(a *quorumkmsv1.Alarm) string {
	text := fmt.Sprintf("ALARM %s: %s", a.GetName(), a.GetText())
	if a.GetCount() > 1 {
		text += fmt.Sprintf(" (%d)", a.GetCount())
	}
	if subjects := a.GetSubjects(); len(subjects) > 0 {
		text += ": " + strings.Join(subjects, "; ")
		if more := int(a.GetCount()) - len(subjects); more > 0 {
			text += fmt.Sprintf("; and %d more", more)
		}
	}
	return text
}

// alarmed tells whether a node tells of an alarm.
func alarmed(r *quorumkmsv1.StatusResponse, name string) bool {
	for _, a := range r.GetAlarms() {
		if a.GetName() == name {
			return true
		}
	}
	return false
}

// sinks looks at what takes a node's audit records elsewhere. One that fails for long is an
// alarm already.
func (s *survey) sinks(name string, t *quorumkmsv1.AuditStatus) {
	for _, x := range t.GetSinks() {
		text := fmt.Sprintf("its audit sink %s has the records up to %d", x.GetName(), x.GetCursor())
		behind := fmt.Sprintf("its audit sink %s is %d records and %s behind", x.GetName(), x.GetBehindRecords(), x.GetBehind().AsDuration().Round(time.Second))
		switch {
		case x.GetLost() > 0:
			s.add("sink", name, fault, fmt.Sprintf("ALARM AUDIT_SINK_GAP: %d records were removed before its audit sink %s had them", x.GetLost(), x.GetName()),
				"an auditor: kmsctl audit search --alarm=AUDIT_SINK_GAP says which; raise audit.keep on "+name+", or make the sink faster")
		case x.GetFailing():
		case x.GetBehind().AsDuration() >= sinkLate:
			s.add("sink", name, warning, behind+": "+cmp.Or(x.GetLastError(), "it takes nothing"), "on "+name+": journalctl -u kmsd | grep sink; does its collector take records?")
		case x.GetBehindRecords() > sinkBehind:
			s.add("sink", name, warning, behind, "a faster collector, or larger max_records of the sink on "+name)
		default:
			s.add("sink", name, fine, text, "")
		}
	}
}

// sinkRows is the table of the sinks of those nodes that have some and answer.
func sinkRows(s *quorumkmsv1.StatusResponse, answers map[string]*quorumkmsv1.StatusResponse) [][]string {
	rows := [][]string{{"NODE", "AUDIT SINK", "STATE", "BEHIND", "FAILURES", "LOST", "LAST ERROR"}}
	for _, m := range s.GetMembers() {
		for _, x := range answers[m.GetRaftId()].GetAudit().GetSinks() {
			state := "ok"
			if x.GetFailing() {
				state = "FAILING"
			}
			last := ""
			if x.GetFailing() || x.GetBehind().AsDuration() > 0 {
				last = x.GetLastError()
			}
			rows = append(rows, []string{
				m.GetName(), x.GetName(), state, fmt.Sprintf("%d records, %s", x.GetBehindRecords(), x.GetBehind().AsDuration().Round(time.Second)),
				fmt.Sprint(x.GetFailures()), fmt.Sprint(x.GetLost()), last,
			})
		}
	}
	return rows
}
