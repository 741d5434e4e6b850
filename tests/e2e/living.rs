//! Living with it: another build, a service manager, a reboot, data that moves, and the end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{BUSYBOX, Cluster, eventually, place, run};

/// Processes with exactly this command line.
fn processes(words: &str) -> Vec<i32> {
    let command: Vec<u8> =
        words.bytes().map(|b| if b == b' ' { 0 } else { b }).chain([0]).collect();
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let found = entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (fs::read(entry.path().join("cmdline")).ok()? == command).then_some(pid)
    });
    found.collect()
}

fn holder(cluster: &Cluster, role: &str) -> i32 {
    let lock = cluster.path("rootlet").join(&cluster.name).join(format!("{role}.pid"));
    fs::read_to_string(lock).expect("it was started").trim().parse().expect("it is a number")
}

#[test]
fn another_build_takes_over_and_pods_keep_their_processes() {
    let cluster = Cluster::prepared();
    cluster.up(&[]);
    cluster.load_busybox();
    cluster.kubectl_ok(&["run", "stays", "--image", BUSYBOX, "--", "sleep", "31337"]);
    let before = cluster.pod_ready("stays");
    let (inside, daemon) = (processes("sleep 31337"), holder(&cluster, "daemon"));
    assert_eq!(inside.len(), 1);

    // Bytes after its end are no part of a program, but make it another file. Another process writes it: one that
    // this process forks meanwhile would hold it open for writing, and nobody could run it.
    let other = cluster.path("rootlet-next");
    let make = "cp \"$1\" \"$2\" && printf x >> \"$2\" && chmod 755 \"$2\"";
    let made =
        run(Command::new("sh").args(["-c", make, "sh"]).arg(place().join("rootlet")).arg(&other));
    assert_eq!(made.code, Some(0), "{}", made.err);
    let next = |words: &[&str]| {
        let mut command = Command::new(&other);
        cluster.settle(&mut command);
        let file = cluster.path("kubeconfig");
        run(command.args(words).args(["--name", &cluster.name, "--kubeconfig"]).arg(file))
    };
    assert!(!cluster.up(&[]).contains("another build"), "it is the same one");
    let said = next(&["up"]);
    assert!(said.out.contains("--upgrade"), "{}{}", said.out, said.err);
    assert_eq!(holder(&cluster, "daemon"), daemon, "nothing happens unasked");
    let status = run(Command::new(&other).args(["status", "--name", &cluster.name]).envs([
        ("HOME", cluster.path("")),
        ("XDG_DATA_HOME", cluster.path("data")),
        ("XDG_RUNTIME_DIR", cluster.path("")),
    ]));
    assert!(status.out.contains("another build"), "{}{}", status.out, status.err);
    let node = holder(&cluster, "node");
    // A connection between pods, which is the kernel's, from before to after.
    let address = before["status"]["podIP"].as_str().expect("it has one").to_owned();
    cluster.kubectl_ok(&[
        "exec",
        "stays",
        "--",
        "sh",
        "-c",
        "sleep 1000 | nc -l -p 7000 > /tmp/heard 2>&1 &",
    ]);
    let talk = format!(
        "(echo one; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo two) | nc {address} 7000; touch /tmp/said"
    );
    cluster.kubectl_ok(&[
        "run",
        "talks",
        "--image",
        BUSYBOX,
        "--",
        "sh",
        "-c",
        &format!("{talk}; sleep 1000"),
    ]);
    let heard = |what: &str| {
        eventually(what, || {
            let heard = cluster.kubectl_ok(&["exec", "stays", "--", "cat", "/tmp/heard"]);
            if heard == what { Ok(()) } else { Err(heard) }
        });
    };
    heard("one\n");
    let said = next(&["up", "--upgrade=daemon"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let now = holder(&cluster, "daemon");
    assert_ne!(now, daemon);
    assert_eq!(fs::read_link(format!("/proc/{now}/exe")).expect("it runs"), other);
    assert_eq!(holder(&cluster, "node"), node, "it carries the pods' connections on");
    let said = next(&["up", "--upgrade"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let successor = holder(&cluster, "node");
    assert_ne!(successor, node);
    assert_eq!(fs::read_link(format!("/proc/{successor}/exe")).expect("it runs"), other);
    cluster.kubectl_ok(&["exec", "talks", "--", "touch", "/tmp/go"]);
    heard("one\ntwo\n");
    // Names and the way to the API are there again.
    eventually("the cluster's names", || {
        let lookup = cluster.kubectl(&[
            "exec",
            "stays",
            "--",
            "nslookup",
            "kubernetes.default.svc.cluster.local",
        ]);
        if lookup.code == Some(0) { Ok(()) } else { Err(format!("{lookup:?}")) }
    });
    let status = run(Command::new(&other).args(["status", "--name", &cluster.name]).envs([
        ("HOME", cluster.path("")),
        ("XDG_DATA_HOME", cluster.path("data")),
        ("XDG_RUNTIME_DIR", cluster.path("")),
    ]));
    assert!(!status.out.contains("another build"), "{}{}", status.out, status.err);

    assert_eq!(processes("sleep 31337"), inside, "the pod's process is the same");
    let after = cluster.pod_ready("stays");
    for field in ["containerID", "restartCount", "state"] {
        let of = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0][field].clone();
        assert_eq!(of(&before), of(&after), "{field}");
    }
    assert_eq!(cluster.kubectl_ok(&["exec", "stays", "--", "echo", "here"]), "here\n");
    cluster.kubectl_ok(&["run", "new", "--image", BUSYBOX, "--", "sleep", "31338"]);
    cluster.pod_ready("new");

    let memory = Cluster::prepared();
    memory.up(&["--ephemeral"]);
    let refused = memory.rootlet(&["up", "--upgrade"]);
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("snapshot save"), "{}", refused.err);
}

#[test]
fn a_service_manager_is_told_and_obeyed() {
    let cluster = Cluster::prepared();
    let socket = UnixDatagram::bind(cluster.path("notify")).expect("it can listen");
    socket.set_read_timeout(Some(std::time::Duration::from_mins(1))).expect("it can");
    let told = || {
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).expect("it is told in time");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut command = cluster.command("rootlet");
    let start = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts")
    };
    command.env("NOTIFY_SOCKET", cluster.path("notify"));
    command.args(["up", "--foreground", "--name", &cluster.name]);
    let mut service = start(&mut command);
    assert_eq!(told(), "READY=1");
    assert!(cluster.rootlet_ok(&["status"]).contains("Ready"), "ready is what it says");
    kill(Pid::from_raw(service.id() as i32), Signal::SIGTERM).expect("it runs");
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(service.wait().expect("it ends").code(), Some(0));
    assert_eq!(cluster.rootlet(&["status"]).code, Some(1));

    // Stopped by hand is no failure; an upgrade is no end.
    let mut service = start(&mut command);
    assert_eq!(told(), "READY=1");
    cluster.rootlet_ok(&["up", "--upgrade"]);
    assert_eq!(service.try_wait().expect("it can be asked"), None, "it goes on");
    cluster.rootlet_ok(&["down"]);
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(service.wait().expect("it ends").code(), Some(0));

    // A daemon that dies is one.
    let mut service = start(&mut command);
    assert_eq!(told(), "READY=1");
    kill(Pid::from_raw(holder(&cluster, "daemon")), Signal::SIGKILL).expect("it runs");
    assert_eq!(service.wait().expect("it ends").code(), Some(1));
    assert_eq!(told(), "STOPPING=1");

    // Unless it is a service, whose pods the manager would end with it.
    command.env("ROOTLET_UNIT", format!("rootlet-{}.service", cluster.name));
    let mut service = start(&mut command);
    assert_eq!(told(), "READY=1");
    let daemon = holder(&cluster, "daemon");
    kill(Pid::from_raw(daemon), Signal::SIGKILL).expect("it runs");
    eventually("another daemon", || {
        let status = cluster.rootlet(&["status"]);
        let another = holder(&cluster, "daemon") != daemon && status.code == Some(0);
        if another { Ok(()) } else { Err(format!("{status:?}")) }
    });
    kill(Pid::from_raw(service.id() as i32), Signal::SIGTERM).expect("it runs");
    assert_eq!(service.wait().expect("it ends").code(), Some(0));
}

#[test]
fn a_unit_is_written_enabled_and_removed() {
    let cluster = Cluster::prepared();
    let tools = cluster.path("tools");
    fs::create_dir(&tools).expect("it can be made");
    let script = format!(
        "#!/bin/sh\ncase $2 in is-*) exit 1 ;; esac\necho \"$@\" >> {}\n",
        cluster.path("asked").display()
    );
    fs::write(tools.join("systemctl"), script).expect("it can be written");
    run(Command::new("chmod").arg("755").arg(tools.join("systemctl")));
    let rootlet = |words: &[&str]| {
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").expect("it is set"));
        run(cluster.command("rootlet").env("PATH", path).args(words))
    };
    let service = |words: &[&str]| rootlet(&[&["service"], words].concat());
    let name = &cluster.name;
    let wrong = service(&["install", "--name", name, "--", "--no-such-flag"]);
    assert_eq!(wrong.code, Some(1), "{}", wrong.out);
    assert!(wrong.err.contains("unexpected argument '--no-such-flag'"), "{}", wrong.err);
    let installed = service(&["install", "--name", name, "--", "--ingress"]);
    assert_eq!(installed.code, Some(0), "{}{}", installed.out, installed.err);
    let unit = cluster.path("config/systemd/user").join(format!("rootlet-{name}.service"));
    let text = fs::read_to_string(&unit).expect("it is written");
    let program = place().join("rootlet");
    let line = format!("ExecStart={} up --foreground --name {name} --ingress", program.display());
    assert!(text.contains(&line) && text.contains("Delegate=yes"), "{text}");
    if Path::new("/usr/bin/systemd-analyze").exists() {
        let verified = run(Command::new("systemd-analyze").args(["--user", "verify"]).arg(&unit));
        assert!(!verified.err.contains("Unknown"), "{}", verified.err);
    }
    // The systemctl here knows nothing, and says so to nobody.
    let status = |output: &str| service(&["status", "--name", name, "-o", output]);
    let told: serde_json::Value = serde_json::from_str(&status("json").out).expect("it is JSON");
    assert_eq!(told["file"], unit.display().to_string(), "{told}");
    assert_eq!((&told["state"], &told["running"]), (&"unknown".into(), &false.into()), "{told}");
    assert_eq!(status("text").code, Some(1));
    let removed = service(&["uninstall", "--name", name]);
    assert_eq!(removed.code, Some(0), "{}{}", removed.out, removed.err);
    assert!(!unit.exists());
    let told: serde_json::Value = serde_json::from_str(&status("json").out).expect("it is JSON");
    assert_eq!(told["installed"], false, "{told}");
    // A cluster that is deleted is not to come back at the next login.
    assert_eq!(service(&["install", "--no-start", "--name", name]).code, Some(0));
    assert!(unit.exists());
    assert_eq!(rootlet(&["delete", "--name", name]).code, Some(0));
    assert!(!unit.exists());
    let asked = fs::read_to_string(cluster.path("asked")).expect("systemd was asked");
    let unit = format!("rootlet-{name}.service");
    let want = format!(
        "--user daemon-reload\n--user enable --now {unit}\n--user disable --now {unit}\n--user daemon-reload\n\
         --user daemon-reload\n--user enable {unit}\n--user disable --now {unit}\n--user daemon-reload\n"
    );
    assert_eq!(asked, want);
}

#[test]
fn a_shell_offers_what_a_cluster_knows() {
    let cluster = Cluster::ephemeral();
    cluster.kubectl_ok(&["create", "namespace", "shop"]);
    for name in ["red", "blue"] {
        cluster.kubectl_ok(&["run", name, "--image", BUSYBOX, "-n", "shop", "--", "sleep", "1000"]);
    }
    // What bash does at the end of the line.
    let offered = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
        let script = format!(
            "source <(rootlet completions bash); COMP_WORDS=({line}); [ -n '{last}' ] || COMP_WORDS+=(''); \
             COMP_CWORD={}; _rootlet_names rootlet '{last}' '{before}'; echo ${{COMPREPLY[*]}}",
            words.len() - 1
        );
        let path = format!("{}:{}", place().display(), std::env::var("PATH").expect("it is set"));
        let mut shell = Command::new("bash");
        cluster.settle(&mut shell);
        let said = run(shell.env("PATH", path).args(["-c", &script]));
        assert_eq!(said.err, "", "{line}");
        said.out.trim().to_owned()
    };
    let name = &cluster.name;
    assert_eq!(offered(&format!("rootlet why --name {name} -n shop pod/r")), "pod/red");
    assert_eq!(offered(&format!("rootlet trace --name {name} -n shop ")), "pod/blue pod/red");
    assert_eq!(offered(&format!("rootlet why --name {name} -n sh")), "shop");
    assert_eq!(offered(&format!("rootlet status --name {}", &name[..2])), *name);
    assert_eq!(offered(&format!("rootlet image rm --name {name} lo")), BUSYBOX);
    assert_eq!(offered(&format!("rootlet get --name {name} deplo")), "deployments");
    assert_eq!(offered(&format!("rootlet get pods --name {name} -n shop b")), "blue");
    assert_eq!(offered(&format!("rootlet logs pod/red --name {name} -n shop -c ")), "red");
    assert_eq!(offered("rootlet do"), "down doctor", "what clap knows is still offered");

    // fish says what it would offer.
    let path = format!("{}:{}", place().display(), std::env::var("PATH").expect("it is set"));
    let fish = |line: &str| {
        let mut shell = Command::new("fish");
        cluster.settle(&mut shell);
        let script = format!("rootlet completions fish | source; complete --do-complete '{line}'");
        let said = run(shell.env("PATH", &path).args(["--no-config", "-c", &script]));
        assert_eq!(said.err, "", "{line}");
        said.out.lines().map(|l| l.split('\t').next().unwrap_or(l).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(fish(&format!("rootlet why --name {name} -n shop pod/r")), ["pod/red"]);
    assert_eq!(fish(&format!("rootlet get pods --name {name} -n shop b")), ["blue"]);
    assert_eq!(fish("rootlet docto"), ["doctor"]);
    // zsh is asked as it would be by a person: by the key.
    let zsh = |line: &str| {
        let mut shell = Command::new("zsh");
        cluster.settle(&mut shell);
        let script = format!(
            "zmodload zsh/zpty
            zpty z zsh -f -i
            zpty -w z 'PS1= PROMPT_EOL_MARK=; stty -echo; autoload -Uz compinit; compinit -u -D; source <(rootlet completions zsh)'
            zpty -w z 'show() {{ print -r -- \"<<$BUFFER>>\"; BUFFER=; zle accept-line }}; zle -N show; bindkey \"^X\" show; print REA\"\"DY'
            zpty -r z said '*READY*'
            zpty -w -n z '{line}'$'\\t'$'\\x18'
            zpty -r z said '*<<*>>*'
            print -r -- $said"
        );
        let said = run(shell.env("PATH", &path).args(["-f", "-c", &script]));
        let line = said.out.rsplit("<<").next().and_then(|rest| rest.split(">>").next());
        line.unwrap_or_else(|| panic!("{line:?}: {said:?}")).to_owned()
    };
    let before = format!("rootlet why --name {name} -n shop");
    assert_eq!(zsh(&format!("{before} pod/r")), format!("{before} pod/red "));
    assert_eq!(zsh("rootlet docto"), "rootlet doctor ");
}

#[test]
fn what_is_left_of_clusters_that_are_gone_is_mended() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::prepared();
    let config = cluster.path(".kube/config");
    fs::create_dir_all(cluster.path(".kube")).expect("it can be made");
    let entries = |name: &str, server: &str| {
        format!(
            "- {{name: {name}, cluster: {{server: \"{server}\"}}, context: {{cluster: {name}, user: {name}}}}}\n"
        )
    };
    let both = [
        entries("rootlet-gone", "https://127.0.0.1:1"),
        // Of the same kind of name, but not of this machine.
        entries("rootlet-far", "https://192.0.2.1:6443"),
    ]
    .concat();
    fs::write(
        &config,
        format!("apiVersion: v1\nkind: Config\nclusters:\n{both}contexts:\n{both}users: []\n"),
    )
    .expect("it can be written");
    let (data, run_folder) = (cluster.path("data/rootlet/left"), cluster.path("rootlet/left"));
    for folder in [&data, &run_folder] {
        fs::create_dir_all(folder).expect("it can be made");
    }
    fs::write(data.join("settings.json"), "{}").expect("it can be written");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).expect("it is ours");
    drop(std::os::unix::net::UnixListener::bind(run_folder.join("daemon.sock")).expect("it can"));

    let doctor = |words: &[&str]| run(cluster.command("rootlet").arg("doctor").args(words));
    let looked = doctor(&["-o", "json"]);
    let checks: serde_json::Value = serde_json::from_str(&looked.out).expect("it is JSON");
    let limited: BTreeSet<&str> = checks
        .as_array()
        .expect("it is a list")
        .iter()
        .filter(|check| check["level"] == "limited")
        .filter_map(|check| check["name"].as_str())
        .collect();
    for name in ["kubeconfig", "data folder", "sockets"] {
        assert!(limited.contains(name), "{name}: {}", looked.out);
    }
    let mended = doctor(&["--fix"]);
    assert_eq!(mended.code, Some(0), "{}{}", mended.out, mended.err);
    assert_eq!(mended.out.matches("mended ").count(), 3, "{}", mended.out);
    assert!(mended.out.contains("own files"), "{}", mended.out);
    let text = fs::read_to_string(&config).expect("it stays");
    assert!(!text.contains("rootlet-gone") && text.contains("rootlet-far"), "{text}");
    assert_eq!(fs::metadata(&data).expect("it stays").permissions().mode() & 0o777, 0o700);
    assert!(!run_folder.join("daemon.sock").exists());
    fs::remove_dir_all(&data).expect("it was ours");
}

/// Files and folders below `top`.
fn files(top: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path));
        }
        found.insert(path);
    }
    found
}

/// Processes of this user, or of the ids below it, whose files are below `top`.
fn users_of(top: &Path) -> BTreeSet<String> {
    let top = top.to_str().expect("UTF-8");
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let found = entries.filter_map(|entry| {
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let about = [read("cmdline"), read("environ"), read("mountinfo")].concat();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        String::from_utf8_lossy(&about).contains(top).then_some(command)
    });
    found.collect()
}

#[test]
fn delete_leaves_the_machine_as_it_was() {
    let cluster = Cluster::prepared();
    let home = cluster.path("");
    let own = fs::metadata(&home).expect("it is there").uid();
    let shared = || -> BTreeSet<PathBuf> {
        let places = ["/tmp", "/run", "/dev/shm", "/var/tmp"].map(Path::new);
        let entries =
            places.into_iter().flat_map(|place| fs::read_dir(place).into_iter().flatten());
        let named = |path: &PathBuf| path.to_string_lossy().contains("rootlet-");
        let mine =
            |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|found| found.uid() == own);
        entries.flatten().map(|entry| entry.path()).filter(named).filter(mine).collect()
    };
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    // The base directories are the user's.
    fs::create_dir(cluster.path("data")).expect("it can be made");
    let before = (files(&home), users_of(&home), mounts(), shared());
    // With the user's own kubeconfig, which is not there yet, and volumes that were written to.
    cluster.rootlet_ok(&["up"]);
    cluster.load_busybox();
    let config = cluster.path(".kube/config");
    fs::copy(&config, cluster.path("kubeconfig")).expect("it was made");
    cluster.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: data}}\nspec: {{accessModes: \
         [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}\n---\napiVersion: v1\nkind: \
         Pod\nmetadata: {{name: busy}}\nspec:\n  securityContext: {{runAsUser: 1000}}\n  volumes: [{{name: \
         v, persistentVolumeClaim: {{claimName: data}}}}, {{name: e, emptyDir: {{}}}}]\n  containers:\n  - \
         name: c\n    image: {BUSYBOX}\n    command: [sh, -c, 'echo x > /e/x; exec sleep 424242']\n    \
         volumeMounts: [{{name: v, mountPath: /v}}, {{name: e, mountPath: /e}}]\n"
    ));
    cluster.pod_ready("busy");
    let during = users_of(&home);
    assert!(during.iter().any(|command| command.ends_with("shim ")), "it is seen: {during:?}");
    fs::remove_file(cluster.path("kubeconfig")).expect("it was copied");
    // That is kubectl's own.
    fs::remove_dir_all(cluster.path(".kube/cache")).expect("kubectl ran");
    cluster.rootlet_ok(&["delete"]);
    assert!(processes("sleep 424242").is_empty());
    let after = (files(&home), users_of(&home), mounts(), shared());
    assert_eq!(before.0, after.0, "files");
    assert_eq!(before.1, after.1, "processes");
    assert_eq!(before.2, after.2, "mounts");
    assert_eq!(before.3, after.3, "files in shared folders");

    // What was there before stays, whatever is in it.
    fs::create_dir(cluster.path(".kube")).expect("it is gone");
    fs::write(&config, "apiVersion: v1\nkind: Config\n").expect("it can be written");
    cluster.rootlet_ok(&["up", "--ephemeral"]);
    cluster.rootlet_ok(&["delete"]);
    assert!(config.exists(), "it was the user's");
}

#[test]
fn the_folder_that_a_cluster_was_started_in_is_left() {
    let cluster = Cluster::prepared();
    let folder = cluster.path("stick");
    fs::create_dir_all(folder.join("kept")).expect("it can be made");
    let manifest = "{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}}";
    fs::write(folder.join("kept/map.yaml"), manifest).expect("it can be written");
    fs::write(folder.join("registries.yaml"), "mirrors: {}").expect("it can be written");
    let mut up = cluster.command("rootlet");
    let words = ["up", "--name", &cluster.name, "--kubeconfig", "../kubeconfig"];
    let flags = ["--registries", "registries.yaml", "--manifests", "kept"];
    let said = run(up.args(words).args(flags).current_dir(&folder));
    assert_eq!(said.code, Some(0), "{}", said.err);
    cluster.load_busybox();
    cluster.kubectl_ok(&["run", "stays", "--image", BUSYBOX, "--", "sleep", "86420"]);
    cluster.pod_ready("stays");
    // What was named by a relative path is found all the same.
    eventually("the manifest is applied", || cluster.get(&["configmap", "kept"]));
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let here = entries.filter_map(|entry| fs::read_link(entry.path().join("cwd")).ok());
    let here: Vec<PathBuf> = here.filter(|place| place.starts_with(&folder)).collect();
    assert!(here.is_empty(), "somebody holds {here:?}");
    let node = format!("/proc/{}/cwd", holder(&cluster, "node"));
    assert_eq!(fs::read_link(node).ok(), Some(PathBuf::from("/")), "it can be seen");
}

#[test]
fn pods_come_back_after_a_reboot_and_data_may_move() {
    let cluster = Cluster::prepared();
    cluster.up(&[]);
    cluster.load_busybox();
    cluster.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: data}}\nspec: {{accessModes: \
         [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}\n---\napiVersion: v1\nkind: \
         Pod\nmetadata: {{name: keeper}}\nspec:\n  terminationGracePeriodSeconds: 0\n  volumes: [{{name: v, \
         persistentVolumeClaim: {{claimName: data}}}}]\n  containers:\n  - name: c\n    image: \
         {BUSYBOX}\n    command: [sh, -c, 'echo $HOSTNAME >> /v/starts; exec sleep 515151']\n    \
         volumeMounts: [{{name: v, mountPath: /v}}]\n"
    ));
    cluster.pod_ready("keeper");
    let starts =
        || cluster.kubectl_ok(&["exec", "keeper", "--", "cat", "/v/starts"]).lines().count();
    assert_eq!(starts(), 1);

    // All at once, and the runtime folder with it.
    for pid in processes("sleep 515151") {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let run_folder = cluster.path("rootlet").join(&cluster.name);
    for role in ["daemon", "node"] {
        let _ = kill(Pid::from_raw(holder(&cluster, role)), Signal::SIGKILL);
    }
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    for entry in entries {
        let shim = fs::read(entry.path().join("cmdline")).is_ok_and(|c| c.ends_with(b"\0shim\0"));
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        if let (true, Ok(pid)) = (
            shim && mounts.contains(run_folder.to_str().expect("UTF-8")),
            entry.file_name().to_string_lossy().parse(),
        ) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    eventually("everything has ended", || {
        let left = users_of(&run_folder);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    fs::remove_dir_all(&run_folder).expect("nothing is mounted there");
    cluster.up(&[]);
    eventually("it runs again", || match processes("sleep 515151").len() {
        1 => Ok(()),
        other => Err(other.to_string()),
    });
    cluster.pod_ready("keeper");
    assert_eq!(starts(), 2);

    cluster.rootlet_ok(&["down"]);
    fs::rename(cluster.path("data"), cluster.path("moved")).expect("it can be moved");
    let moved = |words: &[&str]| {
        let mut command = cluster.command("rootlet");
        command.env("XDG_DATA_HOME", cluster.path("moved")).args(words);
        run(command.args(["--name", &cluster.name]))
    };
    let file = cluster.path("kubeconfig");
    let up = || moved(&["up", "--kubeconfig", file.to_str().expect("UTF-8")]);
    let refused = up();
    assert_eq!(refused.code, Some(1), "pods would find their volumes empty: {}", refused.out);
    let remedy = refused.err.split_once("lead there: ").expect("it is told").1.trim().to_owned();
    let linked = run(Command::new("sh").args(["-c", &remedy]));
    assert_eq!(linked.code, Some(0), "{remedy}: {}", linked.err);
    let said = up();
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    eventually("the volume has moved with it", || {
        let starts = cluster.kubectl(&["exec", "keeper", "--", "cat", "/v/starts"]);
        if starts.out.lines().count() == 3 { Ok(()) } else { Err(format!("{starts:?}")) }
    });
    // The link leads to the same data, for the end of the test.
    assert_eq!(moved(&["delete"]).code, Some(0));
}
