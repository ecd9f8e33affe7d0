package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/quorumkms/quorumkms/transport"
)

const (
	// filesEvery is how often the node looks whether certificate, key or CA file have
	// changed.
	filesEvery = 2 * time.Second
	// warnEvery is how often the log says that a certificate expires soon, expiredEvery
	// that this node's has expired.
	warnEvery    = 6 * time.Hour
	expiredEvery = time.Minute
)

// watchFiles keeps the certificates those of the files, and says when they end.
func (n *Node) watchFiles(ctx context.Context) {
	tick := time.NewTicker(filesEvery)
	defer tick.Stop()
	complaint := "" // about files that cannot be used
	var w warner
	running := n.config
	for {
		n.warn(&w)
		select {
		case <-tick.C:
			complaint = n.refresh(complaint)
		case <-n.options.Hangup:
			running = n.reload(running)
		case <-ctx.Done():
			return
		}
	}
}

// refresh reads files that have changed. It says once what is wrong with those that
// cannot be used, and returns what it said last.
func (n *Node) refresh(complaint string) string {
	done, err := n.creds.Refresh()
	if err != nil {
		if err.Error() != complaint {
			n.log.Error("the certificate, key or CA file has changed and cannot be used: what was read before stays in use, and the files are tried again", "error", err)
		}
		return err.Error()
	}
	if !done {
		return complaint
	}
	n.log.Info("certificate, key and CA were read again, for they have changed", "certificate_expires", n.creds.Certificate().NotAfter(), "cas", len(n.creds.CAs()))
	return ""
}

// atRuntime are the keys of the configuration that SIGHUP changes; all others need a restart.
var atRuntime = []string{
	"limits.control_per_tenant", "limits.restrict_per_tenant", "limits.use_per_tenant", "limits.use_per_principal",
	"limits.control_per_principal", "limits.restrict_per_principal", "limits.refused_per_principal",
	"backup.every", "backup.keep", "log.level",
}

// reload reads everything again, as asked. running is the configuration that is in effect;
// the one that is then comes back.
func (n *Node) reload(running Config) Config {
	err := n.creds.Reload()
	if n.options.Reload != nil {
		read, unread := n.options.Reload()
		if err = errors.Join(err, unread); unread == nil {
			running = n.reconfigure(running, read)
		}
	}
	if err != nil {
		n.log.Error("not everything was read again; what was not stays as it is", "error", err)
		return running
	}
	n.log.Info("certificates and the configuration were read again", "certificate_expires", n.creds.Certificate().NotAfter(), "cas", len(n.creds.CAs()))
	return running
}

// reconfigure takes from a configuration what can change while the node runs, and says what
// cannot.
func (n *Node) reconfigure(running, read Config) Config {
	var done, later []string
	for _, key := range changed(running, read) {
		if slices.Contains(atRuntime, key) {
			done = append(done, key)
		} else {
			later = append(later, key)
		}
	}
	n.limits.Set(read.Limits.quotas())
	n.archive.Reschedule(time.Duration(read.Backup.Every), read.Backup.Keep)
	if len(done) > 0 {
		n.log.Info("changed in the configuration, and in effect", "keys", done)
	}
	if len(later) > 0 {
		n.log.Warn("changed in the configuration, and not in effect before a restart", "keys", later)
	}
	connections, handshakes := running.Limits.Connections, running.Limits.Handshakes
	running.Limits = read.Limits
	running.Limits.Connections, running.Limits.Handshakes = connections, handshakes
	running.Backup.Every, running.Backup.Keep, running.Log.Level = read.Backup.Every, read.Backup.Keep, read.Log.Level
	return running
}

// warner says the same thing now and then only.
type warner struct {
	said map[string]time.Time // by certificate
}

func (w *warner) due(what string, every time.Duration, now time.Time) bool {
	if last, ok := w.said[what]; ok && now.Sub(last) < every {
		return false
	}
	if w.said == nil || len(w.said) > maxWarned {
		w.said = map[string]time.Time{}
	}
	w.said[what] = now
	return true
}

// maxWarned bounds the certificates remembered.
const maxWarned = 64

func (n *Node) warn(w *warner) {
	now := time.Now()
	if err := n.creds.Valid(); err != nil {
		if w.due("own", expiredEvery, now) {
			n.log.Error("this node serves nothing and talks to no other", "error", err)
		}
		return
	}
	for _, c := range append([]transport.Certificate{n.creds.Certificate()}, n.creds.CAs()...) {
		if text := c.Warning(now); text != "" && w.due(string(c.KeyHash())+c.NotAfter().String(), warnEvery, now) {
			n.log.Warn("a certificate is to be renewed", "warning", text)
		}
	}
}
