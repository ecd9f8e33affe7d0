#!/bin/sh
# Installs SoftHSM2, and gives a node a token directory of its own.
set -eu

usage() {
	cat >&2 <<'EOF'
usage: scripts/softhsm.sh [install] [--gcc] [--nss]
           install SoftHSM2 if it is absent (Debian, Ubuntu; as root or with sudo);
           --gcc: and the C compiler that a build with PKCS#11 needs
           --nss: and NSS's softoken, the other token that the tests know
       scripts/softhsm.sh token-dir DIR
           make DIR with a SoftHSM2 configuration and an empty token store in it

PINs are never given here: kmsd reads them from files when it makes the token.
EOF
	exit 2
}

fail() {
	echo "softhsm.sh: $*" >&2
	exit 1
}

# The places where hsm/p11 looks for the library.
library() {
	for path in /usr/lib/softhsm/libsofthsm2.so \
		/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so \
		/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so \
		/usr/lib64/pkcs11/libsofthsm2.so \
		/usr/lib64/softhsm/libsofthsm.so; do
		if [ -e "$path" ]; then
			echo "$path"
			return 0
		fi
	done
	return 1
}

install() {
	set --
	library >/dev/null || set -- softhsm2
	if [ "$with_gcc" = yes ] && ! command -v gcc >/dev/null 2>&1; then
		set -- "$@" gcc libc6-dev
	fi
	if [ "$with_nss" = yes ]; then
		set -- "$@" libnss3
	fi
	[ $# -eq 0 ] || "$(dirname "$0")/packages.sh" "$@"
	library || fail "SoftHSM2 is installed, but its library is in none of the known places"
}

# token_dir prints what the environment of the node needs.
token_dir() {
	case $1 in
	*'
'*) fail "the directory's name has a line break" ;;
	esac
	umask 077
	mkdir -p "$1"
	dir=$(cd "$1" && pwd -P)
	mkdir -p "$dir/tokens"
	chmod 0700 "$dir" "$dir/tokens"
	conf=$dir/softhsm2.conf
	if [ ! -e "$conf" ]; then
		cat >"$conf.new" <<EOF
directories.tokendir = $dir/tokens
objectstore.backend = file
log.level = ERROR
slots.removable = false
EOF
		mv "$conf.new" "$conf"
	fi
	echo "SOFTHSM2_CONF=$conf"
}

with_gcc=no
with_nss=no
case ${1-install} in
token-dir)
	if [ $# -ne 2 ] || [ -z "$2" ]; then usage; fi
	token_dir "$2"
	;;
install | --gcc | --nss)
	for argument in "$@"; do
		case $argument in
		install) ;;
		--gcc) with_gcc=yes ;;
		--nss) with_nss=yes ;;
		*) usage ;;
		esac
	done
	install
	;;
*) usage ;;
esac
