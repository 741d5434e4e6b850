#!/usr/bin/env bash
# The part of tests/vm.sh that runs as root in the machine and plays one without systemd, for root and for an ordinary
# user to whom root has given a cgroup: FOLDER holds the programs.
#   vm-plain.sh FOLDER root|USER
set -euo pipefail
place=$1 user=$2
if [ "${PLAIN_INSIDE:-}" != 1 ]; then
    exec env PLAIN_INSIDE=1 unshare --mount "$0" "$@"
fi
# Nobody answers where systemd's sockets were.
mount -t tmpfs tmpfs /run/systemd
tree=/sys/fs/cgroup
echo "+cpu +memory +pids" >"$tree/cgroup.subtree_control"
mkdir -p "$tree/plain-$user/shell"
echo $$ >"$tree/plain-$user/shell/cgroup.procs"
if [ "$user" = root ]; then
    export HOME=/root XDG_RUNTIME_DIR=/run/plain
    mkdir -p "$XDG_RUNTIME_DIR"
    "$place/vm-inside.sh" "$place"
else
    id=$(id -u "$user")
    mount -t tmpfs -o "uid=$id,mode=700" tmpfs "/run/user/$id"
    chown "$user" "$tree/plain-$user"{,/cgroup.procs,/cgroup.subtree_control,/cgroup.threads} \
        "$tree/plain-$user/shell"{,/cgroup.procs}
    setpriv --reuid "$user" --regid "$user" --init-groups env "HOME=$(getent passwd "$user" | cut -d: -f6)" \
        "XDG_RUNTIME_DIR=/run/user/$id" "$place/vm-inside.sh" "$place"
fi
