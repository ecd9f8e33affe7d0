package p11

import (
	"log/slog"
	"time"

	"github.com/quorumkms/quorumkms/hsm"
)

// Config says which token to open and how.
type Config struct {
	// Module is the path of the PKCS#11 library. Empty: SoftHSM2, where Debian and
	// Fedora put it.
	Module string
	// ModuleArguments is handed to the library when it starts: a string that its vendor
	// defines (for NSS: configdir='sql:…' …). Everybody in a process who uses the library
	// at a time gives the same.
	ModuleArguments string
	// Token is the label of the token.
	Token string
	// Serial is the token's serial number; needed only if two tokens have the label.
	Serial string
	// PIN is the user PIN. It is tried once; the partition keeps a copy to log in
	// again after the token was lost.
	PIN []byte
	// Sessions is the number of concurrent HSM calls, 1..MaxSessions. Default 8. The
	// partition opens one session more, and two for the time of the self-test.
	Sessions int
	// KeySessions is how many AES keys at most, 0..MaxKeySessions, keep a session of their own,
	// so that the token need not set them up for each call. nil: hsm.DefaultMaxKeys if the token says that its
	// sessions have no limit, none otherwise. It adds no concurrent calls.
	KeySessions *int
	// Cloned is the transfer profile cloned: domain keys come to other tokens by the
	// vendor's cloning. They are made so that they cannot be wrapped for anybody, and none
	// is exported or imported.
	Cloned bool
	// AcceptWeakness names the probes of the self-test that this token may fail.
	AcceptWeakness []string
	// Logger takes what happens to the token. Default: nothing is logged.
	Logger *slog.Logger
	// ReopenEvery is the pause between attempts to open a lost token again, and
	// between looks at a token that nobody uses. Default one second.
	ReopenEvery time.Duration

	patience time.Duration // how long a call may take before the token counts as hanging
}

// InitConfig describes a token to be made.
type InitConfig struct {
	Module          string // as in Config
	ModuleArguments string // as in Config
	Label           string // 1..32 bytes
	SOPIN           []byte // of the Security Officer
	PIN             []byte // of the user
	// NoOfficer is for a token that has a Security Officer, without a PIN, only until its user
	// has one, and whose label is given otherwise (NSS): SOPIN is not used.
	NoOfficer bool
}

// TrustConfig is what the Security Officer needs to open a token.
type TrustConfig struct {
	Module          string // as in Config
	ModuleArguments string // as in Config
	Token           string
	Serial          string
	SOPIN           []byte
	// AcceptWeakness is as in Config. With "trusted-by-user" in it, the user may do the
	// Security Officer's steps, with PIN in place of SOPIN.
	AcceptWeakness []string
	PIN            []byte
}

// Need is something that a token should offer.
type Need struct {
	Name     string `json:"name"`
	Required bool   `json:"required"` // nothing works without it; otherwise only what it is for
	Offered  bool   `json:"offered"`
	Detail   string `json:"detail,omitempty"`
}

// Examination is what a look at a token found.
type Examination struct {
	Info     hsm.Info // with the probes of the self-test, passed or not
	Firmware string
	Needs    []Need
	Objects  int   // of ours, in the token
	OAEP     uint8 // the hash that its transfer keys ask for; 0: it has no OAEP that works
}

// WeaknessTrust is the weakness of a token whose user can do what is the Security Officer's.
const WeaknessTrust = "trusted-by-user"

const (
	// MaxSessions is the ceiling of Config.Sessions.
	MaxSessions = 256
	// MaxKeySessions is the ceiling of Config.KeySessions.
	MaxKeySessions = 1 << 16
	// maxWaiting is the number of calls that may wait for a session.
	maxWaiting = 1024

	defaultSessions    = 8
	defaultReopenEvery = time.Second

	defaultPatience = 30 * time.Second
	// pairPatience is how many times as long it may take to make a pair: RSA keys are
	// searched for.
	pairPatience = 10
)

// Found is what a token says of itself without a login.
type Found struct {
	Manufacturer string
	Model        string
	Serial       string
	PINTried     bool // a wrong user PIN was tried since the last right one
	PINLastTry   bool // the next wrong one locks it
	PINLocked    bool
}
