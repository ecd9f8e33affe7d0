package rpc

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/audit/sink"
	"github.com/quorumkms/quorumkms/node/kms"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// Alarm is an alarm that holds.
type Alarm struct {
	Name  audit.Alarm
	Text  string // for anybody who may ask
	Since time.Time
	Count int
	// Subjects are the first of those that it is about: for whoever may know of any tenant.
	Subjects []string
}

// AuditHealth is how the node's audit trail does.
type AuditHealth struct {
	Broken   error // nil: records can be written
	Position audit.Position
	// StaleSince is since when the trail is not signed, or the cluster does not remember its
	// signature; zero: it is, and does.
	StaleSince  time.Time
	StaleReason string
	Sinks       []sink.Stats
	Disk        *Disk // of the trail's directory, if that is on a file system of its own
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func diskStatus(d Disk) *pb.DiskStatus {
	out := &pb.DiskStatus{Directory: d.Dir, FreeBytes: d.Free, TotalBytes: d.Total}
	if d.Err != nil {
		out.Problem = d.Err.Error()
	}
	return out
}

// status is what a caller is told of it: what a collector answers may name what others need
// not know.
func (h AuditHealth) status(c kms.Caller) *pb.AuditStatus {
	at := h.Position
	out := &pb.AuditStatus{
		Healthy: true, Position: &pb.TrailPosition{Last: at.Last, Durable: at.Durable, Signed: at.Signed}, SignedTime: stamp(at.SignedAt),
		Remembered: at.Remembered, StaleSince: stamp(h.StaleSince),
	}
	if c.SeesAll() {
		out.StaleReason = h.StaleReason
	}
	if h.Disk != nil {
		out.Disk = diskStatus(*h.Disk)
	}
	if h.Broken != nil {
		out.Healthy, out.Problem = false, h.Broken.Error()
	}
	for _, s := range h.Sinks {
		x := &pb.AuditSinkStatus{
			Name: s.Name, Type: s.Type, Cursor: s.Cursor, BehindRecords: s.Records, Behind: durationpb.New(s.Behind), Failing: s.Failing,
			Delivered: s.Delivered, Failures: s.Failures, Lost: s.Lost, Clipped: s.Clipped, ErrorTime: stamp(s.ErrorTime),
		}
		if c.SeesAll() {
			x.LastError = s.LastError
		}
		out.Sinks = append(out.Sinks, x)
	}
	return out
}

func alarmStatus(all []Alarm, c kms.Caller) []*pb.Alarm {
	return each(all, func(a Alarm) *pb.Alarm {
		out := &pb.Alarm{Name: string(a.Name), Text: a.Text, Since: stamp(a.Since), Count: uint32(a.Count)} //nolint:gosec // a small number
		if c.SeesAll() {
			out.Subjects = a.Subjects
		}
		return out
	})
}
