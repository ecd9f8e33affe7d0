package node

import (
	"path/filepath"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/node/audit/sink"
)

var _ sink.Trail = (*audit.Log)(nil)

// AuditSink takes audit records elsewhere. What each type has, package sink says.
type AuditSink struct {
	// Type is file, syslog, webhook or ship.
	Type string `yaml:"type"`
	// Name is unique in the node: a sink's place in the trail is kept under it. Default: Type.
	Name string `yaml:"name"`
	// Path is the file of a file, the directory of a ship.
	Path string `yaml:"path"`
	// MaxMegabytes (default 100), MaxAge (default: none) and Keep (default 10): when a file is
	// renamed to path.1, and how many of those there are.
	MaxMegabytes int      `yaml:"max_megabytes"`
	MaxAge       Duration `yaml:"max_age"`
	Keep         int      `yaml:"keep"`
	// Address of syslog: unix:///dev/log, udp://host:port, tcp://host:port, tls://host:port.
	Address string `yaml:"address"`
	// Framing of syslog in streams: octet-counting (default; of unix streams newline) or newline.
	Framing string `yaml:"framing"`
	// URL of a webhook: https, or http to this host.
	URL string `yaml:"url"`
	// TokenFile holds a webhook's bearer token, mode 0600. It is read for each request.
	TokenFile string `yaml:"token_file"`
	// MaxRecords in a webhook's request (default 500), a ship's object (default 65536).
	MaxRecords int `yaml:"max_records"`
	// Every is how long records are gathered for an object of a ship. Default 1m.
	Every Duration `yaml:"every"`
	// CA, Cert and Key are PEM files for https and tls://. Default: the system's CAs, no
	// certificate.
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// options are the sinks as package sink wants them.
func (a Audit) options() []sink.Options {
	var out []sink.Options
	for _, s := range a.Sinks {
		o := sink.Options{
			Name: s.Name, Type: s.Type, Path: s.Path, MaxMegabytes: s.MaxMegabytes, MaxAge: time.Duration(s.MaxAge), Keep: s.Keep,
			Address: s.Address, Framing: s.Framing, URL: s.URL, MaxRecords: s.MaxRecords, Every: time.Duration(s.Every),
			CA: s.CA, Cert: s.Cert, Key: s.Key, TokenFile: s.TokenFile,
		}
		o.Complete()
		out = append(out, o)
	}
	return out
}

// sinksDir holds the places of the sinks, in the trail's directory.
const sinksDir = "sinks"

// openSinks prepares the audit sinks. The raft id names their node: it is never used again.
func (n *Node) openSinks() (err error) {
	dir := filepath.Join(n.config.DataDir, auditDir)
	n.sinks, err = sink.Open(sink.Config{
		Sinks: n.config.Audit.options(), Trail: n.audit, Dir: dir, Cursors: filepath.Join(dir, sinksDir),
		Node: n.member.ID(), Name: n.config.Name, Now: time.Now, Log: n.log,
	})
	if err == nil {
		n.audit.TakenBySinks(n.sinks.Taken)
	}
	return err
}
