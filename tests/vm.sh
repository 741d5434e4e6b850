#!/usr/bin/env bash
# Tries limits where the kernel can give them: in a virtual machine with systemd and cgroup v2.
#   tests/vm.sh [BINARY]
# VM names the script that runs a command in the machine as an ordinary user: `$VM run [--scope] -- COMMAND`.
# What it showed is in docs/vm.md.
set -euo pipefail
cd "$(dirname "$0")/.."
vm=$(realpath "${VM:-../shared/vm/vm.sh}")
[ -x "$vm" ] || { echo "no virtual machine: set VM to a script that runs commands in one"; exit 1; }
binary=${1:-target/x86_64-unknown-linux-gnu/debug/rootlet}
[ -x "$binary" ] || { echo "build first: $binary is not there"; exit 1; }
place=$(mktemp -d "$PWD/target/vm.XXXXXX")
trap 'rm -rf "$place"; "$vm" stop >/dev/null 2>&1 || true' EXIT
cp "$binary" "$place/rootlet" && strip "$place/rootlet"
cp target/tools/kubectl tests/vm-{forbidden,inside,plain,sctp,service,suspend,wait}.sh "$place/"
cargo build --locked -q -p netns --example associate
cp target/x86_64-unknown-linux-gnu/debug/examples/associate "$place/" && strip "$place/associate"
tests/busybox-image.sh "$place/busybox.tar" localhost/busybox:test
chmod -R a+rX "$place"
export VM_SHARE=$PWD VM_NAME=${VM_NAME:-rootlet}
"$vm" build
# An ssh login is in a scope of the system's, a terminal in one of the user's.
for how in "" --scope; do
    echo "== ${how:-login}"
    # shellcheck disable=SC2086
    "$vm" run $how -- "$place/vm-inside.sh" "$place"
done
echo "== SCTP"
"$vm" run --root -- modprobe sctp
"$vm" run -- "$place/vm-sctp.sh" "$place"
# The machine's user is whoever `run` runs as.
for user in root "$("$vm" run -- id -un)"; do
    echo "== without systemd, $user"
    "$vm" run --root -- "$place/vm-plain.sh" "$place" "$user"
done
echo "== service"
"$vm" run -- "$place/vm-service.sh" "$place" install
"$vm" run --root -- systemctl restart user@1000.service
"$vm" run -- "$place/vm-service.sh" "$place" after
echo "== user namespaces forbidden"
"$vm" run --root -- sysctl -q -w user.max_user_namespaces=0
"$vm" run -- "$place/vm-forbidden.sh" "$place"
"$vm" run --root -- sysctl -q -w user.max_user_namespaces=15000
echo "== suspend"
"$vm" run -- "$place/vm-suspend.sh" "$place" before
# The machine's RTC wakes it. What is shared with it does not survive that, the working folder included.
cd /
# The login ends before the machine wakes.
"$vm" run --root -- sh -c 'umount -l "$1" /host /out; rtcwake -m mem -s 330' sh "$VM_SHARE" || true
SECONDS=0
until "$vm" run -- true; do
    [ "$SECONDS" -lt 600 ] || { echo "FAIL  the machine did not wake"; exit 1; }
done
"$vm" run -- sh -c '"$HOME/suspend/vm-suspend.sh" "$HOME/suspend" after'
