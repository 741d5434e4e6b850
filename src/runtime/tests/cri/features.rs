//! What a pod or a container may ask for beyond its command, one after the other, as the CRI's
//! validation suite does.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use k8s_cri::v1;
use k8s_cri::v1::image_service_server::ImageService;
use k8s_cri::v1::runtime_service_server::RuntimeService;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use runtime::Runtime;
use tonic::{Code, Request};

use super::{DEADLINE, create, ended, exec, log, pod, remove, run, sandbox, script, status};

const OWN: v1::NamespaceMode = v1::NamespaceMode::Container;

/// Tries all of them, also after one has failed.
pub async fn all(runtime: &Runtime, dir: &Path) {
    let mut failed = Vec::new();
    macro_rules! try_all {
        ($($name:ident),*) => {$(
            if AssertUnwindSafe($name(runtime, dir)).catch_unwind().await.is_err() {
                failed.push(stringify!($name));
            }
        )*};
    }
    try_all!(
        sysctls,
        users_of_its_own,
        nodes_network,
        seccomp,
        paths_and_capabilities,
        stop_signals,
        image_volumes,
        propagation,
        read_only_mounts,
        refusals,
        lists_and_metrics,
        images_go
    );
    assert!(failed.is_empty(), "{failed:?}");
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn sleeper(name: &str) -> v1::ContainerConfig {
    script(name, "sleep 1000", OWN)
}

async fn sysctls(runtime: &Runtime, dir: &Path) {
    let mut config = pod(dir, OWN);
    let wanted = [
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "100"),
        ("net.ipv4.ip_local_port_range", "2000\t3000"),
    ];
    config.linux.get_or_insert_default().sysctls =
        wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let pod = sandbox(runtime, config).await;
    let container = run(runtime, &pod, sleeper("sysctl")).await;
    for (name, value) in wanted {
        let file = name.replace('.', "/");
        let (found, _) = exec(runtime, &container, &format!("cat /proc/sys/{file}")).await;
        assert_eq!(found.trim(), value, "{name}");
    }
    remove(runtime, &pod).await;
}

async fn users_of_its_own(runtime: &Runtime, dir: &Path) {
    let mut config = pod(dir, v1::NamespaceMode::Pod);
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = [("net.ipv4.ip_local_port_range".to_owned(), "2000\t3000".to_owned())].into();
    let options = &mut linux.security_context.get_or_insert_default().namespace_options;
    options.get_or_insert_default().userns_options =
        Some(v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), ..Default::default() });
    let of_users = sandbox(runtime, config).await;
    let mut config = sleeper("users");
    security(&mut config).privileged = true;
    config.mounts = vec![v1::Mount {
        container_path: "/gate".into(),
        host_path: dir.to_string_lossy().into_owned(),
        ..Default::default()
    }];
    let container = run(runtime, &of_users, config).await;
    let own = std::fs::read_link("/proc/self/ns/user").unwrap();
    for script in [
        "[ $(readlink /proc/self/ns/user) != $OWN ]",
        // Files have the owners that they have elsewhere, and root may do with them what root may.
        "[ $(stat -c %u /bin/busybox) = 0 ] && touch /new && chown 1000:1000 /new && rm /new",
        "touch /gate/by-it && rm /gate/by-it",
        // What is the pod's is its root's to change, what is the node's is not.
        "hostname other && mount -t tmpfs t /tmp",
        "grep -q 2000 /proc/sys/net/ipv4/ip_local_port_range && ip link set lo down",
    ] {
        let script = script.replace("$OWN", &own.to_string_lossy());
        let (said, code) = exec(runtime, &container, &format!("({script}) 2>&1")).await;
        assert_eq!((said.as_str(), code), ("", 0), "{script}");
    }
    let mut config = script("as-user", "id -u; exit 4", v1::NamespaceMode::Pod);
    security(&mut config).run_as_user = Some(v1::Int64Value { value: 1000 });
    let container = run(runtime, &of_users, config).await;
    assert_eq!(ended(runtime, &container).await.exit_code, 4);
    assert_eq!(log(dir, "as-user"), ["stdout F 1000"]);
    remove(runtime, &of_users).await;
}

async fn nodes_network(runtime: &Runtime, dir: &Path) {
    let mut config = pod(dir, OWN);
    let linux = config.linux.get_or_insert_default();
    let options = v1::NamespaceOption {
        pid: OWN.into(),
        network: v1::NamespaceMode::Node.into(),
        ipc: v1::NamespaceMode::Node.into(),
        ..Default::default()
    };
    linux.security_context.get_or_insert_default().namespace_options = Some(options);
    let pod = sandbox(runtime, config).await;
    let container = run(runtime, &pod, sleeper("network")).await;
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let (found, _) = exec(runtime, &container, "readlink /proc/self/ns/net").await;
    assert_eq!(Path::new(found.trim()), own);
    remove(runtime, &pod).await;
}

async fn seccomp(runtime: &Runtime, dir: &Path) {
    use v1::security_profile::ProfileType;
    let file = dir.join("no-chmod.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&file, text).unwrap();
    let localhost_ref = file.to_string_lossy().into_owned();
    let profile = |kind: ProfileType, localhost_ref: &str| {
        Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: localhost_ref.into() })
    };
    let pod = sandbox(runtime, pod(dir, OWN)).await;
    for (name, wanted, mode, chmod) in [
        ("said nothing", None, "0", 0),
        ("unconfined", profile(ProfileType::Unconfined, ""), "0", 0),
        ("default", profile(ProfileType::RuntimeDefault, ""), "2", 0),
        ("localhost", profile(ProfileType::Localhost, &localhost_ref), "2", 1),
    ] {
        let mut config = sleeper("seccomp");
        security(&mut config).seccomp = wanted;
        let container = run(runtime, &pod, config).await;
        let (found, _) =
            exec(runtime, &container, "grep ^Seccomp: /proc/self/status | cut -f2").await;
        assert_eq!(found.trim(), mode, "{name}");
        assert_eq!(exec(runtime, &container, "chmod 400 / 2>/dev/null").await.1, chmod, "{name}");
    }
    remove(runtime, &pod).await;
}

async fn paths_and_capabilities(runtime: &Runtime, dir: &Path) {
    let pod = sandbox(runtime, pod(dir, OWN)).await;
    let mut config = sleeper("paths");
    security(&mut config).masked_paths = vec!["/bin/ls".into()];
    security(&mut config).readonly_paths = vec!["/tmp".into()];
    let container = run(runtime, &pod, config).await;
    assert_eq!(
        exec(runtime, &container, "/bin/ls 2>&1").await.0,
        "sh: /bin/ls: Permission denied\n",
        "masked"
    );
    assert_eq!(
        exec(runtime, &container, "touch /tmp/x 2>&1").await.0,
        "touch: /tmp/x: Read-only file system\n"
    );
    for (name, privileged, add, drop, bridge) in [
        ("plain", false, vec![], vec![], false),
        ("NET_ADMIN", false, vec!["NET_ADMIN"], vec![], true),
        ("privileged", true, vec![], vec![], true),
        ("ALL", false, vec!["ALL"], vec![], true),
        ("none", false, vec![], vec!["ALL"], false),
    ] {
        let mut config = sleeper("capable");
        let strings = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect();
        let wanted = security(&mut config);
        wanted.privileged = privileged;
        wanted.capabilities = Some(v1::Capability {
            add_capabilities: strings(add),
            drop_capabilities: strings(drop),
            ..Default::default()
        });
        let container = run(runtime, &pod, config).await;
        let (out, code) =
            exec(runtime, &container, &format!("ip link add {name} type dummy 2>&1")).await;
        // A kernel without this kind of device says so before it asks for the capability.
        let made = code == 0 || out.contains("Not supported") || out.contains("not supported");
        assert_eq!(made, bridge, "{name}: {out}");
    }
    let mut config = sleeper("hostname");
    security(&mut config).seccomp = None;
    security(&mut config).capabilities =
        Some(v1::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    let container = run(runtime, &pod, config).await;
    assert_eq!(exec(runtime, &container, "hostname other && hostname").await.0, "other\n");
    remove(runtime, &pod).await;
}

async fn stop_signals(runtime: &Runtime, dir: &Path) {
    let pod = sandbox(runtime, pod(dir, OWN)).await;
    for (wanted, told) in [
        (v1::Signal::RuntimeDefault, v1::Signal::Sigusr1),
        (v1::Signal::Sigusr2, v1::Signal::Sigusr2),
        (v1::Signal::Sigrtminplus3, v1::Signal::Sigrtminplus3),
    ] {
        let mut config = script(
            "signalled",
            "trap 'exit 10' USR1; trap 'exit 12' USR2; trap 'exit 37' 37; touch /tmp/set; while :; do sleep 0.05; done",
            OWN,
        );
        config.stop_signal = wanted.into();
        let container = run(runtime, &pod, config).await;
        assert_eq!(status(runtime, &container).await.stop_signal(), told);
        let began = std::time::Instant::now();
        while exec(runtime, &container, "test -e /tmp/set").await.1 != 0 {
            assert!(began.elapsed() < DEADLINE, "the traps are not set");
        }
        let request = v1::StopContainerRequest { container_id: container.clone(), timeout: 30 };
        RuntimeService::stop_container(runtime, Request::new(request)).await.unwrap();
        let code = match told {
            v1::Signal::Sigusr1 => 10,
            v1::Signal::Sigusr2 => 12,
            _ => 37,
        };
        assert_eq!(ended(runtime, &container).await.exit_code, code, "{told:?}");
    }
    remove(runtime, &pod).await;
}

fn image_mount(sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: "/mnt/image".into(),
        readonly: true,
        image: Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

async fn image_volumes(runtime: &Runtime, dir: &Path) {
    let pod = sandbox(runtime, pod(dir, OWN)).await;
    for (sub_path, file) in
        [("", "/mnt/image/etc/passwd"), ("etc", "/mnt/image/passwd"), ("etc/passwd", "/mnt/image")]
    {
        let mut config = sleeper("volume");
        config.mounts = vec![image_mount(sub_path)];
        let container = run(runtime, &pod, config).await;
        let (text, _) = exec(runtime, &container, &format!("head -1 {file}")).await;
        assert_eq!(text, "root:x:0:0::/root:/bin/sh\n", "{sub_path:?}");
        assert_ne!(exec(runtime, &container, &format!("echo >>{file} 2>/dev/null")).await.1, 0);
        if sub_path.is_empty() {
            assert_eq!(exec(runtime, &container, "/mnt/image/bin/busybox true").await.1, 0);
        }
        let mounts = status(runtime, &container).await.mounts;
        assert_eq!(mounts[0].image.as_ref().unwrap().image_ref, "sha256:0");
    }
    let mut config = sleeper("volume");
    config.mounts = vec![image_mount("nowhere")];
    assert_eq!(refused(runtime, &pod, config).await, Code::InvalidArgument);
    remove(runtime, &pod).await;
}

/// Bind-mounts `source` at `target`, made if need be.
fn bind(source: &Path, target: &Path) {
    let none: Option<&str> = None;
    std::fs::create_dir_all(target).unwrap();
    mount(Some(source), target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).unwrap();
}

async fn propagation(runtime: &Runtime, dir: &Path) {
    let none: Option<&str> = None;
    let pod = sandbox(runtime, pod(dir, OWN)).await;
    for (kind, into, out_of) in [
        (v1::MountPropagation::PropagationPrivate, false, false),
        (v1::MountPropagation::PropagationHostToContainer, true, false),
        (v1::MountPropagation::PropagationBidirectional, true, true),
    ] {
        let base = dir.join(format!("propagation-{}", kind as i32));
        let (source, flags) = (base.join("mnt"), base.join("flags"));
        for folder in [source.join("inward"), source.join("outward"), flags.clone()] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(flags.join("flag"), "").unwrap();
        bind(&source, &source);
        mount(none, &source, none, MsFlags::MS_SHARED, none).unwrap();
        let mut config = sleeper("propagation");
        security(&mut config).privileged = true;
        let mounted = |kind: v1::MountPropagation, path: &str| v1::Mount {
            container_path: path.into(),
            host_path: source.to_string_lossy().into_owned(),
            propagation: kind.into(),
            ..Default::default()
        };
        // A private mount beside it stays private.
        config.mounts = vec![
            mounted(kind, "/mnt"),
            mounted(v1::MountPropagation::PropagationPrivate, "/private"),
        ];
        let container = run(runtime, &pod, config).await;
        bind(&flags, &source.join("inward"));
        let (seen, _) = exec(runtime, &container, "ls /mnt/inward").await;
        assert_eq!(!seen.is_empty(), into, "{kind:?}");
        assert_eq!(exec(runtime, &container, "ls /private/inward").await.0, "", "{kind:?}");
        assert_eq!(exec(runtime, &container, "mount --bind /etc /mnt/outward").await.1, 0);
        let seen = source.join("outward/passwd").exists();
        assert_eq!(seen, out_of, "{kind:?}");
        for path in [source.join("outward"), source.join("inward"), source] {
            let _ = umount2(&path, MntFlags::MNT_DETACH);
        }
    }
    remove(runtime, &pod).await;
}

async fn read_only_mounts(runtime: &Runtime, dir: &Path) {
    let none: Option<&str> = None;
    let source = dir.join("read-only");
    let below = source.join("tmpfs");
    std::fs::create_dir_all(&below).unwrap();
    mount(Some("t"), &below, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let pod = sandbox(runtime, pod(dir, OWN)).await;
    for recursive in [false, true] {
        let mut config = sleeper("read-only");
        config.mounts = vec![v1::Mount {
            container_path: "/mnt".into(),
            host_path: source.to_string_lossy().into_owned(),
            readonly: true,
            recursive_read_only: recursive,
            ..Default::default()
        }];
        let container = run(runtime, &pod, config).await;
        assert_ne!(exec(runtime, &container, "touch /mnt/x 2>/dev/null").await.1, 0);
        let (_, code) = exec(runtime, &container, "touch /mnt/tmpfs/x 2>/dev/null").await;
        assert_eq!(code != 0, recursive);
    }
    remove(runtime, &pod).await;
    umount2(&below, MntFlags::MNT_DETACH).unwrap();
}

/// With which code a container is refused.
async fn refused(runtime: &Runtime, pod: &str, config: v1::ContainerConfig) -> Code {
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.into(),
        config: Some(config),
        sandbox_config: None,
    };
    RuntimeService::create_container(runtime, Request::new(request)).await.unwrap_err().code()
}

async fn refusals(runtime: &Runtime, dir: &Path) {
    let mapping = |container_id, host_id| v1::IdMapping { host_id, container_id, length: 65536 };
    for (mode, maps) in [
        (v1::NamespaceMode::Container, vec![]),
        (v1::NamespaceMode::Target, vec![]),
        (v1::NamespaceMode::Pod, vec![mapping(0, 1000), mapping(0, 2000)]),
        (v1::NamespaceMode::Pod, vec![mapping(1, 1000)]),
    ] {
        let mut config = pod(dir, OWN);
        let linux = config.linux.get_or_insert_default();
        let options = &mut linux.security_context.get_or_insert_default().namespace_options;
        options.get_or_insert_default().userns_options =
            Some(v1::UserNamespace { mode: mode.into(), uids: maps.clone(), gids: maps });
        let request =
            v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let error = runtime.run_pod_sandbox(Request::new(request)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    }
    let request =
        v1::RunPodSandboxRequest { config: Some(pod(dir, OWN)), runtime_handler: "nobody".into() };
    let error = runtime.run_pod_sandbox(Request::new(request)).await.unwrap_err();
    assert!(error.message().contains("no runtime for \"nobody\" is configured"), "{error:?}");

    let twice = pod(dir, OWN);
    let pod = sandbox(runtime, twice.clone()).await;
    let request = v1::RunPodSandboxRequest { config: Some(twice), runtime_handler: String::new() };
    let error = runtime.run_pod_sandbox(Request::new(request)).await.unwrap_err();
    assert!(error.message().contains(&format!("name \"p\" is reserved for {pod:?}")), "{error:?}");
    let twice = sleeper("twice");
    create(runtime, &pod, twice.clone()).await;
    assert_eq!(refused(runtime, &pod, twice).await, Code::Unknown);
    let mut config = sleeper("grouped");
    security(&mut config).run_as_group = Some(v1::Int64Value { value: 1000 });
    assert_eq!(refused(runtime, &pod, config).await, Code::InvalidArgument);
    let mut config = sleeper("devices");
    config.cdi_devices = vec![v1::CdiDevice { name: "vendor.com/gpu=0".into() }];
    assert_eq!(refused(runtime, &pod, config).await, Code::Unknown);
    let mut config = sleeper("privileged");
    security(&mut config).privileged = true;
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(config),
        sandbox_config: Some(v1::PodSandboxConfig::default()),
    };
    let error = RuntimeService::create_container(runtime, Request::new(request)).await.unwrap_err();
    assert_eq!(error.message(), "no privileged container allowed in sandbox");
    let mut config = sleeper("none");
    config.image = Some(v1::ImageSpec { image: "none".into(), ..Default::default() });
    assert_eq!(refused(runtime, &pod, config).await, Code::NotFound);

    let container = run(runtime, &pod, sleeper("streams")).await;
    for (tty, stdout, stderr, good) in
        [(false, true, true, true), (true, true, true, false), (false, false, false, false)]
    {
        let request = v1::ExecRequest {
            container_id: container.clone(),
            cmd: vec!["true".into()],
            tty,
            stdout,
            stderr,
            ..Default::default()
        };
        let answer = RuntimeService::exec(runtime, Request::new(request)).await;
        assert_eq!(answer.is_ok(), good, "{answer:?}");
    }
    let request = v1::CheckpointContainerRequest {
        container_id: container,
        location: "/nowhere".into(),
        timeout: 0,
    };
    let error = runtime.checkpoint_container(Request::new(request)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    remove(runtime, &pod).await;
}

async fn lists_and_metrics(runtime: &Runtime, dir: &Path) {
    let mut config = pod(dir, OWN);
    config.labels = [("of".to_owned(), "lists".to_owned())].into();
    let pod = sandbox(runtime, config).await;
    let mut config = sleeper("listed");
    config.labels = [("foo".to_owned(), "bar".to_owned())].into();
    let container = create(runtime, &pod, config).await;
    for (filter, found) in [
        (v1::ContainerFilter { id: container.clone(), ..Default::default() }, true),
        (v1::ContainerFilter { pod_sandbox_id: pod.clone(), ..Default::default() }, true),
        (
            v1::ContainerFilter {
                state: Some(v1::ContainerStateValue {
                    state: v1::ContainerState::ContainerRunning.into(),
                }),
                ..Default::default()
            },
            false,
        ),
        (
            v1::ContainerFilter {
                label_selector: [("foo".to_owned(), "baz".to_owned())].into(),
                ..Default::default()
            },
            false,
        ),
    ] {
        let request = v1::StreamContainersRequest { filter: Some(filter.clone()) };
        let stream = runtime.stream_containers(Request::new(request)).await.unwrap().into_inner();
        let parts: Vec<_> = stream.map(Result::unwrap).collect().await;
        let ids: Vec<String> =
            parts.into_iter().flat_map(|part| part.containers).map(|found| found.id).collect();
        assert_eq!(ids.contains(&container), found, "{filter:?}");
    }
    let request = v1::StartContainerRequest { container_id: container.clone() };
    RuntimeService::start_container(runtime, Request::new(request)).await.unwrap();
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let request = v1::StreamPodSandboxMetricsRequest {};
        let stream = runtime.stream_pod_sandbox_metrics(Request::new(request)).await.unwrap();
        let parts: Vec<_> = stream.into_inner().map(Result::unwrap).collect().await;
        let metrics = parts.iter().flat_map(|part| &part.pod_sandbox_metrics);
        let own = metrics.into_iter().find(|metrics| metrics.pod_sandbox_id == pod).unwrap();
        let value = |name: &str| {
            let found = own.container_metrics[0].metrics.iter().find(|metric| metric.name == name);
            found.and_then(|metric| metric.value.as_ref()).map(|value| value.value)
        };
        assert!(own.metrics.iter().any(|m| m.name == "container_network_receive_bytes_total"));
        let told = (value("container_memory_working_set_bytes"), value("container_processes"));
        if matches!(told, (Some(1..), Some(1))) {
            break;
        }
        // Just after the start it may not have a page of its own yet.
        assert!(tokio::time::Instant::now() < until, "{told:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let resources = v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    let request = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        overhead: None,
        resources: Some(resources),
    };
    runtime.update_pod_sandbox_resources(Request::new(request)).await.unwrap();
    for (shares, memory) in [(256, 0), (0, 1 << 26)] {
        let change = v1::LinuxContainerResources {
            cpu_shares: shares,
            memory_limit_in_bytes: memory,
            ..Default::default()
        };
        let request = v1::UpdateContainerResourcesRequest {
            container_id: container.clone(),
            linux: Some(change),
            ..Default::default()
        };
        runtime.update_container_resources(Request::new(request)).await.unwrap();
    }
    let told = status(runtime, &container).await.resources.unwrap().linux.unwrap();
    assert_eq!((told.cpu_shares, told.memory_limit_in_bytes), (256, 1 << 26));
    remove(runtime, &pod).await;
    assert!(log(dir, "listed").is_empty());
}

async fn images_go(runtime: &Runtime, _: &Path) {
    let request = v1::StreamImagesRequest { filter: None };
    let stream = runtime.stream_images(Request::new(request)).await.unwrap().into_inner();
    let parts: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert_eq!(parts[0].images[0].id, "sha256:0");
    for _ in 0..2 {
        let image = Some(v1::ImageSpec { image: "0".repeat(64), ..Default::default() });
        let request = Request::new(v1::RemoveImageRequest { image });
        runtime.remove_image(request).await.unwrap();
    }
}
