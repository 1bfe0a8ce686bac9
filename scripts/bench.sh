#!/usr/bin/env bash
# Runs the benchmarks in the demo's profile, after a header that says on which machine and of which commit.
# Arguments go to the benchmarks.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
scripts/preflight.sh

shopt -s nullglob
found=(benches/*.rs */benches/*.rs)
if [ ${#found[@]} -eq 0 ]; then
    echo "there are no benchmarks yet" >&2
    exit 1
fi
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1 || true)
echo "machine: ${cpu:-unknown CPU}, $(getconf _NPROCESSORS_ONLN) cores, $(uname -srm)"
echo "commit:  $(git describe --always --dirty 2>/dev/null || echo none)"
echo "rustc:   $(rustc --version)"
exec cargo bench --locked --workspace --bench '*' --profile demo -- "$@"
