package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
		{"backup: {directory: /b}", "field directory not found"},
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
