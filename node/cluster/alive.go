package cluster

import "context"

// Alive returns when Raft's main loop has answered a question, whatever it says: then it goes
// round. A node that belongs to no cluster has none.
func (m *Member) Alive(ctx context.Context) error {
	e, err := m.engine()
	if err != nil {
		return nil //nolint:nilerr // there is nothing that could hang
	}
	answered := make(chan struct{})
	go func() { // it ends when Raft answers, or is shut down: the caller asks one at a time
		defer close(answered)
		_ = e.raft.VerifyLeader().Error() // leader or not
	}()
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
