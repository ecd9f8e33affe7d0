package recovery

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
)

// Holder is to whom a share is encrypted.
type Holder struct{ recipient age.Recipient }

// ParseHolder reads a public key of age ("age1…", also the post-quantum "age1pq1…") or of
// SSH ("ssh-ed25519 …" or "ssh-rsa …"). ErrRefused.
func ParseHolder(s string) (Holder, error) {
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, "ssh-") {
		r, err := agessh.ParseRecipient(s)
		if err != nil {
			return Holder{}, refused("holder %.60q: %w", s, err)
		}
		return Holder{r}, nil
	}
	all, err := age.ParseRecipients(strings.NewReader(s))
	if err != nil {
		return Holder{}, refused("holder %.60q: %w", s, err)
	}
	if len(all) != 1 {
		return Holder{}, refused("holder %.60q: %d keys, want one", s, len(all))
	}
	return Holder{all[0]}, nil
}

// Encrypt is the share for its holder alone, in age's armour.
func (s *Share) Encrypt(h Holder) ([]byte, error) {
	plain, err := s.Encode()
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	var out bytes.Buffer
	armoured := armor.NewWriter(&out)
	w, err := age.Encrypt(armoured, h.recipient)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), armoured.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Identity opens the shares of one holder.
type Identity = age.Identity

// ParseIdentities reads a file of age identities, or of one SSH private key without a
// passphrase. ErrRefused. Who has another kind opens the share with age itself.
func ParseIdentities(b []byte) ([]Identity, error) {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		one, err := agessh.ParseIdentity(b)
		if err != nil {
			return nil, refused("identity: %w; with a passphrase, open the share with age itself", err)
		}
		return []Identity{one}, nil
	}
	all, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, refused("identity: %w", err)
	}
	return all, nil
}

// Encrypted tells whether a share's file is encrypted to its holder.
func Encrypted(file []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(file), []byte(armor.Header)) }

// OpenShare reads a share's file: in clear, or encrypted to one of the identities.
// ErrRefused.
func OpenShare(file []byte, identities []Identity) (*Share, error) {
	if !Encrypted(file) {
		return ParseShare(file)
	}
	if len(identities) == 0 {
		return nil, refused("the share is encrypted to its holder: an identity is needed to open it")
	}
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(file)), identities...)
	if err != nil {
		return nil, refused("the share does not open: %w", err)
	}
	return readShare(r, len(file)) // in armour it is longer
}

// readShare reads a share in clear of at most size bytes into one buffer, which it
// overwrites: io.ReadAll would leave those behind that became too small. What age itself has
// in memory (a piece of 64 KiB of the plaintext, keys) nobody else reaches.
func readShare(r io.Reader, size int) (*Share, error) {
	plain := make([]byte, min(size, MaxFile)+1)
	defer clear(plain)
	n := 0
	for {
		more, err := r.Read(plain[n:])
		n += more
		switch {
		case n == len(plain):
			return nil, refused("the share is larger than %d bytes", n-1)
		case errors.Is(err, io.EOF):
			return ParseShare(plain[:n])
		case err != nil: // io.ErrUnexpectedEOF, too: it is cut off
			return nil, refused("the share does not open: %w", err)
		}
	}
}
