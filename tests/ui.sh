#!/usr/bin/env bash
# `rootlet ui` in a headless Chromium: a cluster of an ordinary user, the page before it, and what a person does there.
#   tests/ui.sh [PICTURES]     with a folder, pictures of the views are left there
set -euo pipefail
cd "$(dirname "$0")/.."
pictures=${1:+$(mkdir -p "$1" && realpath "$1")}
. tests/unprivileged.sh
target=target/x86_64-unknown-linux-gnu/debug
python=$PWD/target/tools/browser/bin

if ! command -v chromium >/dev/null; then
    echo "installing chromium"
    root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
    root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
fi
if [ ! -e "$python/../ready" ]; then
    python3 -m venv target/tools/browser
    "$python/pip" install --quiet websockets==17.4
    touch "$python/../ready"
fi
# As the end-to-end tests have it built.
cargo build --locked -p rootlet -p e2e -p scheduler --bins --tests

place=$(as_user mktemp -d "$scratch/ui.XXXXXX")
name=ui-$$
cp "$target/rootlet" target/tools/kubectl tests/ui/* "$place/"
tests/busybox-image.sh "$place/busybox.tar" localhost/busybox:test
chmod -R a+rX "$place"
clean() {
    as_user "$place/rootlet" delete --name "$name" >/dev/null || true
    rm -rf "$place"
}
trap clean EXIT
as_user "$place/rootlet" up --name "$name" --ephemeral --kubeconfig "$place/kubeconfig"
as_user "$place/rootlet" image load "$place/busybox.tar" --name "$name"

# The test itself may be root's; the browser and rootlet are the user's.
printf '#!/usr/bin/env bash\ncd %q\n. %q\nas_user "$@"\n' "$place" "$PWD/tests/unprivileged.sh" >"$place/as-user"
chmod +x "$place/as-user"
PYTHONDONTWRITEBYTECODE=1 "$python/python" tests/ui/test.py "$place" "$name" ${pictures:+"$pictures"}
