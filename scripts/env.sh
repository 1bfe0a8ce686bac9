# shellcheck shell=sh
# Sourced by every script, with the root of the checkout as working directory.

# The build directory lives outside of the checkout and is shared, so that a fresh clone does not build DataFusion again.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sonde/target}"

# skip <how many tests> <which: why>: what this run does not check is said here, and again, counted, by scripts/test.sh.
skip() {
    echo "SKIPPED ($1): $2" >&2
    if [ -n "${SONDE_SKIPS:-}" ]; then echo "$1 skipped: $2" >>"$SONDE_SKIPS"; fi
}
