#!/usr/bin/env bash
# Runs the fuzz targets on stable Rust, each for SONDE_FUZZ_SECONDS: those of fuzz/, which libFuzzer leads along the
# coverage of the code, then the tests named `fuzz_*`, which draw their cases themselves, and a million mutants of each
# MQTT packet in each version.
#   scripts/fuzz.sh [name]           two minutes each, of all or of those whose name contains `name`
#   scripts/fuzz.sh --smoke [name]   five seconds each, and ten thousand mutants
#   scripts/fuzz.sh --keep [name]    runs nothing, but adds to fuzz/corpus what covers more of what runs here found
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
scripts/preflight.sh fuzz

seconds=120 mutants=1000000 keep=false
case "${1:-}" in
    --smoke) seconds=5 mutants="" && shift ;;
    --keep) keep=true && shift ;;
esac
name=${1:-}
export SONDE_FUZZ_SECONDS=${SONDE_FUZZ_SECONDS:-$seconds}

# Builds, what runs find and what makes a target fail: all of it stays outside of the checkout.
own="$CARGO_TARGET_DIR/fuzz"
host=$(rustc -vV | sed -n 's/^host: //p')
# Coverage alone: a sanitizer would need a nightly toolchain. Given `--target`, cargo leaves build scripts without it.
coverage="-Cpasses=sancov-module"
for pass in level=4 inline-8bit-counters pc-table trace-compares; do
    coverage+=" -Cllvm-args=-sanitizer-coverage-$pass"
done

fuzz() {
    local target=$1 log="$own/logs/$1" findings="$own/findings/$1/" status=0
    mkdir -p "$own/logs" "$findings" "$own/corpus/$target"
    # The first folder takes what is new. libFuzzer cannot bound a single block without a sanitizer: fuzz/src/alloc.rs does.
    RUST_BACKTRACE=1 "$own/$host/release/$target" -max_total_time="$SONDE_FUZZ_SECONDS" -timeout=10 -rss_limit_mb=2048 -max_len=16384 \
        -print_final_stats=1 -artifact_prefix="$findings" \
        "$own/corpus/$target" "fuzz/corpus/$target" storage-format/testdata/*/ >"$log" 2>&1 || status=$?
    awk -v target="$target" '
        { for (i = 1; i < NF; i++) if ($i == "cov:") edges = $(i + 1) }
        /^stat::number_of_executed_units/ { rounds = $2 }
        END { printf "%-12s %d rounds, %d edges\n", target, rounds, edges }' "$log"
    if [ "$status" -ne 0 ]; then
        { grep -A 20 'panicked at' "$log" || true; } | cut -c 1-300
        { grep -E 'ERROR: libFuzzer|Test unit written' "$log" || tail -n 20 "$log"; } | cut -c 1-300
        echo "fuzz: $target fails; the whole log is $log" >&2
        return 1
    fi
}

# Golden files and the corpus are known: of what runs found, inputs of at most 1 KiB that cover more are added, and as few
# of them as do.
keep() {
    local target=$1 work known=0
    work=$(mktemp -d)
    mkdir -p "$work/all" "$work/found" "$own/corpus/$target" "fuzz/corpus/$target"
    for file in storage-format/testdata/*/* "fuzz/corpus/$target"/*; do
        if [ -f "$file" ]; then cp "$file" "$work/all/known-$((known += 1))"; fi
    done
    find "$own/corpus/$target" -type f -size -3 -exec cp {} "$work/found" \;
    if ! "$own/$host/release/$target" -merge=1 -set_cover_merge=1 -use_counters=0 "$work/all" "$work/found" 2>"$work/log"; then
        tail -n 40 "$work/log" >&2
        return 1
    fi
    rm -f "$work/all"/known-*
    echo "$target: $(find "$work/all" -type f | wc -l) new"
    find "$work/all" -type f -exec cp {} "fuzz/corpus/$target" \;
    rm -rf "$work"
}

targets=""
for file in fuzz/targets/*.rs; do
    target=$(basename "$file" .rs)
    case "$target" in *"$name"*) targets+=" $target" ;; esac
done
if [ -n "$targets" ]; then
    # shellcheck disable=SC2086  # words
    RUSTFLAGS="$coverage" cargo build --locked --manifest-path fuzz/Cargo.toml --target-dir "$own" --target "$host" \
        --release --features libfuzzer $(printf ' --bin %s' $targets)
fi
for target in $targets; do
    if $keep; then keep "$target"; else fuzz "$target"; fi
done
if $keep; then exit; fi

tests=$(grep -rhoE 'fn fuzz_[a-z0-9_]+' --include='*.rs' src tests ./*/src ./*/tests | cut -c 4- | grep -F -- "$name" || true)
if [ -z "$tests" ]; then
    if [ -z "$targets" ]; then skip 1 "fuzz: no target has '$name' in its name"; fi
    exit
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run_tests() {
    cargo test --locked "$@" 2>&1 | tee "$log"
    # A run of nothing must not look like a run without findings.
    if ! grep -q '^test result: ok\. [1-9]' "$log"; then skip 1 "fuzz: none of the tests named fuzz_* ran"; fi
}
# shellcheck disable=SC2086  # words
(unset SONDE_FUZZ_MUTANTS && run_tests --workspace -- $tests)

# Of these it is the number that counts: they run once more, optimised, but with every check, in a build of their crate
# alone.
counted=$(grep -E '^fuzz_mutants_' <<<"$tests" || true)
if [ -n "$counted" ] && [ -n "${SONDE_FUZZ_MUTANTS:=$mutants}" ]; then
    export SONDE_FUZZ_MUTANTS CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
    # shellcheck disable=SC2086  # words
    run_tests --release -p sonde-proto --test tests --target-dir "$own" -- $counted --nocapture
fi
