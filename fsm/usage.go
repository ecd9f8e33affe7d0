package fsm

import (
	"fmt"
	"slices"
)

// serves is what keys of a usage are used for.
var serves = map[KeyUsage][]GrantOperation{
	UsageEncryptDecrypt: {
		GrantDecrypt, GrantEncrypt, GrantGenerateDataKey, GrantDataKeyBlind, GrantDataKeyPair, GrantDataKeyPairBlind,
		GrantReEncryptFrom, GrantReEncryptTo,
	},
}

// Serves is nil if keys of the usage can do an operation of grants.
func (u KeyUsage) Serves(op GrantOperation) error {
	about := []GrantOperation{GrantCreateGrant, GrantRetireGrant, GrantDescribeKey} // about any key
	if slices.Contains(about, op) || slices.Contains(serves[u], op) {
		return nil
	}
	return fmt.Errorf("%w: %s is not for keys with the usage %s", ErrUnsupported, op, u)
}
