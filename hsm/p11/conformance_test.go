//go:build cgo

package p11

import (
	"testing"

	"github.com/quorumkms/quorumkms/hsm"
	"github.com/quorumkms/quorumkms/hsm/hsmtest"
)

func TestConformance(t *testing.T) {
	hsmtest.Run(t, func(t *testing.T) hsmtest.Env {
		token := newToken(t)
		p := mustOpen(t, config(token))
		return hsmtest.Env{
			Partition: p,
			Reopen: func(t *testing.T) hsm.Partition {
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
				return mustOpen(t, config(token))
			},
			Second: func(t *testing.T) hsm.Partition { return mustOpen(t, config(newToken(t))) },
			Trust: func(t *testing.T, p hsm.Partition, spki []byte) {
				mustTrust(t, p.Info().Label, spki)
			},
		}
	})
}
