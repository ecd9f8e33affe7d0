package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSinkConfig: what is wrong with a sink is said when the node starts, and where.
func TestSinkConfig(t *testing.T) {
	dir := t.TempDir()
	for _, row := range []struct {
		sinks string
		want  string // "": it is right
	}{
		{"", ""},
		{"[]", ""},
		{"[{type: file, path: /var/log/kms.log}]", ""},
		{"[{type: file, path: /var/log/kms.log, max_megabytes: 5, max_age: 24h, keep: 3}, {type: file, name: second, path: /b}]", ""},
		{`[{type: syslog, address: "unix:///dev/log"}]`, ""},
		{`[{type: syslog, address: "udp://logs:514"}]`, ""},
		{`[{type: syslog, address: "tcp://[::1]:601", framing: newline}]`, ""},
		{`[{type: syslog, address: "tls://logs:6514", ca: /ca.pem, cert: /c.pem, key: /k.pem}]`, ""},
		{`[{type: webhook, url: "https://logs/x", ca: /ca.pem, token_file: /token, max_records: 10}]`, ""},
		{`[{type: webhook, url: "http://127.0.0.1:9000/x"}]`, ""},
		{`[{type: webhook, url: "http://[::1]:9000/x"}]`, ""},
		{"[{type: ship, path: /spool, every: 5m, max_records: 1000}]", ""},

		{"[{path: /a}]", "audit.sinks[0].type is missing: file, syslog, webhook or ship"},
		{"[{type: kafka}]", `audit.sinks[0].type "kafka": want file, syslog, webhook or ship`},
		{"[{type: file, path: /a}, {type: file, path: /b}]", `audit.sinks[1].name "file": another sink has it`},
		{"[{type: file, path: /a, name: A/b}]", `audit.sinks[0].name "A/b": must be`},
		{"[{type: file}]", "audit.sinks[0].path is missing: a file, for example"},
		{"[{type: file, path: kms.log}]", `audit.sinks[0].path "kms.log": must be absolute`},
		{"[{type: file, path: " + dir + "/data/audit/x}]", "must be outside data_dir"},
		{"[{type: file, path: /a, max_megabytes: -1}]", "audit.sinks[0].max_megabytes -1: must be 1 to 1048576"},
		{"[{type: file, path: /a, max_age: 1s}]", "audit.sinks[0].max_age 1s: must be 1m0s at least"},
		{"[{type: file, path: /a, max_age: 0s}]", `"0s" is no duration`},
		{"[{type: file, path: /a, keep: 10001}]", "audit.sinks[0].keep 10001: must be 1 to 10000"},
		{"[{type: file, path: /a, url: x}]", "audit.sinks[0].url: a sink of type file has none"},
		{"[{type: file, path: /a, size: 1}]", "unknown field audit.sinks[0].size"},
		{"[{type: ship}]", "audit.sinks[0].path is missing: a directory"},
		{"[{type: ship, path: spool}]", "must be absolute"},
		{"[{type: ship, path: /s, every: 1ms}]", "audit.sinks[0].every 1ms: must be 1s to 24h0m0s"},
		{"[{type: ship, path: /s, max_records: 70000}]", "audit.sinks[0].max_records 70000: must be 1 to 65536"},
		{"[{type: syslog}]", "audit.sinks[0].address is missing"},
		{"[{type: syslog, address: logs}]", `audit.sinks[0].address "logs": want unix:///path, or udp://`},
		{`[{type: syslog, address: "tcp://logs"}]`, "want unix:///path, or udp://"},
		{`[{type: syslog, address: "unix://dev/log"}]`, "want unix:///path, or udp://"},
		{`[{type: syslog, address: "udp://logs:514", framing: newline}]`, "audit.sinks[0].framing: udp has none"},
		{`[{type: syslog, address: "tcp://logs:514", framing: lines}]`, `audit.sinks[0].framing "lines": want octet-counting or newline`},
		{`[{type: syslog, address: "tcp://logs:514", ca: /ca}]`, "ca, cert and key are for tls:// only"},
		{`[{type: syslog, address: "tls://logs:514", cert: /c}]`, "are needed both, or none"},
		{`[{type: syslog, address: "tls://logs:514", ca: ca}]`, `audit.sinks[0].ca "ca": must be absolute`},
		{"[{type: webhook}]", "audit.sinks[0].url is missing"},
		{"[{type: webhook, url: logs}]", "audit.sinks[0].url: want https://host/path"},
		{`[{type: webhook, url: "ftp://logs/x"}]`, "want https://host/path"},
		{`[{type: webhook, url: "http://logs.example/x"}]`, "http without TLS goes to this host only"},
		{`[{type: webhook, url: "http://127.0.0.1.example/x"}]`, "http without TLS goes to this host only"},
		{`[{type: webhook, url: "https://me:secret@logs/x"}]`, "has a user in it"},
		{`[{type: webhook, url: "https://logs/x", max_records: 10001}]`, "audit.sinks[0].max_records 10001: must be 1 to 10000"},
		{`[{type: webhook, url: "https://logs/x", token_file: token}]`, "must be absolute"},
		{"[" + strings.Repeat("{type: file, path: /a},", 17) + "]", "audit.sinks: 17 of them, at most 16"},
	} {
		path := filepath.Join(dir, "kmsd.yaml")
		text := `
name: kms-1
trust_domain: kms.example
data_dir: ` + dir + `/data
peer: {listen: "127.0.0.1:1"}
client: {listen: "127.0.0.1:2"}
tls: {cert: a, key: b, ca: c}
hsm: {token: kms}
audit: {sinks: ` + row.sinks + "}\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(path)
		switch {
		case row.want == "" && err != nil:
			t.Errorf("%s: %v", row.sinks, err)
		case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
			t.Errorf("%s: %v, want %q", row.sinks, err, row.want)
		case err != nil && strings.Contains(err.Error(), "secret"):
			t.Errorf("%s: a secret is told: %v", row.sinks, err)
		}
	}
}
