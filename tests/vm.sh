#!/usr/bin/env bash
# Tries limits where the kernel can give them: in a virtual machine with systemd and cgroup v2.
#   tests/vm.sh [BINARY [ROUND…]]     without rounds all of them
# VM names the script that runs a command in the machine as an ordinary user: `$VM run [--scope] -- COMMAND`.
# What it showed is in docs/vm.md.
set -euo pipefail
cd "$(dirname "$0")/.."
vm=$(realpath "${VM:-../shared/vm/vm.sh}")
[ -x "$vm" ] || { echo "no virtual machine: set VM to a script that runs commands in one"; exit 1; }
binary=${1:-target/x86_64-unknown-linux-gnu/debug/rootlet}
[ -x "$binary" ] || { echo "build first: $binary is not there"; exit 1; }
rounds=("${@:2}")
[ $# -gt 1 ] || rounds=(limits sctp plain service forbidden suspend reboot)
place=$(mktemp -d "$PWD/target/vm.XXXXXX")
trap 'rm -rf "$place"; "$vm" stop >/dev/null 2>&1 || true' EXIT
cp "$binary" "$place/rootlet" && strip "$place/rootlet"
cp target/tools/kubectl tests/vm-{forbidden,inside,plain,reboot,sctp,service,suspend,wait}.sh "$place/"
tests/busybox-image.sh "$place/busybox.tar" localhost/busybox:test
chmod -R a+rX "$place"
export VM_SHARE=$PWD VM_NAME=${VM_NAME:-rootlet}

# An ssh login is in a scope of the system's, a terminal in one of the user's.
limits() {
    for how in "" --scope; do
        echo "== ${how:-login}"
        # shellcheck disable=SC2086
        "$vm" run $how -- "$place/vm-inside.sh" "$place"
    done
}

sctp() {
    echo "== SCTP"
    cargo build --locked -q -p netns --example associate
    cp target/x86_64-unknown-linux-gnu/debug/examples/associate "$place/" && strip "$place/associate"
    "$vm" run --root -- modprobe sctp
    "$vm" run -- "$place/vm-sctp.sh" "$place"
}

plain() {
    # The machine's user is whoever `run` runs as.
    for user in root "$("$vm" run -- id -un)"; do
        echo "== without systemd, $user"
        "$vm" run --root -- "$place/vm-plain.sh" "$place" "$user"
    done
}

service() {
    echo "== service"
    "$vm" run -- "$place/vm-service.sh" "$place" install
    "$vm" run --root -- systemctl restart user@1000.service
    "$vm" run -- "$place/vm-service.sh" "$place" after
}

forbidden() {
    echo "== user namespaces forbidden"
    "$vm" run --root -- sysctl -q -w user.max_user_namespaces=0
    "$vm" run -- "$place/vm-forbidden.sh" "$place"
    "$vm" run --root -- sysctl -q -w user.max_user_namespaces=15000
}

suspend() {
    echo "== suspend"
    "$vm" run -- "$place/vm-suspend.sh" "$place" before
    # The machine's RTC wakes it. What is shared with it does not survive that, the working folder included.
    # The login ends before the machine wakes.
    (cd / && "$vm" run --root -- sh -c 'umount -l "$1" /host /out; rtcwake -m mem -s 330' sh "$VM_SHARE") || true
    SECONDS=0
    until (cd / && "$vm" run -- true); do
        [ "$SECONDS" -lt 600 ] || { echo "FAIL  the machine did not wake"; exit 1; }
    done
    (cd / && "$vm" run -- sh -c '"$HOME/suspend/vm-suspend.sh" "$HOME/suspend" after')
    "$vm" stop
}

# Starts the machine, whose own disk forgets, with a disk that does not as the user's home.
start() {
    "$vm" run --root -- sh -ec '
        systemctl stop user@1000.service
        if ! [ -e "$1/home.copied" ]; then
            mount -o loop "$1/home.ext4" /mnt && cp -a /home/dev/. /mnt && chown dev: /mnt && umount /mnt
            touch "$1/home.copied"
        fi
        mount -o loop "$1/home.ext4" /home/dev
        systemctl start user@1000.service' sh "$place"
}

# The process that is the machine.
machine() { "$vm" status | sed -n 's/^up: process \([0-9]*\),.*/\1/p'; }

off() { # PROCESS
    SECONDS=0
    while [ -d "/proc/$1" ]; do
        [ "$SECONDS" -lt 300 ] || { echo "FAIL  the machine is not off"; exit 1; }
        sleep 0.2
    done
}

reboot() {
    echo "== reboot"
    "$vm" stop
    # The machine syncs what it writes there through to this one, so what it had not synced is lost with its process.
    local VM_SHARE=$place VM_SHARE_RW=1 running flood
    export VM_SHARE_RW
    truncate -s 2G "$place/home.ext4"
    mke2fs -q -t ext4 -F "$place/home.ext4"
    start
    "$vm" run -- "$place/vm-reboot.sh" "$place" before
    running=$(machine)
    "$vm" run --root -- systemctl poweroff || true
    off "$running"
    start
    "$vm" run -- "$place/vm-reboot.sh" "$place" after
    echo "== power cut"
    "$vm" run -- "$place/vm-reboot.sh" "$place" flood >"$place/acknowledged" &
    flood=$!
    running=$(machine)
    SECONDS=0
    until [ "$(wc -l <"$place/acknowledged")" -ge 120 ]; do
        [ "$SECONDS" -lt 600 ] || { echo "FAIL  too little is created"; exit 1; }
        sleep 0.1
    done
    kill -9 "$running"
    wait "$flood" || true
    off "$running"
    start
    "$vm" run -- "$place/vm-reboot.sh" "$place" lost
    "$vm" stop
}

"$vm" build
for round in "${rounds[@]}"; do "$round"; done
