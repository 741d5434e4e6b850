#!/usr/bin/env bash
# The part of tests/vm.sh about a machine that is switched off, in the machine, as an ordinary user whose home is on a
# disk that outlives it. FOLDER holds the programs.
#   tests/vm-reboot.sh FOLDER before    a cluster as a unit, with a Deployment that writes to a volume
#   tests/vm-reboot.sh FOLDER after     after an orderly start anew: all is back
#   tests/vm-reboot.sh FOLDER flood     says the name of each object that is acknowledged, until the power fails
#   tests/vm-reboot.sh FOLDER lost      none of those named in FOLDER/acknowledged is lost
set -euo pipefail
place=$1 name=reboot part=$2
work=$HOME/reboot
. "$place/vm-wait.sh"
ready() { kubectl get deployment web -o 'jsonpath={.status.readyReplicas}'; }
starts() { kubectl exec deployment/web -- sh -c 'wc -l </data/starts'; }
running() { kubectl get pods -l power=cut --field-selector status.phase=Running -o name | wc -l; }

case $part in
before)
    mkdir -p "$work" && cp "$place/rootlet" "$work/"
    rootlet service install -q
    rootlet kubeconfig >"$kc"
    rootlet image load -q "$place/busybox.tar"
    kubectl apply -f - <<'YAML'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 8Mi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: localhost/busybox:test
        imagePullPolicy: Never
        command: [sh, -c, "echo started >>/data/starts; sync; exec sleep 345678"]
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
YAML
    until_is 1 ready
    until_is 1 starts
    kubectl get deployment web -o 'jsonpath={.metadata.uid}' >"$work/uid"
    kubectl get pods -l app=web -o 'jsonpath={.items[0].metadata.uid}' >"$work/pod"
    ok "a Deployment runs and has written to its volume"
    ;;
after)
    until_is active systemctl --user is-active "$unit"
    until_is True kubectl get nodes -o 'jsonpath={.items[0].status.conditions[?(@.type=="Ready")].status}'
    until_is 1 ready
    until_is 2 starts
    [ "$(kubectl get deployment web -o 'jsonpath={.metadata.uid}')" = "$(cat "$work/uid")" ] || fail "another Deployment"
    [ "$(kubectl get pods -l app=web -o 'jsonpath={.items[0].metadata.uid}')" = "$(cat "$work/pod")" ] ||
        fail "another pod: $(kubectl get events)"
    ok "the cluster started with the machine, and its pod runs again, with what its volume held"
    ;;
flood)
    # Deployments' pods are made meanwhile, beside those that are named here.
    kubectl scale deployment web --replicas 4 >/dev/null
    for n in $(seq 400); do
        if ((n % 20 == 1)); then
            printf -- '---\napiVersion: v1\nkind: Pod\nmetadata: {name: p%d, labels: {power: cut}}\nspec:\n' "$n"
            printf '  terminationGracePeriodSeconds: 1\n  containers:\n  - {name: main, image: localhost/busybox:test, command: [sleep, "234567"]}\n'
        else
            printf -- '---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c%d}\ndata: {n: "%d"}\n' "$n" "$n"
        fi
    done >"$work/flood.yaml"
    kubectl create -f "$work/flood.yaml" -o name
    ;;
lost)
    until_is True kubectl get nodes -o 'jsonpath={.items[0].status.conditions[?(@.type=="Ready")].status}'
    kubectl get pods,configmaps -o name | sort >"$work/there"
    lost=$(sort "$place/acknowledged" | comm -23 - "$work/there")
    [ -z "$lost" ] || fail "acknowledged, and lost: $lost"
    ok "none of $(wc -l <"$place/acknowledged") acknowledged objects is lost"
    until_is 4 ready
    until_is "$(grep -c '^pod/' "$work/there" | awk '{print $1 - 4}')" running
    ok "the pods whose creation the power cut met run: $(running), and the Deployment's 4"
    kubectl run later --image localhost/busybox:test --restart=Never --command -- true >/dev/null
    until_is Succeeded kubectl get pod later -o 'jsonpath={.status.phase}'
    ok "a new pod runs"
    rootlet delete -q
    ;;
esac
