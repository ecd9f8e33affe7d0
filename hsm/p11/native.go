//go:build cgo

package p11

/*
#cgo linux LDFLAGS: -ldl
// What is called for every message or key keeps no pointer.
#cgo noescape encrypt
#cgo nocallback encrypt
#cgo noescape encrypt_part
#cgo nocallback encrypt_part
#cgo noescape gcm
#cgo nocallback gcm
#cgo noescape cmac_blocks
#cgo nocallback cmac_blocks
#cgo noescape wrap_key
#cgo nocallback wrap_key
#include <dlfcn.h>
#include <stdlib.h>

typedef unsigned long ck_ulong;
typedef struct { ck_ulong type; void *value; ck_ulong len; } ck_attribute;
typedef struct { ck_ulong mechanism; void *parameter; ck_ulong len; } ck_mechanism;
typedef struct { unsigned char major, minor; void *fn[68]; } ck_function_list;

// Places in CK_FUNCTION_LIST, PKCS #11 v2.40.
enum {
	INITIALIZE = 0, CREATE_OBJECT = 20, GET_ATTRIBUTE_VALUE = 24, ENCRYPT_INIT = 29, ENCRYPT = 30, ENCRYPT_UPDATE = 31, DECRYPT_INIT = 33, DECRYPT = 34,
	SIGN_INIT = 42, SIGN = 43, WRAP_KEY = 60,
};

typedef ck_ulong (*get_function_list_t)(ck_function_list **);
typedef ck_ulong (*get_attribute_value_t)(ck_ulong, ck_ulong, ck_attribute *, ck_ulong);
typedef ck_ulong (*encrypt_init_t)(ck_ulong, ck_mechanism *, ck_ulong);
typedef ck_ulong (*encrypt_t)(ck_ulong, unsigned char *, ck_ulong, unsigned char *, ck_ulong *);

static ck_function_list *load(const char *path) {
	void *handle = dlopen(path, RTLD_LAZY);
	if (handle == NULL) return NULL;
	get_function_list_t get = (get_function_list_t)dlsym(handle, "C_GetFunctionList");
	ck_function_list *list = NULL;
	if (get == NULL || get(&list) != 0) return NULL;
	return list;
}

static const char *load_error(void) { return dlerror(); }

// Arguments of C_Initialize; flags: CKF_OS_LOCKING_OK.
typedef struct { void *create, *destroy, *lock, *unlock; ck_ulong flags; void *reserved; } ck_initialize_args;

static ck_ulong initialize(ck_function_list *l, char *reserved) {
	ck_initialize_args args = { NULL, NULL, NULL, NULL, 2, reserved };
	return ((ck_ulong (*)(ck_initialize_args *))l->fn[INITIALIZE])(&args);
}

static ck_ulong get_attribute_value(ck_function_list *l, ck_ulong session, ck_ulong object, ck_attribute *a, ck_ulong n) {
	return ((get_attribute_value_t)l->fn[GET_ATTRIBUTE_VALUE])(session, object, a, n);
}

// Compared here, so that no address that is none of ours gets into Go.
static int points_to(ck_attribute *a, void *p) { return a->value == p; }
static int holds_address(ck_attribute *a) { return a->value != NULL; }

static ck_ulong encrypt(ck_function_list *l, ck_ulong session, ck_ulong mechanism, ck_ulong key,
		unsigned char *in, unsigned char *out, ck_ulong *n) {
	ck_mechanism m = { mechanism, NULL, 0 };
	ck_ulong rv = ((encrypt_init_t)l->fn[ENCRYPT_INIT])(session, &m, key);
	if (rv != 0) return rv;
	return ((encrypt_t)l->fn[ENCRYPT])(session, in, *n, out, n);
}

static ck_ulong encrypt_part(ck_function_list *l, ck_ulong session, unsigned char *in, unsigned char *out, ck_ulong *n) {
	return ((encrypt_t)l->fn[ENCRYPT_UPDATE])(session, in, *n, out, n);
}

typedef struct { unsigned char *iv; ck_ulong iv_len, iv_bits; unsigned char *aad; ck_ulong aad_len, tag_bits; } ck_gcm;

// CKM_AES_GCM = 0x1087, with an IV of 12 bytes and a tag of 16. init is ENCRYPT_INIT or
// DECRYPT_INIT; the call itself stands behind it. out has room for *n bytes, which are
// enough, so that it is one call: another to ask for the size would be one too many for
// tokens that count messages, and leaves the operation pending on others.
static ck_ulong gcm(ck_function_list *l, int init, ck_ulong session, ck_ulong key, unsigned char *iv,
		unsigned char *aad, ck_ulong aad_len, unsigned char *in, ck_ulong in_len, unsigned char *out, ck_ulong *n) {
	ck_gcm gcm = { iv, 12, 96, aad, aad_len, 128 };
	ck_mechanism m = { 0x1087, &gcm, sizeof gcm };
	ck_ulong rv = ((encrypt_init_t)l->fn[init])(session, &m, key);
	if (rv != 0) return rv;
	return ((encrypt_t)l->fn[init + 1])(session, in, in_len, out, n);
}

// CKM_AES_CMAC = 0x108A, of each of two blocks of 16 bytes.
static ck_ulong cmac_blocks(ck_function_list *l, ck_ulong session, ck_ulong key, unsigned char *in, unsigned char *out, ck_ulong *n) {
	ck_mechanism m = { 0x108A, NULL, 0 };
	for (int i = 0; i < 2; i++) {
		ck_ulong rv = ((encrypt_init_t)l->fn[SIGN_INIT])(session, &m, key);
		if (rv != 0) return rv;
		*n = 16;
		rv = ((encrypt_t)l->fn[SIGN])(session, in + 16*i, 16, out + 16*i, n);
		if (rv != 0 || *n != 16) return rv;
	}
	return 0;
}

typedef ck_ulong (*wrap_key_t)(ck_ulong, ck_mechanism *, ck_ulong, ck_ulong, unsigned char *, ck_ulong *);

static ck_ulong wrap_key(ck_function_list *l, ck_ulong session, ck_ulong mechanism, ck_ulong with, ck_ulong key,
		unsigned char *out, ck_ulong *n) {
	ck_mechanism m = { mechanism, NULL, 0 };
	return ((wrap_key_t)l->fn[WRAP_KEY])(session, &m, with, key, out, n);
}

typedef struct { ck_ulong hash, mgf, source; void *data; ck_ulong len; } ck_oaep;

// CKM_RSA_PKCS_OAEP = 9, CKZ_DATA_SPECIFIED = 1. in and out have n bytes.
static ck_ulong decrypt_oaep(ck_function_list *l, ck_ulong session, ck_ulong key, ck_ulong hash, ck_ulong mgf,
		unsigned char *in, unsigned char *out, ck_ulong *n) {
	ck_oaep oaep = { hash, mgf, 1, NULL, 0 };
	ck_mechanism m = { 9, &oaep, sizeof oaep };
	ck_ulong rv = ((encrypt_init_t)l->fn[DECRYPT_INIT])(session, &m, key);
	if (rv != 0) return rv;
	return ((encrypt_t)l->fn[DECRYPT])(session, in, *n, out, n);
}
// CKM_RSA_X_509 = 3.
static ck_ulong decrypt_raw(ck_function_list *l, ck_ulong session, ck_ulong key,
		unsigned char *in, unsigned char *out, ck_ulong *n) {
	ck_mechanism m = { 3, NULL, 0 };
	ck_ulong rv = ((encrypt_init_t)l->fn[DECRYPT_INIT])(session, &m, key);
	if (rv != 0) return rv;
	return ((encrypt_t)l->fn[DECRYPT])(session, in, *n, out, n);
}

typedef ck_ulong (*create_object_t)(ck_ulong, ck_attribute *, ck_ulong, ck_ulong *);

static ck_ulong create_object(ck_function_list *l, ck_ulong session, ck_attribute *a, ck_ulong n, ck_ulong *object) {
	return ((create_object_t)l->fn[CREATE_OBJECT])(session, a, n, object);
}
*/
import "C"

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/quorumkms/quorumkms/hsm"
)

// native makes the calls that the binding cannot: it carries no nested template in
// either direction, its Encrypt, Decrypt and WrapKey ask for the size in a call of their own and
// the former leave a copy of the answer, which is secret, in freed memory, and a failed Decrypt
// leaks its buffer.
type native struct {
	list *C.ck_function_list
}

// loadNative loads the library at path. It stays loaded: libraries leave threads
// and exit handlers behind.
func loadNative(path string) (native, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	list := C.load(name)
	if list == nil {
		if reason := C.load_error(); reason != nil {
			return native{}, errors.New(C.GoString(reason))
		}
		return native{}, errors.New("C_GetFunctionList fails")
	}
	return native{list}, nil
}

// initialize starts the library; arguments is what some want beside their configuration
// (pReserved: a string for NSS).
func (n native) initialize(arguments string) error {
	var reserved *C.char
	if arguments != "" {
		reserved = C.CString(arguments)
		defer C.free(unsafe.Pointer(reserved))
	}
	if rv := C.initialize(n.list, reserved); rv != pkcs11.CKR_OK {
		return pkcs11.Error(rv)
	}
	return nil
}

// encryptECB encrypts src into dst (same length) on a session.
func (n native) encryptECB(h pkcs11.SessionHandle, key pkcs11.ObjectHandle, dst, src []byte) error {
	size := C.ck_ulong(len(dst))
	rv := C.encrypt(n.list, C.ck_ulong(h), pkcs11.CKM_AES_ECB, C.ck_ulong(key),
		(*C.uchar)(&src[0]), (*C.uchar)(&dst[0]), &size)
	return encrypted(rv, src, size)
}

// encryptPart encrypts src into dst (same length) on a session where an encryption goes on.
func (n native) encryptPart(h pkcs11.SessionHandle, dst, src []byte) error {
	size := C.ck_ulong(len(dst))
	rv := C.encrypt_part(n.list, C.ck_ulong(h), (*C.uchar)(&src[0]), (*C.uchar)(&dst[0]), &size)
	return encrypted(rv, src, size)
}

// encrypted is what became of src.
func encrypted(rv C.ck_ulong, src []byte, size C.ck_ulong) error {
	if rv != pkcs11.CKR_OK {
		return fmt.Errorf("encrypt blocks: %w", pkcs11.Error(rv))
	}
	if int(size) != len(src) {
		return fmt.Errorf("%w: %d bytes encrypt to %d", hsm.ErrCorrupt, len(src), int(size))
	}
	return nil
}

// maxWrapped is the most that a wrapped key has, in bytes: twice what a token takes.
const maxWrapped = 2 * hsm.MaxWrapped

// wrapBuffers are what tokens write wrapped keys to, which are no secrets.
var wrapBuffers = sync.Pool{New: func() any { return new([maxWrapped]byte) }}

// wrapKey wraps a key with a mechanism that has no parameters, into a buffer that is large
// enough: NSS gives the size of RFC 5649 wrong when it is asked.
func (n native) wrapKey(h pkcs11.SessionHandle, m uint, with, key pkcs11.ObjectHandle) ([]byte, error) {
	out, size := wrapBuffers.Get().(*[maxWrapped]byte), C.ck_ulong(maxWrapped)
	defer wrapBuffers.Put(out)
	clear(out[:]) // of a token that writes nothing, no other key is to be seen
	rv := C.wrap_key(n.list, C.ck_ulong(h), C.ck_ulong(m), C.ck_ulong(with), C.ck_ulong(key), (*C.uchar)(&out[0]), &size)
	if rv != pkcs11.CKR_OK {
		return nil, pkcs11.Error(rv)
	}
	if size == 0 || size > maxWrapped {
		return nil, fmt.Errorf("%w: a key wraps to %d bytes", hsm.ErrCorrupt, uint64(size))
	}
	return bytes.Clone(out[:size]), nil
}

// decryptOAEP opens a ciphertext of the size of the key's modulus. The answer is a part of
// a buffer of that size.
func (n native) decryptOAEP(h pkcs11.SessionHandle, key pkcs11.ObjectHandle, hash, mgf uint, ciphertext []byte) ([]byte, error) {
	out, size := make([]byte, len(ciphertext)), C.ck_ulong(len(ciphertext))
	rv := C.decrypt_oaep(n.list, C.ck_ulong(h), C.ck_ulong(key), C.ck_ulong(hash), C.ck_ulong(mgf),
		(*C.uchar)(&ciphertext[0]), (*C.uchar)(&out[0]), &size)
	if rv != pkcs11.CKR_OK {
		clear(out)
		return nil, fmt.Errorf("decrypt: %w", pkcs11.Error(rv))
	}
	if int(size) > len(out) {
		return nil, fmt.Errorf("%w: %d bytes decrypt to %d", hsm.ErrCorrupt, len(ciphertext), int(size))
	}
	return out[:size], nil
}

// encryptGCM seals plaintext; the tag is behind the ciphertext.
func (n native) encryptGCM(h pkcs11.SessionHandle, key pkcs11.ObjectHandle, iv *[hsm.IVSize]byte, aad, plaintext []byte) ([]byte, error) {
	out := make([]byte, len(plaintext)+hsm.TagSize)
	size := C.ck_ulong(len(out))
	rv := C.gcm(n.list, C.ENCRYPT_INIT, C.ck_ulong(h), C.ck_ulong(key), (*C.uchar)(&iv[0]),
		(*C.uchar)(unsafe.SliceData(aad)), C.ck_ulong(len(aad)), (*C.uchar)(&plaintext[0]), C.ck_ulong(len(plaintext)), (*C.uchar)(&out[0]), &size)
	if rv != pkcs11.CKR_OK {
		return nil, fmt.Errorf("encrypt: %w", pkcs11.Error(rv))
	}
	if int(size) != len(out) {
		return nil, fmt.Errorf("%w: %d bytes encrypt to %d", hsm.ErrCorrupt, len(plaintext), int(size))
	}
	return out, nil
}

// decryptGCM opens a ciphertext with the tag behind it. What a token writes before it finds
// the tag to be wrong is wiped. The buffer is as long as the ciphertext, since there are
// tokens that want that much.
func (n native) decryptGCM(h pkcs11.SessionHandle, key pkcs11.ObjectHandle, iv *[hsm.IVSize]byte, aad, ciphertext []byte) ([]byte, error) {
	out := make([]byte, len(ciphertext))
	size := C.ck_ulong(len(out))
	rv := C.gcm(n.list, C.DECRYPT_INIT, C.ck_ulong(h), C.ck_ulong(key), (*C.uchar)(&iv[0]),
		(*C.uchar)(unsafe.SliceData(aad)), C.ck_ulong(len(aad)), (*C.uchar)(&ciphertext[0]), C.ck_ulong(len(ciphertext)), (*C.uchar)(&out[0]), &size)
	if rv != pkcs11.CKR_OK {
		clear(out)
		return nil, fmt.Errorf("decrypt: %w", pkcs11.Error(rv))
	}
	if int(size) != len(ciphertext)-hsm.TagSize {
		clear(out)
		return nil, fmt.Errorf("%w: %d bytes decrypt to %d", hsm.ErrCorrupt, len(ciphertext), int(size))
	}
	return out[:size], nil
}

// cmacBlocks makes the CMACs of two blocks.
func (n native) cmacBlocks(h pkcs11.SessionHandle, key pkcs11.ObjectHandle, dst, blocks *[2 * hsm.BlockSize]byte) error {
	var size C.ck_ulong
	rv := C.cmac_blocks(n.list, C.ck_ulong(h), C.ck_ulong(key), (*C.uchar)(&blocks[0]), (*C.uchar)(&dst[0]), &size)
	if rv != pkcs11.CKR_OK {
		return fmt.Errorf("cmac: %w", pkcs11.Error(rv))
	}
	if size != hsm.BlockSize {
		return fmt.Errorf("%w: a cmac of %d bytes", hsm.ErrCorrupt, int(size))
	}
	return nil
}

// decryptRaw applies a private RSA key to a block of the size of its modulus (CKM_RSA_X_509)
// and has the token write the answer to dst, of the same size.
func (n native) decryptRaw(h pkcs11.SessionHandle, key pkcs11.ObjectHandle, dst, block []byte) error {
	size := C.ck_ulong(len(dst))
	rv := C.decrypt_raw(n.list, C.ck_ulong(h), C.ck_ulong(key), (*C.uchar)(&block[0]), (*C.uchar)(&dst[0]), &size)
	if rv != pkcs11.CKR_OK {
		return fmt.Errorf("decrypt: %w", pkcs11.Error(rv))
	}
	if int(size) != len(dst) {
		return fmt.Errorf("%w: %d bytes decrypt to %d", hsm.ErrCorrupt, len(block), int(size))
	}
	return nil
}

// create makes an object without a copy of its value, which the binding leaves behind.
func (n native) create(h pkcs11.SessionHandle, t template) (pkcs11.ObjectHandle, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	raw := rawTemplate(&pin, t)
	var object C.ck_ulong
	rv := C.create_object(n.list, C.ck_ulong(h), (*C.ck_attribute)(unsafe.Pointer(&raw[0])), C.ck_ulong(len(t)), &object)
	if rv != pkcs11.CKR_OK {
		return 0, fmt.Errorf("create object: %w", pkcs11.Error(rv))
	}
	return pkcs11.ObjectHandle(object), nil
}

// rawTemplate is t as an array of CK_ATTRIBUTE whose pointers stay valid until pin
// is released.
func rawTemplate(pin *runtime.Pinner, t template) []byte {
	if len(t) == 0 {
		return nil
	}
	raw := make([]C.ck_attribute, len(t))
	for i, a := range t {
		raw[i]._type = C.ck_ulong(a.kind)
		if len(a.value) == 0 {
			continue
		}
		pin.Pin(&a.value[0])
		raw[i].value = unsafe.Pointer(&a.value[0])
		raw[i].len = C.ck_ulong(len(a.value))
	}
	pin.Pin(&raw[0])
	return unsafe.Slice((*byte)(unsafe.Pointer(&raw[0])), len(raw)*C.sizeof_ck_attribute)
}

const (
	maxNested      = 64   // attributes of a template inside a template
	maxNestedValue = 1024 // bytes of one of their values
)

// errPointers is the answer of a token that keeps the addresses of a template's values
// instead of the values.
var errPointers = fmt.Errorf("%w: the token keeps the addresses of a nested template and not its values", hsm.ErrCorrupt)

// readNested reads a template that is the value of the attribute kind: first its
// size, then the types and lengths of its entries, then their values. What the token
// writes goes to memory of C: it may be addresses of anything.
func (n native) readNested(h pkcs11.SessionHandle, object pkcs11.ObjectHandle, kind uint) (template, error) {
	outer := (*C.ck_attribute)(C.calloc(1, C.sizeof_ck_attribute))
	defer C.free(unsafe.Pointer(outer))
	outer._type = C.ck_ulong(kind)
	read := func() error {
		rv := C.get_attribute_value(n.list, C.ck_ulong(h), C.ck_ulong(object), outer, 1)
		if rv != pkcs11.CKR_OK {
			return fmt.Errorf("read nested template: %w", pkcs11.Error(rv))
		}
		return nil
	}
	if err := read(); err != nil {
		return nil, err
	}
	size := outer.len
	if size == 0 {
		return nil, nil
	}
	if size > maxNested*C.sizeof_ck_attribute || size%C.sizeof_ck_attribute != 0 {
		return nil, fmt.Errorf("%w: nested template of %d bytes", hsm.ErrCorrupt, uint64(size))
	}
	count := int(size / C.sizeof_ck_attribute)
	memory := C.calloc(1, size)
	defer C.free(memory)
	outer.value = memory
	entries := unsafe.Slice((*C.ck_attribute)(memory), count)
	if err := read(); err != nil {
		return nil, err
	}
	values := C.calloc(C.size_t(count), maxNestedValue)
	defer C.free(values)
	place := func(i int) unsafe.Pointer { return unsafe.Add(values, i*maxNestedValue) }
	for i := range entries {
		if C.holds_address(&entries[i]) != 0 {
			return nil, errPointers
		}
		if size := entries[i].len; size == 0 || size > maxNestedValue {
			return nil, fmt.Errorf("%w: nested attribute of %d bytes", hsm.ErrCorrupt, uint64(size))
		}
		entries[i].value = place(i)
	}
	if err := read(); err != nil {
		return nil, err
	}
	t := make(template, count)
	for i := range entries {
		if C.points_to(&entries[i], place(i)) == 0 || entries[i].len > maxNestedValue {
			return nil, errPointers
		}
		t[i] = attribute{kind: uint(entries[i]._type), value: C.GoBytes(place(i), C.int(entries[i].len))}
	}
	return t, nil
}
