#!/usr/bin/env bash
# Checks the model of the lease (node/cluster/model) with Spin:
#   scripts/model.sh               small configurations, and every mutant
#   scripts/model.sh full          large configurations too
#   scripts/model.sh show FLAG …   the shortest way to a violation: show -DM_NOR0
set -euo pipefail
cd "$(dirname "$0")/.."
model=$PWD/node/cluster/model/lease.pml
memory=8192  # MiB of one search; two run at a time
depth=200000 # steps of one search
limit=1800   # seconds of processor time of one search

small=(
	"-DD=2 -DMAXTERM=3"
	"-DD=2 -DMAXTERM=2 -DREMOVE"
	"-DD=3 -DMAXTERM=2"
)
large=(
	"-DD=3 -DMAXTERM=3 -DREMOVE"
	"-DD=2 -DMAXTERM=4 -DREMOVE"
	"-DD=4 -DMAXTERM=2 -DREMOVE"
	"-DD=4 -DMAXTERM=3"
	"-DD=3 -DMAXTERM=4"
)
fresh=(
	M_NOWAIT M_NOVERIFY M_RECVTIME M_NOFINAL M_SWAP M_ACKRECV M_NOMIN M_LATEBOUND M_DRIFT M_EARLYFLOOR M_DUP M_RESTART
	"M_FLAP -DMAXTERM=3" "M_REMOVE -DREMOVE" "M_ACKGONE -DREMOVE" "M_RMEARLYFLOOR -DREMOVE"
)
in_time=(M_NORECHECK M_NOR0)

# search DIR "FLAGS" [GCC FLAG]: the log of a whole search.
search() {
	mkdir -p "$1"
	cd "$1"
	cp "$model" .
	local flags TIMEFORMAT='processor time %U'
	read -ra flags <<<"$2"
	spin "${flags[@]}" -a lease.pml
	gcc -w -O2 -DSAFETY "-DMEMLIM=$memory" "${@:3}" -o pan pan.c
	ulimit -t "$limit"
	time ./pan -E "-m$depth" # -E: an end state is no error
}

# row "FLAGS" VERDICT LOG FAILED
row() {
	local states seconds
	states=$(awk '/states, stored/ {print $1; exit}' "$3")
	seconds=$(awk '/^processor time/ {print $3}' "$3")
	printf '%-32s %10s %8s  %s\n' "${1//-D/}" "${states:--}" "${seconds:--}" "$2"
	[ -z "$4" ] || { sed 's/^/    /' "$3" >&2; return 1; }
}

# holds "FLAGS": no violation in a search that left nothing out.
holds() {
	local dir log
	dir=$(mktemp -d "$work/XXXXXX")
	log=$dir/log
	if ! (search "$dir" "$1") >"$log" 2>&1; then
		row "$1" "FAILED: no search, or not to its end" "$log" failed
	elif ! grep -q 'errors: 0$' "$log"; then
		row "$1" "FAILED: violated; see scripts/model.sh show $1" "$log" failed
	elif grep -qE 'max search depth too small|Search not completed|out of memory|reached -DMEMLIM' "$log"; then
		row "$1" "FAILED: the search is not complete" "$log" failed
	else
		row "$1" holds "$log" ""
	fi
}

# caught PROPERTY "MUTANT": that assertion is violated; nothing else counts.
caught() {
	local dir log
	dir=$(mktemp -d "$work/XXXXXX")
	log=$dir/log
	(search "$dir" "-D$2" -DBFS) >"$log" 2>&1 || true
	if grep -q "assertion violated $1 " "$log"; then
		row "$2" "caught: $1, $(sed -n 's/.*assertion violated .*(at depth \([0-9]*\))/\1/p' "$log") steps" "$log" ""
	else
		row "$2" "FAILED: does not break $1" "$log" failed
	fi
}

# two COMMAND …: runs it beside one other.
two() {
	if [ "$running" -eq 2 ]; then
		wait -n || failed=1
		running=1
	fi
	"$@" &
	running=$((running + 1))
}

scripts/packages.sh spin gcc libc6-dev
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case ${1-} in
"" | full) ;;
show)
	shift
	(search "$work" "$*" -DBFS) | grep -E 'assertion violated .*\(|errors:|not completed' || true
	cd "$work"
	[ -e lease.pml.trail ] || exit 0
	spin "$@" -t -T lease.pml | sed '/^spin: /,$d'
	exit
	;;
*)
	echo "model.sh: \"$1\" is not known; it takes nothing, full, or show FLAG …" >&2
	exit 2
	;;
esac

running=0 failed=0
printf '%-32s %10s %8s  %s\n' configuration states 'cpu s' verdict
for flags in "${small[@]}"; do two holds "$flags"; done
[ "${1-}" != full ] || for flags in "${large[@]}"; do two holds "$flags"; done
for mutant in "${fresh[@]}"; do two caught fresh "$mutant"; done
for mutant in "${in_time[@]}"; do two caught in_time "$mutant"; done
for ((; running > 0; running--)); do wait -n || failed=1; done
[ "$failed" -eq 0 ] || { echo "model.sh: not everything is as expected" >&2; exit 1; }
printf 'all as expected, in %d s\n' "$SECONDS"
