#!/usr/bin/env bash
# Tests with clients that we did not write (paho-mqtt, ADBC, mosquitto, generated gRPC stubs) against the built binary,
# and of the golden files with the reader in Python.
#   scripts/client_tests.sh              a client that cannot be had skips its tests, counted
#   scripts/client_tests.sh --require    ... fails
#   scripts/client_tests.sh --torture    only kill -9 and power cuts under load, SONDE_TORTURE_CYCLES times each (100)
#   scripts/client_tests.sh --soak       no test, but tests/clients/soak.py, which takes the further arguments
# Further arguments go to pytest. SONDE_BIN names a binary to test instead of building one.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

required=false
soak=false
case "${1:-}" in
    --require)
        required=true
        export SONDE_INTEROP=all
        shift
        ;;
    --torture)
        required=true
        shift
        export SONDE_TORTURE_CYCLES=${SONDE_TORTURE_CYCLES:-100}
        set -- -k "kill9 or powercut" "$@"
        ;;
    --soak)
        required=true
        soak=true
        shift
        ;;
esac

give_up() {
    if $required; then
        echo "client tests: $1" >&2
        exit 1
    fi
    skip "$(cat tests/clients/test_*.py tests/format/test_*.py | grep -c '^def test_')" "client tests: $1"
    exit 0
}

# 3.11 is the oldest Python that the pinned versions have packages for.
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    give_up "Python 3.11 or newer is missing (apt-get install python3 python3-venv)"

requirements=tests/clients/requirements.txt
own="$CARGO_TARGET_DIR/clients"
venv="$own/venv-$(cksum <"$requirements" | cut -d ' ' -f 1)"
if [ ! -e "$venv/ready" ]; then
    rm -rf "$venv"
    mkdir -p "$own"
    "$python" -m venv "$venv" || give_up "python3 cannot make a virtual environment (apt-get install python3-venv)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 2 --only-binary :all: \
        -r "$requirements" || give_up "pip cannot install $requirements, see its message above"
    touch "$venv/ready"
fi

# On a CI machine of our own we may install; on anybody's machine those tests are skipped with a reason.
if { ! command -v mosquitto_pub || ! command -v mkfs.xfs || ! test -e /usr/include/MQTTAsync.h; } >/dev/null && [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends mosquitto-clients xfsprogs libpaho-mqtt-dev; } >/dev/null 2>&1 ||
        echo "mosquitto-clients, xfsprogs and libpaho-mqtt-dev cannot be installed here" >&2
fi

log=$(mktemp)
trap 'rm -f "$log" "$own/sonde-$$"' EXIT
if [ -z "${SONDE_BIN:-}" ]; then
    scripts/preflight.sh
    cargo build --locked --bin sonde
    # A name of our own: another checkout that shares the target directory may replace the binary during the tests.
    SONDE_BIN="$own/sonde-$$"
    ln -f "$CARGO_TARGET_DIR/debug/sonde" "$SONDE_BIN"
fi
export SONDE_BIN PYTHONDONTWRITEBYTECODE=1
if $soak; then
    "$venv/bin/python" tests/clients/soak.py "$@"
    exit
fi

status=0
"$venv/bin/python" -m pytest -p no:cacheprovider -rfEs --durations=5 tests/clients tests/format "$@" 2>&1 | tee "$log" || status=$?
skips=0
while read -r count reason; do
    skip "$count" "clients: $reason"
    skips=$((skips + count))
done < <(sed -n 's/^SKIPPED \[\([0-9]*\)\] [^ ]*: \(.*\)/\1 \2/p' "$log" |
    awk '{ count = $1; $1 = ""; sum[$0] += count } END { for (reason in sum) print sum[reason] reason }')
if $required && [ "$skips" -gt 0 ] && [ "$status" -eq 0 ]; then
    echo "client tests: $skips were skipped, and all of them are required" >&2
    status=1
fi
exit "$status"
