#!/usr/bin/env bash
# Makes an image of Debian's redis-server, with the shared libraries it wants, as a docker-archive.
#   tests/redis-image.sh FILE NAME:TAG
set -euo pipefail
out=$1 name=$2
. "$(dirname "$0")/image-archive.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/usr/bin" "$work/etc" "$work/data" "$work/tmp"
chmod 755 "$work"
chmod 1777 "$work/data" "$work/tmp"
for program in redis-server redis-cli; do
    cp -L "$(command -v "$program")" "$work/usr/bin/$program"
    ldd "$work/usr/bin/$program"
done | grep -oE '/[^ ]+\.so[^ ]*' | sort -u | while read -r library; do
    mkdir -p "$work$(dirname "$library")"
    cp -L "$library" "$work$library"
done
printf 'root:x:0:0:root:/:/bin/false\nredis:x:999:999::/data:/bin/false\n' >"$work/etc/passwd"
printf 'root:x:0:\nredis:x:999:\n' >"$work/etc/group"
archive "$work" "$out" "$name" \
    '{"Env":["PATH=/usr/bin"],"User":"redis","WorkingDir":"/data","Entrypoint":["redis-server"],"Cmd":["--protected-mode","no"],"ExposedPorts":{"6379/tcp":{}}}'
