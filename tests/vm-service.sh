#!/usr/bin/env bash
# The part of tests/vm.sh about `rootlet service`, in the machine, as an ordinary user. FOLDER holds the programs.
#   tests/vm-service.sh FOLDER install     then the user's manager is restarted, as a reboot does
#   tests/vm-service.sh FOLDER after
set -euo pipefail
place=$1 name=svc part=$2
work=$HOME/service
. "$place/vm-wait.sh"
daemon() { cat "$XDG_RUNTIME_DIR/rootlet/svc/daemon.pid"; }
cgroup() { sed -n 's/^0:://p' "/proc/$1/cgroup"; }
ready() { kubectl get deployment web -o 'jsonpath={.status.readyReplicas}'; }

if [ "$part" = install ]; then
    mkdir -p "$work" && cp "$place/rootlet" "$work/"
    rootlet service install -q
    systemctl --user is-active -q "$unit" || fail "it is not active"
    rootlet service status
    rootlet kubeconfig >"$kc"
    ok "systemd was told that the node is Ready: $(systemctl --user show -p StatusText,ActiveState --value "$unit" | tr '\n' ' ')"
    [[ $(cgroup "$(daemon)") == */$unit/init ]] || fail "the daemon is in $(cgroup "$(daemon)")"
    enforced=$(kubectl get nodes -o 'jsonpath={.items[0].status.conditions[?(@.type=="ResourceLimitsEnforced")].status}')
    [ "$enforced" = True ] || fail "limits are enforced: $enforced"
    ok "the unit's cgroup is the cluster's, and limits hold below it"
    rootlet image load -q "$place/busybox.tar"
    kubectl create deployment web --image localhost/busybox:test --replicas 2 -- sleep 123456 >/dev/null
    until_is 2 ready
    before=$(pgrep -fx 'sleep 123456' | sort | tr '\n' ' ')

    printf x >>"$work/next" && cat "$place/rootlet" "$work/next" >"$work/rootlet.new"
    chmod 755 "$work/rootlet.new" && mv "$work/rootlet.new" "$work/rootlet"
    rootlet up --upgrade --kubeconfig "$kc" -q
    [[ $(cgroup "$(daemon)") == */$unit/init ]] || fail "after an upgrade the daemon is in $(cgroup "$(daemon)")"
    systemctl --user is-active -q "$unit" || fail "an upgrade ended the unit"
    [ "$(pgrep -fx 'sleep 123456' | sort | tr '\n' ' ')" = "$before" ] || fail "pods did not survive the upgrade"
    ok "an upgrade keeps the unit, its cgroup and the pods' processes"

    died=$(daemon)
    kill -9 "$died"
    again() { [ "$(daemon)" != "$died" ] && [ -d "/proc/$(daemon)" ] && ready; }
    until_is 2 again
    systemctl --user is-active -q "$unit" || fail "the unit ended with the daemon"
    [ "$(pgrep -fx 'sleep 123456' | sort | tr '\n' ' ')" = "$before" ] || fail "pods did not survive the daemon's death"
    ok "a daemon that dies is started again, and finds its pods"
    exit
fi

until_is active systemctl --user is-active "$unit"
until_is 2 ready
until_is 2 pgrep -cfx 'sleep 123456'
ok "after a restart of everything of the user's the cluster and its pods are back"
rootlet down -q
until_is inactive systemctl --user is-active "$unit"
ok "down stops the unit, which is no failure"
systemctl --user start "$unit"
systemctl --user stop "$unit"
[ -z "$(pgrep -f '/rootlet/svc/' || true)" ] || fail "left after stop: $(pgrep -af '/rootlet/svc/')"
[ -z "$(pgrep -fx 'sleep 123456' || true)" ] || fail "a pod is left after stop"
ok "stop stops the pods"
rootlet service uninstall -q
[ ! -e "$HOME/.config/systemd/user/$unit" ] || fail "the unit is there"
rootlet delete -q

# The other one of docs/living.md: a second cluster with flags of its own, and a folder that is kept applied.
# Without polkit, as here, that is root's to allow; this user lingers already.
loginctl enable-linger 2>/dev/null || [ -e "/var/lib/systemd/linger/$(id -un)" ] || fail "no lingering"
mkdir -p "$HOME/cluster"
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\n' >"$HOME/cluster/kept.yaml"
"$work/rootlet" service install -q --name dev -- --ingress --manifests "$HOME/cluster"
"$work/rootlet" kubeconfig --name dev >"$kc"
until_is configmap/kept kubectl get configmap kept -o name
until_is ingress* kubectl get ingressclass -o name
said=$("$work/rootlet" service status --name dev -o json)
[[ $said == *'"atBoot": true'*'"running": true'*'"state": "active"'* ]] || fail "service status: $said"
"$work/rootlet" delete -q --name dev
[ ! -e "$HOME/.config/systemd/user/rootlet-dev.service" ] || fail "the unit of dev is there"
rm -r "$HOME/cluster"
ok "a unit of another cluster has its flags; deleting the cluster removes it"
rm -rf "$work"
ok "uninstalled"
