#!/usr/bin/env bash
# How fast the pods' network is: rootlet beside a plain veth pair, pasta and slirp4netns, in one run.
#   tests/bench-network.sh [SECONDS]     wants iperf3, python3, iproute2; pasta and slirp4netns if they are there
# Pods are played by network namespaces that get their interface from `rootlet cni`, so no image is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-3}
. tests/unprivileged.sh
# As on a machine with systemd, whose users may have half a million descriptors.
[ "$(id -u)" != 0 ] || ulimit -n 65536 2>/dev/null || true
for tool in iperf3 python3 ip nsenter; do
    command -v $tool >/dev/null || { echo "$tool is missing"; exit 1; }
done
host=$(ip -4 route get 192.0.2.255 2>/dev/null | sed -n 's/.* src \([0-9.]*\).*/\1/p')
gateway=$(ip -4 route show default | sed -n 's/^default via \([0-9.]*\).*/\1/p')
[ -n "$host" ] || { echo "this machine has no address besides loopback"; exit 1; }
place=$(as_user mktemp -d "$scratch/bench.XXXXXX")
rootlet=${ROOTLET:-bin/rootlet}
cargo build --release --locked -p dns --example questions
cp "$rootlet" "$place/rootlet" && cp target/tools/kubectl "$place/kubectl"
cp target/x86_64-unknown-linux-gnu/release/examples/questions "$place/questions"
chmod 755 "$place/rootlet" "$place/kubectl" "$place/questions"
rootlet() { as_user "$place/rootlet" "$@"; }
kubectl() { as_user "$place/kubectl" --kubeconfig "$place/kubeconfig" "$@"; }
started=()
# begin COMMAND…: in the background; sets `last` to its process, which is the child of a function's shell
begin() {
    "$@" >/dev/null 2>&1 &
    local pid=$! child
    sleep 0.3
    child=$(pgrep -P "$pid" | head -1 || true)
    last=${child:-$pid}
    started+=("$last")
}
clean() {
    for pid in "${started[@]}"; do pkill -P "$pid" || true; kill "$pid" 2>/dev/null || true; done
    # Where the command of pasta fails at once, it may stay; the name of its file is this run's alone.
    pkill -f "$place/pasta.pid" || true
    rootlet delete --name bench-net >/dev/null 2>&1 || true
    rm -rf "$place"
}
trap clean EXIT

# The other side of everything: port 5201 takes and gives streams, 5202 connections, 5203 single bytes,
# 5204 connections that stay.
cat >"$place/peer.py" <<'PY'
import resource, socket, sys, threading, time
def serve(port, answer):
    listener = socket.create_server(("0.0.0.0", port), backlog=4096)
    while True:
        stream, _ = listener.accept()
        answer(stream)
def echo(stream):
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    def run():
        try:
            while data := stream.recv(64):
                stream.sendall(data)
        except OSError:
            pass
    threading.Thread(target=run, daemon=True).start()
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
if sys.argv[1] == "serve":
    kept = []
    threading.Thread(target=serve, args=(5204, kept.append), daemon=True).start()
    threading.Thread(target=serve, args=(5202, lambda stream: stream.close()), daemon=True).start()
    serve(5203, echo)
if sys.argv[1] == "keep":
    open_ones = [socket.create_connection((sys.argv[2], 5204)) for _ in range(int(sys.argv[3]))]
    print(len(open_ones), flush=True)
    time.sleep(100000)
host, seconds = sys.argv[1], float(sys.argv[2])
count, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    with socket.create_connection((host, 5202)) as stream:
        stream.recv(1)
    count += 1
stream = socket.create_connection((host, 5203))
stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times = []
end = time.monotonic() + seconds
while time.monotonic() < end:
    begin = time.perf_counter()
    stream.sendall(b"x")
    stream.recv(1)
    times.append(time.perf_counter() - begin)
times.sort()
print(f"{count / seconds:8.0f} connections/s {times[len(times) // 2] * 1e6:6.0f} us round trip")
PY
chmod 644 "$place/peer.py"
peers() { # WRAPPER…: serves inside whatever the wrapper leads into
    begin "$@" iperf3 -s
    begin "$@" python3 "$place/peer.py" serve
}
gbits() { python3 -c 'import json, sys; print("%6.1f" % (json.load(sys.stdin)["end"]["sum_received"]["bits_per_second"] / 1e9))'; }
# measure LABEL ADDRESS WRAPPER…
measure() {
    local label=$1 address=$2 up down rest
    shift 2
    up=$("$@" iperf3 -c "$address" -t "$seconds" -J | gbits) || up="     -"
    down=$("$@" iperf3 -c "$address" -t "$seconds" -R -J | gbits) || down="     -"
    rest=$("$@" python3 "$place/peer.py" "$address" "$seconds") || rest="-"
    printf '%-34s up %s down %s Gbit/s %s\n' "$label" "$up" "$down" "$rest"
}
inside() { # PID COMMAND…: in the network namespace of a process
    local pid=$1
    shift
    if [ "$(id -u)" = 0 ]; then
        nsenter --net="/proc/$pid/ns/net" "$@"
    else
        nsenter --preserve-credentials --user --net --target "$pid" "$@"
    fi
}
until_ready() { # COMMAND…: until it succeeds, for ten seconds at most
    for _ in $(seq 100); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    echo "not in time: $*" >&2
    return 1
}
namespace_of_its_own() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }

echo "congestion control: $(cat /proc/sys/net/ipv4/tcp_congestion_control); $seconds s each; $(nproc) CPUs"
peers env
until_ready bash -c "exec 3<>/dev/tcp/$host/5203"

echo "== peers"
begin as_user unshare --map-root-user --net sleep 100000
veth=$last
until_ready namespace_of_its_own "$veth"
begin as_user nsenter --preserve-credentials --user --net --target "$veth" unshare --net sleep 100000
far=$last
until_ready namespace_of_its_own "$far"
as_user nsenter --preserve-credentials --user --net --target "$veth" sh -ec "
    ip link add near type veth peer name far netns $far
    ip address add 10.9.0.1/24 dev near && ip link set near mtu 65520 up && ip link set lo up"
as_user nsenter --preserve-credentials --user --net --target "$far" sh -ec "
    ip address add 10.9.0.2/24 dev far && ip link set far mtu 65520 up"
peers inside "$veth"
until_ready inside "$far" bash -c "exec 3<>/dev/tcp/10.9.0.1/5203"
measure "plain veth" 10.9.0.1 inside "$far"
if command -v slirp4netns >/dev/null; then
    begin as_user unshare --map-root-user --net sleep 100000
    slirp=$last
    until_ready namespace_of_its_own "$slirp"
    begin as_user slirp4netns --configure --mtu=65520 "$slirp" tap0
    if until_ready inside "$slirp" bash -c "exec 3<>/dev/tcp/$host/5203"; then
        measure "slirp4netns" "$host" inside "$slirp"
    else
        echo "slirp4netns does not start here"
    fi
else
    echo "slirp4netns is not installed"
fi
if command -v pasta >/dev/null && [ -n "$gateway" ]; then
    if as_user pasta --quiet --pid "$place/pasta.pid" --config-net -- bash -c "exec 3<>/dev/tcp/$gateway/5203" 2>/dev/null; then
        # Its namespace has the host's address; the gateway's leads to the host.
        measure "pasta" "$gateway" as_user pasta --quiet --config-net --
    else
        echo "pasta does not start here"
    fi
else
    echo "pasta is not installed, or there is no default route"
fi

echo "== rootlet"
rootlet up --name bench-net --ephemeral --kubeconfig "$place/kubeconfig" >/dev/null
node=$(cat "$scratch/run/rootlet/bench-net/node.pid")
pod() { # NAME: makes a pod's namespace; sets pod_pid and pod_address
    begin as_user nsenter --preserve-credentials --user --target "$node" unshare --net sleep 100000
    pod_pid=$last
    until_ready namespace_of_its_own "$pod_pid"
    local conf='{"cniVersion": "1.1.0", "name": "pods", "type": "rootlet", "cluster": "bench-net"}'
    pod_address=$(echo "$conf" | as_user env CNI_COMMAND=ADD "CNI_CONTAINERID=$1" CNI_IFNAME=eth0 \
        "CNI_NETNS=/proc/$pod_pid/ns/net" "$place/rootlet" cni |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["ips"][0]["address"].split("/")[0])')
}
pod one && one=$pod_pid one_address=$pod_address
pod two && two=$pod_pid two_address=$pod_address
pod three && three=$pod_pid
peers inside "$two"
until_ready inside "$one" bash -c "exec 3<>/dev/tcp/$two_address/5203"
measure "pod to host" "$host" inside "$one"
measure "pod to pod" "$two_address" inside "$one"
kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: two}
spec:
  ports: [{name: a, port: 5201}, {name: b, port: 5202}, {name: c, port: 5203}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: two, labels: {kubernetes.io/service-name: two}}
addressType: IPv4
ports: [{name: a, port: 5201}, {name: b, port: 5202}, {name: c, port: 5203}]
endpoints: [{addresses: ["$two_address"]}]
YAML
service=$(kubectl get service two -o jsonpath='{.spec.clusterIP}')
until_ready inside "$three" bash -c "exec 3<>/dev/tcp/$service/5203"
# From another pod: the kernel remembers those that this one has just made with the same server for two minutes,
# and would have to find new ports for each.
measure "pod to ClusterIP" "$service" inside "$three"

echo "== rootlet, many of everything"
printf '%-34s %s\n' "names of the cluster, from a pod" \
    "$(inside "$one" "$place/questions" 10.43.0.10:53 kubernetes.default.svc.cluster.local "$seconds")"
resident() { awk '/^VmRSS/ {printf "%.1f MiB", $2 / 1024}' "/proc/$node/status"; }
before=$(resident)
# Each takes two descriptors of the node process, of which it keeps 512 for other things, and one pod has half of
# what there is.
flows=$(ulimit -Hn | awk '{print ($1 == "unlimited" || $1 > 20512) ? 5000 : int(($1 - 600) / 4)}')
keepers=()
for pid in "$one" "$three"; do
    inside "$pid" python3 "$place/peer.py" keep "$host" "$flows" >"$place/kept.$pid" 2>&1 &
    keepers+=($!)
    started+=($!)
done
for _ in $(seq 900); do [ -s "$place/kept.$one" ] && [ -s "$place/kept.$three" ] && break; sleep 0.1; done
kept=$(($(head -1 "$place/kept.$one") + $(head -1 "$place/kept.$three")))
printf '%-34s node process %s, before %s\n' "$kept connections of two pods" "$(resident)" "$before"
# They are a function's shells; the peers are their children.
for keeper in "${keepers[@]}"; do pkill -P "$keeper" || true; wait "$keeper" 2>/dev/null || true; done

# Services without selectors, so that nobody but this script changes their slices.
kubectl config view --raw -o json >"$place/kubeconfig.json"
cat >"$place/services.py" <<'PY'
import base64, concurrent.futures, http.client, json, os, socket, ssl, subprocess, sys, tempfile, threading, time, urllib.parse
place, count, pid, one, two = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
config = json.load(open(f"{place}/kubeconfig.json"))
server = urllib.parse.urlparse(config["clusters"][0]["cluster"]["server"])
user = config["users"][0]["user"]
context = ssl.create_default_context(cadata=base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode())
with tempfile.NamedTemporaryFile() as pem:
    pem.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
    pem.flush()
    context.load_cert_chain(pem.name)
own = threading.local()
def call(method, path, body, kind="application/json"):
    if not hasattr(own, "connection"):
        own.connection = http.client.HTTPSConnection(server.hostname, server.port, context=context)
    own.connection.request(method, path, json.dumps(body), {"Content-Type": kind})
    answer = own.connection.getresponse()
    text = answer.read()
    assert answer.status < 300, text
    return json.loads(text)
slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
def make(number):
    name = f"many-{number}"
    made = call("POST", "/api/v1/namespaces/default/services", {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})
    call("POST", slices, {"metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": 5202, "protocol": "TCP"}], "endpoints": [{"addresses": [one]}]})
    return made["spec"]["clusterIP"]
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    addresses = list(pool.map(make, range(count)))
# Whether a connection from the pod's network is taken says which of the two has the service: only `one` listens.
libc = __import__("ctypes").CDLL(None, use_errno=True)
def taken(address):
    try:
        socket.create_connection((address, 80), timeout=1).close()
        return True
    except OSError:
        return False
def probe(ready, wanted, told):
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    assert libc.setns(namespace, 0x40000000) == 0
    while ready.wait() and wanted:
        address, want = wanted.pop()
        while taken(address) != want:
            pass
        told.append(time.perf_counter())
        ready.clear()
ready, wanted, told, times = threading.Event(), [], [], []
threading.Thread(target=probe, args=(ready, wanted, told), daemon=True).start()
wanted.append((addresses[-1], True)); ready.set()
while not told: time.sleep(0.01)
for turn in range(20):
    told.clear(); wanted.append((addresses[-1], turn % 2 == 1))
    begin = time.perf_counter(); ready.set()
    call("PATCH", f"{slices}/many-{count - 1}", {"endpoints": [{"addresses": [one if turn % 2 else two]}]}, "application/merge-patch+json")
    while not told: time.sleep(0.0005)
    times.append(told[0] - begin)
    time.sleep(0.1)
times.sort()
print(f"one endpoint changed, in force after {times[len(times) // 2] * 1e3:.0f} ms (longest {times[-1] * 1e3:.0f} ms)")
PY
many=${MANY:-2000}
printf '%-34s %s\n' "$many services" "$(python3 "$place/services.py" "$place" "$many" "$one" "$two_address" "$one_address")"
