//go:build cgo

package p11

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

func TestOpenFreshToken(t *testing.T) {
	token := newToken(t)
	p := mustOpen(t, config(token))
	info := p.Info()
	if info.Kind != "pkcs11" || info.Label != token || info.Serial == "" || info.Manufacturer == "" || info.Model == "" {
		t.Errorf("info %+v", info)
	}
	var names []string
	for _, probe := range info.Probes {
		t.Logf("%+v", probe)
		if !probe.Passed || probe.Accepted {
			t.Errorf("probe %s: %+v", probe.Name, probe)
		}
		if slices.Contains(names, probe.Name) {
			t.Errorf("two probes named %s", probe.Name)
		}
		names = append(names, probe.Name)
	}
	if len(names) != len(probes()) {
		t.Errorf("%d probes ran, there are %d", len(names), len(probes()))
	}
	if err := p.Healthy(); err != nil {
		t.Error(err)
	}
}

func TestIdentityStays(t *testing.T) {
	cfg := config(newToken(t))
	p, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	first := p.Identity()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Healthy(); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("healthy after close: %v", err)
	}
	again := mustOpen(t, cfg)
	if !slices.Equal(first, again.Identity()) {
		t.Error("the node identity key changed")
	}
	for _, probe := range again.Info().Probes {
		if probe.Name == probeTemplates && probe.Detail != "2 objects" {
			t.Errorf("existing objects: %q, want both halves of the identity key", probe.Detail)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	token := newToken(t)
	notALibrary := filepath.Join(t.TempDir(), "module.so")
	if err := os.WriteFile(notALibrary, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name   string
		change func(*Config)
		want   error
		says   []string
	}{
		{"wrong pin", func(c *Config) { c.PIN = []byte("wrong-pin") }, hsm.ErrPIN, []string{token}},
		{"short pin", func(c *Config) { c.PIN = []byte("1") }, hsm.ErrPIN, []string{token}},
		{"no pin", func(c *Config) { c.PIN = nil }, hsm.ErrRefused, []string{"PIN"}},
		{"no label", func(c *Config) { c.Token = "" }, hsm.ErrRefused, []string{"label"}},
		{
			"missing token", func(c *Config) { c.Token = "nowhere" }, hsm.ErrUnavailable,
			[]string{`"nowhere"`, "libsofthsm2.so", `"` + token + `"`, "name one of these"},
		},
		{
			"another serial", func(c *Config) { c.Serial = "0123" }, hsm.ErrUnavailable,
			[]string{token, "0123", "libsofthsm2.so"},
		},
		{
			"missing module", func(c *Config) { c.Module = "/nowhere/module.so" }, hsm.ErrUnavailable,
			[]string{"/nowhere/module.so", "vendor's library"},
		},
		{
			"not a module", func(c *Config) { c.Module = notALibrary }, hsm.ErrUnavailable,
			[]string{notALibrary, "not a PKCS#11 library"},
		},
		{"too many sessions", func(c *Config) { c.Sessions = MaxSessions + 1 }, hsm.ErrRefused, []string{"sessions"}},
		{"negative sessions", func(c *Config) { c.Sessions = -1 }, hsm.ErrRefused, []string{"sessions"}},
		{"negative pause", func(c *Config) { c.ReopenEvery = -1 }, hsm.ErrRefused, []string{"pause"}},
		{
			"unknown weakness", func(c *Config) { c.AcceptWeakness = []string{"domain-key-leafs"} }, hsm.ErrRefused,
			[]string{"domain-key-leafs", "domain-key-leaves"},
		},
		{
			"weakness that cannot be accepted", func(c *Config) { c.AcceptWeakness = []string{"known-answers"} },
			hsm.ErrRefused,
			[]string{"known-answers"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(token)
			c.change(&cfg)
			_, err := Open(t.Context(), cfg)
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			for _, text := range c.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("error %q does not say %q", err, text)
				}
			}
		})
	}
	mustOpen(t, config(token)) // nothing of the above has harmed the token
}

// TestWrongPINIsSeenByTheToken sees logins by the flag that SoftHSM raises after a wrong PIN and
// takes down after a right one.
func TestWrongPINIsSeenByTheToken(t *testing.T) {
	token := newToken(t)
	countLow := func() bool {
		lib, err := acquire("", "")
		if err != nil {
			t.Fatal(err)
		}
		s, err := lib.find(token, "")
		if err = errors.Join(err, lib.release()); err != nil {
			t.Fatal(err)
		}
		return s.token.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0
	}
	if countLow() {
		t.Fatal("flag is up before any login")
	}
	cfg := config(token)
	cfg.PIN = []byte("wrong-pin")
	if _, err := Open(t.Context(), cfg); !errors.Is(err, hsm.ErrPIN) {
		t.Fatalf("error %v, want %v", err, hsm.ErrPIN)
	}
	if !countLow() {
		t.Error("the token saw no wrong PIN")
	}
	mustOpen(t, config(token))
	if countLow() {
		t.Error("flag is up after a right login")
	}
}

// TestSecondLoginIsRefused: nobody would check the second PIN.
func TestSecondLoginIsRefused(t *testing.T) {
	cfg := config(newToken(t))
	p := mustOpen(t, cfg)
	cfg.PIN = []byte("wrong-pin")
	if _, err := Open(t.Context(), cfg); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "already") {
		t.Errorf("error %v, want that the process is logged in already", err)
	}
	if err := p.Random(t.Context(), make([]byte, 8)); err != nil {
		t.Errorf("the first partition suffers: %v", err)
	}
}

func TestTwoTokensOfOneLabel(t *testing.T) {
	token := newToken(t)
	lib, err := acquire("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lib.release(); err != nil {
			t.Error(err)
		}
	}()
	first, err := lib.find(token, "")
	if err != nil {
		t.Fatal(err)
	}
	free, err := lib.blank(InitConfig{Label: "another"})
	if err != nil {
		t.Fatal(err)
	}
	if err := lib.ctx.InitToken(free.id, testSOPIN, token); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), config(token)); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), first.token.SerialNumber) {
		t.Errorf("error %v, want one that lists the serial numbers", err)
	}
	cfg := config(token)
	cfg.Serial = first.token.SerialNumber
	if p := mustOpen(t, cfg); p.Info().Serial != cfg.Serial {
		t.Errorf("opened %s, want %s", p.Info().Serial, cfg.Serial)
	}
}

func TestInitToken(t *testing.T) {
	so, pin := []byte(testSOPIN), []byte(testPIN)
	token := newToken(t)
	cases := []struct {
		name string
		cfg  InitConfig
		want error
	}{
		{"label taken", InitConfig{Label: token, SOPIN: so, PIN: pin}, hsm.ErrRefused},
		{"no label", InitConfig{SOPIN: so, PIN: pin}, hsm.ErrRefused},
		{"long label", InitConfig{Label: strings.Repeat("x", 33), SOPIN: so, PIN: pin}, hsm.ErrRefused},
		{"label that ends in a space", InitConfig{Label: "x ", SOPIN: so, PIN: pin}, hsm.ErrRefused},
		{"short pin", InitConfig{Label: "short", SOPIN: so, PIN: []byte("1")}, hsm.ErrPIN},
		{"no officer pin", InitConfig{Label: "short", PIN: pin}, hsm.ErrPIN},
		{"no module", InitConfig{Module: "/nowhere.so", Label: "short", SOPIN: so, PIN: pin}, hsm.ErrUnavailable},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := InitToken(t.Context(), c.cfg); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
	if _, err := Open(t.Context(), config("short")); !strings.Contains(err.Error(), `no token "short"`) {
		t.Errorf("a refused step has left a token behind: %v", err)
	}
}

// TestInitTokenResumes: an attempt that was cut short before the user PIN was set is
// completed.
func TestInitTokenResumes(t *testing.T) {
	lib, err := acquire("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lib.release(); err != nil {
			t.Error(err)
		}
	}()
	free, err := lib.blank(InitConfig{Label: "half"})
	if err != nil {
		t.Fatal(err)
	}
	if err := lib.ctx.InitToken(free.id, testSOPIN, "half"); err != nil {
		t.Fatal(err)
	}
	cfg := InitConfig{Label: "half", SOPIN: []byte("another-officer"), PIN: []byte(testPIN)}
	if err := InitToken(t.Context(), cfg); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("error %v, want %v", err, hsm.ErrPIN)
	}
	cfg.SOPIN = []byte(testSOPIN)
	if err := InitToken(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, config("half"))
}

// TestManyProcesses start at once on one SoftHSM, as the nodes of a demonstration do.
func TestManyProcesses(t *testing.T) {
	var wg sync.WaitGroup
	for range 6 {
		token := newToken(t)
		wg.Go(func() {
			if out, err := inProcess(t, "open", token, ""); err != nil {
				t.Errorf("%s: %v: %s", token, err, out)
			}
		})
	}
	wg.Wait()
}
