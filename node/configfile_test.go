package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rightConfig is a configuration without a mistake; line 1 is the name.
const rightConfig = `name: kms-1
trust_domain: kms.example
data_dir: /var/lib/quorumkms
peer: {listen: "127.0.0.1:1"}
client: {listen: "127.0.0.1:2"}
tls: {cert: a, key: b, ca: c}
hsm: {token: kms}
`

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kmsd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConfigProblems: each mistake is told with its line, and all of a file at once.
func TestConfigProblems(t *testing.T) {
	edit := func(old, with string) string {
		if !strings.Contains(rightConfig, old) {
			t.Fatalf("%q is not in the configuration", old)
		}
		return strings.Replace(rightConfig, old, with, 1)
	}
	for _, row := range []struct {
		what, text string
		want       []string // begin so, behind the file's name; all of them, in this order
	}{
		{"nothing wrong", rightConfig, nil},
		{"nothing wrong, with an alias", edit("peer: {", "peer: &a {") + "join: {addresses: [\"h:1\"]}\n", nil},
		{"unknown at the top", edit("name:", "nmae:"), []string{
			`: name "": must be`, ":1: unknown field nmae: did you mean name?",
		}},
		{"unknown below", rightConfig + "backup:\n  dirr: /b\n", []string{":9: unknown field backup.dirr: did you mean backup.dir?"}},
		{"unknown, like nothing", rightConfig + "colour: red\n", []string{":8: unknown field colour"}},
		{"at the wrong place", rightConfig + "pin_file: /etc/pin\n", []string{":8: unknown field pin_file: did you mean hsm.pin_file?"}},
		{"at the wrong place below", rightConfig + "raft: {renew: 1s}\n", []string{":8: unknown field raft.renew: did you mean lease.renew?"}},
		{"twice", rightConfig + "name: kms-2\n", []string{":8: name is there twice, first in line 1"}},
		{"no number", rightConfig + "limits:\n  use_per_tenant: many\n", []string{":9: yaml: cannot unmarshal !!str `many` into float64"}},
		{"no duration", rightConfig + "raft:\n  heartbeat: fast\n  election: -1s\n", []string{
			`:9: yaml: "fast" is no duration`, `:10: yaml: "-1s" is no duration`,
		}},
		{"no mapping", rightConfig + "log: loud\n", []string{":8: yaml: cannot unmarshal !!str `loud` into node.Log"}},
		{"twice below, and more", rightConfig + "log:\n  level: info\n  level: loud\n  format: xml\n", []string{":10: log.level is there twice, first in line 9", `:11: log.format "xml"`}},
		{"a list at the top", "- name\n", []string{":1: yaml: cannot unmarshal !!seq into node.Config"}},
		{"nothing at all", "", []string{
			`: name ""`, ": trust_domain is missing", ": data_dir is missing", `: peer.listen ""`, `: peer.advertise ""`, `: client.listen ""`, `: client.advertise ""`,
			": tls.cert, tls.key and tls.ca", ": hsm.token is missing",
		}},
		{"no YAML", "name: kms-1\ntls: [\n", []string{":2: yaml: did not find expected node content"}},
		{"a tab", "name: kms-1\n\ttls: x\n", []string{":2: yaml: found a tab character that violates indentation"}},
		{"merged", rightConfig + "log: &a\n  <<: {levle: info}\n", []string{":9: unknown field log.levle: did you mean log.level?"}},
		{"what contains itself", rightConfig + "log: &a\n  <<: *a\n", []string{": yaml: anchor 'a' value contains itself"}},
		{"two documents", rightConfig + "---\nname: kms-2\n", []string{": there is more than one YAML document"}},
		{"a key that is named wrongly", rightConfig + "audit:\n  keep: 24h\n  seal: audit\n", []string{`:10: audit.seal "audit": invalid argument: "audit" is no key id, key ARN, alias name (alias/…) or alias ARN`}},
		{"a key that is named rightly", rightConfig + "audit:\n  seal: arn:quorumkms:kms:6ba7b810-9dad-11d1-80b4-00c04fd430c8:acme:alias/audit\n", nil},
		{"a wrong name", edit("kms-1", "KMS 1"), []string{`:1: name "KMS 1": must be`}},
		{"addresses", edit(`"127.0.0.1:1"`, "nowhere") + "join:\n  addresses: [\"10.0.0.1\"]\n", []string{
			`:4: peer.listen "nowhere"`, `:4: peer.advertise "nowhere"`, `:9: join.addresses "10.0.0.1": want host:port`,
		}},
		{"an address that nobody reaches", edit("127.0.0.1:1", "0.0.0.0:1"), []string{`:4: peer.advertise "0.0.0.0:1"`}},
		{"parts of tls", edit("key: b, ", ""), []string{":6: tls.cert, tls.key and tls.ca are all needed"}},
		{"the embedded partition's", edit("token: kms", "token: kms, trust_all: true"), []string{":7: hsm.trust_all and hsm.in_memory are for"}},
		{"no token", edit("token: kms", ""), []string{":7: hsm.token is missing"}},
		{"another kind", edit("token: kms", "kind: paper"), []string{`:7: hsm.kind "paper"`}},
		{"negative", edit("token: kms", "token: kms, sessions: -1") + "limits: {connections: -3}\n", []string{":7: hsm.sessions -1: must not be negative", ":8: limits.connections -3"}},
		{"an election before a heartbeat", rightConfig + "raft:\n  heartbeat: 2s\n", []string{":8: raft.election 1s: must be at least raft.heartbeat, 2s"}},
		{"levels", rightConfig + "log:\n  level: loud\n  format: xml\n", []string{`:9: log.level "loud": want debug`, `:10: log.format "xml"`}},
		{"all at once", edit("kms-1", "KMS") + "lease: {consistency: never}\nbackup:\n  dir: /var/lib/quorumkms/b\n  keep: -1\n  evry: 1s\n", []string{
			`:1: name "KMS"`, `:8: lease.consistency "never"`, ":10: backup.dir /var/lib/quorumkms/b: must be outside", ":11: backup.keep -1", ":12: unknown field backup.evry: did you mean backup.every?",
		}},
	} {
		path := writeConfig(t, row.text)
		_, err := LoadConfig(path)
		if row.want == nil {
			if err != nil {
				t.Errorf("%s: %v", row.what, err)
			}
			continue
		}
		wrong, ok := errors.AsType[*ConfigError](err)
		if !ok || !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v is no configuration error", row.what, err)
			continue
		}
		lines := wrong.Lines()
		for i := range max(len(lines), len(row.want)) {
			if i >= len(lines) || i >= len(row.want) || !strings.HasPrefix(lines[i], path+row.want[i]) {
				t.Errorf("%s:\n%s\nwant\n%s", row.what, strings.Join(lines, "\n"), strings.Join(row.want, "\n"))
				break
			}
		}
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, ErrConfig) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent file: %v", err)
	}
}

// TestEveryKeyIsToldOf: README's table of what SIGHUP changes has every key once, and says
// what is so.
func TestEveryKeyIsToldOf(t *testing.T) {
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(b), "| key | a change of its value |\n|---|---|\n")
	if !found {
		t.Fatal("README.md has no such table")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	told := map[string]string{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			t.Fatalf("line %q", line)
		}
		for key := range strings.FieldsSeq(strings.ReplaceAll(cells[1], ",", " ")) {
			key = strings.Trim(key, "`")
			if told[key] != "" {
				t.Errorf("%s is told of twice", key)
			}
			told[key] = strings.TrimSpace(cells[2])
		}
	}
	for _, key := range configKeys() {
		runtime := slices.Contains(atRuntime, key)
		if told[key] == "" || strings.HasPrefix(told[key], "SIGHUP") != runtime {
			t.Errorf("%s: README says %q; at run time: %v", key, told[key], runtime)
		}
		delete(told, key)
	}
	for key := range told {
		t.Errorf("README tells of %s, which does not exist", key)
	}
	for _, key := range atRuntime {
		if !slices.Contains(configKeys(), key) {
			t.Errorf("there is no key %s", key)
		}
	}
}

// TestChanged: what differs between two configurations is found, key by key.
func TestChanged(t *testing.T) {
	load := func(text string) Config {
		c, err := LoadConfig(writeConfig(t, text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := load(rightConfig)
	if got := changed(a, load(rightConfig)); got != nil {
		t.Errorf("the same file has changed: %v", got)
	}
	b := load(strings.Replace(rightConfig, "token: kms", "token: other, accept_weakness: [x]", 1) + "log: {level: debug}\nbackup: {dir: /b, every: 2h}\n")
	if got, want := changed(a, b), []string{"hsm.token", "hsm.accept_weakness", "backup.dir", "backup.every", "log.level"}; !slices.Equal(got, want) {
		t.Errorf("changed: %v, want %v", got, want)
	}
}

// TestCredential: a secret may be a systemd credential, with the mode that systemd gives it.
func TestCredential(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(credentialsDir, dir)
	for _, row := range []struct {
		mode os.FileMode
		want string // "": it is read
	}{
		{0o400, ""}, {0o440, ""}, {0o600, ""}, {0o444, "others can read it"}, {0o460, "others can read it"},
	} {
		file := filepath.Join(dir, fmt.Sprintf("pin-%o", row.mode))
		if err := errors.Join(os.WriteFile(file, []byte("1234\n"), 0o600), os.Chmod(file, row.mode)); err != nil {
			t.Fatal(err)
		}
		got, err := Secret("HSM PIN", "${CREDENTIALS_DIRECTORY}/"+filepath.Base(file), "NO_SUCH_VARIABLE")
		switch {
		case row.want == "" && (err != nil || string(got) != "1234"):
			t.Errorf("%o: %q, %v", row.mode, got, err)
		case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
			t.Errorf("%o: %q, %v; want %q", row.mode, got, err, row.want)
		}
	}
	t.Setenv(credentialsDir, "")
	if _, err := Secret("HSM PIN", "${CREDENTIALS_DIRECTORY}/pin", "NO_SUCH_VARIABLE"); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "LoadCredential") {
		t.Errorf("outside of a service: %v", err)
	}
}
