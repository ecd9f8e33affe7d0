# shellcheck shell=bash
# The scenario of scripts/compose.sh test, on the cluster that it has started:
# compose.sh sources this, and what is used here and not made here is made there.
# shellcheck disable=SC2154

# via NODE WHO ARG… is kmsctl WHO, and fails unless that very node gives the answer.
via() {
	local node=$1 who=$2
	shift 2
	kmsctl "$who" --addresses "$(at "$client_port" "$node")" "$@" >"$dir/said" 2>&1 || {
		cat "$dir/said" >&2
		fail "at $node: kmsctl $*"
	}
	# A node that did not answer in time is asked again; any other failure leads elsewhere.
	! grep 'trying again' "$dir/said" | grep -v DeadlineExceeded >&2 || fail "$node did not answer by itself: kmsctl $*"
}

# make_file NAME BYTES makes a file of random bytes and notes its digest.
make_file() {
	head -c "$2" /dev/urandom >"$dir/plain/$1"
	(cd "$dir/plain" && sha256sum "$1") >>"$dir/SHA256SUMS"
}

seal() { via "$1" user object seal "$2" --context "file=$3" --in "$dir/plain/$3" --out "$dir/sealed/$3"; }
unseal() { via "$1" user object open --context "file=$2" --in "$dir/sealed/$2" --out "$dir/opened/$1/$2"; }
# ready NODE KEY tells whether a node knows a key and serves.
ready() { kmsctl user --addresses "$(at "$client_port" "$1")" --timeout 2s key describe "$2" >/dev/null 2>&1 && serves "$1"; }

# compare opens every sealed file at each of the nodes and compares digests.
compare() {
	local node name
	for node in "$@"; do
		for name in "$dir"/sealed/*; do
			unseal "$node" "${name##*/}"
		done
		(cd "$dir/opened/$node" && sha256sum --quiet -c ../../SHA256SUMS) || fail "what $node opened is not what was sealed"
		say "$node opens all $(wc -l <"$dir/SHA256SUMS") files; SHA-256 agrees"
	done
}

now() { date +%s%3N; } # milliseconds
seconds() { awk -v ms="$1" 'BEGIN { printf "%.1f s", ms / 1000 }'; }

# keep_asking NODE asks a cut-off node, from inside, to encrypt, until twice its lease has
# passed. It prints a line for each question: how many milliseconds after the cut it was
# asked, and what came of it.
keep_asking() {
	local asked=0 answer code
	while [ $asked -le $((2 * lease * 1000)) ]; do
		asked=$(($(now) - cut))
		code=0
		answer=$(echo probe | docker exec -i "${id[$1]}" kmsctl --cert "$home/user.crt" --key "$home/user.key" --timeout 2s \
			encrypt alias/files --out /dev/null 2>&1) || code=$?
		case $code-$answer in
		0-*) echo "$asked answered" ;;
		3-*"127.0.0.1:$client_port: NO_LEASE"*) echo "$asked refused" ;;
		*) echo "$asked code $code: $answer" ;;
		esac
		sleep 0.25
	done
}

other_leader() {
	local leader
	leader=$(leader_of "$1") && [ -n "$leader" ] && [ "$leader" != "$2" ]
}

seal_files() {
	local node i=0 size
	mkdir -p "$dir"/{plain,sealed} "${nodes[@]/#/$dir/opened/}"
	quietly kmsctl admin key create --alias alias/files --description "the files of the scenario"
	for node in "${nodes[@]}"; do
		wait_until "$patience" "$node knows the key alias/files" ready "$node" alias/files
	done
	for size in 0 1 65537 1048576 16777216; do
		make_file "before-$size" $size
		node=${nodes[i++ % 3]}
		seal "$node" alias/files "before-$size"
		say "sealed $size bytes at $node"
	done
	! kmsctl user object open --context file=other --in "$dir/sealed/before-1" --out "$dir/said" 2>/dev/null || fail "a file opens under another context"
	compare "${nodes[@]}"
}

# cut_off NODE takes a node's network away, and sees to it that there is a key user in
# its container to ask it.
cut_off() {
	mkdir "$dir/asker"
	cp "$dir"/certs/user.{crt,key} "$dir/asker"
	put "$1" "$dir/asker"
	docker network disconnect "$network" "${id[$1]}"
	cut=$(now)
	say "$1 has no network any more"
	keep_asking "$1" >"$dir/watched" &
	watcher=$!
}

others_go_on() {
	local gone=$1 node key addresses others=("${@:2}")
	addresses=$(at "$client_port" "${others[@]}")
	for node in "${others[@]}"; do
		make_file "during-$node" 100000
		seal "$node" alias/files "during-$node"
		unseal "$node" before-65537
		cmp "$dir/plain/before-65537" "$dir/opened/$node/before-65537" || fail "$node opened something else"
		say "$node seals and opens, $(seconds $(($(now) - cut))) after the cut"
	done
	wait_until "$patience" "the two have a new leader" other_leader "${others[0]}" "$gone"
	say "$(leader_of "${others[0]}") leads"
	key=$(kmsctl admin --addresses "$addresses" --output json key create --description "made without $gone" | awk -F'"' '$2 == "key_id" { print $4 }') ||
		fail "no key was created"
	say "they created a key, $(seconds $(($(now) - cut))) after the cut"
	quietly kmsctl admin --addresses "$addresses" key alias create alias/during "$key"
	say "and its alias, $(seconds $(($(now) - cut))) after the cut: that restricts, so it waits until $gone cannot answer any more"
	for node in "${others[@]}"; do
		wait_until "$patience" "$node knows the key alias/during and serves" ready "$node" alias/during
	done
	make_file during-new-key 100000
	seal "${others[1]}" alias/during during-new-key
	compare "${others[@]}"
}

# cut_off_refuses judges what keep_asking has seen: nothing asked after the lease's end may
# have been answered, and what is said then must be the want of a lease.
cut_off_refuses() {
	local answered refused
	say "waiting until twice its lease has passed"
	wait "$watcher"
	watcher=
	answered=$(awk '$2 == "answered" { last = $1 } END { print last + 0 }' "$dir/watched")
	[ "$answered" -le $((lease * 1000)) ] || fail "$1 still answered $(seconds "$answered") after the cut"
	refused=$(awk -v lease=$((lease * 1000)) '$1 > lease && $2 == "refused"' "$dir/watched" | wc -l)
	[ "$refused" -gt 0 ] || fail "$1 does not refuse for want of a lease: $(cat "$dir/watched")"
	say "the last question it answered was asked $(seconds "$answered") after the cut"
	say "after $lease s, until $(seconds $(($(now) - cut))), it refused each of $refused: NO_LEASE"
	say "it says of itself: $(docker exec "${id[$1]}" kmsctl --output json cluster status | awk -F'"' '$2 == "not_serving_reason" { print $4 }')"
}

recovers() {
	local node=$1
	docker network connect --ip "${address[$node]}" --alias "$node" "$network" "${id[$node]}"
	say "$node has its network again, at ${address[$node]}"
	wait_until "$patience" "$node serves again" serves "$node"
	wait_until "$patience" "$node knows the key alias/during" ready "$node" alias/during
	make_file after 100000
	seal "$node" alias/during after
	say "$node seals under the key made without it"
}

scenario() {
	local leader node others=()
	step "A key, and five files sealed under it at all three nodes"
	seal_files
	wait_until "$patience" "a leader is known" other_leader kms-1 ''
	leader=$(leader_of kms-1)
	for node in "${nodes[@]}"; do
		[ "$node" = "$leader" ] || others+=("$node")
	done
	step "The leader, $leader, is cut off its network"
	cut_off "$leader"
	step "The two others go on"
	others_go_on "$leader" "${others[@]}"
	step "The cut-off node refuses cryptography, within its lease of $lease s"
	cut_off_refuses "$leader"
	step "$leader comes back"
	recovers "$leader"
	wait_until "$patience" "all three are voters, serve and reach each other" all_well
	step "Every file, opened at every node"
	compare "${nodes[@]}"
	step "Everything is taken down"
	down
	say "containers, network, volumes and $dir are gone"
	printf '\nAll of it held, in %d s.\n' "$SECONDS"
}
