#!/usr/bin/env bash
# The tests that crash, in full: every place of the engine's histories, then kill -9 and power cuts under load,
# SONDE_TORTURE_CYCLES times each (100). Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

SONDE_TORTURE_EVERY=${SONDE_TORTURE_EVERY:-1} cargo test --locked --workspace --test tests -- crash:: disk:: power::
exec scripts/client_tests.sh --torture "$@"
