package main

import (
	"fmt"

	"github.com/quorumkms/quorumkms/rpc/client/recovery"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// opensWith says what opens a recovery key of a kind.
func opensWith(kind string, threshold, shares int, token string) string {
	switch kind {
	case recovery.KindShares:
		return fmt.Sprintf("%d of %d shares", threshold, shares)
	case recovery.KindToken:
		return "HSM token " + token
	default: // of a later release
		return kind
	}
}

func recipientOpensWith(r *quorumkmsv1.RecoveryRecipient) string {
	return opensWith(r.GetKind(), int(r.GetThreshold()), int(r.GetShares()), r.GetTokenIdentity())
}

// tokenIdentity is the fingerprint of the identity key of the token that a recovery key is in.
func tokenIdentity(k *recovery.PublicKey) string {
	if k.Kind != recovery.KindToken {
		return ""
	}
	return recovery.Fingerprint(k.Identity)
}
