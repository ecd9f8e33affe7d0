// Package node is one running node: its configuration, what it is wired from, and
// the order in which that starts and stops. It is the composition root.
package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/hsm/p11"
	"github.com/quorumkms/quorumkms/node/audit/sink"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/node/kms"
	"github.com/quorumkms/quorumkms/node/kms/limit"
	"github.com/quorumkms/quorumkms/transport"
)

// Config is a node's configuration, as in its YAML file. Fields without a default
// are required.
type Config struct {
	// Name is the node's name: the last part of its certificate's SPIFFE id.
	Name string `yaml:"name"`
	// TrustDomain is the SPIFFE trust domain of the cluster.
	TrustDomain string `yaml:"trust_domain"`
	// DataDir holds the log, snapshots and the audit trail. One process at a time.
	DataDir string `yaml:"data_dir"`
	// Peer is the node listener: Raft, gossip and peer calls on one port.
	Peer Address `yaml:"peer"`
	// Client is where clients call.
	Client Address `yaml:"client"`
	TLS    TLS     `yaml:"tls"`
	Join   Join    `yaml:"join"`
	HSM    HSM     `yaml:"hsm"`
	Raft   Raft    `yaml:"raft"`
	Lease  Lease   `yaml:"lease"`
	Limits Limits  `yaml:"limits"`

	Rotation Rotation `yaml:"rotation"`
	Backup   Backup   `yaml:"backup"`
	Audit    Audit    `yaml:"audit"`
	Log      Log      `yaml:"log"`

	Metrics Metrics `yaml:"metrics"`
	Tracing Tracing `yaml:"tracing"`
	Debug   Debug   `yaml:"debug"`
}

// Address is where a listener listens and what it tells others.
type Address struct {
	Listen string `yaml:"listen"` // host:port
	// Advertise is host:port as others reach it. Default: Listen.
	Advertise string `yaml:"advertise"`
}

// TLS names PEM files. They are read again when they have changed, and on SIGHUP.
// CA may hold several certificates, while one is being replaced.
type TLS struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	CA   string `yaml:"ca"`
}

// Join is how a new node finds its cluster; not used once it is a member.
type Join struct {
	// Addresses are peer addresses of members.
	Addresses []string `yaml:"addresses"`
	// TokenFile holds the join token, mode 0600; it may be a systemd credential:
	// ${CREDENTIALS_DIRECTORY}/join-token. Or the environment's KMSD_JOIN_TOKEN.
	TokenFile string `yaml:"token_file"`
}

// HSM says which partition the node uses.
type HSM struct {
	// Kind is pkcs11 (default) or embedded (development only: keys are in the
	// process).
	Kind string `yaml:"kind"`
	// Module is the PKCS#11 library. Default: SoftHSM2 where distributions put it.
	Module string `yaml:"module"`
	// ModuleArguments is a string of the vendor's that the module is started with (NSS:
	// configdir='sql:/…' …). No secrets: it is readable.
	ModuleArguments string `yaml:"module_arguments"`
	// Token is the token's label.
	Token string `yaml:"token"`
	// Serial tells tokens with the same label apart.
	Serial string `yaml:"serial"`
	// PINFile holds the user PIN, mode 0600; it may be a systemd credential:
	// ${CREDENTIALS_DIRECTORY}/pin. Or the environment's KMSD_HSM_PIN.
	PINFile string `yaml:"pin_file"`
	// Sessions is how many HSM calls run at a time. Default 8.
	Sessions int `yaml:"sessions"`
	// KeySessions is how many keys at most keep a session of their own in the token, which
	// saves it from setting them up for each call; 0: none does. Default: 4096 if the token
	// says that its sessions have no limit, none otherwise.
	KeySessions *int `yaml:"key_sessions"`
	// MaxKeys is how many keys are loaded at a time. Default 4096.
	MaxKeys int `yaml:"max_keys"`
	// Profile is the transfer profile: how the domain key comes to another node's
	// partition. In generic (default) a member's partition wraps it; in cloned the vendor's
	// cloning brings it. It is the same for all nodes, for the cluster's life.
	Profile string `yaml:"profile"`
	// AcceptWeakness names probes of the self-test that the token may fail.
	AcceptWeakness []string `yaml:"accept_weakness"`
	// Dir is the embedded partition's directory. Default: hsm in DataDir.
	Dir string `yaml:"dir"`
	// InMemory keeps the embedded partition in memory only: gone when it stops.
	InMemory bool `yaml:"in_memory"`
	// TrustAll makes the embedded partition trust every transfer key, without its
	// Security Officer.
	TrustAll bool `yaml:"trust_all"`
}

// Raft is Raft's timing.
type Raft struct {
	Heartbeat         Duration `yaml:"heartbeat"`          // default 1s
	Election          Duration `yaml:"election"`           // default 1s
	SnapshotInterval  Duration `yaml:"snapshot_interval"`  // default 2m
	SnapshotThreshold uint64   `yaml:"snapshot_threshold"` // entries; default 8192
	TrailingLogs      uint64   `yaml:"trailing_logs"`      // entries kept behind a snapshot; default 10240
}

// Lease says how often the node asks for its lease. How long one lasts is the same
// for all nodes: it stands in the state, from the founding on.
type Lease struct {
	Renew Duration `yaml:"renew"` // default 1s; at most a third of the lease
	// Consistency is lease (default), or quorum: every call has a tick committed for
	// it, and no clock is believed. For hosts that may be paused and go on, such as
	// virtual machines that are snapshotted or migrated.
	Consistency string `yaml:"consistency"`
}

// Limits bound what clients may take.
type Limits struct {
	Connections int `yaml:"connections"` // default 4096, each listener
	Handshakes  int `yaml:"handshakes"`  // unfinished TLS handshakes; default 256

	// Quotas of this node, in calls a second; 0 is none. Bursts of a second's worth are
	// allowed. Restrictions (disable, revoke, schedule deletion …) count for themselves.
	ControlPerTenant    float64 `yaml:"control_per_tenant"`    // mutations, reads of metadata; default 50
	RestrictPerTenant   float64 `yaml:"restrict_per_tenant"`   // default 50
	UsePerTenant        float64 `yaml:"use_per_tenant"`        // cryptography; default 0
	UsePerPrincipal     float64 `yaml:"use_per_principal"`     // default 0
	ControlPerPrincipal float64 `yaml:"control_per_principal"` // default 0
	// Below the tenant's, so that one principal does not keep the others from restricting.
	RestrictPerPrincipal float64 `yaml:"restrict_per_principal"` // default 20
	// Refusals of what its class, a disabled principal or a malformed request may not, and of
	// what is beyond a quota, that are recorded; the others are counted in the next record.
	RefusedPerPrincipal float64 `yaml:"refused_per_principal"` // default 20
}

// Rotation bounds rotation schedules.
type Rotation struct {
	// MinPeriod is the shortest period that a key may be rotated at by itself. Default
	// 2160h (90 days), at least 1m.
	MinPeriod Duration `yaml:"min_period"`
}

// Backup is what the node writes by itself outside its data directory: backups, and the
// journal of restrictions, without which a restored backup brings back what was revoked
// after it.
type Backup struct {
	// Dir is a directory outside DataDir, on another disk or host: a network mount, for
	// example. It must be there. The nodes of a cluster may share one. Empty: the node
	// writes neither.
	Dir string `yaml:"dir"`
	// Every is how often a backup is written, if something has changed. Default 1h.
	Every Duration `yaml:"every"`
	// Keep is how many of its own backups the node keeps there. Default 24.
	Keep int `yaml:"keep"`
}

// Audit is the audit trail in DataDir.
type Audit struct {
	// Strict has every record on the disk before its call is answered, also those of
	// cryptography: otherwise a loss of power may take the last 50 ms of these.
	Strict bool `yaml:"strict"`
	// Keep is how long records are kept, whole segments of them; empty: for ever.
	Keep Duration `yaml:"keep"`
	// Seal is a symmetric key that whole segments are encrypted under: its id or alias in the
	// tenant default, or its ARN. The node needs a grant of it for GenerateDataKey and Decrypt.
	// Empty: they are not encrypted.
	Seal string `yaml:"seal"`
	// Sinks take the records elsewhere.
	Sinks []AuditSink `yaml:"sinks"`
}

// Limits of scheduled backups.
const (
	minBackupEvery = time.Second
	maxBackupEvery = 31 * 24 * time.Hour
	maxBackupKeep  = 10_000
)

// Log is the node's own log, on standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Format string `yaml:"format"` // text (default) or json
}

// Duration is a time.Duration written like 250ms or 6s.
type Duration time.Duration

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if err != nil || v <= 0 {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %q is no duration, write it like 250ms or 6s", n.Line, n.Value)}}
	}
	*d = Duration(v)
	return nil
}

// ErrConfig means: the configuration cannot be used; the text says why.
var ErrConfig = errors.New("configuration")

// Names in the environment.
const (
	EnvPIN       = "KMSD_HSM_PIN"
	EnvJoinToken = "KMSD_JOIN_TOKEN"
)

// The kinds of partitions.
const (
	KindPKCS11   = "pkcs11"
	KindEmbedded = "embedded"
)

const maxConfigFile = 1 << 20

// LoadConfig reads, completes and checks a configuration file. Fields that do not
// exist are refused. What is wrong with the file is a *ConfigError that names all of it.
func LoadConfig(path string) (Config, error) {
	c, f, err := readConfig(path)
	if err != nil {
		return Config{}, err
	}
	c.complete()
	if err := f.refuse(c.problems()); err != nil {
		return Config{}, err
	}
	return c, nil
}

// LoadHSM reads the part hsm of a configuration file: of a node's, or of one that has
// nothing else, for a partition that belongs to no node.
func LoadHSM(path string) (HSM, error) {
	c, err := LoadPartition(path)
	return c.HSM, err
}

// LoadPartition is LoadHSM with whatever else the file has, which is not checked: for the steps
// of a Security Officer.
func LoadPartition(path string) (Config, error) {
	c, f, err := readConfig(path)
	if err != nil {
		return Config{}, err
	}
	c.complete()
	var found []string
	c.HSM.check(func(wrong bool, format string, args ...any) {
		if wrong {
			found = append(found, fmt.Sprintf(format, args...))
		}
	})
	if err := f.refuse(found); err != nil {
		return Config{}, err
	}
	return c, nil
}

func (h HSM) check(bad func(wrong bool, format string, args ...any)) {
	bad(h.Kind != KindPKCS11 && h.Kind != KindEmbedded, "hsm.kind %q: want %s or %s", h.Kind, KindPKCS11, KindEmbedded)
	bad(h.Kind == KindPKCS11 && h.Token == "", "hsm.token is missing: the label of the PKCS#11 token")
	bad(h.Kind == KindPKCS11 && (h.TrustAll || h.InMemory), "hsm.trust_all and hsm.in_memory are for the embedded partition only")
}

func (c *Config) complete() {
	fill(&c.Peer.Advertise, c.Peer.Listen)
	fill(&c.Client.Advertise, c.Client.Listen)
	fill(&c.HSM.Kind, KindPKCS11)
	fill(&c.HSM.Profile, fsm.ProfileGeneric)
	fill(&c.HSM.Dir, filepath.Join(c.DataDir, "hsm"))
	fill(&c.Raft.Heartbeat, Duration(time.Second))
	fill(&c.Raft.Election, Duration(time.Second))
	fill(&c.Raft.SnapshotInterval, Duration(2*time.Minute))
	fill(&c.Raft.SnapshotThreshold, 8192)
	fill(&c.Raft.TrailingLogs, 10240)
	fill(&c.Lease.Renew, Duration(time.Second))
	fill(&c.Lease.Consistency, kms.ConsistencyLease)
	fill(&c.Limits.Connections, 4096)
	fill(&c.Limits.Handshakes, 256)
	fill(&c.Rotation.MinPeriod, Duration(90*24*time.Hour))
	fill(&c.Backup.Every, Duration(time.Hour))
	fill(&c.Backup.Keep, 24)
	fill(&c.Log.Level, "info")
	fill(&c.Log.Format, "text")
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// problems is everything that is wrong with the configuration. Each begins with its key.
func (c *Config) problems() []string {
	var problems []string
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	bad(!fsm.ValidName(c.Name), "name %q: must be 1 to 64 of a-z 0-9 . _ - and begin with a letter or digit", c.Name)
	bad(c.TrustDomain == "", "trust_domain is missing, for example quorumkms.example")
	bad(c.DataDir == "", "data_dir is missing, for example /var/lib/quorumkms")
	for i, a := range []Address{c.Peer, c.Client} {
		name := []string{"peer", "client"}[i]
		bad(!hostPort(a.Listen), "%s.listen %q: want host:port", name, a.Listen)
		bad(!hostPort(a.Advertise) || unspecified(a.Advertise), "%s.advertise %q: want host:port as others reach this node", name, a.Advertise)
	}
	bad(c.TLS.Cert == "" || c.TLS.Key == "" || c.TLS.CA == "", "tls.cert, tls.key and tls.ca are all needed")
	c.HSM.check(bad)
	bad(c.HSM.Profile != fsm.ProfileGeneric && c.HSM.Profile != fsm.ProfileCloned, "hsm.profile %q: want %s or %s", c.HSM.Profile, fsm.ProfileGeneric, fsm.ProfileCloned)
	bad(c.Lease.Consistency != kms.ConsistencyLease && c.Lease.Consistency != kms.ConsistencyQuorum,
		"lease.consistency %q: want %s or %s", c.Lease.Consistency, kms.ConsistencyLease, kms.ConsistencyQuorum)
	bad(c.Raft.Election < c.Raft.Heartbeat, "raft.election %s: must be at least raft.heartbeat, %s", time.Duration(c.Raft.Election), time.Duration(c.Raft.Heartbeat))
	bad(c.Rotation.MinPeriod < Duration(time.Minute), "rotation.min_period %s: must be 1m at least", time.Duration(c.Rotation.MinPeriod))
	for _, q := range []struct {
		name string
		rate float64
	}{
		{"control_per_tenant", c.Limits.ControlPerTenant},
		{"restrict_per_tenant", c.Limits.RestrictPerTenant},
		{"use_per_tenant", c.Limits.UsePerTenant},
		{"use_per_principal", c.Limits.UsePerPrincipal},
		{"control_per_principal", c.Limits.ControlPerPrincipal},
		{"restrict_per_principal", c.Limits.RestrictPerPrincipal},
		{"refused_per_principal", c.Limits.RefusedPerPrincipal},
	} {
		right := q.rate >= 0 && q.rate <= limit.MaxRate // NaN is neither
		bad(!right, "limits.%s %g: must be 0 (no quota) to %g calls a second", q.name, q.rate, limit.MaxRate)
	}
	every := time.Duration(c.Backup.Every)
	bad(within(c.Backup.Dir, c.DataDir), "backup.dir %s: must be outside data_dir: what destroys that must not destroy the backups", c.Backup.Dir)
	bad(every < minBackupEvery || every > maxBackupEvery, "backup.every %s: must be %s to %s", every, minBackupEvery, maxBackupEvery)
	bad(c.Backup.Keep < 1 || c.Backup.Keep > maxBackupKeep, "backup.keep %d: must be 1 to %d", c.Backup.Keep, maxBackupKeep)
	c.checkMonitoring(bad)
	if c.Audit.Seal != "" {
		err := kms.CheckReference(c.Audit.Seal)
		bad(err != nil, "audit.seal %.80q: %v", c.Audit.Seal, err)
	}
	sink.Check(c.Audit.options(), c.DataDir, bad)
	bad(c.Log.Format != "text" && c.Log.Format != "json", "log.format %q: want text or json", c.Log.Format)
	bad(new(slog.Level).UnmarshalText([]byte(c.Log.Level)) != nil, "log.level %q: want debug, info, warn or error", c.Log.Level)
	for _, n := range []struct {
		name  string
		value int
	}{
		{"hsm.sessions", c.HSM.Sessions},
		{"hsm.max_keys", c.HSM.MaxKeys},
		{"limits.connections", c.Limits.Connections},
		{"limits.handshakes", c.Limits.Handshakes},
	} {
		bad(n.value < 0, "%s %d: must not be negative", n.name, n.value)
	}
	if n := c.HSM.KeySessions; n != nil {
		bad(*n < 0 || *n > p11.MaxKeySessions, "hsm.key_sessions %d: must be 0 to %d", *n, p11.MaxKeySessions)
	}
	for _, a := range c.Join.Addresses {
		bad(!hostPort(a), "join.addresses %q: want host:port, a member's peer address", a)
	}
	return problems
}

func hostPort(s string) bool {
	_, port, err := net.SplitHostPort(s)
	return err == nil && port != ""
}

// within tells whether a path is a directory or lies in it; an empty one does not.
func within(path, dir string) bool {
	a, errA := filepath.Abs(path)
	b, errB := filepath.Abs(dir)
	if path == "" || errA != nil || errB != nil {
		return false
	}
	below, err := filepath.Rel(b, a)
	return err == nil && filepath.IsLocal(below)
}

func unspecified(s string) bool {
	host, _, err := net.SplitHostPort(s)
	ip := net.ParseIP(host)
	return err != nil || host == "" || ip != nil && ip.IsUnspecified()
}

func (t TLS) files() transport.Files { return transport.Files{Cert: t.Cert, Key: t.Key, CA: t.CA} }

func (r Raft) timing() cluster.RaftTiming {
	return cluster.RaftTiming{
		Heartbeat: time.Duration(r.Heartbeat), Election: time.Duration(r.Election),
		SnapshotInterval: time.Duration(r.SnapshotInterval), SnapshotThreshold: r.SnapshotThreshold, TrailingLogs: r.TrailingLogs,
	}
}

// quotas are the limits that count calls.
func (l Limits) quotas() limit.Config {
	return limit.Config{
		ControlPerTenant: l.ControlPerTenant, RestrictPerTenant: l.RestrictPerTenant, UsePerTenant: l.UsePerTenant,
		UsePerPrincipal: l.UsePerPrincipal, ControlPerPrincipal: l.ControlPerPrincipal,
		RestrictPerPrincipal: l.RestrictPerPrincipal, RefusedPerPrincipal: l.RefusedPerPrincipal,
	}
}

func defaultQuotas() Limits {
	d := limit.Default()
	return Limits{
		ControlPerTenant: d.ControlPerTenant, RestrictPerTenant: d.RestrictPerTenant, UsePerTenant: d.UsePerTenant,
		UsePerPrincipal: d.UsePerPrincipal, ControlPerPrincipal: d.ControlPerPrincipal,
		RestrictPerPrincipal: d.RestrictPerPrincipal, RefusedPerPrincipal: d.RefusedPerPrincipal,
	}
}

// leaseBatch is how long the leader gathers lease requests for one tick.
const leaseBatch = 20 * time.Millisecond

func (l Lease) timing() cluster.LeaseTiming {
	return cluster.LeaseTiming{Renew: time.Duration(l.Renew), Batch: leaseBatch}
}

// maxSecret is the longest secret in a file or variable, in bytes.
const maxSecret = 4096

// credentialsDir is where systemd puts the credentials of a service; a path may begin with
// ${CREDENTIALS_DIRECTORY}/.
const credentialsDir = "CREDENTIALS_DIRECTORY"

// credential is the path of a secret with systemd's directory in its place, and the mode
// bits that are of others than its owner. systemd lets the service read its credentials by
// an access control list, whose mask looks like the group's right; nobody but root and the
// service gets into the directory.
func credential(path string) (at string, others os.FileMode, err error) {
	rest, ok := strings.CutPrefix(path, "${"+credentialsDir+"}/")
	if !ok {
		return path, 0o077, nil
	}
	dir := os.Getenv(credentialsDir)
	if dir == "" {
		return "", 0, fmt.Errorf("%s: %s is not set: systemd sets it for a service with LoadCredential=", path, credentialsDir)
	}
	return filepath.Join(dir, rest), 0o037, nil
}

// Secret reads a secret from a file that only its owner may read, or from an
// environment variable, which is removed from the environment. Surrounding white
// space is not part of it. None gives nil.
func Secret(what, path, env string) ([]byte, error) {
	if path != "" {
		path, others, err := credential(path)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrConfig, what, err)
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrConfig, what, err)
		}
		if info.Mode().Perm()&others != 0 {
			return nil, fmt.Errorf("%w: %s: %s has mode %04o, others can read it: chmod 0600 %s", ErrConfig, what, path, info.Mode().Perm(), path)
		}
		b, err := readBounded(path, maxSecret)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrConfig, what, err)
		}
		return bytes.TrimSpace(b), nil
	}
	v, ok := os.LookupEnv(env)
	if !ok {
		return nil, nil
	}
	return []byte(strings.TrimSpace(v)), os.Unsetenv(env)
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b, errors.Join(err, f.Close())
}
