#!/usr/bin/env bash
# Makes the image quorumkms-base out of packages of this machine's own release
# (Debian, Ubuntu), for where no registry has debian:bookworm-slim. An image that is
# there stays. Mirror and components are those of apt; BASE_MIRROR names another
# mirror. As root or with sudo.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/docker.sh

name=quorumkms-base
packages=ca-certificates,softhsm2,opensc

# apt_sources prints mirror and component, one pair a line, of a release.
# shellcheck disable=SC2016 # apt's own variables
apt_sources() {
	apt-get indextargets --no-release-info --format '$(RELEASE) $(SITE) $(COMPONENT)' 'Created-By: Packages' |
		awk -v release="$1" '$1 == release { print $2, $3 }'
}

need_docker
if has_image "$name"; then
	echo "$name is there already; to make it anew: docker rmi $name"
	exit 0
fi
command -v apt-get >/dev/null || die "no apt-get here: this needs Debian or Ubuntu. Elsewhere give an image to build on: BASE=… make image"
release=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
[ -n "$release" ] || die "/etc/os-release names no VERSION_CODENAME"
sources=$(apt_sources "$release")
mirror=${BASE_MIRROR-$(awk '{ print $1; exit }' <<<"$sources")}
components=$(awk '{ print $2 }' <<<"$sources" | sort -u | paste -sd, -)
case $mirror in
http://* | https://* | file:///*) ;;
*) die "apt's configuration names no mirror of $release that debootstrap can use (${mirror:-none}): set BASE_MIRROR" ;;
esac

scripts/packages.sh debootstrap
sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
dir=$(mktemp -d)
trap '"${sudo[@]}" rm -rf --one-file-system "$dir"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "making $name: $release from apt's own mirror (once, a minute or two)"
# debootstrap lives where only root's PATH leads.
"${sudo[@]}" env PATH="$PATH:/usr/sbin:/sbin" debootstrap --variant=minbase --include="$packages" --components="${components:-main}" \
	"$release" "$dir/root" "$mirror" >"$dir/log" 2>&1 || {
	tail -n 20 "$dir/log" >&2
	die "debootstrap failed"
}
# Where packages come from is this machine's business, not the image's.
(cd "$dir/root" && "${sudo[@]}" rm -rf etc/apt/sources.list etc/hostname etc/resolv.conf \
	var/cache/apt var/lib/apt/lists var/log/* usr/share/man usr/share/locale)
"${sudo[@]}" tar -C "$dir/root" --numeric-owner -c . | docker import --message "$release with $packages" - "$name" >/dev/null
docker image inspect --format "$name is ready ({{.Size}} bytes)" "$name"
