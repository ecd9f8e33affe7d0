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
