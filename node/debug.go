package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"
)

// debugDial is how long a socket that is there already may take to show whether anybody
// answers.
const debugDial = time.Second

// openDebug makes the socket that serves Go's profiles. Only the node's own user can open it, at no
// moment anybody else, and there is no other way to them.
func (n *Node) openDebug() error {
	path := n.config.Debug.Socket
	if path == "" {
		return nil
	}
	l, err := listenPrivate(path)
	if err != nil {
		return fmt.Errorf("%w: debug.socket: %w", ErrConfig, err)
	}
	h := http.NewServeMux()
	h.HandleFunc("/debug/pprof/", pprof.Index)
	h.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	h.HandleFunc("/debug/pprof/profile", pprof.Profile)
	h.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	h.HandleFunc("/debug/pprof/trace", pprof.Trace)
	n.debug = httpServer(h, n.log)
	n.onClose(func() error { return gone(path) })
	n.background("debug socket", func() error { return served(n.debug.Serve(l)) })
	n.onClose(func() error { return n.debug.Close() })
	n.log.Info("profiles are served", "socket", path)
	return nil
}

// listenPrivate listens at a path. The socket is made in a directory that nobody else can
// enter, and moved when it has its mode.
func listenPrivate(path string) (net.Listener, error) {
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".kmsd")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir) //nolint:errcheck // it is empty, and harmless
	made := filepath.Join(dir, "s")
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", made)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	err = os.Chmod(made, 0o600)
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), gone(made))
	}
	return l, nil
}

// clearSocket removes a socket that a process has left behind, and nothing else.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and no socket", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), debugDial)
	defer cancel()
	if c, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		return errors.Join(fmt.Errorf("%s: another process serves there", path), c.Close())
	}
	return gone(path)
}

func gone(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
