#!/usr/bin/env bash
# Has systemd verify the unit, with a program in kmsd's place that is there.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v systemd-analyze >/dev/null || scripts/packages.sh systemd
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|; s|man:kmsd(1) ||' scripts/systemd/kmsd.service >"$dir/kmsd.service"
# What it says of units that are not this one says nothing; a wrong line of this one is told by name.
if ! systemd-analyze verify --man=no --recursive-errors=no "$dir/kmsd.service" 2>"$dir/said" || grep -q 'kmsd\.service' "$dir/said"; then
	cat "$dir/said" >&2
	exit 1
fi
echo "the unit is as systemd wants it"
