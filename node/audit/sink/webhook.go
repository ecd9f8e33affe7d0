package sink

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Headers of a webhook's requests, by which duplicates are known before they are read.
const (
	HeaderNode  = "Quorumkms-Node"
	HeaderFirst = "Quorumkms-First-Sequence"
	HeaderLast  = "Quorumkms-Last-Sequence"
)

const (
	maxAnswer = 512     // bytes of an answer that is no success
	maxToken  = 4 << 10 // bytes of a bearer token
)

// webhook POSTs records, as JSON lines. An answer 2xx means that they were taken.
type webhook struct {
	node    string
	options Options
	client  *http.Client // nil: to be made, of files that may have changed
}

func newWebhook(c Config, o Options) *webhook { return &webhook{node: c.Node, options: o} }

func (s *webhook) size() size { return size{records: s.options.MaxRecords, bytes: 1 << 20} }

func (s *webhook) deliver(ctx context.Context, b batch) (_ int, err error) {
	if s.client == nil {
		if s.client, err = s.connect(); err != nil {
			return 0, err
		}
	}
	if err := s.post(ctx, b); err != nil {
		return 0, errors.Join(err, s.close())
	}
	return 0, nil
}

func (s *webhook) connect() (*http.Client, error) {
	config, err := clientTLS(s.options)
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, MaxIdleConns: 1, IdleConnTimeout: time.Minute},
		// The token is for whom the configuration names.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

func (s *webhook) post(ctx context.Context, b batch) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.options.URL, bytes.NewReader(b.text()))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-ndjson")
	r.Header.Set(HeaderNode, s.node)
	r.Header.Set(HeaderFirst, strconv.FormatUint(b.first, 10))
	r.Header.Set(HeaderLast, strconv.FormatUint(b.last(), 10))
	if s.options.TokenFile != "" {
		token, err := readToken(s.options.TokenFile)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := s.client.Do(r)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL, which may hold a secret
		}
		return fmt.Errorf("%w to %s: %w", errTarget, r.URL.Host, err)
	}
	defer answer.Body.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return fmt.Errorf("%w: %s answers %s: %q", errTarget, r.URL.Host, answer.Status, text)
	}
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, answer.Body, maxAnswer) // so that the connection serves again
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

func (s *webhook) close() error {
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	s.client = nil
	return nil
}

// readToken reads a token that only the file's owner may read.
func readToken(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%w: %s has mode %04o, others can read it: chmod 0600 %s", errTarget, path, info.Mode().Perm(), path)
	}
	if info.Size() > maxToken {
		return "", fmt.Errorf("%w: %s is larger than %d bytes", errTarget, path, maxToken)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%w: %s holds no token: want one word", errTarget, path)
	}
	return token, nil
}

// clientTLS reads a sink's files.
func clientTLS(o Options) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12} // collectors are not ours
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: %s has no certificate", errTarget, o.CA)
		}
	}
	if o.Cert != "" {
		pair, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
