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
fn several_run_at_once_and_a_terminated_one_takes_everything_down() {
    let host = Cluster::prepared();
    let nameless = |script: &str| {
        let mut command = Command::new(place().join("rootlet"));
        host.settle(&mut command);
        command.args(["ci", "--", "sh", "-c", script]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("it starts")
    };
    let nodes = format!("{} get nodes -o name", kubectl());
    let mut endless = nameless(&format!("{nodes} && touch there && exec sleep 1000"));
    let others = [nameless(&nodes), nameless(&format!("{nodes}; exit 3"))];
    for (run, code) in others.into_iter().zip([0, 3]) {
        let node = format!("node/rootlet-ci-{}\n", run.id());
        let said = run.wait_with_output().expect("it ends");
        let err = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(code), "{err}");
        assert_eq!(String::from_utf8_lossy(&said.stdout), node, "{err}");
    }
    eventually("the third command runs", || {
        host.path("there").exists().then_some(()).ok_or_else(String::new)
    });
    let pid = nix::unistd::Pid::from_raw(i32::try_from(endless.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    let ended = endless.wait().expect("it ends");
    assert_eq!(ended.code(), Some(143), "the command's end is ours");
    for folder in ["data/rootlet", "rootlet"] {
        assert!(!host.path(folder).exists(), "{folder} is there");
    }
    let busy = run(ci(&host, &["--apply", "absent.yaml", "--", "true"]).env("HOME", "/"));
    assert_eq!(busy.code, Some(125), "the failure is not the command's: {}", busy.err);
    assert!(busy.err.contains("cannot read absent.yaml"), "{}", busy.err);
}

#[test]
fn a_run_that_is_interrupted_during_its_start_leaves_nothing() {
    let host = Cluster::prepared();
    let there = host.path("there");
    let settings = host.path("data/rootlet").join(&host.name).join("settings.json");
    // A start takes less than a moment: one that was over already does not count.
    let interrupted = (0..20).any(|_| {
        let mut starting = ci(&host, &["--", "touch", "there"]);
        let mut starting =
            starting.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        while !settings.exists() && starting.try_wait().expect("a child").is_none() {
            std::thread::yield_now();
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(starting.id()).expect("a pid"));
        // A shell's background jobs, which these tests may be, ignore SIGINT.
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        starting.wait().expect("it ends");
        eventually("everything is removed", || gone(&host));
        // What was started in the very moment finds nothing to do, and ends.
        eventually("no process is left", || {
            let left = crate::hygiene::processes(&host.word());
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        let ran = there.exists();
        if ran {
            fs::remove_file(&there).expect("a file");
        }
        !ran
    });
    assert!(interrupted, "the command ran every time");
}

#[test]
fn a_privileged_container_is_enough_and_what_another_lacks_is_told() {
    let host = Cluster::prepared();
    // What a container without root outside is made of: ids, mounts and processes of its own.
    let inside = |script: &str| {
        let mut command = Command::new("unshare");
        command.args([
            "--map-auto",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
        ]);
        host.settle(&mut command);
        command.env("ROOTLET", place().join("rootlet")).env("K", kubectl());
        command.env("ARCHIVE", place().join("busybox.tar"));
        run(command.args(["bash", "-euc", script]))
    };
    let ran = inside(&format!(
        "$ROOTLET ci --name {} --load $ARCHIVE -- sh -ec '$K run one --image {BUSYBOX} --restart Never -- id -u; \
         $K wait --for=jsonpath={{.status.phase}}=Succeeded pod/one --timeout=60s; $K logs one'",
        host.name
    ));
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(ran.out.ends_with("met\n0\n"), "{}", ran.out);
    gone(&host).expect("everything is removed");
    let told = inside("mount --bind -o ro /proc/sys /proc/sys; $ROOTLET doctor");
    assert_eq!(told.code, Some(1), "{}{}", told.out, told.err);
    assert!(told.out.contains("Read-only file system"), "{}", told.out);
    assert!(told.out.contains("--security-opt systempaths=unconfined (Docker)"), "{}", told.out);
}

/// Serves what Docker and Podman serve of one image, until the test ends.
fn engine(socket: &std::path::Path, image: &'static str, archive: Vec<u8>) {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::os::unix::net::UnixListener::bind(socket).expect("it can listen");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("somebody connects");
            let mut lines = BufReader::new(&stream).lines();
            let first = lines.next().expect("a request").expect("it can be read");
            // The rest of the head; there is no body.
            let _ =
                lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).count();
            let (status, body) = match first.split(' ').nth(1).expect("a path") {
                path if path == format!("/images/{image}/json") => ("200 OK", &b"{}"[..]),
                path if path == format!("/images/{image}/get") => ("200 OK", &archive[..]),
                _ => ("404 Not Found", &b"{\"message\":\"No such image\"}"[..]),
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
}

#[test]
fn images_come_straight_from_another_engine() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    let socket = cluster.path("engine.sock");
    engine(&socket, BUSYBOX, fs::read(place().join("busybox.tar")).expect("it is there"));
    let load = |image: &str| {
        let mut command = cluster.command("rootlet");
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        run(command.args(["image", "load", image, "--name", &cluster.name]))
    };
    let loaded = load(BUSYBOX);
    assert_eq!(loaded.out, format!("Loaded {BUSYBOX}\n"), "{}", loaded.err);
    assert!(cluster.rootlet_ok(&["image", "ls"]).contains(BUSYBOX));
    let absent = load("absent:1");
    assert_eq!(absent.code, Some(1), "{}", absent.out);
    assert!(absent.err.contains("engine.sock"), "it says who was asked: {}", absent.err);
    assert!(absent.err.contains("rootlet image pull absent:1"), "{}", absent.err);
    let layout = cluster.rootlet(&["image", "load", "."]);
    assert!(layout.err.contains("tar -C . -cf - . | rootlet image load -"), "{}", layout.err);
    let build = cluster.rootlet(&["image", "build", "."]);
    assert_eq!(build.code, Some(2), "{}", build.out);
    assert!(build.err.contains("buildah"), "{}", build.err);
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
