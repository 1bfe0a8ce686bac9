# Thin on purpose: what a target does is in the script that it names. `scripts/env.sh` sets the target directory.
# DEMO_ARGS passes flags on: make demo DEMO_ARGS="--once --json"
DEMO_ARGS ?=
# PEERS_ARGS likewise: make bench-peers PEERS_ARGS="--quick"
PEERS_ARGS ?=

.PHONY: demo test lint bench bench-peers fuzz mutants torture interop help
.DEFAULT_GOAL := help

demo:     ## build and run the main job on real recordings
	@scripts/demo.sh $(DEMO_ARGS)

test:     ## everything CI runs
	@scripts/test.sh

lint:     ## the quick part of test: formatting, dependencies, clippy
	@scripts/test.sh fmt deps clippy

bench:    ## all benchmarks, with machine and commit
	@scripts/bench.sh

bench-peers: ## SondeDB and other databases in one run; needs Java, Maven, Go and Debian for all of them
	@scripts/bench_peers.sh $(PEERS_ARGS)

fuzz:     ## every fuzz target for two minutes
	@scripts/fuzz.sh

mutants:  ## planted mutants of the storage format, each of which a test must catch
	@python3 scripts/mutants.py

torture:  ## kill -9 under load, many times
	@scripts/client_tests.sh --torture

interop:  ## every test with clients of other ecosystems, none of them skipped
	@scripts/client_tests.sh --require

help:
	@awk -F ': *## ' '/^[a-z-]+: *## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile
