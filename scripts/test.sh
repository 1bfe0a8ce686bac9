#!/usr/bin/env bash
# Everything CI runs, cheapest first. Stops at the first step that fails, and ends with one line of totals.
#   scripts/test.sh               all steps
#   scripts/test.sh fmt clippy    only these
# shellcheck disable=SC2034  # title_* are read through ${!title}
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
. scripts/env.sh

all_steps=(fmt deps clippy test corpus doc msrv benches fuzz clients)

title_fmt="formatting"
step_fmt() { cargo fmt --all --check && cargo fmt --manifest-path fuzz/Cargo.toml --check; }

title_deps="licences, sources, duplicate versions, declared Rust versions"
step_deps() {
    if command -v python3 >/dev/null; then
        PYTHONDONTWRITEBYTECODE=1 python3 -m doctest scripts/check_deps.py scripts/peers/report.py
        python3 scripts/check_deps.py
    else
        skip 1 "dependency rules: python3 is missing (apt-get install python3)"
    fi
    if cargo deny --version >/dev/null 2>&1; then cargo deny check licenses bans sources; fi
}

# `-D warnings` stands behind `--`: in RUSTFLAGS it would build every dependency once more.
title_clippy="clippy without warnings"
step_clippy() { cargo clippy --locked --workspace --all-targets --no-deps -- -D warnings; }

title_test="unit, integration and documentation tests"
step_test() { cargo test --locked --workspace --no-fail-fast; }

# fuzz/ is a workspace of its own, with few dependencies and in a folder of its own. Its targets need no libFuzzer here.
title_corpus="what fuzzing found before, and clippy of the fuzz targets"
step_corpus() {
    local own=(--locked --manifest-path fuzz/Cargo.toml --target-dir "$CARGO_TARGET_DIR/fuzz")
    cargo test "${own[@]}" --no-fail-fast
    cargo clippy "${own[@]}" --all-targets --no-deps -- -D warnings
}

title_doc="documentation without warnings"
step_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps; }

# That no dependency declares a newer Rust is part of the step `deps`; this one compiles, where that toolchain exists.
title_msrv="the oldest Rust we promise"
step_msrv() {
    local version toolchain
    version=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml | head -n 1)
    if rustc --version | grep -q "^rustc ${version//./\\.}[. ]"; then
        echo "this toolchain is Rust $version: the other steps have compiled with it"
        return
    fi
    toolchain=$(rustup toolchain list 2>/dev/null | grep -oE "^${version//./\\.}(\.[0-9]+)?-[^ ]*" | head -n 1 || true)
    if [ -n "$toolchain" ]; then
        cargo "+$toolchain" check --locked --workspace
    else
        skip 1 "compiling with Rust $version: not installed (rustup toolchain install --profile minimal $version)"
    fi
}

title_benches="benchmarks compile"
step_benches() { cargo build --locked --workspace --benches; }

title_fuzz="fuzz smoke"
step_fuzz() { scripts/fuzz.sh --smoke; }

title_clients="clients of other ecosystems"
step_clients() { scripts/client_tests.sh; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export SONDE_SKIPS="$work/skips"
: >"$SONDE_SKIPS"
passed=0 failed=0 broken="" report=""

# Adds what a step's output says about tests: cargo's "test result:" lines and pytest's last line.
count() {
    local p f ignored
    read -r p f ignored < <(awk '
        /^test result: / { passed += $4; failed += $6; ignored += $8 }
        /^[=0-9].* in [0-9.]+s/ && / (passed|failed|skipped|error)/ {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) passed += $(i - 1)
                if ($i ~ /^(failed|errors?)/) failed += $(i - 1)
            }
        }
        END { print passed + 0, failed + 0, ignored + 0 }' "$1")
    passed=$((passed + p)) failed=$((failed + f))
    if [ "$ignored" -gt 0 ]; then echo "$ignored skipped: tests marked #[ignore]" >>"$SONDE_SKIPS"; fi
}

run() {
    local name=$1 title="title_$1" start=$SECONDS status line
    printf '\n==> %s: %s\n' "$name" "${!title}"
    (set -e && "step_$name") 2>&1 | tee "$work/log"
    status=${PIPESTATUS[0]}
    count "$work/log"
    line=$(printf '%-8s %3dm%02ds  %s' "$name" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) \
        "$([ "$status" -eq 0 ] && echo ok || echo FAILED)")
    report+="  $line"$'\n'
    echo "<== $line"
    if [ "$status" -ne 0 ]; then broken=$name; fi
}

steps=("$@")
if [ $# -eq 0 ]; then steps=("${all_steps[@]}"); fi
for name in "${steps[@]}"; do
    if ! declare -F "step_$name" >/dev/null; then
        echo "unknown step '$name', there are: ${all_steps[*]}" >&2
        exit 2
    fi
done

scripts/preflight.sh test || exit 1
for name in "${steps[@]}"; do
    run "$name"
    if [ -n "$broken" ]; then break; fi
done

skipped=$(awk '{ n += $1 } END { print n + 0 }' "$SONDE_SKIPS")
if [ -n "$broken" ] && [ "$failed" -eq 0 ]; then failed=1; fi
printf '\n==> summary, %dm%02ds\n%s' $((SECONDS / 60)) $((SECONDS % 60)) "$report"
if [ "$skipped" -gt 0 ]; then
    sort -rn "$SONDE_SKIPS"
    echo "not checked by this run: $skipped"
fi
if [ -n "$broken" ]; then echo "step '$broken' failed: its output is above, scripts/test.sh $broken runs it alone"; fi
echo "$passed passed, $failed failed, $skipped skipped"
[ -z "$broken" ]
