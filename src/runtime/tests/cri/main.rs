//! Pods from end to end through the CRI services, as an ordinary user: this program is the daemon,
//! the shim and the container process, as `rootlet` is. It makes the user namespace first, in the
//! order that libcontainer needs.

mod features;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::StreamExt;
use k8s_cri::v1;
use k8s_cri::v1::runtime_service_server::RuntimeService;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use runtime::{
    Config, Credentials, Error, Image, Images, Network, NetworkPod, Root, Runtime, Usage,
};
use tonic::{Code, Request};

/// No step of these tests takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(30);
static ATTEMPT: AtomicU32 = AtomicU32::new(0);
/// The one test of this binary, for those who list and choose tests.
const NAME: &str = "pods_run_through_cri_without_root";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("shim") => runtime::shim_main(),
        Some("container") => runtime::container_main(),
        Some("enter") => enter(),
        Some("inside") => inside(),
        Some("daemon") => daemon(Path::new(&arguments[1])),
        _ if arguments.iter().any(|argument| argument == "--list") => {
            if !arguments.iter().any(|argument| argument == "--ignored") {
                println!("{NAME}: test");
            }
            ExitCode::SUCCESS
        }
        _ => start(),
    }
}

/// An account with subordinate ids: the caller's, or the first one there is when root calls.
fn account() -> Option<(u32, u32)> {
    let own = rustix::process::geteuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let subuid = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        let named = subuid.lines().any(|line| line.split(':').next() == Some(fields[0]));
        let wanted = if own == 0 { uid != 0 && named } else { uid == own };
        wanted.then_some((uid, gid))
    })
}

/// Starts the namespaces' first process and maps its ids.
fn start() -> ExitCode {
    let Some((uid, gid)) = account() else {
        eprintln!("skipped: no ordinary user with subordinate ids (see subuid(5))");
        return if std::env::var_os("CI").is_some() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
    };
    if rustix::process::geteuid().is_root() {
        setgroups(&[]).unwrap();
        setresgid(Gid::from_raw(gid), Gid::from_raw(gid), Gid::from_raw(gid)).unwrap();
        setresuid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid)).unwrap();
        // The change of ids made this process undumpable: its child must be ours to map.
        nix::sys::prctl::set_dumpable(true).unwrap();
    }
    let mut child = Command::new("/proc/self/exe")
        .arg("enter")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "unshared\n");
    for (program, file, own) in
        [("newuidmap", "/etc/subuid", uid), ("newgidmap", "/etc/subgid", gid)]
    {
        let text = std::fs::read_to_string(file).unwrap();
        let range = text.lines().next().unwrap();
        let [_, first, count] = range.split(':').collect::<Vec<_>>()[..] else {
            panic!("{file}: {range}")
        };
        let status = Command::new(program)
            .arg(child.id().to_string())
            .args(["0", &own.to_string(), "1", "1", first, count])
            .status()
            .unwrap();
        assert!(status.success(), "{program}");
    }
    child.stdin.take().unwrap().write_all(b"mapped\n").unwrap();
    std::io::copy(&mut output, &mut std::io::stdout()).unwrap();
    if child.wait().unwrap().success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn enter() -> ExitCode {
    unshare(CloneFlags::CLONE_NEWUSER).unwrap();
    println!("unshared");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    setgroups(&[]).unwrap();
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).unwrap();
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).unwrap();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).unwrap();
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::MS_NOSUID, none).unwrap();
    panic!("{}", Command::new("/proc/self/exe").arg("inside").exec());
}

/// One image: busybox, as a directory that serves as the only layer.
struct Busybox(PathBuf);

#[async_trait::async_trait]
impl Images for Busybox {
    fn list(&self) -> Vec<Image> {
        self.get("busybox").into_iter().collect()
    }

    fn get(&self, name: &str) -> Option<Image> {
        let config = serde_json::json!({"architecture": "amd64", "os": "linux", "history": [],
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "StopSignal": "SIGUSR1"},
            "rootfs": {"type": "layers", "diff_ids": []}});
        (name == "busybox").then(|| Image {
            id: "sha256:0".into(),
            tags: vec!["busybox:latest".into()],
            digests: Vec::new(),
            size_bytes: 1,
            pinned: false,
            config: Arc::new(serde_json::from_value(config).unwrap()),
        })
    }

    async fn pull(&self, name: &str, _: Option<Credentials>) -> Result<Image, Error> {
        Ok(self.get(name).unwrap())
    }

    async fn remove(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn snapshot(&self, _: &str, key: &str) -> Result<Root, Error> {
        let own = self.0.join("snapshots").join(key);
        for name in ["upper", "work"] {
            std::fs::create_dir_all(own.join(name)).unwrap();
        }
        let lower = vec![self.0.join("layer/fs")];
        Ok(Root::Overlay { lower, upper: own.join("upper"), work: own.join("work") })
    }

    fn snapshots(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.join("snapshots")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    async fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        let _ = std::fs::remove_dir_all(self.0.join("snapshots").join(key));
        Ok(())
    }

    fn root(&self) -> PathBuf {
        self.0.clone()
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }
}

/// A network of loopback devices only: the real one has tests of its own.
struct Loopback;

#[async_trait::async_trait]
impl Network for Loopback {
    async fn attach(
        &self,
        _: &str,
        _: &NetworkPod,
        _: BorrowedFd<'_>,
    ) -> Result<Vec<IpAddr>, Error> {
        Ok(vec!["10.42.0.9".parse().unwrap()])
    }

    async fn detach(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn node_netns(&self) -> Result<Option<OwnedFd>, Error> {
        Ok(None)
    }

    async fn set_pod_cidr(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }
}

fn make_layer(root: &Path) {
    let layer = root.join("layer/fs");
    for directory in ["bin", "etc", "tmp", "gate"] {
        std::fs::create_dir_all(layer.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    std::fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/www:\n")
        .unwrap();
    std::fs::write(layer.join("etc/group"), "extra:x:7:web\n").unwrap();
}

async fn open(dir: &Path) -> Runtime {
    let config = Config {
        root: dir.join("state"),
        run_dir: dir.join("run"),
        images: Arc::new(Busybox(dir.join("images"))),
        network: Arc::new(Loopback),
        executable: "/proc/self/exe".into(),
        cgroup_root: None,
    };
    Runtime::open(config).await.unwrap()
}

fn pod(dir: &Path, pid: v1::NamespaceMode) -> v1::PodSandboxConfig {
    let options = v1::NamespaceOption { pid: pid.into(), ..Default::default() };
    let security =
        v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "p".into(),
            uid: "u".into(),
            namespace: "n".into(),
            attempt: 0,
        }),
        hostname: "web-0".into(),
        log_directory: dir.join("logs").to_string_lossy().into_owned(),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn script(name: &str, script: &str, pid: v1::NamespaceMode) -> v1::ContainerConfig {
    let options = v1::NamespaceOption { pid: pid.into(), ..Default::default() };
    let security = v1::LinuxContainerSecurityContext {
        namespace_options: Some(options),
        masked_paths: vec!["/proc/kcore".into(), "/proc/keys".into()],
        readonly_paths: vec!["/proc/sys".into()],
        seccomp: Some(v1::SecurityProfile::default()),
        ..Default::default()
    };
    v1::ContainerConfig {
        // Of the same name there is one of each attempt.
        metadata: Some(v1::ContainerMetadata {
            name: name.into(),
            attempt: ATTEMPT.fetch_add(1, Ordering::Relaxed),
        }),
        image: Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() }),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn sandbox(runtime: &Runtime, config: v1::PodSandboxConfig) -> String {
    let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    runtime.run_pod_sandbox(Request::new(request)).await.unwrap().into_inner().pod_sandbox_id
}

async fn create(runtime: &Runtime, sandbox: &str, config: v1::ContainerConfig) -> String {
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(config),
        sandbox_config: None,
    };
    RuntimeService::create_container(runtime, Request::new(request))
        .await
        .unwrap()
        .into_inner()
        .container_id
}

async fn run(runtime: &Runtime, sandbox: &str, config: v1::ContainerConfig) -> String {
    let container_id = create(runtime, sandbox, config).await;
    let request = v1::StartContainerRequest { container_id: container_id.clone() };
    RuntimeService::start_container(runtime, Request::new(request)).await.unwrap();
    container_id
}

async fn status(runtime: &Runtime, id: &str) -> v1::ContainerStatus {
    let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
    RuntimeService::container_status(runtime, Request::new(request))
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap()
}

/// Waits for the end of a container as a kubelet does: by events.
async fn ended(runtime: &Runtime, id: &str) -> v1::ContainerStatus {
    let request = Request::new(v1::GetEventsRequest {});
    let mut events = runtime.get_container_events(request).await.unwrap().into_inner();
    loop {
        let now = status(runtime, id).await;
        if now.state() == v1::ContainerState::ContainerExited {
            return now;
        }
        tokio::time::timeout(DEADLINE, events.next()).await.expect("no event").unwrap().unwrap();
    }
}

async fn exec(runtime: &Runtime, id: &str, script: &str) -> (String, i32) {
    let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id: id.into(), cmd, timeout: 10 };
    let response =
        RuntimeService::exec_sync(runtime, Request::new(request)).await.unwrap().into_inner();
    (String::from_utf8(response.stdout).unwrap(), response.exit_code)
}

fn log(dir: &Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("logs").join(format!("{name}.log"))).unwrap();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

fn inside() -> ExitCode {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    make_layer(&dir.join("images"));
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    threads.block_on(async {
        let runtime = open(dir).await;
        lifecycle(&runtime, dir).await;
        confinement(&runtime, dir).await;
        failures(&runtime, dir).await;
        shared_processes(&runtime, dir).await;
        features::all(&runtime, dir).await;
        leaves_nothing(dir);
    });
    threads.shutdown_timeout(Duration::from_secs(1));
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    threads.block_on(survives_the_daemon(dir));
    println!("test {NAME} ... ok");
    ExitCode::SUCCESS
}

async fn remove(runtime: &Runtime, sandbox: &str) {
    for _ in 0..2 {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.into() };
        runtime.stop_pod_sandbox(Request::new(request)).await.unwrap();
    }
    for _ in 0..2 {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.into() };
        runtime.remove_pod_sandbox(Request::new(request)).await.unwrap();
    }
}

async fn lifecycle(runtime: &Runtime, dir: &Path) {
    let own = v1::NamespaceMode::Container;
    let pod = sandbox(runtime, pod(dir, own)).await;
    let text = "echo out; echo err >&2; hostname; echo $HOME $HOSTNAME; printf tail; exit 3";
    let container = run(runtime, &pod, script("life", text, own)).await;
    let end = ended(runtime, &container).await;
    assert_eq!((end.exit_code, end.reason.as_str()), (3, "Error"));
    assert!(end.started_at > 0 && end.finished_at >= end.started_at);
    let mut lines = log(dir, "life");
    lines.sort();
    assert_eq!(
        lines,
        ["stderr F err", "stdout F /root web-0", "stdout F out", "stdout F web-0", "stdout P tail"]
    );

    // The image's stop signal ends it, long before the kill.
    let text = "trap 'exit 0' USR1; echo ready; while :; do sleep 0.1; done";
    let container = run(runtime, &pod, script("stop", text, own)).await;
    let began = std::time::Instant::now();
    while log(dir, "stop") != ["stdout F ready"] {
        assert!(began.elapsed() < DEADLINE, "the trap is not set");
        tokio::task::yield_now().await;
    }
    assert_eq!(exec(runtime, &container, "echo hello; exit 7").await, ("hello\n".into(), 7));
    let request = v1::StopContainerRequest { container_id: container.clone(), timeout: 30 };
    RuntimeService::stop_container(runtime, Request::new(request)).await.unwrap();
    let end = ended(runtime, &container).await;
    assert_eq!((end.exit_code, end.reason.as_str()), (0, "Completed"));
    remove(runtime, &pod).await;
}

async fn confinement(runtime: &Runtime, dir: &Path) {
    let own = v1::NamespaceMode::Container;
    let pod = sandbox(runtime, pod(dir, own)).await;
    let mut config = script("user", "echo by name >/dev/stdout; sleep 1000", own);
    config.working_dir = "/made/for/it".into();
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.run_as_user = Some(v1::Int64Value { value: 1000 });
    security.supplemental_groups = vec![9];
    security.no_new_privs = true;
    security.readonly_rootfs = true;
    let container = run(runtime, &pod, config).await;
    let (ids, _) = exec(runtime, &container, "id -u; id -g; id -G; pwd; echo $HOME").await;
    assert_eq!(ids, "1000\n1001\n1001 7 9\n/made/for/it\n/www\n");
    let query = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'";
    let (process, _) = exec(runtime, &container, query).await;
    assert_eq!(process, "CapEff:0000000000000000\nNoNewPrivs:1\nSeccomp:2\n");
    assert_eq!(exec(runtime, &container, "touch /x 2>/dev/null").await.1, 1, "read-only root");
    let user = status(runtime, &container).await.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1001, vec![1001, 7, 9]));

    let container = run(runtime, &pod, script("root", "sleep 1000", own)).await;
    let query = "grep -E '^(CapEff|Seccomp):' /proc/1/status | tr -d '\\t'; ulimit -n >/dev/null";
    assert_eq!(exec(runtime, &container, query).await.0, "CapEff:00000000a80425fb\nSeccomp:2\n");
    for refused in [
        "mount -t tmpfs t /tmp",
        "echo 1 >/proc/sys/kernel/panic",
        "unshare -U true",
        "echo x >/sys/x",
    ] {
        assert_ne!(
            exec(runtime, &container, &format!("({refused}) 2>/dev/null")).await.1,
            0,
            "{refused}"
        );
    }
    let shm = "df -k /dev/shm | tail -1 | awk '{print $2}'; echo a >/dev/shm/a; ls /dev/pts";
    assert!(exec(runtime, &container, shm).await.0.starts_with("65536\n"));
    remove(runtime, &pod).await;
    assert!(log(dir, "user").contains(&"stdout F by name".to_owned()));
}

async fn failures(runtime: &Runtime, dir: &Path) {
    let own = v1::NamespaceMode::Container;
    let pod = sandbox(runtime, pod(dir, own)).await;
    for (command, expected) in [
        ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
        ("/bin/nosuch", "exec: \"/bin/nosuch\": stat /bin/nosuch: no such file or directory"),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
    ] {
        let mut config = script("bad", "", own);
        config.command = vec![command.into()];
        let container_id = create(runtime, &pod, config).await;
        let request = v1::StartContainerRequest { container_id: container_id.clone() };
        let error =
            RuntimeService::start_container(runtime, Request::new(request)).await.unwrap_err();
        assert!(error.message().ends_with(expected), "{error:?}");
        let end = status(runtime, &container_id).await;
        assert_eq!((end.exit_code, end.reason.as_str()), (128, "StartError"));
    }
    let container = run(runtime, &pod, script("slow", "sleep 1000", own)).await;
    let request = |cmd: &[&str], timeout| {
        let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        Request::new(v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout })
    };
    let error =
        RuntimeService::exec_sync(runtime, request(&["sleep", "1000"], 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    let error = RuntimeService::exec_sync(runtime, request(&["nosuch"], 0)).await.unwrap_err();
    assert!(error.message().contains("executable file not found in $PATH"), "{error:?}");
    let request = v1::ContainerStatusRequest { container_id: "none".into(), verbose: false };
    let error = RuntimeService::container_status(runtime, Request::new(request)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let request = v1::ContainerStatsRequest { container_id: container.clone() };
    let stats =
        RuntimeService::container_stats(runtime, Request::new(request)).await.unwrap().into_inner();
    assert!(stats.stats.unwrap().memory.unwrap().rss_bytes.unwrap().value > 0);
    remove(runtime, &pod).await;
}

async fn shared_processes(runtime: &Runtime, dir: &Path) {
    let shared = v1::NamespaceMode::Pod;
    let pod = sandbox(runtime, pod(dir, shared)).await;
    let first = run(runtime, &pod, script("first", "sleep 1234", shared)).await;
    let second = run(runtime, &pod, script("second", "sleep 1000", shared)).await;
    assert_eq!(exec(runtime, &first, "cat /proc/1/comm").await.0, "pause\n");
    assert_eq!(exec(runtime, &second, "ps -o args | grep -c '^sleep 1234'").await.0, "1\n");

    // Whose shim is killed is not left to itself.
    let (shim, init) = shim_and_init();
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
    let began = std::time::Instant::now();
    let lives = || !std::fs::read(format!("/proc/{init}/cmdline")).unwrap_or_default().is_empty();
    while lives() {
        assert!(began.elapsed() < DEADLINE, "the pod's init is left");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(ended(runtime, &second).await.exit_code, 255);
    remove(runtime, &pod).await;
}

/// The only shim of this process with an init of a pod, and that.
fn shim_and_init() -> (nix::unistd::Pid, i32) {
    let parent = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let is_init = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.ends_with(b"\0container\0init\0")
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let own = i32::try_from(std::process::id()).unwrap();
    numbers
        .filter(is_init)
        .find_map(|init| {
            let shim = parent(init).filter(|shim| parent(*shim) == Some(own))?;
            Some((nix::unistd::Pid::from_raw(shim), init))
        })
        .expect("there is one")
}

fn leaves_nothing(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours: Vec<&str> =
        mounts.lines().filter(|line| line.contains(&*dir.to_string_lossy())).collect();
    assert!(ours.is_empty(), "{ours:?}");
    for directory in
        ["run/pods", "run/containers", "state/sandboxes", "state/containers", "images/snapshots"]
    {
        assert_eq!(std::fs::read_dir(dir.join(directory)).unwrap().count(), 0, "{directory}");
    }
}

/// The process that is killed: it makes a pod with two containers, tells their ids, and waits.
fn daemon(dir: &Path) -> ExitCode {
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    threads.block_on(async {
        let runtime = open(dir).await;
        let own = v1::NamespaceMode::Container;
        let pod = sandbox(&runtime, pod(dir, own)).await;
        let wait = "until [ -e /gate/open ]; do sleep 0.05; done; echo done; exit 9";
        let mut ending = script("ending", wait, own);
        let host_path = dir.join("gate").to_string_lossy().into_owned();
        ending.mounts =
            vec![v1::Mount { container_path: "/gate".into(), host_path, ..Default::default() }];
        let ending = run(&runtime, &pod, ending).await;
        let staying = run(&runtime, &pod, script("staying", "sleep 1000", own)).await;
        println!("{pod} {ending} {staying}");
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

async fn survives_the_daemon(dir: &Path) {
    std::fs::create_dir(dir.join("gate")).unwrap();
    let mut first = Command::new("/proc/self/exe")
        .arg("daemon")
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(first.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ids: Vec<&str> = line.split_whitespace().collect();
    let [pod, ending, staying] = ids[..] else { panic!("{line:?}") };
    first.kill().unwrap();
    first.wait().unwrap();
    // It ends while there is no daemon; the shim writes that down.
    std::fs::write(dir.join("gate/open"), "").unwrap();
    let exit = dir.join("state/containers").join(ending).join("exit.json");
    let started = std::time::Instant::now();
    while !exit.exists() {
        assert!(started.elapsed() < DEADLINE, "no exit record");
        std::thread::yield_now();
    }
    // What it was making has no record yet.
    let begun = "0".repeat(64);
    let kept = dir.join("state/containers").join("f".repeat(64));
    for folder in
        ["state/sandboxes", "state/containers", "run/pods", "run/containers", "images/snapshots"]
    {
        std::fs::create_dir(dir.join(folder).join(&begun)).unwrap();
    }
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("container.json"), "of a version to come").unwrap();
    let runtime = open(dir).await;
    std::fs::remove_dir_all(kept).expect("what cannot be read is kept");
    let end = status(&runtime, ending).await;
    assert_eq!((end.exit_code, end.reason.as_str()), (9, "Error"));
    assert_eq!(log(dir, "ending"), ["stdout F done"]);
    assert_eq!(status(&runtime, staying).await.state(), v1::ContainerState::ContainerRunning);
    assert_eq!(exec(&runtime, staying, "echo again").await, ("again\n".into(), 0));
    let filter = v1::PodSandboxFilter { label_selector: HashMap::new(), ..Default::default() };
    let request = Request::new(v1::ListPodSandboxRequest { filter: Some(filter) });
    let pods = runtime.list_pod_sandbox(request).await.unwrap().into_inner().items;
    assert_eq!(pods.iter().map(|found| found.id.as_str()).collect::<Vec<_>>(), [pod]);
    remove(&runtime, pod).await;
    leaves_nothing(dir);
}
