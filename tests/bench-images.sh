#!/usr/bin/env bash
# How fast an image of 300 MB comes from a registry of this machine and is unpacked, and how fast a command runs in a
# container: rootlet beside podman, and skopeo with umoci. Each round has all of them, one after the other, so that a
# busy machine is as busy for each; the median over the rounds counts.
#   tests/bench-images.sh [ROUNDS]       BINARY names another executable than bin/rootlet
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5}
if [ "$(id -u)" = 0 ] && [ "${BENCH_INSIDE:-}" != 1 ]; then
    # Debian's crun refuses hybrid cgroups; hidden in a mount namespace of this run they do not disturb it.
    exec env BENCH_INSIDE=1 unshare --mount bash -c 'mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup; exec "$0" "$@"' "$0" "$rounds"
fi
for tool in docker-registry skopeo; do
    command -v "$tool" >/dev/null || { echo "$tool is not installed: nothing to pull from (make setup)"; exit 1; }
done
. tests/unprivileged.sh
. tests/image-archive.sh
place=$(as_user mktemp -d "$scratch/bi.XXXXXX")
registry_process=
rootlet() { as_user "$place/rootlet" "$@" --name bench-images; }
kubectl() { as_user "$place/kubectl" --kubeconfig "$place/kubeconfig" "$@"; }
podman() { (cd "$place" && as_user env PODMAN_IGNORE_CGROUPSV1_WARNING=1 podman --root "$place/podman" --runroot "$place/run" --cgroup-manager cgroupfs --events-backend file "$@"); }
clean() {
    rootlet delete >/dev/null 2>&1 || true
    if command -v podman >/dev/null; then
        podman system reset --force >/dev/null 2>&1 || true
        as_user podman unshare rm -rf "$place/podman" "$place/bundle" >/dev/null 2>&1 || true
        # Its process that holds the user namespace ends with this.
        podman system migrate >/dev/null 2>&1 || true
    fi
    # It is the child of the shell that has become its user.
    if [ -n "$registry_process" ]; then pkill -P "$registry_process" || true; fi
    as_user rm -rf "$place"
}
trap clean EXIT
cp "${BINARY:-bin/rootlet}" "$place/rootlet"
cp target/tools/kubectl "$place/"
chmod 755 "$place"/rootlet "$place"/kubectl

# The image: files of this machine's /usr, as a distribution's images have them, in five layers of unlike size.
layers=(120 80 60 30 10) # MiB
work=$(mktemp -d "$place/image.XXXXXX")
(cd / && find usr/lib usr/bin usr/share -xdev -type f -size -2M -printf '%s %p\n' 2>/dev/null) | sort -k2 >"$work/files"
mkdir "$work/blobs"
awk -v sizes="${layers[*]}" -v work="$work" '
    BEGIN { count = split(sizes, size, " "); layer = 1 }
    layer <= count { sum += $1; sub(/^[0-9]+ /, ""); print > (work "/list." layer)
        if (sum > size[layer] * 1048576) { layer++; sum = 0 } }' "$work/files"
diffs=() names=()
for layer in $(seq "${#layers[@]}"); do
    # A file may go away meanwhile.
    tar -C / --ignore-failed-read --owner=0 --group=0 --mtime=@0 -cf "$work/blobs/$layer.tar" -T "$work/list.$layer" 2>/dev/null || true
    diffs+=("\"sha256:$(sha256sum "$work/blobs/$layer.tar" | cut -d' ' -f1)\"") names+=("\"$layer.tar\"")
done
join() { local IFS=,; echo "$*"; }
printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["true"]},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$(join "${diffs[@]}")" >"$work/blobs/config.json"
printf '[{"Config":"config.json","RepoTags":["localhost/large:bench"],"Layers":[%s]}]' "$(join "${names[@]}")" >"$work/blobs/manifest.json"
tar -C "$work/blobs" -cf "$place/large.tar" manifest.json config.json $(seq -f '%g.tar' "${#layers[@]}")
bytes=$(stat -c %s "$place/large.tar") files=$(cat "$work"/list.* | wc -l)
rm -rf "$work"
tests/busybox-image.sh "$place/busybox.tar" localhost/busybox:bench
chmod 644 "$place"/*.tar

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$place/registry.yml" <<YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $place/registry}}
http: {addr: "127.0.0.1:$port"}
YAML
chmod 644 "$place/registry.yml"
as_user docker-registry serve "$place/registry.yml" >/dev/null 2>&1 &
registry_process=$!
until curl -sf "http://127.0.0.1:$port/v2/" >/dev/null; do sleep 0.1; done
image=127.0.0.1:$port/large:bench
as_user skopeo --insecure-policy copy -q --dest-tls-verify=false "docker-archive:$place/large.tar" "docker://$image"
rm "$place/large.tar"
compressed=$(du -sk "$place/registry" | cut -f1)

now_us() { date +%s%6N; }
declare -A times=()
# timed LABEL COMMAND…: its wall time, kept for the median
timed() {
    local label=$1 begin
    shift
    begin=$(now_us)
    "$@" >/dev/null 2>"$place/error" || { echo "$label failed:" && cat "$place/error" && exit 1; }
    times[$label]+="$(($(now_us) - begin)) "
}
median() { # LABEL: in tenths of a millisecond
    local sorted
    mapfile -t sorted < <(tr ' ' '\n' <<<"${times[$1]}" | grep . | sort -n)
    awk -v us="${sorted[$((${#sorted[@]} / 2))]}" 'BEGIN {printf "%.1f", us / 1000}'
}
tell() { printf '%-58s %8s ms\n' "$1" "$(median "$1")"; }

umoci_pull() {
    as_user skopeo --insecure-policy copy -q --src-tls-verify=false "docker://$image" "oci:$place/layout:bench" &&
        as_user podman unshare umoci unpack --image "$place/layout:bench" "$place/bundle"
}
rootlet up --kubeconfig "$place/kubeconfig" >/dev/null
echo "== pull and unpack: $((bytes >> 20)) MiB, $((compressed >> 10)) MiB compressed, $files files, ${#layers[@]} layers"
for _ in $(seq "$rounds"); do
    # What the one before has left to be written is not this one's to wait for.
    sync
    timed "rootlet image pull" rootlet image pull "$image"
    rootlet image rm "$image" >/dev/null
    rootlet image prune >/dev/null
    if command -v podman >/dev/null; then
        sync
        timed "podman pull" podman pull -q --tls-verify=false "$image"
        podman rmi -f "$image" >/dev/null
        if command -v umoci >/dev/null; then
            sync
            timed "skopeo copy, umoci unpack" umoci_pull
            as_user podman unshare rm -rf "$place/layout" "$place/bundle"
        fi
    fi
done
for label in "rootlet image pull" "podman pull" "skopeo copy, umoci unpack"; do
    if [ -n "${times[$label]:-}" ]; then tell "$label"; fi
done

echo "== a command in a running container"
rootlet image load "$place/busybox.tar" >/dev/null
kubectl create -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: target}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "localhost/busybox:bench", command: [sleep, "100000"]}]
YAML
kubectl wait --for=condition=Ready pod/target --timeout=60s >/dev/null
peer=
if command -v podman >/dev/null && command -v crun >/dev/null; then
    podman load -q -i "$place/busybox.tar" >/dev/null
    peer=$(podman run -d --cgroups=disabled --network=none localhost/busybox:bench sleep 100000)
fi
for _ in $(seq $((rounds * 4))); do
    timed "true, as these start it" as_user true
    timed "rootlet exec POD -- true" as_user "$place/rootlet" exec --kubeconfig "$place/kubeconfig" target -- true
    timed "rootlet get pod, one request without an exec" as_user "$place/rootlet" get --kubeconfig "$place/kubeconfig" pod target
    timed "kubectl exec POD -- true" kubectl exec target -- true
    timed "kubectl get pod, one request without an exec" kubectl get pod target
    if [ -n "$peer" ]; then timed "podman exec CONTAINER true" podman exec "$peer" true; fi
done
for label in "true, as these start it" "rootlet exec POD -- true" "rootlet get pod, one request without an exec" "kubectl exec POD -- true" \
    "kubectl get pod, one request without an exec" "podman exec CONTAINER true"; do
    if [ -n "${times[$label]:-}" ]; then tell "$label"; fi
done
