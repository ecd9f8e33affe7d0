package client

// Known are the addresses of the nodes that a client knows.
func Known(c *Client) []string {
	var out []string
	for _, e := range c.order() {
		out = append(out, e.address)
	}
	return out
}
