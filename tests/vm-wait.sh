# Sourced by what runs in the virtual machine; a script that sources it has a `fail` of its own.
ok() { echo "ok    $*"; }
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
