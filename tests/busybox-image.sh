#!/usr/bin/env bash
# Makes an image of Debian's busybox-static as a docker-archive.
#   tests/busybox-image.sh FILE NAME:TAG
set -euo pipefail
out=$1 name=$2
. "$(dirname "$0")/image-archive.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
busybox=/bin/busybox
[ -x "$busybox" ] || busybox=/usr/bin/busybox
mkdir -p "$work/root/bin" "$work/root/etc" "$work/root/tmp" "$work/root/root"
chmod 1777 "$work/root/tmp"
cp "$busybox" "$work/root/bin/busybox"
for applet in $("$busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$work/root/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$work/root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$work/root/etc/group"
archive "$work/root" "$out" "$name" '{"Env":["PATH=/bin"],"Cmd":["sh"]}'
