# QuorumKMS. `make help` lists what can be made.
SHELL := /bin/bash
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION) -X main.commit=$(COMMIT)
FUZZTIME ?= 20s
RACE_NODES ?= ^(TestThreeNodes|TestMembership|TestFaults|TestRecover|TestRestore|TestBackups)$$
# Long, and of one goroutine: under the race detector they would show nothing.
RACE_SKIP ?= ^(TestConformance|TestNSSConformance|TestFailedDecryptionsLeakNothing|TestConformanceInDirectory|TestPlantedObjects|TestProbesCanFail|TestProperty.*|TestEveryByteOfASnapshotCounts|TestSegments|TestTornRecord|TestSealed.*|TestHalfSealed|TestSealingRefused)$$

.PHONY: help
help: ## show this help
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps:
	@scripts/softhsm.sh install --gcc >/dev/null

.PHONY: test-deps
test-deps: deps
	@scripts/softhsm.sh install --nss >/dev/null
	@scripts/packages.sh openssl

.PHONY: build
build: deps ## build bin/kmsd and bin/kmsctl
	@mkdir -p bin
	CGO_ENABLED=1 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/kmsd ./cli/kmsd
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/kmsctl ./cli/kmsctl

.PHONY: demo
demo: build ## three nodes, a sealed file, a dead leader: the main job, in under a minute
	@scripts/demo.sh

.PHONY: test
test: test-deps ## all tests
	CGO_ENABLED=1 go test -timeout 60m -parallel 4 ./...

.PHONY: race
race: test-deps ## all tests under the race detector but kmsctl's and RACE_SKIP; of those with real nodes RACE_NODES
	CGO_ENABLED=1 go test -race -timeout 60m -skip '$(RACE_SKIP)' $$(go list ./... | grep -v /cli/)
	CGO_ENABLED=1 go test -race -timeout 60m -parallel 4 -run '$(RACE_NODES)' ./cli/kmsd

.PHONY: chaos
chaos: ## real nodes under faults for CHAOS (3m), SEED and NODES as given; as root
	scripts/chaos.sh chaos

.PHONY: powerloss
powerloss: ## the power of all nodes fails under load, ROUNDS times (3); as root
	scripts/chaos.sh powerloss

.PHONY: lint
lint: ## format, vet and lint (builds the linter the first time)
	scripts/lint.sh

.PHONY: generate
generate: ## generate code from the protocol buffers
	scripts/proto.sh

.PHONY: generated
generated: ## fail if generated code is not what the protocol buffers give
	scripts/proto.sh --check

.PHONY: check
check: test lint generated model sim race chaos powerloss demo compose-test ## everything that must hold

SEEDS    ?= 50
FIRST    ?= 1
DURATION ?= 120s

.PHONY: sim
sim: ## simulate SEEDS clusters under faults for DURATION of virtual time each (default 50, 120s), then each without a rule
	cd node/nodetest && go test -timeout 30m -run 'TestSim|TestScripts' -sim.seeds $(SEEDS) -sim.first $(FIRST) -sim.duration $(DURATION) .
	cd node/nodetest && go test -timeout 30m -tags mutant -run TestMutants .

.PHONY: fuzz
fuzz: deps ## fuzz every parser for FUZZTIME each (default 20s)
	scripts/fuzz.sh $(FUZZTIME)

.PHONY: model
model: ## check the model of the lease with Spin, and that each of its rules is needed
	scripts/model.sh

.PHONY: model-full
model-full: ## the same with large configurations: some minutes, about 4 GiB
	scripts/model.sh full

.PHONY: timing
timing: deps ## measure Raft's timing and the lease: stalled disks, leaders that die and stop (half an hour, root)
	CGO_ENABLED=1 go test -tags measure -run TestTiming -v -timeout 2h -count 1 ./cli/kmsd | grep -E '^(---|FAIL|ok)|RESULT'

KEYS ?= 100000,1000000

.PHONY: bench-scale
bench-scale: deps ## one node with KEYS keys (100000,1000000): memory, log, snapshots, calls; to bench/scale.json (ten minutes)
	CGO_ENABLED=1 go test -tags measure -run '^TestScale$$' -v -timeout 2h -count 1 ./cli/kmsd \
		-scale-keys $(KEYS) -scale-version $(VERSION) -scale-out $(CURDIR)/bench/scale.json

.PHONY: bench
bench: deps ## calls, changes, failover and sealing beside their floors; to bench/results.json (six minutes)
	@scripts/packages.sh openssl
	CGO_ENABLED=1 go test -tags measure -run '^TestBench$$' -v -timeout 20m -count 1 ./cli/kmsd \
		-bench-version $(VERSION) -bench-out $(CURDIR)/bench/results.json

.PHONY: microbench
microbench: deps ## Go benchmarks
	CGO_ENABLED=1 go test -run '^$$' -bench . -benchmem ./...

.PHONY: image
image: build ## build the container image quorumkms:dev
	scripts/image.sh

.PHONY: man
man: build ## write the man pages of all commands to man/man1
	@mkdir -p man/man1 && bin/kmsd gen-man man/man1 && bin/kmsctl gen-man man/man1

.PHONY: up
up: image ## start three nodes in containers and make them a cluster
	scripts/compose.sh up

.PHONY: down
down: ## stop them and remove everything of theirs
	scripts/compose.sh down

.PHONY: compose-test
compose-test: image ## the scenario in containers: seal, cut a node off, recover
	scripts/compose.sh test

.PHONY: clean
clean: ## remove what was built
	rm -rf bin man .tools
