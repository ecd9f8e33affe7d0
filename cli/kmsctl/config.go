package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/quorumkms/quorumkms/rpc/client"
)

const (
	configFlag = "config"
	configEnv  = "KMSCTL_CONFIG"
	configPath = ".config/quorumkms/kmsctl.yaml" // below the home directory

	maxConfig  = 64 << 10 // bytes
	maxTimeout = time.Hour
)

// The names of settings, as the configuration file has them.
const (
	setAddresses   = "addresses"
	setCert        = "cert"
	setKey         = "key"
	setCA          = "ca"
	setTrustDomain = "trust_domain"
	setTenant      = "tenant"
	setTimeout     = "timeout"
	setConsistency = "consistency"
)

// The sources of settings, but for files, variables and flags, which name
// themselves.
const (
	fromNowhere     = "not set"
	fromDefault     = "default"
	fromCertificate = "certificate"
)

// setting is one value of the configuration and where it comes from.
type setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"`
	usage  string
}

func (s setting) flag() string { return strings.ReplaceAll(s.Name, "_", "-") }
func (s setting) env() string  { return "KMSCTL_" + strings.ToUpper(s.Name) }

func knownSettings() []setting {
	return []setting{
		{Name: setAddresses, usage: "nodes, host:port, separated by commas, in order of preference"},
		{Name: setCert, usage: "PEM file of your certificate"},
		{Name: setKey, usage: "PEM file of its private key"},
		{Name: setCA, usage: "PEM file of the CAs that nodes are verified against"},
		{Name: setTrustDomain, usage: "SPIFFE trust domain of the cluster; default: that of the certificate"},
		{Name: setTenant, usage: "acting tenant: for callers that belong to none, or use another tenant's keys by grants; default: your own"},
		{Name: setTimeout, Value: "30s", Source: fromDefault, usage: "time limit of a call, repetitions included"},
		{Name: setConsistency, usage: "lease or quorum: have a tick committed for each call; default: as the node is configured"},
	}
}

// configFile is the configuration file. Relative paths are relative to it.
type configFile struct {
	Addresses   []string `yaml:"addresses"`
	Cert        string   `yaml:"cert"`
	Key         string   `yaml:"key"`
	CA          string   `yaml:"ca"`
	TrustDomain string   `yaml:"trust_domain"`
	Tenant      string   `yaml:"tenant"`
	Timeout     string   `yaml:"timeout"`
	Consistency string   `yaml:"consistency"`
}

func (f configFile) values(dir string) map[string]string {
	below := func(path string) string {
		if path == "" || filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(dir, path)
	}
	return map[string]string{
		setAddresses:   strings.Join(f.Addresses, ","),
		setCert:        below(f.Cert),
		setKey:         below(f.Key),
		setCA:          below(f.CA),
		setTrustDomain: f.TrustDomain,
		setTenant:      f.Tenant,
		setTimeout:     f.Timeout,
		setConsistency: f.Consistency,
	}
}

// resolve finds every setting: in the file, then the environment, then the flags;
// what comes later wins.
func (a *app) resolve(flags *pflag.FlagSet) ([]setting, error) {
	path, named := a.configFilePath(flags)
	file, err := readConfig(path, named)
	if err != nil {
		return nil, err
	}
	inFile := file.values(filepath.Dir(path))
	settings := knownSettings()
	for i := range settings {
		s := &settings[i]
		if v := inFile[s.Name]; v != "" {
			s.Value, s.Source = v, path
		}
		if v := a.getenv(s.env()); v != "" {
			s.Value, s.Source = v, s.env()
		}
		if f := flags.Lookup(s.flag()); f != nil && f.Changed {
			s.Value, s.Source = f.Value.String(), "--"+s.flag()
		}
		if s.Source == "" {
			s.Source = fromNowhere
		}
	}
	return settings, nil
}

// configFilePath returns where the file is, and whether somebody said so.
func (a *app) configFilePath(flags *pflag.FlagSet) (path string, named bool) {
	if f := flags.Lookup(configFlag); f != nil && f.Changed {
		return f.Value.String(), true
	}
	if path := a.getenv(configEnv); path != "" {
		return path, true
	}
	return filepath.Join(a.getenv("HOME"), configPath), false
}

// readConfig reads the file; only one that was named must be there.
func readConfig(path string, named bool) (configFile, error) {
	var c configFile
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	decoder := yaml.NewDecoder(io.LimitReader(f, maxConfig))
	decoder.KnownFields(true)
	if err := decoder.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	if err := decoder.Decode(new(configFile)); !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("configuration %s: want one document of at most %d bytes", path, maxConfig)
	}
	return c, nil
}

func (a *app) value(name string) string {
	for _, s := range a.settings {
		if s.Name == name {
			return s.Value
		}
	}
	return ""
}

// clientConfig is the configuration of the SDK, once it is complete.
func (a *app) clientConfig() (client.Config, error) {
	var missing []string
	for _, s := range a.settings {
		switch s.Name {
		case setAddresses, setCert, setKey, setCA:
			if s.Value == "" {
				missing = append(missing, fmt.Sprintf("--%s (or %s, or %s: in the configuration file)", s.flag(), s.env(), s.Name))
			}
		}
	}
	if missing != nil {
		return client.Config{}, fmt.Errorf("the configuration lacks\n  %s", strings.Join(missing, "\n  "))
	}
	timeout, err := time.ParseDuration(a.value(setTimeout))
	if err != nil || timeout <= 0 || timeout > maxTimeout {
		return client.Config{}, fmt.Errorf("timeout %q: want a duration such as 30s, at most %s", a.value(setTimeout), maxTimeout)
	}
	trustDomain := a.value(setTrustDomain)
	if trustDomain == "" {
		id, _, err := readIdentity(a.value(setCert))
		if err != nil {
			return client.Config{}, fmt.Errorf("no trust domain is set, and none can be taken from the certificate: %w", err)
		}
		trustDomain = id.TrustDomain().Name()
	}
	addresses := strings.Split(a.value(setAddresses), ",")
	for i := range addresses {
		addresses[i] = strings.TrimSpace(addresses[i])
	}
	return client.Config{
		Addresses:   addresses,
		TrustDomain: trustDomain,
		Files:       client.Files{Cert: a.value(setCert), Key: a.value(setKey), CA: a.value(setCA)},
		Deadline:    timeout,
		Tenant:      a.value(setTenant),
		Consistency: client.Consistency(a.value(setConsistency)),
		Retrying:    a.retrying,
	}, nil
}

// readIdentity reads whose certificate a file holds.
func readIdentity(path string) (spiffeid.ID, *x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return spiffeid.ID{}, nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return spiffeid.ID{}, nil, fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return spiffeid.ID{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(cert.URIs) != 1 {
		return spiffeid.ID{}, nil, fmt.Errorf("%s: the certificate has %d URI SANs, want exactly one SPIFFE ID", path, len(cert.URIs))
	}
	id, err := spiffeid.FromURI(cert.URIs[0])
	if err != nil {
		return spiffeid.ID{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	return id, cert, nil
}

func (a *app) configCommand() *cobra.Command {
	return group("config", "Look at the configuration", &cobra.Command{
		Use:   "view",
		Short: "Show the configuration in effect and where each value comes from",
		Long: `Show the configuration in effect and where each value comes from.

A flag wins over an environment variable, and that over the configuration file:

  addresses: [kms1.example.org:7300, kms2.example.org:7300]
  cert: admin.pem          # relative to this file
  key: admin.key
  ca: ca.pem
  trust_domain: kms.example.org
  tenant: default
  timeout: 30s`,
		Example: "  kmsctl config view --config ./kmsctl.yaml",
		RunE: a.local(func(cmd *cobra.Command, _ []string) error {
			settings := a.settings
			for i, s := range settings {
				if s.Name == setTrustDomain && s.Value == "" {
					if id, _, err := readIdentity(a.value(setCert)); err == nil {
						settings[i].Value, settings[i].Source = id.TrustDomain().Name(), fromCertificate
					}
				}
			}
			path, _ := a.configFilePath(cmd.Flags())
			return a.printValue(struct {
				File     string    `json:"file"`
				Settings []setting `json:"settings"`
			}{path, settings}, func(w io.Writer) error {
				rows := [][]string{{"NAME", "VALUE", "FROM"}}
				for _, s := range settings {
					rows = append(rows, []string{s.Name, s.Value, s.Source})
				}
				return writeTable(w, rows)
			})
		}),
	})
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "whoami",
		Short:   "Show the identity in your certificate, without asking a node",
		Example: "  kmsctl whoami --cert admin.pem",
		RunE: func(_ *cobra.Command, _ []string) error {
			path := a.value(setCert)
			if path == "" {
				return errors.New("no certificate is configured: use --cert, KMSCTL_CERT or the configuration file")
			}
			id, cert, err := readIdentity(path)
			if err != nil {
				return err
			}
			a.started = true
			class, tenant := classOf(id)
			return a.printValue(struct {
				Identity string    `json:"identity"`
				Class    string    `json:"class"`
				Tenant   string    `json:"tenant"`
				Expires  time.Time `json:"expires"`
				Issuer   string    `json:"issuer"`
			}{id.String(), class, tenant, cert.NotAfter.UTC(), cert.Issuer.String()}, func(w io.Writer) error {
				return writeFields(w, [][2]string{
					{"Identity", id.String()},
					{"Class", class},
					{"Tenant", tenant},
					{"Expires", expiry(cert.NotAfter, time.Now())},
					{"Issuer", cert.Issuer.String()},
				})
			})
		},
	}
}

// classOf reads what an identity is from its path. The nodes decide; this is for
// people.
func classOf(id spiffeid.ID) (class, tenant string) {
	switch s := strings.Split(id.Path(), "/"); {
	case len(s) == 3:
		return s[1], ""
	case len(s) == 5 && s[1] == "tenant":
		return s[3], s[2]
	default:
		return "unknown", ""
	}
}
