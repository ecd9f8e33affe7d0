package sink

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/node/audit"
)

func body(q *http.Request) []byte {
	b, err := io.ReadAll(q.Body)
	if err != nil {
		return nil
	}
	return b
}

// pki is a CA with a certificate for 127.0.0.1, as files.
type pki struct{ ca, cert, key string }

func newPKI(t *testing.T) pki {
	t.Helper()
	dir := t.TempDir()
	p := pki{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "collector"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	spki, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	must(t, os.WriteFile(p.ca, cert, 0o600))
	must(t, os.WriteFile(p.cert, cert, 0o600))
	must(t, os.WriteFile(p.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: spki}), 0o600))
	return p
}

// server is a configuration that wants a certificate of the same CA.
func (p pki) server(t *testing.T) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	must(t, err)
	text, err := os.ReadFile(p.ca)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
}

// streams takes messages from connections.
func streams(t *testing.T, l net.Listener, counted bool, got *box) {
	t.Helper()
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for {
					var m string
					if counted {
						head, err := in.ReadString(' ')
						if err != nil {
							return
						}
						n, err := strconv.Atoi(strings.TrimSuffix(head, " "))
						b := make([]byte, n)
						if _, readErr := io.ReadFull(in, b); err != nil || readErr != nil {
							return
						}
						m = string(b)
					} else if m, err = in.ReadString('\n'); err != nil {
						return
					}
					got.add(strings.TrimSuffix(m, "\n"))
				}
			}()
		}
	}()
}

// datagrams takes messages from datagrams.
func datagrams(t *testing.T, conn net.PacketConn, got *box) {
	t.Helper()
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		b := make([]byte, 1<<18)
		for {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			got.add(string(b[:n]))
		}
	}()
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	must(t, err)
	return l
}

// listenKept listens on a port that systems give to nobody by themselves: it can be closed and
// listened on again.
func listenKept(t *testing.T) net.Listener {
	t.Helper()
	for range 1000 {
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(10_000+mathrand.IntN(10_000)))); err == nil {
			return l
		}
	}
	t.Fatal("no free port")
	return nil
}

func listenPackets(t *testing.T, network, address string) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket(network, address)
	must(t, err)
	return c
}

var rfc5424 = regexp.MustCompile(`^<(\d+)>1 (\S+) (\S+) kmsd \d+ (\S+) - (\{.*\})$`)

// records are the texts of messages, each checked.
func records(t *testing.T, messages []string) (out []string) {
	t.Helper()
	for _, m := range messages {
		part := rfc5424.FindStringSubmatch(m)
		if part == nil {
			t.Fatalf("no message of RFC 5424: %q", m)
		}
		var e audit.Event
		must(t, json.Unmarshal([]byte(part[5]), &e))
		at, err := time.Parse(time.RFC3339Nano, part[2])
		if err != nil || !at.Equal(e.Time.Truncate(time.Microsecond)) || part[3] != "kms-1" || part[4] != e.Name || part[1] != "110" {
			t.Errorf("%v: %q", err, m)
		}
		out = append(out, part[5])
	}
	return out
}

// TestKinds: each kind of sink brings every record to a real counterpart, as it stands in the
// trail, and goes on where it was after a restart.
func TestKinds(t *testing.T) {
	for name, prepare := range map[string]func(*testing.T) (Options, func() []string){
		"syslog, unix datagrams": func(t *testing.T) (Options, func() []string) {
			var got box
			path := filepath.Join(t.TempDir(), "log")
			datagrams(t, listenPackets(t, "unixgram", path), &got)
			return Options{Type: TypeSyslog, Address: "unix://" + path}, func() []string { return records(t, got.all()) }
		},
		"syslog, unix stream": func(t *testing.T) (Options, func() []string) {
			var got box
			path := filepath.Join(t.TempDir(), "log")
			streams(t, listen(t, "unix", path), false, &got)
			return Options{Type: TypeSyslog, Address: "unix://" + path}, func() []string { return records(t, got.all()) }
		},
		"syslog, udp": func(t *testing.T) (Options, func() []string) {
			var got box
			c := listenPackets(t, "udp", "127.0.0.1:0")
			datagrams(t, c, &got)
			return Options{Type: TypeSyslog, Address: "udp://" + c.LocalAddr().String()}, func() []string { return records(t, got.all()) }
		},
		"syslog, tcp": func(t *testing.T) (Options, func() []string) {
			var got box
			l := listen(t, "tcp", "127.0.0.1:0")
			streams(t, l, true, &got)
			return Options{Type: TypeSyslog, Address: "tcp://" + l.Addr().String()}, func() []string { return records(t, got.all()) }
		},
		"syslog, tcp with newlines": func(t *testing.T) (Options, func() []string) {
			var got box
			l := listen(t, "tcp", "127.0.0.1:0")
			streams(t, l, false, &got)
			return Options{Type: TypeSyslog, Address: "tcp://" + l.Addr().String(), Framing: FramingNewline}, func() []string { return records(t, got.all()) }
		},
		"syslog, tls": func(t *testing.T) (Options, func() []string) {
			var got box
			p := newPKI(t)
			l, err := tls.Listen("tcp", "127.0.0.1:0", p.server(t))
			must(t, err)
			streams(t, l, true, &got)
			return Options{Type: TypeSyslog, Address: "tls://" + l.Addr().String(), CA: p.ca, Cert: p.cert, Key: p.key}, func() []string { return records(t, got.all()) }
		},
		"webhook": func(t *testing.T) (Options, func() []string) {
			var got box
			p := newPKI(t)
			token := filepath.Join(t.TempDir(), "token")
			must(t, os.WriteFile(token, []byte("s3cret\n"), 0o600))
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				lines := split(body(q))
				var first audit.Event
				err := json.Unmarshal([]byte(lines[0]), &first)
				h := q.Header
				if err != nil || q.Method != http.MethodPost || h.Get("Authorization") != "Bearer s3cret" || h.Get("Content-Type") != "application/x-ndjson" || len(lines) > 20 ||
					h.Get(HeaderNode) != testNode || h.Get(HeaderFirst) != fmt.Sprint(first.Sequence) || h.Get(HeaderLast) != fmt.Sprint(first.Sequence+uint64(len(lines))-1) {
					t.Errorf("%s with %d lines, %v: %v", q.Method, len(lines), h, err)
				}
				got.add(lines...)
				w.WriteHeader(http.StatusNoContent)
			}))
			server.TLS = p.server(t)
			server.StartTLS()
			t.Cleanup(server.Close)
			return Options{Type: TypeWebhook, URL: server.URL + "/audit", CA: p.ca, Cert: p.cert, Key: p.key, TokenFile: token, MaxRecords: 20}, got.all
		},
		"file": func(t *testing.T) (Options, func() []string) {
			path := filepath.Join(t.TempDir(), "audit.log")
			return Options{Type: TypeFile, Path: path}, func() []string { return readLines(t, path) }
		},
		"ship": func(t *testing.T) (Options, func() []string) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, testNode+"-1-2.records.gz.part"), []byte("torn"), 0o600))
			return Options{Type: TypeShip, Path: dir, MaxRecords: 20, Every: time.Second}, func() []string { return objects(t, dir) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			o, got := prepare(t)
			r.write(25)
			r.begin(o)
			r.write(25)
			r.delivered(50)
			r.until("all is received", func() bool { return len(got()) >= 50 })
			r.end()
			r.write(30)
			must(t, r.trail.Close())
			r.open()
			r.begin(o)
			r.write(5)
			r.delivered(85)
			r.until("all is received", func() bool { return len(got()) >= 85 })
			if n := len(got()); n != 85 {
				t.Errorf("%d records though the node was stopped in order", n)
			}
			r.same(name, got())
			if s := r.stats(); s.Failures != 0 || s.Lost != 0 || s.Clipped != 0 || s.LastError != "" || s.Type != o.Type {
				t.Errorf("%+v", s)
			}
		})
	}
}

var objectName = regexp.MustCompile(`^kms-1\.0a1b2c-(\d{20})-(\d{20})\.records\.gz$`)

// objects are the records of a directory's objects, each of which has those that its name says.
func objects(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		part := objectName.FindStringSubmatch(e.Name())
		if part == nil {
			if strings.HasSuffix(e.Name(), audit.PartEnd) {
				continue
			}
			t.Fatalf("the object %s", e.Name())
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		must(t, err)
		z, err := gzip.NewReader(bytes.NewReader(b))
		must(t, err)
		text, err := io.ReadAll(z)
		must(t, err)
		lines := split(text)
		for i, sequence := range []string{part[1], part[2]} {
			var r audit.Event
			must(t, json.Unmarshal([]byte(lines[i*(len(lines)-1)]), &r))
			if fmt.Sprintf("%020d", r.Sequence) != sequence {
				t.Errorf("%s has record %d", e.Name(), r.Sequence)
			}
		}
		out = append(out, lines...)
	}
	return out
}

// TestShipTidies: what an earlier run has left unfinished goes.
func TestShipTidies(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	for _, name := range []string{testNode + "-1-2.records.gz.part", "kms-2.ffff-1-2.records.gz.part"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("torn"), 0o600))
	}
	r.begin(Options{Type: TypeShip, Path: dir, MaxRecords: 5})
	r.write(5)
	r.delivered(5)
	left, err := filepath.Glob(filepath.Join(dir, "*.part"))
	must(t, err)
	if len(left) != 1 || filepath.Base(left[0]) != "kms-2.ffff-1-2.records.gz.part" {
		t.Errorf("left are %v, want the other node's alone", left)
	}
}

// TestWebhookRefusals: what a webhook must not do, and must say.
func TestWebhookRefusals(t *testing.T) {
	r := newRig(t)
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	redirecting := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer redirecting.Close()
	p, foreign := newPKI(t), newPKI(t)
	strict := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	strict.TLS = p.server(t)
	strict.StartTLS()
	defer strict.Close()
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	must(t, os.WriteFile(open, []byte("s3cret"), 0o600))
	must(t, os.Chmod(open, 0o644))
	bad := filepath.Join(dir, "bad")
	must(t, os.WriteFile(bad, []byte("s3cret\r\nX-Header: y"), 0o600))
	r.write(1)
	for name, row := range map[string]struct {
		o    Options
		want string
	}{
		"a redirection":                {Options{URL: redirecting.URL + "/?key=s3cret"}, "307"},
		"a token that others can read": {Options{URL: other.URL, TokenFile: open}, "chmod 0600"},
		"a token of two lines":         {Options{URL: other.URL, TokenFile: bad}, "holds no token"},
		"no token":                     {Options{URL: other.URL, TokenFile: filepath.Join(dir, "absent")}, "no such file"},
		"another CA":                   {Options{URL: strict.URL + "/?key=s3cret", CA: foreign.ca, Cert: p.cert, Key: p.key}, "certificate"},
		"no CA":                        {Options{URL: strict.URL, CA: open, Cert: p.cert, Key: p.key}, "has no certificate"},
		"no certificate":               {Options{URL: strict.URL, CA: p.ca}, "certificate"},
		"nobody there":                 {Options{URL: "http://127.0.0.1:1/?key=s3cret"}, "refused"},
	} {
		row.o.Type = TypeWebhook
		r.begin(row.o)
		r.until(name+" is refused", func() bool { return r.stats().Failures > 1 })
		if s := r.stats(); !strings.Contains(s.LastError, row.want) || strings.Contains(s.LastError, "s3cret") || s.Cursor != 0 {
			t.Errorf("%s: %+v, want %q", name, s, row.want)
		}
		r.end()
	}
	if elsewhere.Load() != 0 {
		t.Errorf("%d requests were made that must not be", elsewhere.Load())
	}
}

// TestSyslogReconnects: a collector that is started again gets what follows, by a new connection.
func TestSyslogReconnects(t *testing.T) {
	r := newRig(t)
	l := listenKept(t)
	o := Options{Type: TypeSyslog, Address: "tcp://" + l.Addr().String()}
	r.begin(o)
	r.write(1)
	conn, err := l.Accept()
	must(t, err)
	r.delivered(1)
	must(t, conn.Close())
	must(t, l.Close())
	r.until("the end is noticed", func() bool { // by a failure, or by the connection's end
		r.write(1)
		return r.stats().Failures > 0
	})
	at := r.stats().Cursor
	var got box
	streams(t, listen(t, "tcp", l.Addr().String()), true, &got)
	r.delivered(r.trail.Durable())
	want := r.lines()[at:]
	r.until("all is received", func() bool { return len(got.all()) >= len(want) })
	if !slices.Equal(records(t, got.all())[len(got.all())-len(want):], want) {
		t.Errorf("%d messages, want %d", len(got.all()), len(want))
	}
}

// TestSyslogClips: what does not fit into a datagram is cut, counted, and still names its record.
func TestSyslogClips(t *testing.T) {
	r := newRig(t)
	var got box
	c := listenPackets(t, "udp", "127.0.0.1:0")
	datagrams(t, c, &got)
	long := strings.Repeat("\x01", 8<<10)
	must(t, r.trail.Record(audit.Event{Name: "Status", Tenant: long, Reason: long, KeyID: long, Alias: long, Target: long, RequestID: long, Result: audit.Failed, Context: map[string]string{"k": long[:8000]}}))
	r.begin(Options{Type: TypeSyslog, Address: "udp://" + c.LocalAddr().String()})
	r.delivered(1)
	r.until("it is received", func() bool { return len(got.all()) == 1 })
	m := got.all()[0]
	if r.stats().Clipped != 1 || len(m) > maxDatagram || !strings.Contains(m, `"sequence":1,"node":"`+testNode+`"`) || !strings.HasPrefix(m, "<109>1 2026-03-01T12:00:00.000000Z kms-1 kmsd ") {
		t.Errorf("%d bytes: %.200q", len(m), m)
	}
}

// TestSeverity: alarms and refusals stand out.
func TestSeverity(t *testing.T) {
	s := &syslog{name: "kms-1"}
	for want, line := range map[string]string{
		"<105>1 - kms-1 kmsd ": `{"eventName":"Decrypt","alarm":"X","result":"SUCCESS"}`,
		"<109>1 - kms-1 kmsd ": `{"eventName":"Decrypt","result":"DENIED"}`,
		"<110>1 - kms-1 kmsd ": `{"eventName":"Decrypt","result":"SUCCESS"}`,
	} {
		if m := string(s.message([]byte(line))); !strings.HasPrefix(m, want) || !strings.HasSuffix(m, " Decrypt - "+line) {
			t.Errorf("%s: %s", line, m)
		}
	}
	for name, want := range map[string]string{"": "-", "a b\n": "ab", "é": "-", strings.Repeat("x", 40): strings.Repeat("x", 32)} {
		if got := messageID(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

// TestFileRotation: a file is renamed when it is large or old, so many are kept, none has a
// record in part, and together they have them all.
func TestFileRotation(t *testing.T) {
	r := newRig(t)
	path := filepath.Join(t.TempDir(), "audit.log")
	all := func() (out []string) {
		for _, name := range []string{path + ".3", path + ".2", path + ".1", path} {
			if _, err := os.Stat(name); err == nil {
				out = append(out, readLines(t, name)...)
			}
		}
		return out
	}
	o := Options{Type: TypeFile, Path: path, MaxMegabytes: 1, MaxAge: time.Hour, Keep: 3}
	r.begin(o)
	r.write(4000) // more than a megabyte
	r.delivered(4000)
	info, err := os.Stat(path + ".1")
	must(t, err)
	if info.Size() > 1<<20 || info.Mode().Perm() != 0o640 {
		t.Errorf("%s has %d bytes, mode %v", path+".1", info.Size(), info.Mode())
	}
	r.same("by size", all())
	r.end()
	// Its age is that of its first record, also after a restart; what a crash has torn is cut.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString(`{"eventTime":"2026-`)
	must(t, err)
	must(t, f.Close())
	r.begin(o)
	r.clock.advance(30 * time.Minute)
	r.write(1)
	r.delivered(4001)
	r.clock.advance(30 * time.Minute)
	r.write(1)
	r.delivered(4002)
	if got := readLines(t, path); len(got) != 1 {
		t.Errorf("%d records in the new file, want 1", len(got))
	}
	r.same("by age", all())
	// Others may rename it.
	must(t, os.Rename(path, path+".moved"))
	r.write(1)
	r.delivered(4003)
	if got := readLines(t, path); len(got) != 1 {
		t.Errorf("%d records behind the renaming, want 1", len(got))
	}
	// No more than three are kept.
	for i := range 4 {
		r.clock.advance(2 * time.Hour)
		r.write(1)
		r.delivered(uint64(4004 + i))
	}
	names, err := filepath.Glob(path + ".?")
	must(t, err)
	if len(names) != 3 || len(all()) != 4 {
		t.Errorf("%v with %d records", names, len(all()))
	}
}

// TestFileRefusals: what is no file of records is left alone.
func TestFileRefusals(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	must(t, os.WriteFile(large, bytes.Repeat([]byte("x"), 300<<10), 0o600))
	must(t, exec.Command("mkfifo", filepath.Join(dir, "pipe")).Run())
	r.write(1)
	for path, want := range map[string]string{
		dir: "is no file", filepath.Join(dir, "pipe"): "is no file", filepath.Join(dir, "absent", "file"): "no such file", large: "is no file of records", "/dev/full": "is no file",
	} {
		r.begin(Options{Type: TypeFile, Path: path})
		r.until(path+" is refused", func() bool { return r.stats().Failures > 1 })
		if s := r.stats(); !strings.Contains(s.LastError, want) {
			t.Errorf("%s: %s, want %q", path, s.LastError, want)
		}
		r.end()
	}
	if info, err := os.Stat(large); err != nil || info.Size() != 300<<10 {
		t.Errorf("the other file was changed: %v", err)
	}
}

// disk mounts a small file system. It takes Linux, and root or sudo.
func disk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root := func(args ...string) {
		t.Helper()
		if os.Geteuid() != 0 {
			args = append([]string{"sudo", "-n"}, args...)
		}
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s takes root or sudo: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	root("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=256k,mode=0700,uid=%d,gid=%d", os.Geteuid(), os.Getegid()), "tmpfs", dir)
	t.Cleanup(func() { root("umount", "--lazy", dir) })
	return dir
}

// TestFullDisk: where there is no room nothing is there in part; records go on, and once there
// is room the sink has all of them.
func TestFullDisk(t *testing.T) {
	for _, kind := range []string{TypeFile, TypeShip} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t)
			dir := disk(t)
			fill := filepath.Join(dir, "fill")
			_ = os.WriteFile(fill, make([]byte, 1<<20), 0o600) // as much as there is room for
			must(t, os.Truncate(fill, 256<<10-12<<10))         // some room, not enough
			o := Options{Type: kind, Path: dir, Every: time.Second}
			got := func() []string { return objects(t, dir) }
			if kind == TypeFile {
				path := filepath.Join(dir, "audit.log")
				o, got = Options{Type: kind, Path: path}, func() []string { return readLines(t, path) }
			}
			for range 500 { // that do not compress
				must(t, r.trail.Record(audit.Event{Name: "Encrypt", RequestID: rand.Text() + rand.Text() + rand.Text() + rand.Text(), Result: audit.Success}))
			}
			r.until("all is on the disk", func() bool { return r.trail.Durable() == 500 })
			r.begin(o)
			r.until("there is no room", func() bool { return r.stats().Failures > 2 })
			if s := r.stats(); !strings.Contains(s.LastError, "no space left") {
				t.Errorf("%+v", s)
			}
			r.write(100)
			must(t, os.Remove(fill))
			if kind == TypeShip {
				r.until("all is delivered", func() bool { return r.stats().Cursor == 600 })
			}
			r.delivered(600)
			if n := len(got()); n != 600 {
				t.Errorf("%d records, want each once", n)
			}
			r.same("with room", got())
		})
	}
}
