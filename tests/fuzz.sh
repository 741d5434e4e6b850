#!/usr/bin/env bash
# Fuzzes the parsers of foreign bytes by libFuzzer, each for some seconds.
#   tests/fuzz.sh SECONDS [TARGET…]     without targets all of them
# What is found lies in target/fuzz/found, and stays there for the next run to begin with.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?seconds for each target}
shift
host=x86_64-unknown-linux-gnu
# What cargo-fuzz passes for stable compilers: counters at every edge, and operands of comparisons.
export RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
export CARGO_TARGET_DIR=$PWD/target/fuzz
cargo build --release --locked --target "$host" --manifest-path tests/fuzz/Cargo.toml

targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cd tests/fuzz/targets && ls | sed 's/\.rs$//')
found=$CARGO_TARGET_DIR/found
failed=()
for target in "${targets[@]}"; do
    # libFuzzer adds to the first folder what reaches something new.
    mkdir -p "$CARGO_TARGET_DIR/corpus/$target" "$found/$target"
    echo "== $target"
    "$CARGO_TARGET_DIR/$host/release/$target" "$CARGO_TARGET_DIR/corpus/$target" "tests/fuzz/corpus/$target" "$found/$target" \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$found/$target/" 2>"$CARGO_TARGET_DIR/$target.log" || failed+=("$target")
    grep -E 'stat::number_of_executed_units|panicked|SUMMARY|ERROR' "$CARGO_TARGET_DIR/$target.log" || true
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]} (target/fuzz/TARGET.log tells how)"; exit 1; }
