#!/usr/bin/env bash
# Measures SondeDB's MQTT broker beside Mosquitto; docs/benchmarks.md says how, and gets the table.
# Arguments go to scripts/bench_mqtt.py, --quick and --help among them. SONDE_BIN names a binary to measure instead of
# building one.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

if [ -z "${SONDE_BIN:-}" ]; then
    scripts/preflight.sh
    cargo build --locked --workspace --profile demo --bin sonde
    SONDE_BIN="$CARGO_TARGET_DIR/demo/sonde"
fi
export PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" scripts/bench_mqtt.py --sonde "$(realpath "$SONDE_BIN")" "$@"
