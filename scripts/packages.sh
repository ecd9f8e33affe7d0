#!/usr/bin/env bash
# Installs packages of the distribution that are absent (Debian, Ubuntu; as root
# or with sudo): scripts/packages.sh PACKAGE …
set -euo pipefail
missing=()
for p in "$@"; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
command -v apt-get >/dev/null || { echo "packages.sh: no apt-get here; install with the system's package manager: ${missing[*]}" >&2; exit 1; }
sudo=()
if [ "$(id -u)" -ne 0 ]; then
	command -v sudo >/dev/null || { echo "packages.sh: not root and no sudo; as root: apt-get install ${missing[*]}" >&2; exit 1; }
	sudo=(sudo)
fi
install() { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
install 2>/dev/null || { "${sudo[@]}" apt-get update -qq; install; }
