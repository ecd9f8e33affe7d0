#!/usr/bin/env bash
# Builds the image quorumkms:dev from bin/kmsd and bin/kmsctl. The base is $BASE, or
# else debian:bookworm-slim if it is here or a registry has it, or else
# quorumkms-base, which scripts/base-image.sh makes.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/docker.sh

image=quorumkms:dev
official=debian:bookworm-slim
own=quorumkms-base
pull_limit=60 # seconds

# find_base sets base to an image that is here.
find_base() {
	if [ -n "${BASE-}" ]; then
		base=$BASE
		has_image "$base" || timeout "$pull_limit" docker pull -q "$base" || die "the image $base is neither here nor in a registry"
		return
	fi
	for base in "$official" "$own"; do
		has_image "$base" && return
	done
	base=$official
	timeout "$pull_limit" docker pull -q "$base" 2>/dev/null && return
	echo "no registry gives $official: building on $own instead"
	base=$own
	scripts/base-image.sh
}

for binary in bin/kmsd bin/kmsctl; do
	[ -x "$binary" ] || die "$binary is missing: make build"
done
need_docker
find_base
old=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null || true)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
DOCKER_BUILDKIT=0 docker build --force-rm --build-arg BASE="$base" -f scripts/Dockerfile -t "$image" . >"$log" 2>&1 || {
	tail -n 20 "$log" >&2
	if grep -q 'GLIBC_.* not found' "$log"; then
		die "kmsd was built with a newer C library than $base has.
Build it on Debian 12, or choose a base at least as new as this machine: BASE=… make image"
	fi
	die "the image could not be built on $base"
}
[ -z "$old" ] || [ "$old" = "$(docker image inspect --format '{{.Id}}' "$image")" ] ||
	docker rmi "$old" >/dev/null 2>&1 || true # a container may still use it
echo "$image is ready, on $base"
