#!/bin/sh
# Checks what a build needs (with the argument `test` or `fuzz`: what scripts/test.sh or scripts/fuzz.sh needs as well),
# and says in one line what is missing and how to get it. Plain sh, because it has to run on a machine that has nothing yet.
set -u
cd "$(dirname "$0")/.." || exit 1

missing=""
lacks() { missing="$missing${missing:+; }$1"; }
have() { command -v "$1" >/dev/null 2>&1; }
# at_least 1.95.0 1.94: is the first version the second one or newer?
at_least() {
    awk -v have="$1" -v want="$2" 'BEGIN {
        split(have, h, "."); split(want, w, ".")
        for (i = 1; i <= 3; i++) if (h[i] + 0 != w[i] + 0) exit h[i] + 0 < w[i] + 0
    }'
}

have git || lacks "git (apt-get install git)"
have make || lacks "make (apt-get install make)"
echo '#include <stdlib.h>' | cc -x c -fsyntax-only - >/dev/null 2>&1 ||
    lacks "a C compiler named cc, with its headers (apt-get install build-essential; macOS: xcode-select --install)"

if [ -n "${1:-}" ]; then
    echo '#include <cstdlib>' | c++ -x c++ -fsyntax-only - >/dev/null 2>&1 ||
        lacks "a C++ compiler named c++, for libFuzzer (apt-get install build-essential; macOS: xcode-select --install)"
fi

want=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml | head -n 1)
found=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p')
if ! have cargo || [ -z "$found" ]; then
    lacks "Rust $want or newer, as cargo and rustc (https://rustup.rs, then: rustup default stable)"
elif ! at_least "$found" "$want"; then
    lacks "Rust $want or newer, this is $found (rustup update stable)"
elif [ "${1:-}" = test ]; then
    cargo fmt --version >/dev/null 2>&1 || lacks "rustfmt (rustup component add rustfmt)"
    cargo clippy --version >/dev/null 2>&1 || lacks "clippy (rustup component add clippy)"
fi

if [ -n "$missing" ]; then
    echo "missing: $missing" >&2
    exit 1
fi
