#!/usr/bin/env bash
# Builds the binary and the end-to-end tests, and runs them as an ordinary user.
#   tests/e2e.sh [FILTER…]     arguments go to the test binary
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/unprivileged.sh
target=target/x86_64-unknown-linux-gnu/debug

# With the scheduler, whose tests want most of tokio, the features are those of the unit tests' selection, so that
# nothing is compiled for another set.
suite=$(cargo build --locked -p rootlet -p e2e -p scheduler --bins --tests --message-format=json |
    sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\/e2e-[^"]*\)".*/\1/p' | tail -1)
[ -x "$suite" ] || { echo "the test binary was not built"; exit 1; }

place=$(as_user mktemp -d "$scratch/e2e.XXXXXX")
clean() {
    # Each podman that `rootlet image load` asks leaves a process for the next one under the same runtime folder.
    for pid in $(pgrep -x catatonit || true); do
        if grep -qz "^XDG_RUNTIME_DIR=$place" "/proc/$pid/environ" 2>/dev/null; then kill "$pid" || true; fi
    done
    rm -rf "$place"
}
trap clean EXIT
# The user may not be able to read where the project lies.
cp "$target/rootlet" target/tools/{kubectl,kubectl-old,helm} "$place/"
cp "$suite" "$place/e2e"
cp -r examples docs README.md .ci "$place/"
tests/busybox-image.sh "$place/busybox.tar" localhost/busybox:test
tests/redis-image.sh "$place/redis.tar" localhost/redis:test
tests/busybox-image.sh "$place/library.tar" docker.io/library/busybox:1.37
chmod 755 "$place"/{rootlet,kubectl,kubectl-old,helm,e2e} && chmod -R a+rX "$place"
as_user env ROOTLET_E2E="$place" RUST_BACKTRACE=0 "$place/e2e" --test-threads=2 "$@"
