package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/quorumkms/quorumkms/hsm/p11"
	"github.com/quorumkms/quorumkms/node/audit/sink"
	"github.com/quorumkms/quorumkms/node/cluster"
	"github.com/quorumkms/quorumkms/rpc"
	"github.com/quorumkms/quorumkms/transport"
)

// Finding is what one check of a node on its own host has found.
type Finding struct {
	Check string `json:"check"`
	Wrong bool   `json:"wrong"`
	Text  string `json:"text"`
	Do    string `json:"do,omitempty"` // what to do about what is wrong
}

// lowDisk is how many free bytes are few for a data directory.
const lowDisk = 1 << 30

// Diagnose checks a node on its own host, whether it runs or not, and changes nothing. The PIN
// is used with tryPIN only, and then once: a wrong one costs the token a try.
func Diagnose(ctx context.Context, path string, tryPIN bool) []Finding {
	d := &diagnosis{}
	c, err := LoadConfig(path)
	if wrong, ok := errors.AsType[*ConfigError](err); ok {
		for _, line := range wrong.Lines() {
			d.wrong("configuration", line, "correct it: kmsd config check --config "+path)
		}
		return d.found
	}
	if err != nil {
		d.wrong("configuration", err.Error(), "name the node's configuration with --config")
		return d.found
	}
	d.well("configuration", path+" can be used")
	d.secret("PIN file", c.HSM.PINFile, c.HSM.Kind == KindPKCS11 && os.Getenv(EnvPIN) == "")
	d.secret("join token", c.Join.TokenFile, false)
	d.private("private key", c.TLS.Key)
	d.certificates(c)
	running := d.dataDir(c)
	for _, s := range c.Audit.options() {
		d.sink(s)
	}
	d.backupDir(c.Backup.Dir)
	for _, a := range []string{c.Peer.Listen, c.Client.Listen} {
		d.port(ctx, a, running)
	}
	d.token(ctx, c.HSM, tryPIN, running)
	return d.found
}

type diagnosis struct{ found []Finding }

func (d *diagnosis) well(check, text string) {
	d.found = append(d.found, Finding{Check: check, Text: text})
}

func (d *diagnosis) wrong(check, text, do string) {
	d.found = append(d.found, Finding{Check: check, Wrong: true, Text: text, Do: do})
}

// secret looks at a secret's file as the node will, without reading it.
func (d *diagnosis) secret(what, path string, needed bool) {
	switch {
	case path == "" && needed:
		d.wrong(what, "there is none, and "+EnvPIN+" is not set", "name a file with mode 0600 in hsm.pin_file")
	case path == "":
	default:
		at, _, err := credential(path)
		if err != nil { // it is there for the service only
			d.well(what, path+" is a credential that systemd gives the service")
			return
		}
		if _, err := os.Stat(at); errors.Is(err, fs.ErrNotExist) && !needed {
			d.well(what, at+" is not there; only a node that joins needs it")
			return
		}
		d.private(what, at)
	}
}

// private looks whether others can read a file.
func (d *diagnosis) private(what, path string) {
	_, others, err := credential(path)
	var info fs.FileInfo
	if err == nil {
		info, err = os.Stat(path)
	}
	switch {
	case err != nil:
		d.wrong(what, err.Error(), "put the file there, readable for the user that kmsd runs as")
	case info.Mode().Perm()&others != 0:
		d.wrong(what, fmt.Sprintf("%s has mode %04o: others can read it", path, info.Mode().Perm()), "chmod 0600 "+path)
	default:
		d.well(what, path+" is private")
	}
}

func (d *diagnosis) certificates(c Config) {
	creds, err := transport.Load(c.TLS.files(), c.TrustDomain)
	if err != nil {
		d.wrong("certificate", err.Error(), fmt.Sprintf("have a certificate issued for spiffe://%s/node/%s", c.TrustDomain, c.Name))
		return
	}
	if id := creds.Identity(); id.Class != transport.ClassNode || id.Name != c.Name {
		d.wrong("certificate", fmt.Sprintf("%s is of %s", c.TLS.Cert, id), fmt.Sprintf("have one issued for spiffe://%s/node/%s", c.TrustDomain, c.Name))
		return
	}
	fine := true
	for _, x := range append([]transport.Certificate{creds.Certificate()}, creds.CAs()...) {
		if text := x.Warning(time.Now()); text != "" {
			fine = false
			d.wrong("certificate", text, "have it renewed: the node reads the new one by itself")
		}
	}
	if fine {
		d.well("certificate", fmt.Sprintf("%s is of %s, until %s", c.TLS.Cert, creds.Identity(), creds.Certificate().NotAfter().UTC().Format(time.RFC3339)))
	}
}

// dataDir looks at the data directory, and tells whether a node uses it.
func (d *diagnosis) dataDir(c Config) (running bool) {
	const what = "data directory"
	info, err := os.Stat(c.DataDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.well(what, c.DataDir+" is not there yet: kmsd makes it")
		return false
	case err != nil:
		d.wrong(what, err.Error(), "it must be a directory of the user that kmsd runs as")
		return false
	case !info.IsDir():
		d.wrong(what, c.DataDir+" is not a directory", "name another one in data_dir")
		return false
	case info.Mode().Perm()&0o077 != 0:
		d.wrong(what, fmt.Sprintf("%s has mode %04o", c.DataDir, info.Mode().Perm()), "chmod 0700 "+c.DataDir)
	}
	d.disk(diskOf(c.DataDir))
	if trail := trailDisk(c.DataDir); trail != nil {
		d.disk(*trail)
	}
	lock := filepath.Join(c.DataDir, lockFile)
	if _, err := os.Stat(lock); err == nil { // without one nobody has ever used it
		unlock, err := lockDir(lock)
		if err != nil {
			d.well(what, c.DataDir+" is in use: the node runs")
			return true
		}
		if err := unlock(); err != nil {
			d.wrong(what, err.Error(), "look at the disk: journalctl -k")
			return false
		}
	}
	text, err := cluster.Inspect(c.DataDir, c.Name)
	if err != nil {
		d.wrong(what, err.Error(), "keep it, and find out why; the node comes back with an empty one, after kmsctl cluster remove and invite")
		return false
	}
	d.well(what, text)
	return false
}

func (d *diagnosis) disk(x rpc.Disk) {
	switch {
	case x.Err != nil: // on another system
	case x.Free < lowDisk:
		d.wrong("disk", fmt.Sprintf("%d MiB are free for %s", x.Free>>20, x.Dir), "make room: df -h "+x.Dir)
	default:
		d.well("disk", fmt.Sprintf("%d MiB are free for %s", x.Free>>20, x.Dir))
	}
}

// sink looks at what an audit sink needs of this host; whether its collector takes records the
// running node tells (kmsctl cluster status).
func (d *diagnosis) sink(s sink.Options) {
	what := "audit sink " + s.Name
	if s.Path != "" {
		dir := s.Path
		if s.Type == sink.TypeFile {
			dir = filepath.Dir(dir)
		}
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			d.wrong(what, fmt.Sprintf("%s is no directory that can be reached: %v", dir, err), "mount or make it, writable for the user that kmsd runs as; the records wait in the trail")
		} else {
			d.well(what, dir+" is there")
		}
	}
	for _, file := range []string{s.TokenFile, s.Key} {
		if file != "" {
			d.private(what, file)
		}
	}
	for _, file := range []string{s.CA, s.Cert} {
		if file == "" {
			continue
		}
		if f, err := os.Open(file); err != nil {
			d.wrong(what, err.Error(), "put the file there, readable for the user that kmsd runs as")
		} else {
			_ = f.Close() // only read
		}
	}
}

func (d *diagnosis) backupDir(dir string) {
	if dir == "" {
		return
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		d.wrong("backup directory", fmt.Sprintf("%s is no directory that can be reached: %v", dir, err), "mount or make it; the node serves without, and says so")
		return
	}
	d.well("backup directory", dir+" is there")
}

func (d *diagnosis) port(ctx context.Context, address string, running bool) {
	if running {
		return // it is the node that listens there
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		d.wrong("port", err.Error(), "end what listens there (ss -ltnp), or configure another")
		return
	}
	d.well("port", address+" is free")
}

// token looks for the token, and with tryPIN opens it as the node does.
func (d *diagnosis) token(ctx context.Context, c HSM, tryPIN, running bool) {
	const what = "HSM token"
	if c.Kind == KindEmbedded {
		d.well(what, "the partition is embedded: keys are in the process, for development only")
		return
	}
	info, err := p11.Find(c.Module, c.ModuleArguments, c.Token, c.Serial)
	if err != nil {
		d.wrong(what, err.Error(), "bring the token back; the module's own tools, and pkcs11-tool --list-slots, show what is there")
		return
	}
	d.well(what, fmt.Sprintf("%q is there: %s %s, serial %s", c.Token, info.Manufacturer, info.Model, info.Serial))
	switch {
	case info.PINLocked:
		d.wrong(what, "its PIN is locked", "the Security Officer sets a new one with the vendor's tools")
		return
	case info.PINLastTry:
		d.wrong(what, "one wrong PIN more locks it", "be sure of the PIN before kmsd tries it")
		return
	case info.PINTried:
		d.wrong(what, "a wrong PIN was tried since the last right one", "compare hsm.pin_file with the token's PIN")
	}
	if !tryPIN {
		return
	}
	if running {
		d.well(what, "the node runs, so the PIN is right")
		return
	}
	p, err := openPartition(ctx, c, slog.New(slog.DiscardHandler))
	if err == nil {
		err = p.Close()
	}
	if err != nil {
		d.wrong("PIN and self-test", err.Error(), "kmsd help exit-codes; kmsd hsm check shows every probe")
		return
	}
	d.well("PIN and self-test", "the token opens and passes its self-test")
}
