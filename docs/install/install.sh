#!/bin/sh
# Installs rootlet for the calling user, after comparing what was fetched with its checksum.
#   sh install.sh --from PLACE [--version V] [--prefix DIR] [--signers FILE]
# PLACE is where a release's files are: an https:// address, or a folder. --signers names the keys that may have
# signed SHA256SUMS (allowed_signers, ssh-keygen(1)); without it the signature is not looked at.
set -eu

fail() {
    echo "install: $*" >&2
    exit 1
}
place='' version='' prefix=${PREFIX:-$HOME/.local} signers=''
while [ $# -gt 0 ]; do
    case $1 in
        --from) place=${2:?--from PLACE} && shift 2 ;;
        --version) version=${2:?--version V} && shift 2 ;;
        --prefix) prefix=${2:?--prefix DIR} && shift 2 ;;
        --signers) signers=${2:?--signers FILE} && shift 2 ;;
        -h | --help) sed -n '2,5s/^# *//p' "$0" && exit 0 ;;
        *) fail "what is $1? See --help" ;;
    esac
done
[ -n "$place" ] || fail "say where the release is: --from https://… or --from FOLDER"
[ "$(uname -s)" = Linux ] || fail "rootlet runs on Linux; on other systems use it in a virtual machine"
machine=$(uname -m)
[ "$machine" = x86_64 ] || fail "there is no build for $machine yet"
command -v sha256sum >/dev/null || fail "sha256sum is missing (coreutils)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch() { # NAME
    case $place in
        https://* | http://127.0.0.1:* | http://localhost:*)
            if command -v curl >/dev/null; then curl -fsSL -o "$work/$1" "$place/$1"
            elif command -v wget >/dev/null; then wget -qO "$work/$1" "$place/$1"
            else fail "curl or wget is needed"; fi ;;
        http://*) fail "$place: only https is trusted with a program" ;;
        *) cp "$place/$1" "$work/$1" ;;
    esac
}

fetch SHA256SUMS || fail "no SHA256SUMS at $place"
if [ -n "$signers" ]; then
    command -v ssh-keygen >/dev/null || fail "ssh-keygen is needed to check the signature"
    fetch SHA256SUMS.sig || fail "the release is not signed"
    ssh-keygen -q -Y verify -f "$signers" -I rootlet -n rootlet-release -s "$work/SHA256SUMS.sig" \
        <"$work/SHA256SUMS" >/dev/null || fail "SHA256SUMS is not signed by a key in $signers"
fi
# The archive is the one that the list names.
archives=$(sed -n 's/^[0-9a-f]\{64\}  \(rootlet-.*-'"$machine"'-linux\.tar\.gz\)$/\1/p' "$work/SHA256SUMS")
[ -z "$version" ] || archives=$(echo "$archives" | grep -Fx "rootlet-$version-$machine-linux.tar.gz" || true)
[ "$(echo "$archives" | grep -c .)" = 1 ] || fail "SHA256SUMS names no single archive${version:+ of version $version}: say --version"
fetch "$archives" || fail "cannot fetch $archives"
(cd "$work" && grep -F "  $archives" SHA256SUMS | sha256sum -c --status) ||
    fail "$archives is not what SHA256SUMS says; nothing was installed"

tar -xzf "$work/$archives" -C "$work"
from=$work/${archives%.tar.gz}
"$from/rootlet" version >/dev/null || fail "the program does not run on this machine"
# Beside its place and then renamed: a running rootlet keeps its own file.
mkdir -p "$prefix/bin" "$prefix/share/man/man1" "$prefix/share/bash-completion/completions" \
    "$prefix/share/zsh/site-functions" "$prefix/share/fish/vendor_completions.d"
cp "$from/rootlet" "$prefix/bin/.rootlet.new"
chmod 755 "$prefix/bin/.rootlet.new"
mv "$prefix/bin/.rootlet.new" "$prefix/bin/rootlet"
cp "$from"/man/*.1 "$prefix/share/man/man1/"
cp "$from/completions/rootlet.bash" "$prefix/share/bash-completion/completions/rootlet"
cp "$from/completions/rootlet.zsh" "$prefix/share/zsh/site-functions/_rootlet"
cp "$from/completions/rootlet.fish" "$prefix/share/fish/vendor_completions.d/rootlet.fish"
echo "Installed $prefix/bin/rootlet ($("$prefix/bin/rootlet" version))"
case :$PATH: in
    *":$prefix/bin:"*) ;;
    *) echo "Next: add $prefix/bin to your PATH" ;;
esac
echo "Next: rootlet doctor && rootlet up"
