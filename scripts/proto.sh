#!/usr/bin/env bash
# Generates the Go code of the protocol buffers; --check fails if what is checked
# in differs. The plugins' versions are go.mod's; protoc is the distribution's.
set -euo pipefail
cd "$(dirname "$0")/.."
# The types that every protocol uses lie beside protoc, in a package of their own.
if [ ! -e "$(dirname "$(command -v protoc)")/../include/google/protobuf/duration.proto" ]; then
	scripts/packages.sh protobuf-compiler libprotobuf-dev
fi
out=.
if [ "${1-}" = --check ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
fi
tool() { go tool -n "google.golang.org/$1"; }
mapfile -t files < <(cd rpc/proto && find . -name '*.proto' | sed 's|^\./||' | sort)
protoc -I rpc/proto \
	--plugin=protoc-gen-go="$(tool protobuf/cmd/protoc-gen-go)" \
	--plugin=protoc-gen-go-grpc="$(tool grpc/cmd/protoc-gen-go-grpc)" \
	--go_out="$out" --go_opt=module=github.com/quorumkms/quorumkms \
	--go-grpc_out="$out" --go-grpc_opt=module=github.com/quorumkms/quorumkms \
	"${files[@]}"
[ "$out" = . ] && exit 0
for dir in quorumkmsv1 peerv1; do
	# The protoc version is in the header of each file; everything else must agree.
	diff -r -I '^// .*protoc ' -I '^// - protoc' "$out/rpc/$dir" "rpc/$dir" || {
		echo "generated code is out of date: make generate" >&2
		exit 1
	}
done
echo "generated code is up to date"
