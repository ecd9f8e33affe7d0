#!/usr/bin/env bash
# Builds kmsd and kmsctl of a version that is out, once, and prints the directory they
# are in: scripts/released.sh [VERSION] (default: the newest in scripts/releases).
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1-$(awk '!/^#/ && NF == 2 { v = $1 } END { print v }' scripts/releases)}
commit=$(awk -v v="$version" '!/^#/ && $1 == v { print $2 }' scripts/releases)
if [ -z "$commit" ]; then
	echo "released.sh: no version \"$version\" in scripts/releases" >&2
	exit 1
fi
dir=$PWD/.tools/releases/$version
if [ ! -x "$dir/kmsctl" ]; then
	if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
		echo "released.sh: this clone lacks the commit $commit of $version, it may be shallow: git fetch --unshallow (or clone without --depth)" >&2
		exit 1
	fi
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	mkdir -p "$work/src" "$work/bin" .tools/releases
	git archive "$commit" | tar -x -C "$work/src"
	flags="-X main.version=$version -X main.commit=${commit:0:12}"
	(
		cd "$work/src"
		CGO_ENABLED=1 go build -trimpath -ldflags "$flags" -o "$work/bin/kmsd" ./cli/kmsd
		CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$work/bin/kmsctl" ./cli/kmsctl
	) >&2
	cp -r "$work/bin" "$dir.$$"
	mv -T "$dir.$$" "$dir" 2>/dev/null || rm -rf "$dir.$$" # another run was faster
fi
echo "$dir"
