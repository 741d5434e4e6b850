#!/usr/bin/env bash
# Makes a Debian package with dpkg-deb alone.
#   .ci/deb.sh UNPACKED-RELEASE FOLDER
set -euo pipefail
from=$1 out=$2
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(stat -c %Y "$from/rootlet")}
version=$("$from/rootlet" version | sed 's/^rootlet \([^ ]*\).*/\1/')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
share=$work/usr/share
install -D -m 755 "$from/rootlet" "$work/usr/bin/rootlet"
install -D -m 644 "$from/completions/rootlet.bash" "$share/bash-completion/completions/rootlet"
install -D -m 644 "$from/completions/rootlet.zsh" "$share/zsh/vendor-completions/_rootlet"
install -D -m 644 "$from/completions/rootlet.fish" "$share/fish/vendor_completions.d/rootlet.fish"
mkdir -p "$share/man/man1" "$share/doc/rootlet" "$share/rootlet" "$work/DEBIAN"
for page in "$from"/man/*.1; do gzip -9n <"$page" >"$share/man/man1/$(basename "$page").gz"; done
gzip -9n <"$from/CHANGELOG.md" >"$share/doc/rootlet/changelog.gz"
cat >"$share/doc/rootlet/copyright" <<END
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: rootlet

Files: *
Copyright: the authors of rootlet and of the crates it is built from
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
END
# Ubuntu 24.04 and newer let only programs with a profile make user namespaces.
cat >"$share/rootlet/apparmor" <<'END'
abi <abi/4.0>,
include <tunables/global>

profile rootlet /usr/bin/rootlet flags=(unconfined) {
  userns,
  include if exists <local/rootlet>
}
END
cat >"$work/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -e /proc/sys/kernel/apparmor_restrict_unprivileged_userns ]; then
    cp /usr/share/rootlet/apparmor /etc/apparmor.d/rootlet
    if command -v apparmor_parser >/dev/null; then apparmor_parser -r /etc/apparmor.d/rootlet || true; fi
fi
END
cat >"$work/DEBIAN/postrm" <<'END'
#!/bin/sh
set -e
if [ -e /etc/apparmor.d/rootlet ] && { [ "$1" = remove ] || [ "$1" = purge ]; }; then
    if command -v apparmor_parser >/dev/null; then apparmor_parser -R /etc/apparmor.d/rootlet || true; fi
    rm -f /etc/apparmor.d/rootlet
fi
END
chmod -R u=rwX,go=rX "$work/usr"
chmod 755 "$work/DEBIAN/postinst" "$work/DEBIAN/postrm"
cat >"$work/DEBIAN/control" <<END
Package: rootlet
Version: $version
Architecture: amd64
Maintainer: ${MAINTAINER:-The rootlet authors <rootlet@localhost>}
Installed-Size: $(du -sk --apparent-size "$work/usr" | cut -f1)
Depends: uidmap
Recommends: dbus-user-session
Suggests: kubernetes-client
Section: admin
Priority: optional
Description: whole Kubernetes in one program, run by an ordinary user
 API server, store, scheduler, controllers, kubelet, service proxy, DNS and
 container runtime in one static binary. It needs no root, no Docker, no
 containerd and no CNI plugins. "rootlet doctor" tells what a machine lacks.
END
# How many threads compress shows in the result.
export DPKG_DEB_THREADS_MAX=1
dpkg-deb --root-owner-group -Zxz --build "$work" "$out/rootlet_${version}_amd64.deb" >/dev/null
