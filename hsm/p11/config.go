package p11

import (
	"log/slog"
	"time"
)

// Config says which token to open and how.
type Config struct {
	// Module is the path of the PKCS#11 library. Empty: SoftHSM2, where Debian and
	// Fedora put it.
	Module string
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
}

// InitConfig describes a token to be made.
type InitConfig struct {
	Module string // as in Config
	Label  string // 1..32 bytes
	SOPIN  []byte // of the Security Officer
	PIN    []byte // of the user
}

// TrustConfig is what the Security Officer needs to open a token.
type TrustConfig struct {
	Module string // as in Config
	Token  string
	Serial string
	SOPIN  []byte
}

const (
	// MaxSessions is the ceiling of Config.Sessions.
	MaxSessions = 256
	// maxWaiting is the number of calls that may wait for a session.
	maxWaiting = 1024

	defaultSessions    = 8
	defaultReopenEvery = time.Second
)
