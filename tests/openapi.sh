#!/usr/bin/env bash
# The Python client against an API server alone; then what the served OpenAPI allows, and what it does not,
# for a bounded time: nothing may be answered with a 5xx.
#   [SEED=N] tests/openapi.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
top=$(pwd)
seconds=${1:-120}
python=$top/target/tools/python/bin
target=target/x86_64-unknown-linux-gnu/debug

if [ ! -x "$python/schemathesis" ]; then
    python3 -m venv target/tools/python
    "$python/pip" install --quiet schemathesis==4.32.5 kubernetes==37.0.2
fi
cargo build --locked --workspace --bins --tests --examples
place=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$target/examples/serve" "$port" "$place/data" >"$place/out" 2>"$place/err" &
server=$!
# What the server said of its panics is the first thing to know of a failure.
clean() {
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    grep -A3 panicked "$place/err" || true
    rm -rf "$place"
}
trap clean EXIT
for _ in $(seq 300); do grep -q KUBECONFIG "$place/out" && break; sleep 0.1; done
export KUBECONFIG=$place/data/kubeconfig

"$python/python" tests/python_client.py

"$python/python" - "$KUBECONFIG" "$place" <<'PYTHON'
import base64, sys, yaml
config = yaml.safe_load(open(sys.argv[1]))
user = config["users"][0]["user"]
for name in ("client-certificate-data", "client-key-data"):
    open(f"{sys.argv[2]}/{name}", "wb").write(base64.b64decode(user[name]))
PYTHON

# Proxies and streams want a kubelet. What it writes goes with the folder.
cd "$place"
SCHEMATHESIS_HOOKS=openapi_hooks PYTHONPATH=$top/tests "$python/schemathesis" run "https://127.0.0.1:$port/openapi/v2" \
    --tls-verify false --request-cert "$place/client-certificate-data" --request-cert-key "$place/client-key-data" \
    --checks not_a_server_error \
    --exclude-path-regex '/watch/|/proxy|/exec$|/attach$|/portforward$|/log' \
    --phases fuzzing --max-time "$seconds" --max-examples 2 ${SEED:+--seed $SEED} --workers 2 --request-timeout 20 \
    --suppress-health-check all --warnings off --generation-database none --no-color

if ! kill -0 "$server"; then echo "the API server has ended"; exit 1; fi
if grep -q panicked "$place/err"; then echo "a request panicked"; exit 1; fi
