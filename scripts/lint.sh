#!/usr/bin/env bash
# Checks Go and shell; builds the pinned Go linter into .tools the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
version=v2.15.0
bin=$PWD/.tools/golangci-lint-$version
if [ ! -x "$bin" ]; then
	echo "building golangci-lint $version (once, a minute or two)"
	mkdir -p .tools
	GOBIN=$PWD/.tools/build CGO_ENABLED=0 GOFLAGS='' go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version"
	mv .tools/build/golangci-lint "$bin" && rmdir .tools/build
fi
scripts/packages.sh shellcheck
shellcheck -x scripts/*.sh .ci/run
scripts/systemd.sh
go mod tidy -diff
go vet ./...
go vet -tags chaos,measure ./cli/kmsd
go vet -tags mutant ./node/...
"$bin" run ./...
