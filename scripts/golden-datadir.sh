#!/usr/bin/env bash
# Makes the golden data directories of a version that is out (scripts/releases): of a
# node with a SoftHSM2 token and of one with the embedded partition, each with keys in
# every state, a snapshot, log behind it and an audit trail, and what it encrypted.
# The tests open copies of them with the present kmsd. Made once, never again.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?usage: scripts/golden-datadir.sh VERSION}
out=$PWD/cli/kmsd/testdata/datadir/$version.tar.gz
if [ -e "$out" ]; then
	echo "golden-datadir.sh: $out exists: clusters hold data like it, so it stays as it is" >&2
	exit 1
fi
bin=$(scripts/released.sh "$version")
domain=quorumkms.test
work=$(mktemp -d)
node=
finish() {
	[ -z "$node" ] || kill "$node" 2>/dev/null || true
	rm -rf "$work"
}
trap finish EXIT

port=$((20000 + RANDOM % 10000))
free_port() {
	while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
	echo "$port"
}

until_true() { # SECONDS COMMAND…
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || {
			cat "$work/log" >&2
			return 1
		}
		sleep 0.1
	done
}

as() { # IDENTITY kmsctl-arguments…
	KMSCTL_ADDRESSES=$client KMSCTL_TRUST_DOMAIN=$domain KMSCTL_CA=$work/certs/ca.pem \
		KMSCTL_CERT=$work/certs/$1.crt KMSCTL_KEY=$work/certs/$1.key "$bin/kmsctl" "${@:2}"
}

started() { as olga cluster status; }
serves() { as olga cluster status --output json | grep -q '"serving": *true'; }
snapshot() { compgen -G "$dir/data/raft/snapshots/*-*-*/state.bin"; }

start() {
	SOFTHSM2_CONF=$dir/softhsm2.conf "$bin/kmsd" run --config "$work/kmsd.yaml" 2>>"$work/log" &
	node=$!
	until_true 30 started
}

stop() {
	kill -TERM "$node"
	wait "$node"
	node=
}

# encrypt KEY NAME=VALUE PLAINTEXT: a line of what was encrypted in that context.
encrypt() {
	printf %s "$3" | as storage-1 encrypt "$1" --context "$2" --out "$work/blob"
	line "$1" "$2" "$(printf %s "$3" | base64 -w0)"
}

# data_key KEY NAME=VALUE
data_key() {
	as storage-1 data-key "$1" --context "$2" --plaintext-out "$work/plain" --blob-out "$work/blob" >/dev/null
	line "$1" "$2" "$(base64 -w0 <"$work/plain")"
	rm -f "$work/plain"
}

line() {
	printf '{"key": "%s", "context": "%s", "plaintext": "%s", "ciphertext": "%s"}\n' "$1" "$2" "$3" "$(base64 -w0 <"$work/blob")" >>"$dir/encrypted"
	rm -f "$work/blob"
}

"$bin/kmsd" certs init --dir "$work/certs" --trust-domain $domain >/dev/null
for id in node/kms-1 operator/olga tenant/default/admin/alice tenant/default/user/storage-1; do
	"$bin/kmsd" certs issue --dir "$work/certs" --host 127.0.0.1 "spiffe://$domain/$id" >/dev/null
done

for kind in pkcs11 embedded; do
	dir=$work/$version/$kind
	client=127.0.0.1:$(free_port)
	port=$((port + 1))
	peer=127.0.0.1:$(free_port)
	port=$((port + 1))
	umask 077
	mkdir -p "$dir"
	echo golden-pin >"$dir/pin"
	hsm="{kind: embedded, pin_file: $dir/pin}"
	if [ $kind = pkcs11 ]; then
		scripts/softhsm.sh token-dir "$dir" >/dev/null
		echo golden-so-pin >"$work/so-pin"
		SOFTHSM2_CONF=$dir/softhsm2.conf "$bin/kmsd" hsm init-token --token kms-1 --pin-file "$dir/pin" --so-pin-file "$work/so-pin" >/dev/null
		hsm="{token: kms-1, pin_file: $dir/pin}"
	fi
	cat >"$work/kmsd.yaml" <<YAML
name: kms-1
trust_domain: $domain
data_dir: $dir/data
peer: {listen: "$peer"}
client: {listen: "$client"}
tls: {cert: $work/certs/kms-1.crt, key: $work/certs/kms-1.key, ca: $work/certs/ca.pem}
hsm: $hsm
raft: {snapshot_interval: 1s, snapshot_threshold: 16, trailing_logs: 4}
YAML
	start
	as olga cluster init --administrator spiffe://$domain/tenant/default/admin/alice --no-recovery >/dev/null
	until_true 30 serves
	for key in volumes archive disabled dying; do
		as alice key create --alias "alias/$key" --description "golden $key" --tag "team=$key" >/dev/null
		encrypt "alias/$key" "first=$key" "first of $key"
		data_key "alias/$key" "data=$key"
	done
	for n in 2 3; do
		as alice key rotate alias/volumes >/dev/null
		encrypt alias/volumes "version=$n" "volumes, version $n"
	done
	as alice key disable alias/disabled >/dev/null
	until_true 30 snapshot
	as alice key schedule-deletion alias/dying --days 30 --yes >/dev/null
	id=$(as alice key describe alias/archive --output json | sed -n 's/.*"key_id": *"\([^"]*\)".*/\1/p')
	as alice key alias create alias/second "$id" >/dev/null
	encrypt alias/second "behind=the snapshot" "behind the snapshot"
	as alice key list --output json >"$dir/keys.json"
	stop
	rm -rf "$dir/softhsm2.conf" "$dir/data/lock"
done
mkdir -p "$(dirname "$out")"
tar -C "$work/$version" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf - . | gzip -9n >"$out"
ls -l "$out"
