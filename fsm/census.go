package fsm

// KeyStates are all states of keys.
func KeyStates() []KeyState {
	return []KeyState{KeyEnabled, KeyDisabled, KeyPendingDeletion, KeyDecryptOnly}
}

// Census is the number of keys in each state, of all tenants. It looks at every key.
func (s *State) Census() map[KeyState]int {
	out := make(map[KeyState]int, len(KeyStates()))
	for _, state := range KeyStates() {
		out[state] = 0
	}
	s.keys.tree.Scan(func(item keyItem) bool {
		out[item.key.State]++
		return true
	})
	return out
}
