#!/usr/bin/env bash
# How fast the API server alone answers, beside etcd and kube-apiserver when ETCD and KUBE_APISERVER name
# their binaries: the same load, on the same machine, in the same run.
#   [ETCD=/usr/bin/etcd KUBE_APISERVER=…/kube-apiserver] tests/bench-api.sh
# A kube-apiserver older than 1.23 that was built with Go 1.18 or later must have reflect2 1.0.2 in its vendor folder:
# with the one it came with it panics on the first map that it decodes.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked -p apiserver --examples
programs=target/x86_64-unknown-linux-gnu/release/examples
place=$(mktemp -d)
pids=()
clean() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; wait; rm -rf "$place"; }
trap clean EXIT
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
until_it() { for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "not within a minute: $*"; exit 1; }

echo "== rootlet's API server, durable"
"$programs/serve" "$(port)" "$place/own" >"$place/own.txt" 2>&1 & pids+=($!)
until_it grep -q KUBECONFIG "$place/own.txt"
"$programs/load" "$place/own/kubeconfig" "${pids[-1]}" | tee "$place/own.result"
kill "${pids[-1]}" && wait "${pids[-1]}" || true

if [ -z "${KUBE_APISERVER:-}" ] || [ -z "${ETCD:-}" ]; then
    echo "no comparison: name ETCD and KUBE_APISERVER"
    exit 0
fi
echo "== $("$KUBE_APISERVER" --version), $("$ETCD" --version | head -1)"
client=$(port) peer=$(port) secure=$(port)
"$ETCD" --data-dir "$place/etcd" --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
    --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
    --initial-cluster "default=http://127.0.0.1:$peer" >"$place/etcd.txt" 2>&1 & pids+=($!)
etcd=$!
openssl genrsa -out "$place/sa.key" 2048 2>/dev/null
echo 'bench-token,admin,1,"system:masters"' >"$place/tokens"
"$KUBE_APISERVER" --etcd-servers "http://127.0.0.1:$client" --secure-port "$secure" --cert-dir "$place/certs" \
    --bind-address 127.0.0.1 --service-cluster-ip-range 10.43.0.0/16 --token-auth-file "$place/tokens" \
    --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$place/sa.key" \
    --service-account-signing-key-file "$place/sa.key" --disable-admission-plugins ServiceAccount \
    --authorization-mode RBAC >"$place/apiserver.txt" 2>&1 & pids+=($!)
stock=$!
until_it curl -sfk -H 'Authorization: Bearer bench-token' "https://127.0.0.1:$secure/api/v1/namespaces/default"
cat >"$place/stock.kubeconfig" <<YAML
clusters: [{name: c, cluster: {server: "https://127.0.0.1:$secure"}}]
users: [{name: u, user: {token: bench-token}}]
YAML
if ! "$programs/load" "$place/stock.kubeconfig" "$stock" "$etcd" | tee "$place/stock.result"; then
    echo "kube-apiserver failed under the load; its log says:"
    grep -m 1 -A 20 'Observed a panic' "$place/apiserver.txt" || tail -20 "$place/apiserver.txt"
    exit 1
fi
echo "== ratio, rootlet to stock"
paste -d'|' "$place/own.result" "$place/stock.result" |
    awk -F'|' '{n = split($1, a, " "); m = split($2, b, " "); printf "%-40s %10.2f\n", substr($1, 1, 40), a[n] / b[m]}'
