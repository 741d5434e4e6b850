#!/usr/bin/env bash
# The scheduler and the controllers on simulated nodes; with the stock ones beside them where these name
# their binaries: KUBE_SCHEDULER, KUBE_CONTROLLER_MANAGER. Further flags for them: KUBE_SCHEDULER_FLAGS,
# KUBE_CONTROLLER_MANAGER_FLAGS. Binaries of other versions than the API's must do without what it has no more.
#   tests/bench-loops.sh [NODES…]     by default 200 and 5000
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/unprivileged.sh
binary=${ROOTLET:-bin/rootlet}
place=$(as_user mktemp -d "$scratch/loops.XXXXXX")
name=loops-$$
stock=()
rootlet() { as_user "$place/rootlet" "$@"; }
halt() {
    for pid in "${stock[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done || true
    stock=()
    rootlet delete --name "$name" >/dev/null 2>&1 || true
}
clean() {
    halt
    rm -rf "$place"
}
trap clean EXIT
cp "$binary" "$place/rootlet" && chmod 755 "$place/rootlet"
sizes=("$@")
[ ${#sizes[@]} -gt 0 ] || sizes=(200 5000)

up() { rootlet up --name "$name" --ephemeral --kubeconfig "$place/kubeconfig" "$@" >/dev/null; }
loops() { rootlet bench loops --name "$name" "$@"; }
beside() { # BINARY FLAGS…: a stock component, as this script's child
    "$@" --kubeconfig "$place/kubeconfig" --authentication-kubeconfig "$place/kubeconfig" \
        --authorization-kubeconfig "$place/kubeconfig" >"$place/stock.log" 2>&1 &
    stock+=($!)
}
# Milliseconds of processor time that the daemon has had.
busy_ms() { awk '{print ($14 + $15) * 10}' "/proc/$1/stat"; }

for nodes in "${sizes[@]}"; do
    echo "== rootlet, $nodes nodes"
    up --disable kubelet,proxy,dns
    loops --nodes "$nodes" --pods "${PODS:-5000}" --replicas 0 --dependants 0
    halt
done
echo "== rootlet, the controllers"
up --disable kubelet,proxy,dns
loops --nodes 200 --pods 0 --replicas 1000 --dependants 10000
daemon=$(cat "$scratch/run/rootlet/$name/daemon.pid")
loops --nodes 20 --pods 0 --replicas 1000 --dependants 0 --hold 20 >"$place/idle.log" &
holder=$!
until grep -q 'all available' "$place/idle.log" || ! kill -0 "$holder"; do sleep 0.5; done
sleep 5
before=$(busy_ms "$daemon")
sleep 10
printf '%-58s %8.1f %%\n' "idle, 1000 pods: of one core" "$(echo "$(busy_ms "$daemon") $before" | awk '{print ($1 - $2) / 100}')"
wait "$holder"
halt

if [ -n "${KUBE_SCHEDULER:-}" ]; then
    for nodes in "${sizes[@]}"; do
        echo "== kube-scheduler ($("$KUBE_SCHEDULER" --version)), $nodes nodes"
        up --disable kubelet,proxy,dns,scheduler
        # shellcheck disable=SC2086
        beside "$KUBE_SCHEDULER" --leader-elect=false --kube-api-qps 10000 --kube-api-burst 10000 --port 0 --secure-port 0 ${KUBE_SCHEDULER_FLAGS:-}
        loops --nodes "$nodes" --pods "${PODS:-5000}" --replicas 0 --dependants 0
        halt
    done
fi
if [ -n "${KUBE_CONTROLLER_MANAGER:-}" ]; then
    echo "== kube-controller-manager ($("$KUBE_CONTROLLER_MANAGER" --version))"
    up --disable kubelet,proxy,dns,controller-manager
    # shellcheck disable=SC2086
    beside "$KUBE_CONTROLLER_MANAGER" --leader-elect=false --kube-api-qps 10000 --kube-api-burst 10000 --port 0 --secure-port 0 ${KUBE_CONTROLLER_MANAGER_FLAGS:-}
    loops --nodes 200 --pods 0 --replicas 1000 --dependants 10000
    halt
fi
