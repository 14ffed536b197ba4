package mesh

// Keys of WireGuard: Curve25519 points and scalars, and preshared keys. Users write them in base64, as wg(8) does.

import (
	"crypto/ecdh"
	"encoding/base64"
	"errors"
	"strings"
)

// PublicKey is the WireGuard key of a cluster. The zero PublicKey: there is none.
type PublicKey [32]byte

// SecretKey is a private key, or a preshared key. The zero SecretKey: there is none. It prints no part of itself.
type SecretKey [32]byte

// ParsePublicKey parses the form that wg pubkey prints. White space around it is ignored.
func ParsePublicKey(text string) (k PublicKey, err error) {
	k, err = parseKey(text, "set what wg pubkey prints for the private key")
	return k, err
}

// ParseSecretKey parses the form that wg genkey and wg genpsk print. White space around it is ignored. The error does
// not have the text.
func ParseSecretKey(text string) (k SecretKey, err error) {
	k, err = parseKey(text, "make a key with wg genkey or wg genpsk")
	return k, err
}

var errKey = errors.New("want 32 bytes in base64, as wg(8) prints keys: 44 characters, the last one is =")

// parseKey parses a key. source is how to make one.
func parseKey(text, source string) (k [32]byte, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(text))
	if err != nil || len(raw) != len(k) {
		return k, errKey
	}
	if k = [32]byte(raw); k == ([32]byte{}) {
		return k, errors.New("all bits are zero: " + source)
	}
	return k, nil
}

// String is the form that wg(8) prints.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Public is the public key of a private key.
func (k SecretKey) Public() (p PublicKey) {
	private, err := ecdh.X25519().NewPrivateKey(k[:]) // it clamps the bits, as wg(8) does
	if err != nil {
		panic(err) // it has 32 bytes
	}
	copy(p[:], private.PublicKey().Bytes())
	return p
}

// Base64 is the form that wg(8) reads. It is secret.
func (k SecretKey) Base64() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String hides the key.
func (k SecretKey) String() string { return "a secret key" }

// MarshalText hides the key from JSON, such as that of logs.
func (k SecretKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// GoString hides the key from %#v.
func (k SecretKey) GoString() string { return k.String() }
