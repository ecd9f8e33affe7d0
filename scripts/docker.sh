# shellcheck shell=bash
# What the container scripts share; they source it. It makes sure of a Docker
# engine, and with need_compose of docker-compose, which it sets compose to.

# die says why and ends the script.
die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# need_docker installs Docker where the distribution has it, and fails if no engine
# answers: nothing that needs one is ever skipped.
need_docker() {
	command -v docker >/dev/null || scripts/packages.sh docker.io
	command -v docker >/dev/null || scripts/packages.sh docker-cli # a package of its own in newer releases
	local problem
	problem=$(docker version --format '{{.Server.Version}}' 2>&1 >/dev/null) || die "no Docker engine answers; start it (as root: service docker start), or become a member of the group docker.
docker says: $problem"
}

# need_compose sets the array compose to the command: the plugin of Docker, or else
# the distribution's docker-compose.
need_compose() {
	need_docker
	# shellcheck disable=SC2034 # it is for who sources this
	if docker compose version >/dev/null 2>&1; then
		compose=(docker compose)
	else
		command -v docker-compose >/dev/null || scripts/packages.sh docker-compose
		compose=(docker-compose)
	fi
}

# has_image IMAGE tells whether the engine has an image.
has_image() { docker image inspect "$1" >/dev/null 2>&1; }
