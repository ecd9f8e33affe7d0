package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Limits of the monitoring listener.
const (
	monitorConnections = 64
	monitorHeader      = 16 << 10 // bytes
	monitorTimeout     = 5 * time.Second
	monitorIdle        = 2 * time.Minute
	monitorStop        = time.Second // for answers under way when the node stops
	maxReason          = 500         // bytes of the line that a probe answers
)

// monitor is the HTTP listener for Prometheus and probes.
type monitor struct {
	listener net.Listener
	server   *http.Server
}

// openMonitor listens; serveMonitor answers.
func (n *Node) openMonitor() error {
	c := n.config.Metrics
	if c.Listen == "" {
		return nil
	}
	tcp, err := new(net.ListenConfig).Listen(context.Background(), "tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("metrics listener: %w", err)
	}
	m := &monitor{
		listener: &limited{Listener: tcp, room: make(chan struct{}, monitorConnections), done: make(chan struct{})},
		server:   httpServer(n.monitoring(), n.log),
	}
	if c.TLS {
		// No protocol is agreed on, which is HTTP/1.1: not every scraper offers any. Each
		// answer has a connection of its own, so that certificates count at once.
		m.listener = tls.NewListener(m.listener, n.creds.Server(nil, c.mayScrape))
		m.server.SetKeepAlivesEnabled(false)
	}
	n.onClose(func() error {
		if err := m.listener.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	n.monitor = m
	return nil
}

func httpServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: monitorTimeout, ReadTimeout: monitorTimeout, IdleTimeout: monitorIdle, MaxHeaderBytes: monitorHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// monitoring are the paths that are answered.
func (n *Node) monitoring() http.Handler {
	h := http.NewServeMux()
	h.Handle("GET /metrics", n.metrics.Handler(n.log))
	h.HandleFunc("GET /livez", probe("alive", func() error { return nil }))
	h.HandleFunc("GET /readyz", probe("ready", n.ready))
	h.HandleFunc("GET /writez", probe("ready", n.writable))
	return h
}

// probe answers with one line: what is, or why not.
func probe(well string, check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		line := well
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			line = strings.Join(strings.Fields(err.Error()), " ")
			line = strings.ToValidUTF8(line[:min(len(line), maxReason)], "")
		}
		_, _ = io.WriteString(w, line+"\n") // who asked has gone
	}
}

// serveMonitor answers until the node stops.
func (n *Node) serveMonitor() {
	m := n.monitor
	if m == nil {
		return
	}
	n.background("metrics", func() error { return served(m.server.Serve(m.listener)) })
	n.log.Info("metrics and probes are answered", "address", n.config.Metrics.Listen, "tls", n.config.Metrics.TLS)
}

func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// stopHTTP ends a server; answers under way have a while.
func stopHTTP(s *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), monitorStop)
	defer cancel()
	if s.Shutdown(ctx) != nil {
		_ = s.Close() // nothing is lost
	}
}

// limited is a listener that accepts no more while too many of its connections are open.
type limited struct {
	net.Listener
	room chan struct{}
	once sync.Once
	done chan struct{}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.room })}, nil
}

// Close implements net.Listener.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	free func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
