#!/usr/bin/env bash
# The main job, in under a minute: three nodes, each with its own SoftHSM2 token,
# form a cluster; a storage node seals files; the leader dies; the files open.
# Exits 0 only if every opened file equals its original. Leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
kmsd=$PWD/bin/kmsd
kmsctl=$PWD/bin/kmsctl
domain=quorumkms.test
work=$(mktemp -d)
declare -A pid=() client=() peer=() logs=()
started=$(date +%s)

if [ -t 1 ]; then bold=$'\e[1m' off=$'\e[0m'; else bold='' off=''; fi
step() { printf '\n%s%2ds  %s%s\n' "$bold" $(($(date +%s) - started)) "$*" "$off"; }
say() { printf '     %s\n' "$*"; }
show() { sed 's/^/     /'; }

finish() {
	code=$?
	trap - EXIT
	for p in "${pid[@]}"; do kill -TERM "$p" 2>/dev/null || true; done
	for p in "${pid[@]}"; do wait "$p" 2>/dev/null || true; done
	if [ "$code" -ne 0 ]; then
		for n in "${!logs[@]}"; do
			echo "--- $n"
			tail -n 20 "${logs[$n]}" || true
		done >&2
		echo "demo failed; see above" >&2
	fi
	rm -rf "$work"
	exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# until_true SECONDS WHAT COMMAND…: waits for a condition.
until_true() {
	local end=$(($(date +%s) + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		if [ "$(date +%s)" -ge "$end" ]; then
			echo "waited in vain until $what" >&2
			return 1
		fi
		sleep 0.05
	done
}

port=$((20000 + RANDOM % 20000))
free_port() {
	while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
	echo "$port"
}

as() { # as IDENTITY kmsctl-arguments…
	local who=$1
	shift
	KMSCTL_ADDRESSES=${addresses:-$all} KMSCTL_TRUST_DOMAIN=$domain KMSCTL_CA=$work/certs/ca.pem \
		KMSCTL_CERT=$work/certs/$who.crt KMSCTL_KEY=$work/certs/$who.key "$kmsctl" "$@"
}

node() { SOFTHSM2_CONF=$work/$1/softhsm2.conf "$kmsd" "${@:2}"; }

start() {
	SOFTHSM2_CONF=$work/$1/softhsm2.conf "$kmsd" run --config "$work/$1/kmsd.yaml" 2>>"$work/$1/log" &
	pid[$1]=$!
}

answers() { addresses=${client[$1]} as olga cluster status --output json; }
serves() { addresses=${client[$1]} as olga cluster status --output json | grep -q '"serving": *true'; }
leader() { addresses=${client[$1]} as olga cluster status --output json | sed -n 's/.*"leader_id": *"\([^".]*\).*/\1/p' | head -n 1; }
voters() { [ "$(addresses=${client[$1]} as olga cluster status --output json | grep -c '"voter": *true')" -eq "$2" ]; }

step "Certificates from a development CA; one SoftHSM2 token a node"
"$kmsd" certs init --dir "$work/certs" --trust-domain $domain >/dev/null
for id in operator/olga tenant/default/admin/alice tenant/default/user/storage-1; do
	"$kmsd" certs issue --dir "$work/certs" "spiffe://$domain/$id" | sed "s|$work/||" | show
done
umask 077
for n in kms-1 kms-2 kms-3; do
	client[$n]=127.0.0.1:$(free_port)
	port=$((port + 1))
	peer[$n]=127.0.0.1:$(free_port)
	port=$((port + 1))
	logs[$n]=$work/$n/log
	scripts/softhsm.sh token-dir "$work/$n" >/dev/null
	od -An -N8 -tu8 /dev/urandom | tr -d ' ' >"$work/$n/pin"
	od -An -N8 -tu8 /dev/urandom | tr -d ' ' >"$work/$n/so-pin"
	"$kmsd" certs issue --dir "$work/certs" --host 127.0.0.1 "spiffe://$domain/node/$n" >/dev/null
	node $n hsm init-token --token $n --pin-file "$work/$n/pin" --so-pin-file "$work/$n/so-pin" | show
done
all=${client[kms-1]},${client[kms-2]},${client[kms-3]}
for n in kms-1 kms-2 kms-3; do
	cat >"$work/$n/kmsd.yaml" <<YAML
name: $n
trust_domain: $domain
data_dir: $work/$n/data
peer: {listen: "${peer[$n]}"}
client: {listen: "${client[$n]}"}
tls: {cert: $work/certs/$n.crt, key: $work/certs/$n.key, ca: $work/certs/ca.pem}
join: {addresses: ["${peer[kms-1]}"], token_file: $work/$n/join-token}
hsm: {token: $n, pin_file: $work/$n/pin}
log: {level: warn}
YAML
done

step "kms-1 founds the cluster"
sed -i '/^join:/d' "$work/kms-1/kmsd.yaml"
start kms-1
until_true 20 "kms-1 answers" answers kms-1
say "(--no-recovery: a demonstration has no recovery key. NOTHING RECOVERS ITS DOMAIN KEY: with"
say "the last of its tokens every key is lost. See kmsctl recovery init.)"
addresses=${client[kms-1]} as olga cluster init --administrator spiffe://$domain/tenant/default/admin/alice --no-recovery | show

for n in kms-2 kms-3; do
	step "$n joins: a one-time ticket for its HSM's identity, and the Security Officer's trust"
	identity=$(node $n hsm identity --config "$work/$n/kmsd.yaml")
	say "HSM of $n:     ${identity:0:39}…"
	addresses=${client[kms-1]} as olga cluster invite $n --identity "$identity" --token-file "$work/$n/join-token" >/dev/null
	start $n
	until_true 30 "$n shows its fingerprint" grep -q -- '--so-pin-file <file> ' "$work/$n/log"
	fingerprint=$(sed -n 's/.*--so-pin-file <file> \(SHA256:[0-9a-f]*\).*/\1/p' "$work/$n/log" | tail -n 1)
	say "console of $n: ${fingerprint:0:39}…"
	node kms-1 hsm trust --config "$work/kms-1/kmsd.yaml" --so-pin-file "$work/kms-1/so-pin" "$fingerprint" >/dev/null
	say "kms-1's Security Officer compared it and trusted it"
	until_true 30 "$n serves" serves $n
	rm -f "$work/$n/join-token"
done
until_true 30 "all three vote" voters kms-1 3
as olga cluster status | show

step "A key administrator makes a key"
as alice key create --description "the demo's key" --alias alias/demo | show

step "A storage node seals real files, with data keys from whichever node answers"
mkdir -p "$work/files" "$work/sealed" "$work/opened"
cp LICENSE "$work/files/LICENSE"
cp "$kmsctl" "$work/files/kmsctl.bin"
: >"$work/files/empty"
head -c 20000000 /dev/urandom >"$work/files/20-MB-of-noise"
i=0
for f in "$work"/files/*; do
	name=$(basename "$f")
	i=$((i % 3 + 1))
	addresses=${client[kms-$i]} as storage-1 object seal alias/demo --context "object=$name" --in "$f" --out "$work/sealed/$name" >/dev/null
	say "$(printf '%-16s %9s bytes, key from kms-%s' "$name" "$(stat -c %s "$f")" "$i")"
done

dead=$(leader kms-1)
step "SIGKILL of the leader, $dead"
kill -KILL "${pid[$dead]}"
wait "${pid[$dead]}" 2>/dev/null || true
unset "pid[$dead]"
alive=()
for n in kms-1 kms-2 kms-3; do [ $n = "$dead" ] || alive+=("$n"); done
others=${client[${alive[0]}]},${client[${alive[1]}]}
killed=$(date +%s%N)
good=0
for f in "$work"/files/*; do
	name=$(basename "$f")
	addresses=$others as storage-1 object open --context "object=$name" --in "$work/sealed/$name" --out "$work/opened/$name" >/dev/null
	[ "$(sha256sum <"$f")" = "$(sha256sum <"$work/opened/$name")" ]
	now=$(leader "${alive[0]}")
	[ -z "$now" ] || [ "$now" = "$dead" ] && during="no new leader yet" || during="new leader: $now"
	say "$(printf '%-16s opened by %s and %s, SHA-256 equal, %4d ms after the kill (%s)' "$name" "${alive[@]}" $((($(date +%s%N) - killed) / 1000000)) "$during")"
	good=$((good + 1))
done
[ $good -eq 4 ]

new_leader() { local l; l=$(leader "${alive[0]}"); [ -n "$l" ] && [ "$l" != "$dead" ]; }
until_true 30 "there is a new leader" new_leader
say "$(leader "${alive[0]}") leads now; writes go on:"
addresses=$others as alice key create --description "made without $dead" --output json | tee "$work/second.json" | sed -n 's/.*"arn": *"\([^"]*\)".*/\1/p' | show

step "$dead comes back and catches up"
start "$dead"
until_true 30 "$dead serves" serves "$dead"
second=$(sed -n 's/.*"arn": *"\([^"]*\)".*/\1/p' "$work/second.json")
addresses=${client[$dead]} as alice key describe "$second" >/dev/null
say "it knows the key that was made without it, and opens a file by itself:"
addresses=${client[$dead]} as storage-1 object open --context object=LICENSE --in "$work/sealed/LICENSE" --out "$work/opened/again" >/dev/null
cmp "$work/files/LICENSE" "$work/opened/again"
as olga cluster status | show

step "Done: every opened file equals its original"
