#!/bin/sh
# Builds and runs the main job; arguments go to `sonde demo`.
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh
scripts/preflight.sh
exec cargo run --locked --profile demo --bin sonde -- demo "$@"
