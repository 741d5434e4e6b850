# Sourced by the shell scripts here: `as_user COMMAND…` runs COMMAND as an ordinary user with a private
# HOME and runtime folder. Started as root it makes such a user (rootlet-test, with subordinate ids);
# otherwise the caller is one already.
scratch=${ROOTLET_SCRATCH:-/var/tmp/rootlet-test-$(id -u)}
if [ "$(id -u)" = 0 ]; then
    if ! id rootlet-test >/dev/null 2>&1; then
        echo "making the unprivileged user rootlet-test"
        useradd --create-home --home-dir /var/lib/rootlet-test --shell /bin/bash rootlet-test
    fi
    for file in /etc/subuid /etc/subgid; do
        grep -q '^rootlet-test:' "$file" || echo "rootlet-test:$((1 << 28)):65536" >>"$file"
    done
    mkdir -p "$scratch" && chown rootlet-test: "$scratch" && chmod 700 "$scratch"
    user_id=$(id -u rootlet-test) group_id=$(id -g rootlet-test)
else
    mkdir -p "$scratch" && chmod 700 "$scratch"
fi
as_user() {
    local set=(env "HOME=$scratch/home" "XDG_RUNTIME_DIR=$scratch/run" "XDG_DATA_HOME=$scratch/data"
        "XDG_CONFIG_HOME=$scratch/config" KUBECONFIG=)
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid "$user_id" --regid "$group_id" --clear-groups "${set[@]}" "$@"
    else
        "${set[@]}" "$@"
    fi
}
as_user mkdir -p "$scratch/home" "$scratch/run" "$scratch/data" "$scratch/config"
