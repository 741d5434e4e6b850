# Sourced by what runs in the virtual machine, which has set `place` (the folder with the programs), `name` (of its
# cluster) and `work` (a folder of its own with a copy of rootlet).
kc=$work/kubeconfig unit=rootlet-$name.service
rootlet() { "$work/rootlet" "$@" --name "$name"; }
kubectl() { "$place/kubectl" --kubeconfig "$kc" "$@"; }
ok() { echo "ok    $*"; }
fail() {
    echo "FAIL  $*"
    systemctl --user status "$unit" --no-pager || true
    kubectl get pods,nodes,services,endpointslices,events -o wide || true
    tail -20 "$HOME/.local/share/rootlet/$name/daemon.log" || true
    exit 1
}
# An emulated machine is slow: what is waited for may take minutes.
until_is() { # WANTED COMMAND…
    local wanted=$1 found="" n
    shift
    for n in $(seq 300); do
        found=$("$@" 2>/dev/null || true)
        if [[ $found == $wanted ]]; then return 0; fi
        sleep 1
    done
    fail "$* is ${found:-nothing}, not $wanted"
}
