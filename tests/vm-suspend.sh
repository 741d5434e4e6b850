#!/usr/bin/env bash
# The part of tests/vm.sh about a laptop that sleeps, in the machine, as an ordinary user. FOLDER holds the programs.
#   tests/vm-suspend.sh FOLDER before   then root suspends the machine for longer than a node may be silent
#   ~/suspend/vm-suspend.sh ~/suspend after
set -euo pipefail
place=$1 name=suspend part=$2
work=$HOME/suspend
. "$place/vm-wait.sh"
pods() { kubectl get pods -o 'jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount}, {end}'; }
in_client() { kubectl exec client -- sh -c "$1"; }
# What the Service answers, by its name.
# shellcheck disable=SC2016
asked='ip=$(nslookup web.default.svc.cluster.local | sed -n "/^Name/,\$s/Address: //p"); printf "GET / HTTP/1.0\r\n\r\n" | nc -w 5 "$ip" 80 | tail -1'
address() { in_client "nslookup host.rootlet.internal | sed -n '/^Name/,\$s/Address: \\([0-9.]*\\)\$/\\1/p'"; }

if [ "$part" = before ]; then
    # A shared folder does not outlive a suspension.
    mkdir -p "$work" && cp "$place"/{rootlet,kubectl,vm-wait.sh,vm-suspend.sh} "$work/"
    rootlet up --kubeconfig "$kc" -q
    rootlet image load -q "$place/busybox.tar"
    kubectl create deployment web --image localhost/busybox:test --replicas 2 -- \
        sh -c 'mkdir /www; echo awake >/www/index.html; exec httpd -f -p 8080 -h /www' >/dev/null
    kubectl expose deployment web --port 80 --target-port 8080 >/dev/null
    kubectl run client --image localhost/busybox:test --command -- sleep 100000 >/dev/null
    kubectl rollout status deployment web --timeout=300s >/dev/null
    until_is awake in_client "$asked"
    # A connection from the pod to this machine, on which nothing is said meanwhile.
    socat TCP-LISTEN:7777,reuseaddr EXEC:cat >/dev/null 2>&1 &
    echo $! >"$work/echo.pid"
    in_client "mkfifo /tmp/in; sleep 100000 >/tmp/in </dev/null 2>&1 & nc $(address) 7777 </tmp/in >/tmp/out 2>&1 &"
    in_client 'echo before >/tmp/in'
    until_is before in_client 'cat /tmp/out'
    pods >"$work/pods"
    ok "a Service of two pods answers, a pod holds a connection to the machine"
    exit
fi

until_is True kubectl get nodes -o 'jsonpath={.items[0].status.conditions[?(@.type=="Ready")].status}'
until_is awake in_client "$asked"
[ "$(pods)" = "$(cat "$work/pods")" ] || fail "other pods, or restarted: $(pods), before $(cat "$work/pods")"
evicted=$(kubectl get events -o 'jsonpath={.items[?(@.reason=="TaintManagerEviction")].message}')
[ -z "$evicted" ] || fail "$evicted"
ok "after the suspension the same pods answer, none restarted or evicted"
in_client 'echo after >/tmp/in'
until_is $'before\nafter' in_client 'cat /tmp/out'
ok "the silent connection still carries"
kubectl run later --image localhost/busybox:test --restart=Never --command -- sh -c "$asked" >/dev/null
until_is Succeeded kubectl get pod later -o 'jsonpath={.status.phase}'
[ "$(kubectl logs later)" = awake ] || fail "a new pod: $(kubectl logs later)"
ok "a new pod runs, resolves names and reaches the Service"
kill "$(cat "$work/echo.pid")" 2>/dev/null || true
rootlet delete -q
rm -rf "$work"
