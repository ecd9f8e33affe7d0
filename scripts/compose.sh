#!/usr/bin/env bash
# Three nodes in containers: scripts/compose.sh up | test | down
#
# up    makes certificates, tokens and a cluster of three, and says how to talk to it
# test  the scenario: files are sealed, the leader is cut off its network, the others
#       go on, it refuses, it comes back; then everything is taken down
# down  removes containers, network, volumes and .compose
#
# up and test begin with down. The image must be there: make up and make compose-test
# see to it. QUORUMKMS_NET moves the private network, as docker-compose.yml says.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/docker.sh

image=quorumkms:dev
project=quorumkms
network=quorumkms                # as in docker-compose.yml
nodes=(kms-1 kms-2 kms-3)        # as in docker-compose.yml
home=/var/lib/quorumkms          # of a node in its container
client_port=7300 peer_port=7301
trust_domain=quorumkms.test
lease=6                          # seconds a node may answer without hearing of a majority
patience=90                      # seconds for a condition; on a good day it takes a few
dir=.compose                     # certificates, configurations and the test's files
declare -A id address            # of each node's container
watcher=                         # process of the scenario that asks the cut-off node
unset "${!KMSCTL_@}"             # nothing of the caller's own kmsctl

# ---- telling

say() { printf '[%3d s]  %s\n' "$SECONDS" "$*"; }

steps=0
step() {
	steps=$((steps + 1))
	printf '\n%d. %s\n' "$steps" "$*"
}

fail() {
	printf '\nFAILED after %d s: %s\n' "$SECONDS" "$*" >&2
	exit 1
}

# quietly runs a command and shows what it says only if it fails.
quietly() {
	local said
	said=$("$@" 2>&1 </dev/null) || {
		echo "$said" >&2
		fail "$*"
	}
}

# wait_until LIMIT WHAT COMMAND… waits for a condition, and tells.
wait_until() {
	local limit=$1 what=$2 start=$SECONDS told=$SECONDS
	shift 2
	until "$@"; do
		[ $((SECONDS - start)) -lt "$limit" ] || fail "waited $limit s in vain until $what"
		if [ $((SECONDS - told)) -ge 5 ]; then
			say "… waiting until $what"
			told=$SECONDS
		fi
		sleep 0.25
	done
	say "$what"
}

# ---- containers

dc() { "${compose[@]}" -p "$project" "$@"; }

# ours ps -a, ours volume ls and ours network ls print what docker has of this project.
ours() { docker "$@" -q --filter "label=com.docker.compose.project=$project"; }

down() {
	quietly dc down --volumes --remove-orphans --timeout 1 # nothing of it is kept
	rm -rf "$dir"
	[ -z "$(ours ps -a)$(ours volume ls)$(ours network ls)" ] || fail "something of $project is still there: see docker ps -a, docker volume ls, docker network ls"
}

show_logs() {
	local node
	for node in "${!id[@]}"; do
		printf '\n---- %s\n' "$node"
		docker logs --tail 15 "${id[$node]}" 2>&1 || true
	done >&2
}

# undo takes everything down at whatever end but that of a successful up.
undo() {
	local code=$?
	trap '' INT TERM HUP
	trap - EXIT
	[ -z "$watcher" ] || kill "$watcher" 2>/dev/null || true
	case $code in
	0 | 129 | 130 | 143) ;;
	*) show_logs ;;
	esac
	[ $code -eq 0 ] || printf '\nTaking everything down.\n' >&2
	down
	exit $code
}

# begin is for what makes containers.
begin() {
	need_compose
	has_image "$image" || die "the image $image is not there: make image"
	trap undo EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
}

# put NODE DIRECTORY copies files into a node's volume; the node owns them.
put() {
	local user
	user=$(docker image inspect --format '{{.Config.User}}' "$image")
	tar -C "$2" --numeric-owner --owner="node:${user%:*}" --group="node:${user#*:}" -c . | docker cp - "${id[$1]}:$home"
}

# ---- the cluster

# at PORT [NODE…] prints the addresses of nodes, or of all.
at() {
	local port=$1 node list=
	shift
	for node in "${@:-${nodes[@]}}"; do
		list+=${list:+,}${address[$node]}:$port
	done
	echo "$list"
}

# kmsctl WHO ARG… is kmsctl with the certificate of operator, admin or user.
kmsctl() {
	local who=$1
	shift
	bin/kmsctl --config "$dir/$who.yaml" "$@"
}

# status NODE prints what a node says of itself and the cluster.
status() { kmsctl operator --addresses "$(at $client_port "$1")" --timeout 3s --output json cluster status 2>/dev/null; }

answers() { status "$1" >/dev/null; }

serves() {
	local s
	s=$(status "$1") && [[ $s == *'"serving": true'* ]]
}

# leader_of NODE prints the leader as that node knows it.
leader_of() {
	local s
	s=$(status "$1") || return
	awk -F'"' '$2 == "name" { name = $4 } $2 == "leader" && /true/ { print name }' <<<"$s"
}

# all_well tells whether every node serves, and knows three voters and reaches them.
all_well() {
	local node s
	for node in "${nodes[@]}"; do
		s=$(status "$node") && [[ $s == *'"serving": true'* ]] || return
		[ "$(grep -c '"voter": true' <<<"$s")" -eq ${#nodes[@]} ] && [[ $s != *'"reachable": false'* ]] || return
	done
}

certificates() {
	local certs=$dir/certs node who
	quietly bin/kmsd certs init --dir "$certs" --trust-domain "$trust_domain"
	quietly bin/kmsd certs issue --dir "$certs" "spiffe://$trust_domain/operator/operator"
	quietly bin/kmsd certs issue --dir "$certs" "spiffe://$trust_domain/tenant/default/admin/admin"
	quietly bin/kmsd certs issue --dir "$certs" "spiffe://$trust_domain/tenant/default/user/user"
	for node in "${nodes[@]}"; do
		mkdir "$dir/$node"
		cp "$certs/ca.pem" "$dir/$node/ca.pem"
		quietly bin/kmsd certs issue --dir "$certs" --out "$dir/$node/node" \
			--host "$node" --host "${address[$node]}" --host 127.0.0.1 "spiffe://$trust_domain/node/$node"
	done
	for who in operator admin user; do
		cat >"$dir/$who.yaml" <<-END
			addresses: [$(at $client_port)]
			cert: certs/$who.crt
			key: certs/$who.key
			ca: certs/ca.pem
		END
	done
}

random_pin() { od -An -N8 -tx1 /dev/urandom | tr -d ' \n'; }

# configure NODE [JOIN-TOKEN-FILE] writes what a node needs into its directory.
configure() {
	local node=$1 join=
	[ -z "${2-}" ] || join="join: {addresses: [$(at $peer_port)], token_file: $home/$2}"
	cat >"$dir/$node/kmsd.yaml" <<-END
		name: $node
		trust_domain: $trust_domain
		data_dir: $home/data
		peer: {listen: "0.0.0.0:$peer_port", advertise: "${address[$node]}:$peer_port"}
		client: {listen: "0.0.0.0:$client_port", advertise: "${address[$node]}:$client_port"}
		tls: {cert: $home/node.crt, key: $home/node.key, ca: $home/ca.pem}
		hsm: {token: $node, pin_file: $home/pin}
		$join
	END
	cat >"$dir/$node/softhsm2.conf" <<-END
		directories.tokendir = $home/tokens
		objectstore.backend = file
		log.level = ERROR
	END
}

make_token() {
	local node=$1
	mkdir "$dir/$node/tokens"
	random_pin >"$dir/$node/pin"
	random_pin >"$dir/$node/so-pin"
	put "$node" "$dir/$node"
	quietly dc run --rm --no-deps -T "$node" hsm init-token --token "$node" --pin-file "$home/pin" --so-pin-file "$home/so-pin"
	rm -r "$dir/$node/tokens" "$dir/$node/pin" "$dir/$node/so-pin" # they are the node's alone
}

# asked NODE prints whom a joining node asks, and its fingerprint, from its console.
asked() {
	docker logs "${id[$1]}" 2>&1 | awk '
		/^This node asks node / { donor = $5 }
		/ kmsd hsm trust .*SHA256:/ { print donor, $NF }' | tail -n 1
}

# joined NODE tells whether a node has joined; whenever it asks for one, it plays the
# donor's Security Officer, whom a person would be.
trusted=
joined() {
	local ask donor fingerprint
	ask=$(asked "$1")
	if [ -n "$ask" ] && [ "$ask" != "$trusted" ]; then
		read -r donor fingerprint <<<"$ask"
		say "$1 asks $donor for the domain key; its console shows"
		say "    $fingerprint"
		say "the Security Officer of $donor has compared it, and trusts it: kmsd hsm trust"
		quietly dc exec -T "$donor" kmsd hsm trust --config "$home/kmsd.yaml" --so-pin-file "$home/so-pin" "$fingerprint"
		trusted=$ask
	fi
	serves "$1"
}

admit() {
	local node=$1 identity
	identity=$(dc run --rm --no-deps -T "$node" hsm identity --config "$home/kmsd.yaml" </dev/null | grep -o 'SHA256:[0-9a-f]*') ||
		fail "$node does not show the identity of its HSM token"
	configure "$node" join-token
	quietly kmsctl operator --addresses "$(at $client_port "${nodes[0]}")" cluster invite "$node" --identity "$identity" --token-file "$dir/$node/join-token"
	say "$node is invited, by the identity of its HSM token"
	put "$node" "$dir/$node"
	rm "$dir/$node/join-token"
	quietly dc start "$node"
	wait_until $patience "$node has joined and serves" joined "$node"
}

up() {
	local node first=${nodes[0]}
	step "Containers, certificates and tokens"
	down
	(umask 077 && mkdir "$dir")
	umask 077
	quietly dc up --no-start --no-build
	for node in "${nodes[@]}"; do
		id[$node]=$(dc ps -aq "$node")
		address[$node]=$(docker inspect --format "{{.NetworkSettings.Networks.$network.IPAMConfig.IPv4Address}}" "${id[$node]}")
	done
	certificates
	for node in "${nodes[@]}"; do
		configure "$node"
		make_token "$node"
		say "$node, ${address[$node]}: certificate, configuration and a token of its own"
	done

	step "A cluster of one"
	quietly dc start "$first"
	wait_until $patience "$first answers" answers "$first"
	quietly kmsctl operator --addresses "$(at $client_port "$first")" cluster init \
		--administrator "spiffe://$trust_domain/tenant/default/admin/admin" --no-recovery --lease "${lease}s"
	wait_until $patience "$first is the first member" serves "$first"

	step "Two more nodes join it"
	for node in "${nodes[@]:1}"; do
		admit "$node"
	done
	wait_until $patience "all three are voters, serve and reach each other" all_well
	kmsctl operator cluster status | sed 's/^/         /'
}

how_to() {
	cat <<-END

		The nodes answer on their private addresses, from this host only:
		    $(at $client_port)
		Talk to them as operator, key administrator or key user:
		    bin/kmsctl --config $dir/operator.yaml cluster status
		    bin/kmsctl --config $dir/admin.yaml key create --alias alias/first
		    bin/kmsctl --config $dir/user.yaml object seal alias/first --in README.md --out /tmp/README.sealed
		    bin/kmsctl --config $dir/user.yaml object open --in /tmp/README.sealed
		Look at them, and remove them with all they hold:
		    ${compose[*]} -p $project ps
		    make down
	END
}

# One at a time: they would take each other down.
exec 9<docker-compose.yml
flock -n 9 || die "another compose.sh is at work"

case "$#-${1-}" in
1-up)
	begin
	up
	trap - EXIT
	how_to
	;;
1-test)
	begin
	up
	. scripts/scenario.sh
	scenario
	;;
1-down)
	need_compose
	down
	;;
*)
	sed -n '2,/^$/s/^# \{0,1\}//p' "$0" | sed '/^set /,$d' >&2
	exit 2
	;;
esac
