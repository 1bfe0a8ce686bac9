#!/usr/bin/env bash
# Compares SondeDB with the databases that package registries offer; docs/benchmarks.md says how, and gets the figures.
# Arguments go to scripts/bench_peers.py, --quick and --help among them. SONDE_BIN names a binary to measure instead of
# building one. Programs, rows and figures go to SONDE_PEERS_CACHE, ~/.cache/sonde/peers by default.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
cache=${SONDE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sonde/peers}

# 3.11 is the oldest Python that the pinned versions have packages for.
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "bench-peers: Python 3.11 or newer is missing (apt-get install python3 python3-venv)" >&2
    exit 1
}
requirements=scripts/peers/requirements.txt
venv="$cache/venv-$(cksum <"$requirements" | cut -d ' ' -f 1)"
if [ ! -e "$venv/ready" ]; then
    rm -rf "$venv"
    mkdir -p "$cache"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 2 --only-binary :all: \
        -r "$requirements"
    touch "$venv/ready"
fi

if [ -z "${SONDE_BIN:-}" ]; then
    scripts/preflight.sh
    cargo build --locked --workspace --profile demo --bin sonde
    SONDE_BIN="$CARGO_TARGET_DIR/demo/sonde"
fi
export PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" scripts/bench_peers.py --cache "$cache" --sonde "$(realpath "$SONDE_BIN")" "$@"
