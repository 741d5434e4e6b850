//! A cluster around a command, and what the command line says about pods and images without kubectl.

use std::fs;
use std::process::{Command, Stdio};

use crate::harness::{Answer, BUSYBOX, Cluster, eventually, place, run};

/// A command that runs `rootlet ci WORDS…` with the folders of a cluster that is never started itself.
fn ci(host: &Cluster, words: &[&str]) -> Command {
    let mut command = Command::new(place().join("rootlet"));
    host.settle(&mut command);
    command.args(["ci", "--name", &host.name]).args(words);
    command
}

fn kubectl() -> String {
    place().join("kubectl").display().to_string()
}

fn gone(host: &Cluster) -> Result<(), String> {
    let left = [host.path("data/rootlet").join(&host.name), host.path("rootlet").join(&host.name)];
    match left.iter().find(|folder| folder.exists()) {
        Some(folder) => Err(format!("{} is there", folder.display())),
        None => Ok(()),
    }
}

#[test]
fn a_command_gets_a_cluster_and_its_exit_code_is_kept() {
    let host = Cluster::prepared();
    let manifests = host.path("manifests");
    fs::create_dir(&manifests).expect("it can be made");
    fs::write(
        manifests.join("a.yaml"),
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: shop}\ndata: {a: b}\n",
    )
    .expect("it can be written");
    let busybox = place().join("busybox.tar").display().to_string();
    let script = format!(
        "set -e; k={}; $k get configmap c -n shop -o 'jsonpath={{.data.a}}'; \
         $k run one --image {BUSYBOX} --restart Never -- true; \
         $k wait --for=jsonpath={{.status.phase}}=Succeeded pod/one --timeout=60s; exit 7",
        kubectl()
    );
    let words = [
        "--load",
        &busybox,
        "--apply",
        manifests.to_str().expect("UTF-8"),
        "--",
        "sh",
        "-c",
        &script,
    ];
    let said = run(&mut ci(&host, &words));
    assert_eq!(said.code, Some(7), "{}{}", said.out, said.err);
    assert!(said.out.starts_with("bpod/one created"), "{}", said.out);
    assert!(said.err.contains("configmap/c serverside-applied"), "{}", said.err);
    assert!(said.err.contains("every pod is well"), "{}", said.err);
    gone(&host).expect("everything is removed");
}

#[test]
fn a_failed_command_is_followed_by_what_is_wrong() {
    let host = Cluster::prepared();
    let script = format!(
        "k={}; $k run broken --image localhost/absent:1 --image-pull-policy Never; \
         $k wait --for=condition=Ready pod/broken --timeout=2s",
        kubectl()
    );
    let said = run(&mut ci(&host, &["--", "sh", "-c", &script]));
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.err.contains("Pod default/broken: the image"), "{}", said.err);
    assert!(said.err.contains("Remedy: rootlet image load"), "{}", said.err);
    gone(&host).expect("everything is removed");
    let absent = run(&mut ci(&host, &["--", "/no/such/command"]));
    assert_eq!(absent.code, Some(127), "{}", absent.err);
}

#[test]
fn a_killed_run_leaves_nothing() {
    let host = Cluster::prepared();
    let script = format!("{} get nodes >/dev/null && touch there && exec sleep 1000", kubectl());
    let mut running = ci(&host, &["--", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    eventually("the command runs", || {
        host.path("there").exists().then_some(()).ok_or_else(String::new)
    });
    running.kill().expect("it runs");
    running.wait().expect("it ends");
    eventually("everything is removed", || gone(&host));
    let sleeper = run(Command::new("pkill").args(["-f", "^sleep 1000$"]));
    assert!(sleeper.code == Some(0), "the command itself is not ours to end: {}", sleeper.err);
}

#[test]
fn images_are_saved_checked_and_pruned() {
    let cluster = Cluster::ephemeral();
    cluster.rootlet_ok(&["image", "save", BUSYBOX, "-o", "saved.tar"]);
    let refused = cluster.rootlet(&["image", "save", "absent:1", "-o", "other.tar"]);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(
        refused.err.contains("absent:1") && !cluster.path("other.tar").exists(),
        "{}",
        refused.err
    );
    assert!(cluster.rootlet_ok(&["image", "fsck"]).contains("0 damaged"));
    cluster.rootlet_ok(&["image", "prune"]);
    assert!(cluster.rootlet_ok(&["image", "ls"]).contains(BUSYBOX), "it has a tag");
    assert!(cluster.rootlet_ok(&["image", "prune", "--all"]).contains("Removed"));
    assert!(!cluster.rootlet_ok(&["image", "ls"]).contains(BUSYBOX));
    let loaded: Answer = cluster.rootlet(&["image", "load", "saved.tar"]);
    assert!(loaded.out.contains(BUSYBOX), "{}{}", loaded.out, loaded.err);
    cluster.kubectl_ok(&["run", "again", "--image", BUSYBOX, "--", "sleep", "1000"]);
    cluster.pod_ready("again");
    let why = cluster.rootlet_ok(&["why", "pod/again"]);
    assert!(why.contains("nothing holds it"), "{why}");
    let absent = cluster.rootlet(&["why", "pod/absent"]);
    assert_eq!(absent.code, Some(1));
    assert!(absent.err.contains("pods \"absent\" not found"), "{}", absent.err);
}
