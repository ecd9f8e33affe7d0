// Package archive is what a node keeps outside its data directory: backups, and the
// journal of restrictions. Several nodes may share the directory, such as a network
// mount; each touches only files that carry its own raft id in their names.
//
//	quorumkms-<cluster>-e<epoch>-<time>-<index>-<raft id>.qkb   a backup (QKB1, package backup)
//	quorumkms-<cluster>-e<epoch>-<time>-<index>-<raft id>.qkj   a segment of the journal (QKJ1)
//	….qkb.partial                                              a backup that is being written
//
// The epoch is the recovery epoch; time is when the file was begun, in UTC by the
// node's clock; index is the log index of the backup, or the one behind which the
// segment begins.
//
// A backup is older than the last restriction. Restored alone it would bring back
// what was revoked since. So every entry whose command restricts goes into the
// journal, as its raw bytes with its own MAC, within a second of being applied, and
// so do statements of coverage: whoever restores knows every restriction after the
// backup up to the last of them, or where a gap is.
//
// The journal follows Raft's log on this node's disk and not the state machine:
// applying entries never waits for it, and a disk that hangs or is full for a while
// costs nothing as long as Raft's log still holds what was missed. What it no longer
// holds, also because a snapshot was installed, is a gap, and is recorded as one;
// the journals of the other nodes may fill it.
//
// # Format QKJ1
//
// Everything is big-endian. A segment is the magic "QKJ1" and then records:
//
//	kind u8 | length u32 | check u32 | body | tag 32
//
//	check  CRC-32C of kind and length: a damaged length is not taken for a torn record
//	tag    HMAC-SHA256 under the cluster's log key of
//	       "quorumkms/journal/v1" | the tag before, 32 zeros at first | kind | length | body
//
//	'H'  header: canonical JSON of Header; first, once
//	'E'  entry: index u64 | term u64 | the entry's bytes
//	'C'  coverage: index u64 | time i64 (unix nanoseconds, the state's; 0: as before)
//	'G'  gap: first u64 | last u64
//
// The header names the history by its recovery epoch and id: one index may stand for
// different entries in two histories. A node that a recovery was made from goes on
// behind what it had written, in a segment of the new history.
//
// The records say: behind the header's index, the restricting entries up to the
// last 'E' or 'C' are exactly these, but for the gaps. Entries after a coverage have
// no earlier time than it. The tags bind each statement to the cluster, the epoch, the
// place and all before it, which an entry's own MAC does not. What a segment lacks at
// its end is not seen by itself, but the coverage ends there.
//
// A record that is incomplete at the end of a segment, or whose tag was never
// written, was torn by a crash; the writer cuts it off. Anything else that does not
// fit was altered.
//
// Reading order: name.go, segment.go (the format), history.go (what several nodes'
// journals say together), archive.go, journal.go and schedule.go (the writers),
// backup.go and restore.go.
package archive
