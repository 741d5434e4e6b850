#!/usr/bin/env bash
# The main job, shown: a cluster, an image, a pod, its log; then everything is removed again.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/unprivileged.sh
place=$(as_user mktemp -d "$scratch/demo.XXXXXX")
rootlet() { as_user "$place/rootlet" "$@"; }
kubectl() { as_user "$place/kubectl" --kubeconfig "$place/kubeconfig" "$@"; }
clean() {
    rootlet delete --name demo
    as_user rm -rf "$place"
}
trap clean EXIT
run() { printf '\n$ %s\n' "$*"; "$@"; }

# The user may not be able to read where the project lies.
cp bin/rootlet target/tools/kubectl "$place/"
cp examples/hello.yaml "$place/hello.yaml"
tests/busybox-image.sh "$place/busybox.tar" localhost/busybox:demo
chmod 755 "$place"/rootlet "$place"/kubectl && chmod 644 "$place"/hello.yaml "$place"/busybox.tar

run rootlet up --name demo --ephemeral --kubeconfig "$place/kubeconfig"
run rootlet image load --name demo "$place/busybox.tar"
run kubectl apply -f "$place/hello.yaml"
run kubectl wait --for=condition=Ready pod/hello --timeout=60s
run kubectl get pod hello -o wide
run kubectl logs hello
run rootlet trace --name demo pod/hello
printf '\nThat was all; cleaning up.\n'
