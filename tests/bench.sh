#!/usr/bin/env bash
# How fast, and how big: rootlet beside podman and crun, same image, same machine, same run.
#   tests/bench.sh [RUNS]
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-5}
if [ "$(id -u)" = 0 ] && [ "${BENCH_INSIDE:-}" != 1 ]; then
    # Debian's crun refuses hybrid cgroups; hidden in a mount namespace of this run they do not disturb it.
    exec env BENCH_INSIDE=1 unshare --mount bash -c 'mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup; exec "$0" "$@"' "$0" "$runs"
fi
. tests/unprivileged.sh
place=$(as_user mktemp -d "$scratch/bench.XXXXXX")
rootlet() { as_user "$place/rootlet" "$@"; }
kubectl() { as_user "$place/kubectl" --kubeconfig "$place/kubeconfig" "$@"; }
podman() { (cd "$place" && as_user env PODMAN_IGNORE_CGROUPSV1_WARNING=1 podman --cgroup-manager cgroupfs --events-backend file "$@"); }
clean() {
    rootlet delete --name bench >/dev/null 2>&1 || true
    if command -v podman >/dev/null; then podman system reset --force >/dev/null 2>&1 || true; fi
    as_user rm -rf "$place"
}
trap clean EXIT
cp bin/rootlet target/tools/kubectl "$place/"
tests/busybox-image.sh "$place/busybox.tar" localhost/busybox:bench
chmod 755 "$place"/rootlet "$place"/kubectl && chmod 644 "$place"/busybox.tar

now_ms() { date +%s%3N; }
# median_ms LABEL COMMAND…: the median wall time over the runs
median_ms() {
    local label=$1 begin times=()
    shift
    for _ in $(seq "$runs"); do
        begin=$(now_ms)
        "$@" >/dev/null 2>&1
        times+=($(($(now_ms) - begin)))
        if [ -n "${after:-}" ]; then $after >/dev/null 2>&1; fi
    done
    printf '%-58s %8s ms\n' "$label" "$(printf '%s\n' "${times[@]}" | sort -n | sed -n "$(((runs + 1) / 2))p")"
}
pods() { # NAME COUNT
    for i in $(seq "$2"); do
        cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: $1-$i, labels: {set: $1}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "localhost/busybox:bench", command: [sleep, "100000"]}]
YAML
    done
}
# memory_kib Pss|Pss_Anon PATTERN: memory of this cluster's processes whose command line matches, in KiB; Pss has the
# executable's pages too, which the kernel may drop and share.
memory_kib() {
    local total=0 pid value space
    space=$(readlink "/proc/$(pgrep -f "exe node-inside .*/rootlet/bench/")/ns/user")
    for pid in $(pgrep -f "$2" || true); do
        [ "$(readlink "/proc/$pid/ns/user")" = "$space" ] || continue
        value=$(awk -v field="$1:" '$1 == field {print $2}' "/proc/$pid/smaps_rollup" 2>/dev/null || echo 0)
        total=$((total + ${value:-0}))
    done
    echo "$total"
}

echo "== rootlet ($(stat -c %s bin/rootlet) bytes)"
down="rootlet delete --name bench"
after=$down median_ms "up --ephemeral, node Ready" rootlet up --name bench --ephemeral --kubeconfig "$place/kubeconfig"
after=$down median_ms "up, node Ready" rootlet up --name bench --kubeconfig "$place/kubeconfig"
median_ms "ci -- true, from nothing to nothing" rootlet ci -- true
rootlet up --name bench --kubeconfig "$place/kubeconfig" >/dev/null
# While the API is away; pods do not notice.
median_ms "up --upgrade" rootlet up --name bench --upgrade --kubeconfig "$place/kubeconfig"
rootlet image load --name bench "$place/busybox.tar" >/dev/null
sleep 5
for field in Pss_Anon Pss; do
    printf '%-58s %8s KiB\n' "idle memory, node and daemon, $field" "$(memory_kib $field "exe (node|daemon)-inside")"
done
for i in $(seq 20); do
    pods "one$i" 1 | kubectl apply -f - >/dev/null
    kubectl wait --for=condition=Ready "pod/one$i-1" --timeout=60s >/dev/null
    rootlet trace --name bench "pod/one$i-1" -o json >"$place/trace.$i.json"
    kubectl delete pod "one$i-1" --now >/dev/null 2>&1
done
python3 - "$place"/trace.*.json <<'PY'
import json, sys
times = []
for file in sys.argv[1:]:
    steps = json.load(open(file))["steps"]
    ends = [s["startUs"] + s["durationUs"] for s in steps if s["step"] == "observe"]
    times.append((min(ends) - min(s["startUs"] for s in steps)) / 1000)
times.sort()
print(f"{'apply to container running, 20 pods: p50 / max':58} {times[len(times)//2]:.0f} / {times[-1]:.0f} ms")
PY
pods fifty 50 >"$place/fifty.yaml"
begin=$(now_ms)
kubectl apply -f "$place/fifty.yaml" >/dev/null
# kubectl would wait for one after the other, for a tenth of a second each.
rootlet wait --name bench --for=condition=Ready pod -l set=fifty --timeout=120s >/dev/null
printf '%-58s %8s ms\n' "50 pods applied at once, all Ready" "$(($(now_ms) - begin))"
printf '%-58s %8s KiB\n' "memory of a shim, one per pod" "$(($(memory_kib Pss "exe shim") / 50))"
kubectl delete pod --all --now >/dev/null 2>&1
one_pod() { pods "p$(now_ms)" 1 >"$place/one.yaml" && kubectl apply -f "$place/one.yaml" && kubectl wait --for=condition=Ready -f "$place/one.yaml" --timeout=60s; }
one_gone() { kubectl delete -f "$place/one.yaml" --now; }
after=one_gone median_ms "one pod through kubectl apply and kubectl wait" one_pod
rootlet delete --name bench >/dev/null

if command -v podman >/dev/null && command -v crun >/dev/null; then
    echo "== $(podman --version), no network"
    podman load -q -i "$place/busybox.tar" >/dev/null
    pods peer 1 | sed 1d >"$place/peer.yaml"
    podman run --rm --cgroups=disabled --network=none localhost/busybox:bench true
    median_ms "podman run --rm … true" podman run --rm --cgroups=disabled --network=none localhost/busybox:bench true
    peer_gone() { podman kube down "$place/peer.yaml"; }
    after=peer_gone median_ms "podman kube play, one pod" podman kube play --network=none "$place/peer.yaml"
    echo "== $(crun --version | head -1)"
    bundle=$place/bundle
    as_user mkdir -p "$bundle/rootfs"
    as_user tar -C "$place" -xf "$place/busybox.tar" layer.tar && as_user tar -C "$bundle/rootfs" -xf "$place/layer.tar"
    (cd "$bundle" && as_user crun spec --rootless && as_user sed -i 's/"terminal": true/"terminal": false/; s/"sh"/"true"/' config.json)
    crun_run() { (cd "$bundle" && as_user crun --cgroup-manager=disabled run "bench$(now_ms)"); }
    median_ms "crun run … true" crun_run
else
    echo "podman or crun is not installed: no comparison (apt-get install podman crun)"
fi
