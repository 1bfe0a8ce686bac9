#!/usr/bin/env bash
# Runs the fuzz targets. A target is a test whose name starts with `fuzz_`; it works for SONDE_FUZZ_SECONDS on stable Rust.
#   scripts/fuzz.sh [name]       two minutes each, of all targets or of those whose name contains `name`
#   scripts/fuzz.sh --smoke      five seconds each
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
scripts/preflight.sh

seconds=120
if [ "${1:-}" = --smoke ]; then
    seconds=5
    shift
fi
export SONDE_FUZZ_SECONDS=${SONDE_FUZZ_SECONDS:-$seconds}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --locked --workspace "fuzz_${1:-}" 2>&1 | tee "$log"
# A run of nothing must not look like a run without findings.
if ! grep -q '^test result: ok\. [1-9]' "$log"; then skip 1 "fuzz: no target matches fuzz_${1:-}"; fi
