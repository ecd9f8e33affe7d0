package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quorumkms/quorumkms/fsm"
	"github.com/quorumkms/quorumkms/node/kms/limit"
)

// TestBackupConfig: where backups go must be outside of what they are for.
func TestBackupConfig(t *testing.T) {
	dir := t.TempDir()
	for _, row := range []struct {
		backup string
		want   string // "": it is right
	}{
		{"", ""},
		{"backup: {dir: " + dir + "/backups}", ""},
		{"backup: {dir: " + dir + "/data-backups, every: 15m, keep: 1}", ""},
		{"backup: {dir: " + dir + "/data}", "backup.dir " + dir + "/data: must be outside data_dir"},
		{"backup: {dir: " + dir + "/data/backups}", "must be outside data_dir"},
		{"backup: {dir: " + dir + "/x/../data/backups}", "must be outside data_dir"},
		{"backup: {dir: /b, every: 100ms}", "backup.every 100ms: must be 1s to 744h0m0s"},
		{"backup: {dir: /b, every: 1000h}", "backup.every"},
		{"backup: {dir: /b, keep: -1}", "backup.keep -1: must be 1 to 10000"},
		{"backup: {dir: /b, keep: 10001}", "backup.keep 10001"},
		{"backup: {directory: /b}", "unknown field backup.directory: there are backup.dir, backup.every, backup.keep"},
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
` + row.backup + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := LoadConfig(path)
		switch {
		case row.want == "" && (err != nil || c.Backup.Keep < 1 || time.Duration(c.Backup.Every) < time.Minute):
			t.Errorf("%s: %+v, %v", row.backup, c.Backup, err)
		case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
			t.Errorf("%s: %v, want %q", row.backup, err, row.want)
		}
	}
}

// TestQuotaConfig: a quota of 0 is none, and not the default.
func TestQuotaConfig(t *testing.T) {
	dir := t.TempDir()
	standard := limit.Config{ControlPerTenant: 50, RestrictPerTenant: 50, RestrictPerPrincipal: 20, RefusedPerPrincipal: 20}
	for _, row := range []struct {
		limits string
		quotas limit.Config
		want   string // "": it is right
	}{
		{"", standard, ""},
		{"limits:", standard, ""},
		{"limits: {connections: 7}", standard, ""},
		{"limits: {control_per_tenant: }", standard, ""},
		{"limits: {control_per_tenant: 0}", limit.Config{RestrictPerTenant: 50, RestrictPerPrincipal: 20, RefusedPerPrincipal: 20}, ""},
		{"limits: {control_per_tenant: 0, restrict_per_tenant: 0.0, restrict_per_principal: 0, refused_per_principal: 0}", limit.Config{}, ""},
		{
			"limits: {control_per_tenant: 1, restrict_per_tenant: 2.5, use_per_tenant: 3e3, use_per_principal: 4, control_per_principal: 5, restrict_per_principal: 6, refused_per_principal: 7}",
			limit.Config{ControlPerTenant: 1, RestrictPerTenant: 2.5, UsePerTenant: 3000, UsePerPrincipal: 4, ControlPerPrincipal: 5, RestrictPerPrincipal: 6, RefusedPerPrincipal: 7},
			"",
		},
		{"limits: {use_per_tenant: 1e9}", limit.Config{ControlPerTenant: 50, RestrictPerTenant: 50, UsePerTenant: limit.MaxRate, RestrictPerPrincipal: 20, RefusedPerPrincipal: 20}, ""},
		{"limits: {control_per_tenant: -1}", limit.Config{}, "limits.control_per_tenant -1: must be 0 (no quota) to 1e+09 calls a second"},
		{"limits: {restrict_per_tenant: .nan}", limit.Config{}, "limits.restrict_per_tenant NaN: must be"},
		{"limits: {use_per_tenant: .inf}", limit.Config{}, "limits.use_per_tenant +Inf: must be"},
		{"limits: {use_per_principal: -.inf}", limit.Config{}, "limits.use_per_principal -Inf: must be"},
		{"limits: {control_per_principal: 1.1e9}", limit.Config{}, "limits.control_per_principal 1.1e+09: must be"},
		{"limits: {use_per_tenant: -1, use_per_principal: -2}", limit.Config{}, "kmsd.yaml:9: limits.use_per_principal -2"},
		{"limits: {use_per_tenant: many}", limit.Config{}, "cannot unmarshal !!str `many` into float64"},
		{"limits: {restrict_per_principal: -1}", limit.Config{}, "limits.restrict_per_principal -1: must be"},
		{"limits: {refused_per_principal: .nan}", limit.Config{}, "limits.refused_per_principal NaN: must be"},
		{"limits: {restrict_per_nobody: 1}", limit.Config{}, "unknown field limits.restrict_per_nobody: did you mean limits.restrict_per_"},
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
` + row.limits + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := LoadConfig(path)
		switch {
		case row.want == "" && (err != nil || c.Limits.quotas() != row.quotas || c.Limits.Connections == 0):
			t.Errorf("%s: %+v, %v", row.limits, c.Limits, err)
		case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
			t.Errorf("%s: %v, want %q", row.limits, err, row.want)
		}
	}
}

// TestProfile: the transfer profile is one of two, and generic if none is named.
func TestProfile(t *testing.T) {
	dir := t.TempDir()
	for _, row := range []struct{ hsm, profile, want string }{
		{"token: kms", fsm.ProfileGeneric, ""},
		{"token: kms, profile: ", fsm.ProfileGeneric, ""},
		{"token: kms, profile: generic", fsm.ProfileGeneric, ""},
		{"token: kms, profile: cloned", fsm.ProfileCloned, ""},
		{"kind: embedded, profile: cloned", fsm.ProfileCloned, ""},
		{"token: kms, profile: Cloned", "", `hsm.profile "Cloned": want generic or cloned`},
		{"token: kms, profil: cloned", "", "unknown field hsm.profil: did you mean hsm.profile?"},
	} {
		path := filepath.Join(dir, "kmsd.yaml")
		text := `
name: kms-1
trust_domain: kms.example
data_dir: ` + dir + `/data
peer: {listen: "127.0.0.1:1"}
client: {listen: "127.0.0.1:2"}
tls: {cert: a, key: b, ca: c}
hsm: {` + row.hsm + "}\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := LoadConfig(path)
		if row.want == "" && (err != nil || c.HSM.Profile != row.profile) || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %q, %v; want %q", row.hsm, c.HSM.Profile, err, row.want)
		}
	}
}

// TestIdentityInMemory: what a partition in memory shows is nobody's identity.
func TestIdentityInMemory(t *testing.T) {
	if _, err := Identity(t.Context(), HSM{Kind: KindEmbedded, InMemory: true}); !errors.Is(err, ErrConfig) {
		t.Errorf("the identity of a partition in memory: %v", err)
	}
}
