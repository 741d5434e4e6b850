#!/usr/bin/env bash
# The part of tests/vm.sh about SCTP, as an ordinary user of a machine whose kernel has it: FOLDER holds the
# programs.
set -euo pipefail
place=$1 name=sctp
work=$(mktemp -d "$HOME/vm.XXXXXX")
cp "$place/rootlet" "$work/"
. "$place/vm-wait.sh"
trap 'rootlet delete >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
mkdir "$work/tools" && cp "$place/associate" "$work/tools/"
pod() { # NAME COMMAND, in JSON
    kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {app: $1}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: localhost/busybox:test, imagePullPolicy: Never, command: $2,
     volumeMounts: [{name: tools, mountPath: /tools}]}
  volumes: [{name: tools, hostPath: {path: $work/tools}}]
YAML
}

rootlet up --ephemeral --kubeconfig "$kc" >/dev/null
rootlet image load "$place/busybox.tar" >/dev/null
pod one '[/tools/associate, serve, "9000", one]'
pod two '[/tools/associate, serve, "9000", two]'
pod client '[sleep, "100000"]'
for name in one two; do kubectl label pod $name --overwrite app=server >/dev/null; done
kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {selector: {app: server}, ports: [{name: far, protocol: SCTP, port: 3868, targetPort: 9000}]}
YAML
kubectl wait --for=condition=Ready pod/one pod/two pod/client --timeout=300s >/dev/null
address=$(kubectl get service far -o 'jsonpath={.spec.clusterIP}')
ask() { kubectl exec client -- /tools/associate ask "$1"; }
both() { for _ in $(seq 12); do ask "$address:3868"; done | sort -u | tr '\n' ' '; }
until_is 'one two ' both
ok "an SCTP Service leads to both of its pods"
direct=$(kubectl get pod one -o 'jsonpath={.status.podIP}')
until_is one ask "$direct:9000"
ok "pods reach each other over SCTP"
policy() { # PROTOCOL
    kubectl apply -f - >/dev/null <<YAML
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only}
spec: {podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{protocol: $1, port: 9000}]}]}
YAML
}
state() { if ask "$direct:9000" >/dev/null 2>&1; then echo open; else echo closed; fi; }
policy TCP
until_is closed state
policy SCTP
until_is open state
ok "a policy by port tells SCTP from TCP"
