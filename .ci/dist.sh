#!/usr/bin/env bash
# Packs a release: archive, Debian package, list of parts, checksums. The same source gives the same bytes.
#   .ci/dist.sh [BINARY [FOLDER]]     BINARY instead of building one; FOLDER instead of dist/
# With SIGNING_KEY (a private SSH key) the checksums are signed.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-} out=$(realpath -m "${2:-dist}")
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
target=x86_64-unknown-linux-gnu
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}
export LC_ALL=C TZ=UTC
if [ -z "$binary" ]; then
    # Where the source and the crates lie is not to be in the program, neither from Rust nor from C.
    home=${CARGO_HOME:-$HOME/.cargo}
    export CFLAGS="-ffile-prefix-map=$home=/cargo -ffile-prefix-map=$PWD=/rootlet ${CFLAGS:-}"
    export CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=${DIST_TARGET:-$PWD/target/dist}
    cargo build --release --locked -p rootlet \
        --config "target.$target.rustflags=[\"--remap-path-prefix=$home=/cargo\", \"--remap-path-prefix=$PWD=/rootlet\"]"
    binary=$CARGO_TARGET_DIR/$target/release/rootlet
fi
name=rootlet-$version-x86_64-linux
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/$name/completions"
install -m 755 "$binary" "$work/$name/rootlet"
install -m 644 LICENSE README.md docs/CHANGELOG.md "$work/$name/"
"$work/$name/rootlet" man "$work/$name/man"
for shell in bash zsh fish; do
    "$work/$name/rootlet" completions "$shell" >"$work/$name/completions/rootlet.$shell"
done
chmod -R u=rwX,go=rX "$work/$name"
rm -f "$out"/rootlet[-_]*.{tar.gz,deb,cdx.json,licences.txt} "$out"/SHA256SUMS{,.sig}
tar -C "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu \
    -cf - "$name" | gzip -9n >"$out/$name.tar.gz"
.ci/deb.sh "$work/$name" "$out"
.ci/sbom.py "$version" >"$out/$name.cdx.json"
.ci/sbom.py --licences >"$out/$name.licences.txt"
cp docs/install/install.sh "$out/"
(cd "$out" && sha256sum rootlet[-_]* install.sh >SHA256SUMS)
if [ -n "${SIGNING_KEY:-}" ]; then
    ssh-keygen -q -Y sign -f "$SIGNING_KEY" -n rootlet-release "$out/SHA256SUMS"
fi
cat "$out/SHA256SUMS"
