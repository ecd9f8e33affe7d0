// Package p11 is the partition behind a PKCS#11 library: SoftHSM2, NSS's softoken, or an HSM.
//
// Reading order: config.go, partition.go (open, lose, re-open, close), link.go (the
// sessions of one connection), template.go (the attributes of every object, written
// and read back), then what the contract of package hsm asks for: identity.go,
// domain.go, transfer.go, rewrap.go, key.go, secret.go, resident.go, import.go; selftest.go,
// attributes.go (how its objects differ from those of others), known.go (what the token can
// do), attacks.go and attacksecrets.go (what it must refuse); examine.go (the self-test for
// a token that serves nobody yet); admin.go (the Security Officer's steps). library.go loads
// the library; native.go has the calls that the binding cannot make well.
//
// Three rules of PKCS#11 shape the code. A session is used by one goroutine at a
// time. A session object dies with the session that made it, and every handle dies
// at logout, so one session holds the login and the loaded keys until the end. A
// session whose call failed may have an operation pending: it is closed, never
// reused.
//
// Without cgo the package only says that it is not available.
package p11
