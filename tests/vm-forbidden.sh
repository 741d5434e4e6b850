#!/usr/bin/env bash
# The part of tests/vm.sh where root has forbidden user namespaces, in the machine, as an ordinary user. FOLDER holds the
# programs.
set -euo pipefail
place=$1 name=forbidden work=$1
. "$place/vm-wait.sh"
said=$(rootlet up 2>&1) && fail "it came up: $said"
[[ $said == *"user namespace"*"rootlet doctor"* ]] || fail "rootlet up: $said"
ok "up says that there are no user namespaces and to ask doctor"
said=$("$place/rootlet" doctor 2>&1) && fail "doctor is content: $said"
[[ $said == *"user.max_user_namespaces = 0"*"echo user.max_user_namespaces=15000 | sudo tee /etc/sysctl.d/99-rootlet.conf"* ]] ||
    fail "rootlet doctor: $said"
ok "doctor names the setting and the command that mends it"
said=$("$place/rootlet" doctor --fix 2>&1) && fail "doctor --fix is content: $said"
[[ $said == *"sudo tee /etc/sysctl.d/99-rootlet.conf"* ]] || fail "rootlet doctor --fix: $said"
ok "doctor --fix leaves to root what is root's"
