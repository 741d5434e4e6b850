//! Hosts that give less than usual, or something broken.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::harness::{BUSYBOX, Cluster, eventually, place, run};

#[test]
fn one_id_is_enough_for_images_of_root() {
    let cluster = Cluster::prepared();
    let file = cluster.path("kubeconfig");
    let mut up = Command::new(place().join("rootlet"));
    cluster.settle(&mut up);
    // Without newuidmap no subordinate ids can be mapped.
    up.env("PATH", "/nowhere").args(["up", "--ephemeral", "--name", &cluster.name]);
    let said = run(up.arg("--kubeconfig").arg(file));
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("only one user id"), "{}", said.err);
    cluster.load_busybox();
    cluster.kubectl_ok(&["run", "single", "--image", BUSYBOX, "--", "sleep", "1000"]);
    cluster.pod_ready("single");
    assert_eq!(cluster.kubectl_ok(&["exec", "single", "--", "id", "-u"]).trim(), "0");
    let map = cluster.kubectl_ok(&["exec", "single", "--", "cat", "/proc/self/uid_map"]);
    assert_eq!(map.split_whitespace().last(), Some("1"), "{map}");
}

#[test]
fn without_user_namespaces_the_doctor_is_named() {
    let cluster = Cluster::prepared();
    // In a namespace that may have no others below it, as a user without any privilege.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && \
        exec setpriv --bounding-set=-all --inh-caps=-all \"$0\" up --name \"$1\"";
    let mut up = Command::new("unshare");
    cluster.settle(&mut up);
    up.args(["--user", "--map-root-user", "sh", "-c", script]).arg(place().join("rootlet"));
    let said = run(up.arg(&cluster.name));
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(
        said.err.contains("user namespace") && said.err.contains("rootlet doctor"),
        "{}",
        said.err
    );
}

/// As root of a namespace whose data lies on a disk of 24 MiB.
#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let cluster = Cluster::prepared();
    let data = cluster.path("data");
    fs::create_dir_all(&data).expect("it can be made");
    let script = r#"
        set -e
        mount -t tmpfs -o size=24m disk "$XDG_DATA_HOME"
        "$0/rootlet" up --name "$1" --kubeconfig kubeconfig
        trap '"$0/rootlet" delete --name "$1"' EXIT
        kubectl() { "$0/kubectl" --kubeconfig kubeconfig "$@"; }
        kubectl create configmap kept --from-literal=a=b
        dd if=/dev/zero of="$XDG_DATA_HOME/ballast" bs=64k 2>/dev/null || true
        head -c 500000 /dev/zero | tr '\0' x > large
        for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
            if ! kubectl create configmap big$n --from-file=large 2>refusal; then break; fi
        done
        cat refusal
        echo "image: $("$0/rootlet" image load --name "$1" "$0/busybox.tar" 2>&1)"
        echo "then: $(kubectl get configmap kept -o 'jsonpath={.data.a}')"
        rm "$XDG_DATA_HOME/ballast"
        until kubectl create configmap after --from-literal=c=d 2>refusal; do sleep 0.1; done
        "$0/rootlet" image load --name "$1" "$0/busybox.tar"
        kubectl get configmap kept after -o name
    "#;
    let mut host = Command::new("unshare");
    cluster.settle(&mut host);
    host.args([
        "--user",
        "--map-root-user",
        "--map-auto",
        "--mount",
        "timeout",
        "60",
        "sh",
        "-c",
        script,
    ]);
    let said = run(host.arg(place()).arg(&cluster.name));
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    assert!(said.out.contains("no space left to write"), "{}{}", said.out, said.err);
    assert!(
        said.out.contains("image: ") && said.out.contains("no space left on device"),
        "{}",
        said.out
    );
    assert!(said.out.contains("then: b"), "{}", said.out);
    assert!(said.out.contains("configmap/kept\nconfigmap/after"), "{}", said.out);
}

#[test]
fn a_damaged_state_file_is_named_and_left_alone() {
    let cluster = Cluster::prepared();
    cluster.up(&[]);
    cluster.kubectl_ok(&["create", "configmap", "kept", "--from-literal=a=b"]);
    cluster.rootlet_ok(&["down"]);
    let folder = cluster.path("data/rootlet").join(&cluster.name);
    let state = eventually("the state file", || {
        let find = run(Command::new("find").arg(&folder).args(["-name", "*.redb"]));
        find.out.lines().next().map(std::path::PathBuf::from).ok_or(find.out)
    });
    let whole = fs::read(&state).expect("it can be read");
    let file = fs::OpenOptions::new().write(true).open(&state).expect("it can be written");
    file.write_all_at(&[0x5a; 4096], 0).expect("it can be written");
    let answer = cluster.rootlet(&["up"]);
    assert_eq!(answer.code, Some(1), "{}", answer.out);
    let name = state.to_str().expect("UTF-8");
    assert!(answer.err.contains(name), "{}", answer.err);
    assert!(fs::read(&state).expect("it is still there").starts_with(&[0x5a; 4096]), "left alone");
    fs::write(&state, whole).expect("it can be written");
    cluster.up(&[]);
    cluster.kubectl_ok(&["get", "configmap", "kept"]);
}
