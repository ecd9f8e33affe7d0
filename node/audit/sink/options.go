package sink

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The types of sinks.
const (
	TypeFile    = "file"
	TypeSyslog  = "syslog"
	TypeWebhook = "webhook"
	TypeShip    = "ship"
)

// How messages of syslog are told apart in a stream (RFC 6587).
const (
	FramingCounted = "octet-counting"
	FramingNewline = "newline"
)

// Options is one sink, as it is configured.
type Options struct {
	Name string // names its cursor: unique
	Type string
	// file: the file; ship: the directory.
	Path string
	// file: when it is renamed to <path>.1, and how many of those are kept.
	MaxMegabytes int
	MaxAge       time.Duration
	Keep         int
	// syslog: unix:///dev/log, udp://host:port, tcp://host:port, tls://host:port.
	Address string
	Framing string
	// webhook: where to POST.
	URL string
	// webhook, ship: how many records a batch or an object has at most.
	MaxRecords int
	// ship: how long records are gathered for an object.
	Every time.Duration
	// webhook, syslog with tls: PEM files. Without CA: the system's.
	CA, Cert, Key string
	// webhook: holds the bearer token, mode 0600; read for each request.
	TokenFile string
}

// Limits of what can be configured.
const (
	maxSinks      = 16
	maxName       = 64
	maxMegabytes  = 1 << 20
	maxKept       = 10_000
	maxRecords    = 65_536
	maxPerRequest = 10_000
	minAge        = time.Minute
	minEvery      = time.Second
	maxEvery      = 24 * time.Hour
)

// Complete fills in what was left out.
func (o *Options) Complete() {
	fill(&o.Name, o.Type)
	switch o.Type {
	case TypeFile:
		fill(&o.MaxMegabytes, 100)
		fill(&o.Keep, 10)
	case TypeSyslog:
		if network, _, err := o.network(); err == nil && network != "udp" {
			fill(&o.Framing, FramingCounted)
			if network == "unix" {
				o.Framing = FramingNewline
			}
		}
	case TypeWebhook:
		fill(&o.MaxRecords, 500)
	case TypeShip:
		fill(&o.Every, time.Minute)
		fill(&o.MaxRecords, maxRecords)
	}
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Check says what is wrong with sinks that were completed. dataDir is the node's.
func Check(sinks []Options, dataDir string, bad func(wrong bool, format string, args ...any)) {
	bad(len(sinks) > maxSinks, "audit.sinks: %d of them, at most %d", len(sinks), maxSinks)
	seen := map[string]bool{}
	for i, o := range sinks {
		at := fmt.Sprintf("audit.sinks[%d]", i)
		switch {
		case o.Type == "":
			bad(true, "%s.type is missing: file, syslog, webhook or ship", at)
			continue
		case !slices.Contains([]string{TypeFile, TypeSyslog, TypeWebhook, TypeShip}, o.Type):
			bad(true, "%s.type %q: want file, syslog, webhook or ship", at, o.Type)
			continue
		}
		bad(!validName(o.Name), "%s.name %q: must be 1 to %d of a-z 0-9 _ -", at, o.Name, maxName)
		bad(seen[o.Name], "%s.name %q: another sink has it; name them, since a sink's place in the trail is kept under its name", at, o.Name)
		seen[o.Name] = true
		check{o, at, dataDir, bad}.all()
	}
}

func validName(s string) bool {
	return s != "" && len(s) <= maxName && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

// check is the check of one sink.
type check struct {
	Options
	at      string
	dataDir string
	bad     func(wrong bool, format string, args ...any)
}

func (c check) all() {
	c.foreign()
	switch c.Type {
	case TypeFile:
		c.path("a file, for example /var/log/quorumkms/audit.log")
		c.bad(c.MaxMegabytes < 1 || c.MaxMegabytes > maxMegabytes, "%s.max_megabytes %d: must be 1 to %d", c.at, c.MaxMegabytes, maxMegabytes)
		c.bad(c.MaxAge != 0 && c.MaxAge < minAge, "%s.max_age %s: must be %s at least", c.at, c.MaxAge, minAge)
		c.bad(c.Keep < 1 || c.Keep > maxKept, "%s.keep %d: must be 1 to %d", c.at, c.Keep, maxKept)
	case TypeSyslog:
		c.syslog()
	case TypeWebhook:
		c.webhook()
	case TypeShip:
		c.path("a directory, for example /var/spool/quorumkms")
		c.bad(c.MaxRecords < 1 || c.MaxRecords > maxRecords, "%s.max_records %d: must be 1 to %d", c.at, c.MaxRecords, maxRecords)
		c.bad(c.Every < minEvery || c.Every > maxEvery, "%s.every %s: must be %s to %s", c.at, c.Every, minEvery, maxEvery)
	}
}

// foreign refuses what belongs to other types: somebody meant something by it.
func (c check) foreign() {
	for _, f := range []struct {
		name string
		set  bool
		of   []string
	}{
		{"path", c.Path != "", []string{TypeFile, TypeShip}},
		{"max_megabytes", c.MaxMegabytes != 0, []string{TypeFile}},
		{"max_age", c.MaxAge != 0, []string{TypeFile}},
		{"keep", c.Keep != 0, []string{TypeFile}},
		{"address", c.Address != "", []string{TypeSyslog}},
		{"framing", c.Framing != "", []string{TypeSyslog}},
		{"url", c.URL != "", []string{TypeWebhook}},
		{"token_file", c.TokenFile != "", []string{TypeWebhook}},
		{"max_records", c.MaxRecords != 0, []string{TypeWebhook, TypeShip}},
		{"every", c.Every != 0, []string{TypeShip}},
		{"ca", c.CA != "", []string{TypeSyslog, TypeWebhook}},
		{"cert", c.Cert != "", []string{TypeSyslog, TypeWebhook}},
		{"key", c.Key != "", []string{TypeSyslog, TypeWebhook}},
	} {
		c.bad(f.set && !slices.Contains(f.of, c.Type), "%s.%s: a sink of type %s has none", c.at, f.name, c.Type)
	}
}

func (c check) path(what string) {
	switch {
	case c.Path == "":
		c.bad(true, "%s.path is missing: %s", c.at, what)
	case !filepath.IsAbs(c.Path):
		c.bad(true, "%s.path %q: must be absolute: %s", c.at, c.Path, what)
	default:
		c.bad(within(c.Path, c.dataDir), "%s.path %s: must be outside data_dir", c.at, c.Path)
	}
}

func (c check) tls() {
	c.bad((c.Cert == "") != (c.Key == ""), "%s.cert and %s.key are needed both, or none", c.at, c.at)
	for name, path := range map[string]string{"ca": c.CA, "cert": c.Cert, "key": c.Key, "token_file": c.TokenFile} {
		c.bad(path != "" && !filepath.IsAbs(path), "%s.%s %q: must be absolute", c.at, name, path)
	}
}

func (c check) syslog() {
	network, _, err := c.network()
	if err != nil {
		c.bad(true, "%s.%v", c.at, err)
		return
	}
	c.tls()
	c.bad(network != "tls" && (c.CA != "" || c.Cert != "" || c.Key != ""), "%s: ca, cert and key are for tls:// only", c.at)
	switch network {
	case "udp":
		c.bad(c.Framing != "", "%s.framing: udp has none, each datagram is a message", c.at)
	default:
		c.bad(c.Framing != FramingCounted && c.Framing != FramingNewline, "%s.framing %q: want %s or %s", c.at, c.Framing, FramingCounted, FramingNewline)
	}
}

// network parses the address of syslog.
func (o Options) network() (network, address string, err error) {
	if o.Address == "" {
		return "", "", fmt.Errorf("address is missing, for example unix:///dev/log or tls://logs.example:6514")
	}
	u, err := url.Parse(o.Address)
	if err != nil {
		return "", "", fmt.Errorf("address %q: want unix:///path, or udp://, tcp:// or tls:// with host:port", o.Address)
	}
	_, port, portErr := net.SplitHostPort(u.Host)
	switch {
	case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
		return u.Scheme, u.Path, nil
	case slices.Contains([]string{"udp", "tcp", "tls"}, u.Scheme) && portErr == nil && port != "" && u.Hostname() != "" && u.Path == "" && u.User == nil:
		return u.Scheme, u.Host, nil
	}
	return "", "", fmt.Errorf("address %q: want unix:///path, or udp://, tcp:// or tls:// with host:port", o.Address)
}

func (c check) webhook() {
	c.tls()
	c.bad(c.MaxRecords < 1 || c.MaxRecords > maxPerRequest, "%s.max_records %d: must be 1 to %d", c.at, c.MaxRecords, maxPerRequest)
	if c.URL == "" {
		c.bad(true, "%s.url is missing, for example https://logs.example/quorumkms", c.at)
		return
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" {
		c.bad(true, "%s.url: want https://host/path", c.at)
		return
	}
	c.bad(u.User != nil, "%s.url has a user in it: write a token into a file, and name that as token_file", c.at)
	c.bad(u.Scheme == "http" && !loopback(u.Hostname()), "%s.url %s: http without TLS goes to this host only (localhost, 127.0.0.1, ::1): use https", c.at, u.Redacted())
	c.bad(u.Scheme == "http" && (c.CA != "" || c.Cert != ""), "%s: ca, cert and key are for https only", c.at)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// within tells whether a path lies in a directory.
func within(path, dir string) bool {
	a, errA := filepath.Abs(path)
	b, errB := filepath.Abs(dir)
	if errA != nil || errB != nil {
		return false
	}
	below, err := filepath.Rel(b, a)
	return err == nil && filepath.IsLocal(below)
}
