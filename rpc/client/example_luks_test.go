package client_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"

	"github.com/quorumkms/quorumkms/rpc/client"
)

// luksToken is a token in the header of a LUKS2 volume (LUKS2 On-Disk Format, "tokens"): how to
// get what opens one of its keyslots. cryptsetup keeps it and asks for nothing but type and
// keyslots.
type luksToken struct {
	Type       string   `json:"type"`
	Keyslots   []string `json:"keyslots"`
	Key        string   `json:"quorumkms_key"`        // ARN of the CMK
	Ciphertext []byte   `json:"quorumkms_ciphertext"` // of the passphrase, base64
}

// volumeContext binds a token to its volume: copied into another's header it does not open.
func volumeContext(uuid string) map[string]string { return map[string]string{"volume": uuid} }

// newVolumeKey makes the passphrase of a volume's keyslot 0, 32 random bytes, and the token from
// which openVolumeKey has it again:
//
//	cryptsetup luksFormat --uuid $UUID --key-file=- $DEVICE < passphrase
//	cryptsetup token import --json-file token $DEVICE
func newVolumeKey(ctx context.Context, kms *client.Client, cmk, uuid string) (passphrase, token []byte, err error) {
	passphrase, blob, err := kms.GenerateDataKey(ctx, cmk, volumeContext(uuid))
	if err != nil {
		return nil, nil, err
	}
	token, err = json.Marshal(luksToken{Type: "quorumkms", Keyslots: []string{"0"}, Key: cmk, Ciphertext: blob})
	if err != nil {
		clear(passphrase)
		return nil, nil, err
	}
	return passphrase, token, nil
}

// openVolumeKey is what a host does when it attaches a volume:
//
//	cryptsetup token export --token-id 0 $DEVICE > token
//	cryptsetup open --key-file=- $DEVICE $NAME < passphrase
func openVolumeKey(ctx context.Context, kms *client.Client, token []byte, uuid string) (passphrase []byte, err error) {
	var t luksToken
	switch err := json.Unmarshal(token, &t); {
	case err != nil:
		return nil, fmt.Errorf("token of volume %s: %w", uuid, err)
	case t.Type != "quorumkms":
		return nil, fmt.Errorf("token of volume %s is of type %q", uuid, t.Type)
	}
	return kms.DecryptDataKey(ctx, t.Ciphertext, volumeContext(uuid))
}

// A LUKS2 volume: what opens it is in its own header, and of use only with the cluster.
func Example_luks() {
	ctx := context.Background()
	kms, disconnect := connect() // client.New(client.Config{…})
	defer disconnect()

	const cmk = "arn:quorumkms:kms:demo:default:key/6f1d3c0e-0000-4000-8000-000000000001"
	const uuid, another = "8f4d2f6e-3c59-4a0e-9a51-4b5d8f0c7a11", "00000000-3c59-4a0e-9a51-4b5d8f0c7a11"
	made, token, err := newVolumeKey(ctx, kms, cmk, uuid)
	if err != nil {
		log.Panic(err)
	}
	defer clear(made)

	opened, err := openVolumeKey(ctx, kms, token, uuid)
	if err != nil {
		log.Panic(err)
	}
	defer clear(opened)
	fmt.Println("the same key:", string(opened) == string(made))
	_, err = openVolumeKey(ctx, kms, token, another)
	fmt.Println("on another volume:", err != nil)
	// Output:
	// the same key: true
	// on another volume: true
}
