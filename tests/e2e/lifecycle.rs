//! Clusters come and go.

use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{BUSYBOX, Cluster, eventually, place, run};

#[test]
fn up_is_told_once_and_down_keeps_the_data() {
    let cluster = Cluster::prepared();
    let said = cluster.up(&[]);
    assert!(said.contains("Next: kubectl"), "{said}");
    assert!(cluster.up(&[]).contains("already running"));
    cluster.kubectl_ok(&["create", "configmap", "kept", "--from-literal=a=b"]);
    let server = cluster.rootlet_ok(&["kubeconfig"]);
    cluster.rootlet_ok(&["down"]);
    let status = cluster.rootlet(&["status"]);
    assert_eq!(status.code, Some(1));
    assert!(status.out.contains("not running"), "{}", status.out);
    assert!(cluster.rootlet(&["image", "ls"]).err.contains("start it with `rootlet up"));
    cluster.up(&[]);
    assert_eq!(cluster.get(&["configmap", "kept"]).expect("it is kept")["data"]["a"], "b");
    assert_eq!(cluster.rootlet_ok(&["kubeconfig"]), server, "address and credentials stay");
}

#[test]
fn a_cluster_in_the_foreground_ends_with_its_signal() {
    let cluster = Cluster::prepared();
    let start = || {
        let mut command = cluster.command("rootlet");
        command.args(["up", "--foreground", "--ephemeral", "--name", &cluster.name]);
        command.arg("--kubeconfig").arg(cluster.path("kubeconfig"));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.expect("it can be started");
        eventually("the API", || {
            let nodes = cluster.kubectl(&["get", "nodes"]);
            if nodes.code == Some(0) { Ok(()) } else { Err(nodes.err) }
        });
        child
    };
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let child = start();
        kill(Pid::from_raw(child.id() as i32), signal).expect("it lives");
        let ended = child.wait_with_output().expect("it can be waited for");
        assert!(ended.status.success(), "{signal}: {ended:?}");
        assert_eq!(cluster.rootlet(&["status"]).code, Some(1), "{signal}");
    }
    let child = start();
    cluster.rootlet_ok(&["down"]);
    let ended = child.wait_with_output().expect("it can be waited for");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!((ended.status.code(), told.as_ref()), (Some(0), ""), "it was stopped on purpose");
}

#[test]
fn shells_complete_the_commands() {
    let cluster = Cluster::prepared();
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef rootlet"), ("fish", "complete -c rootlet")]
    {
        let script = run(cluster.command("rootlet").args(["completions", shell]));
        assert_eq!(script.code, Some(0), "{shell}: {}", script.err);
        assert!(script.out.contains(word), "{shell}: {}", script.out);
        assert!(script.out.contains("ephemeral"), "{shell}: {}", script.out);
    }
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let completions =
        cluster.command("rootlet").args(["completions", "fish"]).stdout(writer).output();
    let gone = completions.expect("it can be started");
    let told = String::from_utf8_lossy(&gone.stderr);
    assert_eq!((gone.status.code(), told.as_ref()), (Some(141), ""), "its reader went away");
    // What bash itself would offer after `rootlet do`.
    let offered = run(Command::new("bash").arg("-c").arg(format!(
        "source <({} completions bash); COMP_WORDS=(rootlet do); COMP_CWORD=1; _rootlet rootlet do rootlet; echo ${{COMPREPLY[*]}}",
        place().join("rootlet").display()
    )));
    assert_eq!(offered.out.trim(), "down doctor", "{}", offered.err);
}

#[test]
fn the_users_kubeconfig_gets_a_context_and_loses_it() {
    let cluster = Cluster::prepared();
    let said = cluster.rootlet_ok(&["up", "--ephemeral"]);
    let context = format!("rootlet-{}", cluster.name);
    assert!(said.contains(&format!("(context {context})")), "{said}");
    let file = cluster.path(".kube/config");
    let text = std::fs::read_to_string(&file).expect("it is there");
    assert!(text.contains(&context));
    let mut kubectl = cluster.kubectl_command();
    kubectl.env("KUBECONFIG", &file).args(["--kubeconfig", file.to_str().expect("UTF-8")]);
    let nodes = run(kubectl.args(["get", "nodes", "-o", "name"]));
    assert_eq!(nodes.out.trim(), format!("node/{context}"), "{}", nodes.err);
    // Another context is in it by now, so the file stays.
    let other = ["config", "set-context", "other", "--cluster=none", "--kubeconfig"];
    run(cluster.command("kubectl").args(other).arg(&file));
    cluster.rootlet_ok(&["delete"]);
    let text = std::fs::read_to_string(&file).expect("the file stays");
    assert!(!text.contains(&context) && text.contains("other"), "{text}");
}

#[test]
fn two_clusters_run_side_by_side() {
    let (one, two) = (Cluster::ephemeral(), Cluster::ephemeral());
    one.kubectl_ok(&["run", "here", "--image", crate::harness::BUSYBOX, "--", "sleep", "1000"]);
    one.pod_ready("here");
    assert!(two.kubectl(&["get", "pod", "here"]).err.contains("\"here\" not found"));
    drop(one);
    two.kubectl_ok(&["get", "nodes"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let cluster = Cluster::prepared();
    let answer = cluster.rootlet(&["up", "--api-port", &port]);
    assert_eq!(answer.code, Some(1), "{}", answer.out);
    assert!(answer.err.contains(&format!("port {port}")), "{}", answer.err);
    assert!(answer.err.contains("--api-port"), "{}", answer.err);
}

#[test]
fn pods_survive_the_daemons_death() {
    let cluster = Cluster::prepared();
    cluster.up(&[]);
    cluster.load_busybox();
    let image = crate::harness::BUSYBOX;
    cluster.kubectl_ok(&["run", "stays", "--image", image, "--", "sleep", "100000"]);
    let script = "trap 'exit 7' TERM; while :; do sleep 0.1; done";
    cluster.kubectl_ok(&[
        "run",
        "ends",
        "--image",
        image,
        "--restart=Never",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let before = cluster.pod_ready("stays");
    let ends = cluster.pod_ready("ends");
    let lock = cluster.path("rootlet").join(&cluster.name).join("daemon.pid");
    let pid = std::fs::read_to_string(lock).expect("the daemon's pid is there");
    let pid: i32 = pid.trim().parse().expect("it is a number");
    let kill = |pid, signal| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)
            .expect("the process is there");
    };
    kill(pid, nix::sys::signal::Signal::SIGKILL);
    // While nobody looks, one of the pods ends.
    let uid = ends["metadata"]["uid"].as_str().expect("it has a uid");
    let inside = eventually("the container's process", || {
        process_with("trap 'exit 7'").ok_or_else(|| format!("pod {uid}"))
    });
    kill(inside, nix::sys::signal::Signal::SIGTERM);
    eventually("its end", || process_with("trap 'exit 7'").map_or(Ok(()), |_| Err("alive".into())));
    cluster.up(&[]);
    let ended = cluster.pod_phase("ends", "Failed");
    assert_eq!(ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 7);
    let after = cluster.pod_ready("stays");
    for field in ["containerID", "restartCount"] {
        let of = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0][field].clone();
        assert_eq!(of(&before), of(&after), "{field}");
    }
}

/// The pid of the shell that runs `script`, of the processes this user can see.
fn process_with(script: &str) -> Option<i32> {
    let found = run(Command::new("pgrep").args(["-x", "-f", &format!("sh -c {script}.*")]));
    found.out.lines().next()?.trim().parse().ok()
}

#[test]
fn components_can_be_left_to_others() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral", "--disable", "scheduler"]);
    cluster.load_busybox();
    let image = crate::harness::BUSYBOX;
    cluster.kubectl_ok(&["run", "waits", "--image", image, "--", "sleep", "100000"]);
    let why = cluster.rootlet_ok(&["why", "pod/waits"]);
    assert!(why.contains("scheduler \"default-scheduler\" has not looked at it"), "{why}");
    let binding = serde_json::json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "waits"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": format!("rootlet-{}", cluster.name)}});
    let path = "/api/v1/namespaces/default/pods/waits/binding";
    let mut bind = cluster.kubectl_command();
    bind.args(["create", "--raw", path, "-f", "-"]);
    let bound = crate::harness::run_with(&mut bind, binding.to_string().as_bytes());
    assert_eq!(bound.code, Some(0), "{}{}", bound.out, bound.err);
    cluster.pod_ready("waits");

    let control_plane = Cluster::prepared();
    control_plane.up(&["--ephemeral", "--disable", "kubelet,scheduler,proxy,dns"]);
    assert!(control_plane.kubectl_ok(&["get", "nodes"]).is_empty(), "it has no node of its own");
    assert!(control_plane.kubectl_ok(&["get", "sa", "-n", "kube-system"]).contains("default"));
}

#[test]
fn the_machine_is_told_about() {
    let answer = run(Command::new(crate::harness::place().join("rootlet")).arg("doctor"));
    for check in
        ["user namespaces", "subordinate ids", "overlay", "nf_tables", "/proc", "cgroup delegation"]
    {
        assert!(answer.out.contains(check), "{check}: {}", answer.out);
    }
    assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
}

/// Processes of the cluster by their role; a shim for each pod.
fn processes(cluster: &Cluster, role: &str) -> Vec<i32> {
    let run = cluster.path("rootlet").join(&cluster.name);
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted");
    let found = entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let ours = match role {
            // A shim says nothing of its cluster; its working files do.
            "shim" => {
                command.trim_end().ends_with(" shim")
                    && std::fs::read_to_string(entry.path().join("mountinfo"))
                        .is_ok_and(|mounts| mounts.contains(run.to_str().unwrap_or("?")))
            }
            _ => command.contains(&format!("{role}-inside")) && command.contains(&cluster.word()),
        };
        ours.then_some(pid)
    });
    found.collect()
}

#[test]
fn whatever_is_killed_the_pods_come_back_and_nothing_is_left() {
    let cluster = Cluster::prepared();
    cluster.up(&[]);
    cluster.load_busybox();
    let replicas = 4;
    cluster.kubectl_ok(&[
        "create",
        "deployment",
        "web",
        "--image",
        BUSYBOX,
        "--replicas",
        &replicas.to_string(),
        "--",
        "sleep",
        "98765",
    ]);
    let settled = |what: &str| {
        eventually(what, || {
            let deployment = cluster.get(&["deployment", "web"])?;
            let ready = deployment["status"]["readyReplicas"].as_u64();
            let (shims, sleeps) = (processes(&cluster, "shim").len(), asleep().len());
            if ready == Some(replicas) && shims as u64 == replicas && sleeps as u64 == replicas {
                Ok(())
            } else {
                Err(format!("{ready:?} ready, {shims} shims, {sleeps} containers"))
            }
        });
    };
    settled("all run");
    let kill = |pid: i32| {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    };
    let end = |role: &str| {
        processes(&cluster, role).into_iter().for_each(kill);
        // Its lock is free when it is gone.
        eventually("the end of a process", || match processes(&cluster, role).as_slice() {
            [] => Ok(()),
            left => Err(format!("{left:?}")),
        });
    };
    for round in 0..3 {
        // Shims in turn, the daemon, and both at once.
        let shims = processes(&cluster, "shim");
        kill(shims[round % shims.len()]);
        if round > 0 {
            end("daemon");
            cluster.up(&[]);
        }
        settled(&format!("all run again after round {round}"));
    }
    // In this order: a daemon starts another node process at once.
    end("daemon");
    end("node");
    cluster.up(&[]);
    settled("all run again after the node process died");
    cluster.kubectl_ok(&["delete", "deployment", "web"]);
    eventually("nothing is left", || {
        let left = (processes(&cluster, "shim"), asleep());
        if left == (Vec::new(), Vec::new()) { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

/// The containers' processes.
fn asleep() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted");
    let found = entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        (command == b"sleep\x0098765\0").then_some(pid)
    });
    found.collect()
}
