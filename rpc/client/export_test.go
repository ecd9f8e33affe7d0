package client

// Known are the addresses of the nodes that a client knows.
func Known(c *Client) []string {
	var out []string
	for _, e := range c.order() {
		out = append(out, e.address)
	}
	return out
}

// Connections is how many connections a client holds.
func Connections(c *Client) int {
	n := 0
	for _, e := range c.order() {
		e.mu.Lock()
		n += len(e.open)
		e.mu.Unlock()
	}
	return n
}

// Live tells whether a cache serves what it keeps.
func Live(k *KeyCache) bool { return k.w.live() }

// Kept are the plaintexts that a cache keeps.
func Kept(k *KeyCache) (out [][]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.entries {
		out = append(out, e.Value.(*cacheEntry).key.Plaintext)
	}
	return out
}

// Pooled are the plaintexts that a pool holds.
func Pooled(p *DataKeyPool) (out [][]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.keys {
		out = append(out, k.Plaintext)
	}
	return out
}

// PoolLive tells whether a pool serves what it holds.
func PoolLive(p *DataKeyPool) bool { return p.live() }

// HedgeWindow is after how many calls of a method it is known when one is late.
const HedgeWindow = hedgeWindow

// PoolIdle tells whether a pool fetches nothing.
func PoolIdle(p *DataKeyPool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refill == nil
}
