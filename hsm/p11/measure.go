//go:build cgo && measure

package p11

import (
	"context"

	"github.com/quorumkms/quorumkms/hsm"
)

// GenerateUnopened is GenerateKey without opening the key once: for measurements that
// need millions of keys.
func (p *Partition) GenerateUnopened(ctx context.Context, spec hsm.KeySpec) ([]byte, error) {
	h, err := spec.Header()
	if err != nil {
		return nil, err
	}
	made, err := p.makeToken(ctx, spec.Kind(), h)
	return made.Token, err
}
