#!/usr/bin/env bash
# Runs real nodes while their processes, networks, disks and tokens fail, and judges
# what their clients saw: scripts/chaos.sh chaos|powerloss. Settings are in the
# environment: CHAOS, SEED, NODES, ROUNDS (see `make help`); with KEEP=1 the
# history and logs are kept from a run without a failure too.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1-} in
chaos) test=TestChaos ;;
powerloss) test=TestPowerLoss ;;
*)
	echo "usage: scripts/chaos.sh chaos|powerloss" >&2
	exit 2
	;;
esac
scripts/packages.sh iproute2 e2fsprogs util-linux
SOFTHSM2_MODULE=$(scripts/softhsm.sh install --gcc)
export SOFTHSM2_MODULE
mkdir -p bin
CGO_ENABLED=1 go test -c -tags chaos -o bin/chaos.test ./cli/kmsd
cd cli/kmsd
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo "--preserve-env=SOFTHSM2_MODULE,CHAOS,SEED,NODES,ROUNDS,KEEP")
exec "${as_root[@]}" ../../bin/chaos.test -test.run "^$test\$" -test.timeout 0
