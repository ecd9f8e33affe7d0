package fsm

import (
	"fmt"
	"slices"
	"strings"
)

// Check verifies the invariants of the state: the first one broken is named. It
// reads everything and is meant for tests, restores and repair.
func (s *State) Check() error {
	for _, check := range []func() error{s.checkKeys, s.checkAliases, s.checkMembers, s.checkRequests} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (s *State) checkKeys() error {
	if a, b := s.keys.len(), s.keysByTenant.len(); a != b {
		return fmt.Errorf("%d keys by id, %d by tenant", a, b)
	}
	for _, item := range s.keys.all() {
		k := item.key
		if item.id != k.ID {
			return fmt.Errorf("key %s is indexed as %s", k.ID, item.id)
		}
		if same, ok := s.keysByTenant.tree.Get(k); !ok || same != k {
			return fmt.Errorf("key %s differs between the indexes", k.ID)
		}
		if _, ok := s.Tenant(k.Tenant); !ok {
			return fmt.Errorf("key %s belongs to the unknown tenant %q", k.ID, k.Tenant)
		}
		if err := k.check(); err != nil {
			return fmt.Errorf("key %s: %w", k.ID, err)
		}
	}
	return nil
}

func (k *Key) check() error {
	if len(k.Versions) == 0 {
		return fmt.Errorf("no version")
	}
	for i, v := range k.Versions {
		if i > 0 && v.Version <= k.Versions[i-1].Version {
			return fmt.Errorf("version %d follows %d", v.Version, k.Versions[i-1].Version)
		}
		if err := validToken(v.Token); err != nil {
			return err
		}
	}
	tags, err := normalTags(k.Tags)
	if err != nil {
		return err
	}
	if !slices.Equal(tags, k.Tags) {
		return fmt.Errorf("tags are not in order")
	}
	if (k.State == KeyPendingDeletion) != (k.Deletion != 0) {
		return fmt.Errorf("state %s with deletion date %d", k.State, k.Deletion)
	}
	return validDescription(k.Description)
}

func (s *State) checkAliases() error {
	if a, b := s.aliases.len(), s.aliasesByKey.len(); a != b {
		return fmt.Errorf("%d aliases by name, %d by key", a, b)
	}
	for _, a := range s.aliases.all() {
		if same, ok := s.aliasesByKey.tree.Get(a); !ok || same != a {
			return fmt.Errorf("alias %s differs between the indexes", a.Name)
		}
		k, ok := s.Key(a.Key)
		if !ok || k.Tenant != a.Tenant {
			return fmt.Errorf("alias %s of tenant %s names key %s, which is not there", a.Name, a.Tenant, a.Key)
		}
		if !strings.HasPrefix(a.Name, AliasPrefix) {
			return fmt.Errorf("alias %q lacks the prefix", a.Name)
		}
	}
	return nil
}

func (s *State) checkMembers() error {
	names, addresses := map[string]string{}, map[string]string{}
	voters := 0
	for _, m := range s.Members() {
		if !m.Alive() {
			continue
		}
		if other, taken := names[m.Name]; taken {
			return fmt.Errorf("nodes %s and %s have the same name", other, m.ID)
		}
		if other, taken := addresses[m.PeerAddress]; taken {
			return fmt.Errorf("nodes %s and %s have the same peer address", other, m.ID)
		}
		names[m.Name], addresses[m.PeerAddress] = m.ID, m.ID
		if m.State == MemberActive && m.Voter {
			voters++
		}
	}
	if s.Initialized() && voters == 0 {
		return fmt.Errorf("no voter is active")
	}
	return nil
}

func (s *State) checkRequests() error {
	if a, b := s.requests.len(), s.requestOrder.len(); a != b {
		return fmt.Errorf("%d requests by id, %d by order", a, b)
	}
	for _, r := range s.requests.all() {
		if same, ok := s.requestOrder.tree.Get(r); !ok || same != r {
			return fmt.Errorf("request %s differs between the indexes", r.ID)
		}
		if r.Index > s.index {
			return fmt.Errorf("request %s was answered at %d, after %d", r.ID, r.Index, s.index)
		}
	}
	return nil
}
