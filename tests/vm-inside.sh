#!/usr/bin/env bash
# The part of tests/vm.sh that runs in the machine: FOLDER holds the programs.
set -euo pipefail
place=$1 name=vm
work=$(mktemp -d "$HOME/vm.XXXXXX")
cp "$place/rootlet" "$work/"
. "$place/vm-wait.sh"
trap 'rootlet delete >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
field() { kubectl get pod "$1" -o "jsonpath={$2}"; }
pod() { # NAME RESOURCES SCRIPT
    kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/busybox:test
    imagePullPolicy: Never
    resources: $2
    command: [/bin/sh, -c, "$3"]
YAML
}

rootlet up --ephemeral --pod-max-pids 40 --kubeconfig "$kc" >/dev/null
rootlet image load "$place/busybox.tar" >/dev/null
enforced=$(kubectl get nodes -o 'jsonpath={.items[0].status.conditions[?(@.type=="ResourceLimitsEnforced")].status}')
[ "$enforced" = True ] || fail "limits are enforced: $enforced"
ok "a scope of its own: $(grep -h ^0:: /proc/"$(pgrep -u "$(id -u)" -f ' daemon-inside ' | head -1)"/cgroup)"

pod greedy '{limits: {memory: 32Mi}}' 'tail /dev/zero'
until_is OOMKilled field greedy '.status.containerStatuses[0].state.terminated.reason'
ok "a container above its memory limit is OOMKilled, exit code $(field greedy '.status.containerStatuses[0].state.terminated.exitCode')"
why=$(rootlet why pod/greedy)
[[ $why == *"killed for want of memory"*"raise resources.limits.memory"* ]] || fail "rootlet why: $why"
ok "rootlet why says so, and what to do"

pod limited '{requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}' 'exec sleep 10000'
until_is Running field limited .status.phase
uid=$(field limited .metadata.uid)
scope=$(find /sys/fs/cgroup -type d -name "pod$uid" 2>/dev/null | head -1)
[ -n "$scope" ] || fail "the pod has a cgroup"
[ "$(cat "$scope/cpu.max")" = "20000 100000" ] || fail "cpu.max of the pod: $(cat "$scope/cpu.max")"
container=$(find "$scope" -mindepth 1 -maxdepth 1 -type d | head -1)
[ "$(cat "$container/cpu.max")" = "20000 100000" ] || fail "cpu.max: $(cat "$container/cpu.max")"
[ "$(cat "$container/memory.max")" = $((64 << 20)) ] || fail "memory.max: $(cat "$container/memory.max")"
[[ $scope == */kubepods/burstable/* ]] || fail "class of service: $scope"
ok "cpu.max and memory.max of pod and container, below ${scope#/sys/fs/cgroup}"

[ "$(cat "$scope/pids.max")" = 40 ] || fail "pids.max of the pod: $(cat "$scope/pids.max")"
forks=$(kubectl exec limited -- sh -c 'n=0; while [ $n -lt 60 ]; do sleep 30 & n=$((n + 1)); done' 2>&1 || true)
[[ $forks == *"can't fork"* ]] || fail "60 processes although 40 are allowed: $forks"
ok "a pod has no more processes than it may"

kubectl patch pod limited --subresource resize -p \
    '{"spec":{"containers":[{"name":"main","resources":{"limits":{"cpu":"300m","memory":"96Mi"}}}]}}' >/dev/null
until_is "30000 100000" cat "$container/cpu.max"
until_is $((96 << 20)) cat "$container/memory.max"
until_is $((96 << 20)) cat "$scope/memory.max"
[ "$(field limited '.status.containerStatuses[0].restartCount')" = 0 ] || fail "it was restarted"
ok "a resize changes the limits of the running container"

used=$(kubectl get --raw /apis/metrics.k8s.io/v1beta1/namespaces/default/pods/limited)
[[ $used == *'"memory"'* ]] || fail "metrics: $used"
ok "usage is read from the cgroup"

kubectl delete pod limited greedy --grace-period=1 >/dev/null
[ ! -d "$scope" ] || fail "the pod's cgroup is left: $scope"
ok "the cgroup of a deleted pod is gone"
rootlet down >/dev/null
left=$(find /sys/fs/cgroup -type d -name 'rootlet-vm.scope' 2>/dev/null)
[ -z "$left" ] || fail "left after down: $left"
ok "down leaves no cgroup"
