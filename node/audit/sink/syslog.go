package sink

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
)

const (
	// maxDatagram is what fits into a datagram, in bytes. Longer records are cut: eventTime,
	// sequence and node stand at their beginning.
	maxDatagram = 60_000
	// facility of RFC 5424: log audit.
	facility = 13
	// Severities of RFC 5424.
	severityAlert  = 1
	severityNotice = 5
	severityInfo   = 6
	maxMessageID   = 32
	dialAtMost     = 10 * time.Second
)

// syslog sends records as messages of RFC 5424, whose text is the record.
type syslog struct {
	name             string
	options          Options
	network, address string
	conn             net.Conn // nil: to be dialled
	datagrams        bool
	ended            *atomic.Bool // conn was ended by the other side
}

func newSyslog(c Config, o Options) (*syslog, error) {
	network, address, err := o.network()
	return &syslog{name: c.Name, options: o, network: network, address: address}, err
}

func (s *syslog) size() size { return size{records: 1024, bytes: 1 << 20} }

func (s *syslog) deliver(ctx context.Context, b batch) (clipped int, err error) {
	if s.conn != nil && s.ended.Load() {
		_ = s.close() // it is gone anyway
	}
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			return 0, err
		}
	}
	conn := s.conn
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	clipped, err = s.send(b)
	if !stop() { // the connection serves no more
		err = errors.Join(err, ctx.Err())
	}
	if err != nil {
		return 0, errors.Join(err, s.close())
	}
	return clipped, nil
}

func (s *syslog) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialAtMost)
	defer cancel()
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	s.conn, s.ended = conn, &atomic.Bool{}
	s.datagrams = strings.HasPrefix(conn.LocalAddr().Network(), "udp") || conn.LocalAddr().Network() == "unixgram"
	if !s.datagrams {
		go func(ended *atomic.Bool) { // until the connection ends
			_, _ = io.Copy(io.Discard, conn)
			ended.Store(true)
		}(s.ended)
	}
	return nil
}

func (s *syslog) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	switch s.network {
	case "unix":
		conn, err := d.DialContext(ctx, "unixgram", s.address)
		if err != nil {
			return d.DialContext(ctx, "unix", s.address)
		}
		return conn, nil
	case "tls":
		config, err := clientTLS(s.options)
		if err != nil {
			return nil, err
		}
		return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", s.address)
	}
	return d.DialContext(ctx, s.network, s.address)
}

// send writes a batch: in streams at once, otherwise each message for itself.
func (s *syslog) send(b batch) (clipped int, err error) {
	var stream bytes.Buffer
	for _, line := range b.lines {
		m := s.message(line)
		switch {
		case s.datagrams:
			if len(m) > maxDatagram {
				m = bytes.ToValidUTF8(m[:maxDatagram], nil)
				clipped++
			}
			if _, err := s.conn.Write(m); err != nil {
				return 0, err
			}
		case s.options.Framing == FramingNewline:
			stream.Write(append(m, '\n'))
		default:
			stream.WriteString(strconv.Itoa(len(m)) + " ")
			stream.Write(m)
		}
	}
	if s.datagrams {
		return clipped, nil
	}
	_, err = s.conn.Write(stream.Bytes())
	return 0, err
}

// message is a record in RFC 5424.
func (s *syslog) message(line []byte) []byte {
	var h header
	_ = json.Unmarshal(line, &h) // what it lacks stays empty
	severity := severityInfo
	switch {
	case h.Alarm != "":
		severity = severityAlert
	case h.Result != audit.Success:
		severity = severityNotice
	}
	at := "-"
	if !h.Time.IsZero() {
		at = h.Time.UTC().Format("2006-01-02T15:04:05.000000Z")
	}
	return fmt.Appendf(nil, "<%d>1 %s %s kmsd %d %s - %s", facility*8+severity, at, s.name, os.Getpid(), messageID(h.Name), line)
}

// messageID is an event's name as a MSGID: printable ASCII.
func messageID(name string) string {
	id := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, name)
	if id == "" {
		return "-"
	}
	return id[:min(len(id), maxMessageID)]
}

func (s *syslog) close() error {
	if s.conn == nil {
		return nil
	}
	conn := s.conn
	s.conn = nil
	return conn.Close()
}
