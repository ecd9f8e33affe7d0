package audit

import "time"

// Observer is told what a Log does. Its methods must return at once.
type Observer interface {
	// Recorded is called for each record that was handed to the kernel; with no bytes, for
	// the last one that was there before.
	Recorded(bytes int, sequence uint64)
	// Alarmed is called for each record that is an alarm.
	Alarmed(Alarm)
	// Synced is called for each time that records were brought to the disk, or were not.
	Synced(took time.Duration, err error)
}

// nobody observes nothing.
type nobody struct{}

func (nobody) Recorded(int, uint64)        {}
func (nobody) Alarmed(Alarm)               {}
func (nobody) Synced(time.Duration, error) {}

// Observe has o told of what is done from now on, and of where the trail is.
func (l *Log) Observe(o Observer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.observer = o
	o.Recorded(0, l.sequence())
}
