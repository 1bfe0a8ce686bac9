# Thin on purpose: what a target does is in the script that it names. `scripts/env.sh` sets the target directory.
# DEMO_ARGS passes flags on: make demo DEMO_ARGS="--once --json"
DEMO_ARGS ?=
# PEERS_ARGS likewise: make bench-peers PEERS_ARGS="--quick"
PEERS_ARGS ?=
# MQTT_ARGS too: make bench-mqtt MQTT_ARGS="--quick"
MQTT_ARGS ?=
# SOAK_ARGS too: make soak SOAK_ARGS="--minutes 5"
SOAK_ARGS ?=

.PHONY: demo test lint bench bench-peers bench-mqtt fuzz mutants torture soak interop help
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

bench-mqtt: ## the MQTT broker beside Mosquitto in one run: about five minutes
	@scripts/bench_mqtt.sh $(MQTT_ARGS)

fuzz:     ## every fuzz target for two minutes
	@scripts/fuzz.sh

mutants:  ## planted mutants of storage format and engine, each of which a test must catch
	@python3 scripts/mutants.py

torture:  ## crashes at every place, kill -9 and power cuts under load, many times
	@scripts/torture.sh

soak:     ## a mixed load for half an hour: what grows?
	@scripts/client_tests.sh --soak $(SOAK_ARGS)

interop:  ## every test with clients of other ecosystems, none of them skipped
	@scripts/client_tests.sh --require

help:
	@awk -F ': *## ' '/^[a-z-]+: *## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile
