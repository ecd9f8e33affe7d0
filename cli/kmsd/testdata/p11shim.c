/*
 * A PKCS#11 library in front of another, for tests: the first byte of a file says
 * what is wrong with the token at the moment.
 *
 *   w well   e v f errs: always, vaguely, one call in three   g gone   n no session left
 *   s S slow: 0.2 and 2 seconds a call
 *   wrong answers: b t C_Encrypt and C_EncryptUpdate, always and one in three   m C_Sign   p C_WrapKey
 *   u C_UnwrapKey, which opens what it opened before   r C_GenerateRandom stands still
 *
 *   KMSD_TEST_MODULE   path of the library behind
 *   KMSD_TEST_TOKEN    path of that file
 *   KMSD_TEST_LOGINS   path of a file that grows by a byte with each C_Login; may be absent
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long word;
typedef struct { unsigned char major, minor; void *fn[68]; } function_list;
typedef word (*get_function_list)(function_list **);

enum { GENERAL_ERROR = 0x05, DEVICE_ERROR = 0x30, SESSION_COUNT = 0xB1, TOKEN_NOT_PRESENT = 0xE0 };

/* Places in CK_FUNCTION_LIST, PKCS #11 v2.40. */
enum {
	GET_SLOT_LIST = 4, GET_TOKEN_INFO = 6, OPEN_SESSION = 12, GET_SESSION_INFO = 15, LOGIN = 18, GET_ATTRIBUTE_VALUE = 24,
	FIND_OBJECTS_INIT = 26, ENCRYPT_INIT = 29, ENCRYPT = 30, ENCRYPT_UPDATE = 31, SIGN_INIT = 42, SIGN = 43, GENERATE_KEY = 58, WRAP_KEY = 60, UNWRAP_KEY = 61,
	GENERATE_RANDOM = 64
};

static function_list *behind, front;
static int token = -1;
static atomic_uint calls;

static char condition(void) {
	char c = 'w';
	return token >= 0 && pread(token, &c, 1, 0) == 1 ? c : 'w';
}

/* What a call that works with a key returns, instead of being made; 0: make it. */
static word working(void) {
	switch (condition()) {
	case 'e': return DEVICE_ERROR;
	case 'v': return GENERAL_ERROR;
	case 'f': return atomic_fetch_add(&calls, 1) % 3 == 0 ? DEVICE_ERROR : 0;
	case 's': usleep(200 * 1000); return 0;
	case 'S': sleep(2); return 0;
	case 'g': return TOKEN_NOT_PRESENT;
	}
	return 0;
}

/* The same of a call that only needs the token to be there. */
static word present(void) { return condition() == 'g' ? TOKEN_NOT_PRESENT : 0; }

/* The same of a call that opens a session. */
static word opening(void) { return condition() == 'n' ? SESSION_COUNT : present(); }

/* Makes an answer wrong in its last byte. */
static void spoil(word rv, unsigned char *out, word *n) {
	if (rv == 0 && out != NULL && *n > 0) out[*n - 1] ^= 0x10;
}

static pthread_mutex_t memory = PTHREAD_MUTEX_INITIALIZER;
static struct { word by, n; unsigned char in[4096]; } opened[64]; /* what C_UnwrapKey opened with a key, by its handle */

#define FRONT(place, name, trouble, params, args) \
	static word name params { \
		word rv = trouble(); \
		return rv != 0 ? rv : ((word(*) params)behind->fn[place])args; \
	}

FRONT(GET_TOKEN_INFO, get_token_info, present, (word slot, void *info), (slot, info))
FRONT(OPEN_SESSION, open_session, opening, (word slot, word flags, void *app, void *notify, void *session), (slot, flags, app, notify, session))
FRONT(GET_SESSION_INFO, get_session_info, present, (word session, void *info), (session, info))
FRONT(GET_ATTRIBUTE_VALUE, get_attribute_value, present, (word session, word object, void *attributes, word n), (session, object, attributes, n))
FRONT(FIND_OBJECTS_INIT, find_objects_init, present, (word session, void *attributes, word n), (session, attributes, n))
FRONT(ENCRYPT_INIT, encrypt_init, present, (word session, void *mechanism, word key), (session, mechanism, key))
FRONT(SIGN_INIT, sign_init, working, (word session, void *mechanism, word key), (session, mechanism, key))
FRONT(GENERATE_KEY, generate_key, working, (word session, void *mechanism, void *attributes, word n, void *key), (session, mechanism, attributes, n, key))

static word login(word session, word user, void *pin, word n) {
	const char *file = getenv("KMSD_TEST_LOGINS");
	int counted = file == NULL ? -1 : open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	word rv = present();
	if (counted >= 0) {
		if (write(counted, "l", 1) != 1) rv = GENERAL_ERROR;
		close(counted);
	}
	return rv != 0 ? rv : ((word(*)(word, word, void *, word))behind->fn[LOGIN])(session, user, pin, n);
}

static word encrypts(int place, word session, void *in, word n, unsigned char *out, word *size) {
	char c = condition();
	word rv = working();
	if (rv != 0) return rv;
	rv = ((word(*)(word, void *, word, void *, word *))behind->fn[place])(session, in, n, out, size);
	if (c == 'b' || (c == 't' && atomic_fetch_add(&calls, 1) % 3 == 0)) spoil(rv, out, size);
	return rv;
}

static word encrypt(word session, void *in, word n, unsigned char *out, word *size) {
	return encrypts(ENCRYPT, session, in, n, out, size);
}

static word encrypt_update(word session, void *in, word n, unsigned char *out, word *size) {
	return encrypts(ENCRYPT_UPDATE, session, in, n, out, size);
}

static word sign(word session, void *in, word n, unsigned char *out, word *size) {
	word rv = ((word(*)(word, void *, word, void *, word *))behind->fn[SIGN])(session, in, n, out, size);
	if (condition() == 'm') spoil(rv, out, size);
	return rv;
}

static word wrap_key(word session, void *mechanism, word by, word key, unsigned char *out, word *size) {
	word rv = working();
	if (rv != 0) return rv;
	rv = ((word(*)(word, void *, word, word, void *, word *))behind->fn[WRAP_KEY])(session, mechanism, by, key, out, size);
	if (condition() == 'p') spoil(rv, out, size);
	return rv;
}

static word unwrap_key(word session, void *mechanism, word by, void *in, word n, void *attributes, word m, word *key) {
	unsigned char other[sizeof opened[0].in];
	word at = by % 64;
	word rv = working();
	if (rv != 0) return rv;
	pthread_mutex_lock(&memory);
	if (condition() == 'u' && opened[at].by == by && opened[at].n == n) {
		memcpy(other, opened[at].in, n);
		in = other;
	} else if (n <= sizeof other) {
		opened[at].by = by, opened[at].n = n;
		memcpy(opened[at].in, in, n);
	}
	pthread_mutex_unlock(&memory);
	return ((word(*)(word, void *, word, void *, word, void *, word, void *))behind->fn[UNWRAP_KEY])(session, mechanism, by, in, n, attributes, m, key);
}

static word generate_random(word session, void *out, word n) {
	word rv = working();
	if (rv == 0 && condition() == 'r') {
		memset(out, 0x42, n);
		return 0;
	}
	return rv != 0 ? rv : ((word(*)(word, void *, word))behind->fn[GENERATE_RANDOM])(session, out, n);
}

static word get_slot_list(unsigned char with_token, word *slots, word *n) {
	if (condition() == 'g' && with_token) {
		*n = 0;
		return 0;
	}
	return ((word(*)(unsigned char, word *, word *))behind->fn[GET_SLOT_LIST])(with_token, slots, n);
}

word C_GetFunctionList(function_list **list) {
	const char *module = getenv("KMSD_TEST_MODULE"), *file = getenv("KMSD_TEST_TOKEN");
	void *handle = module == NULL ? NULL : dlopen(module, RTLD_NOW);
	get_function_list get = handle == NULL ? NULL : (get_function_list)dlsym(handle, "C_GetFunctionList");
	if (get == NULL || file == NULL || get(&behind) != 0) return GENERAL_ERROR;
	if (token < 0 && (token = open(file, O_RDONLY | O_CLOEXEC)) < 0) return GENERAL_ERROR;
	front = *behind;
	front.fn[GET_SLOT_LIST] = get_slot_list;
	front.fn[GET_TOKEN_INFO] = get_token_info;
	front.fn[OPEN_SESSION] = open_session;
	front.fn[GET_SESSION_INFO] = get_session_info;
	front.fn[LOGIN] = login;
	front.fn[GET_ATTRIBUTE_VALUE] = get_attribute_value;
	front.fn[FIND_OBJECTS_INIT] = find_objects_init;
	front.fn[ENCRYPT_INIT] = encrypt_init;
	front.fn[ENCRYPT] = encrypt;
	front.fn[ENCRYPT_UPDATE] = encrypt_update;
	front.fn[SIGN_INIT] = sign_init;
	front.fn[SIGN] = sign;
	front.fn[GENERATE_KEY] = generate_key;
	front.fn[WRAP_KEY] = wrap_key;
	front.fn[UNWRAP_KEY] = unwrap_key;
	front.fn[GENERATE_RANDOM] = generate_random;
	*list = &front;
	return 0;
}
