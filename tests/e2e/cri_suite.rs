//! The runtime's socket, asked as the CRI's validation suite asks (kubernetes-sigs/cri-tools, `pkg/validate`), where
//! that goes beyond what the runtime's own tests do: with images of a registry, and over the wire.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;

use k8s_cri::v1;
use nix::sys::signal::Signal;
use tonic::Code;

use crate::cri::{Client, Foreground, free_port, pod};
use crate::harness::{BUSYBOX, Cluster, eventually};
use crate::registry::Registry;

/// One call of the runtime or of the image service.
macro_rules! ask {
    ($client:ident.$service:ident.$call:ident($request:expr)) => {{
        let call = $client.$service.$call($request);
        $client.threads.block_on(call).map(tonic::Response::into_inner)
    }};
}

fn spec(image: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: image.into(), ..Default::default() })
}

fn container(name: &str, script: &str) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: spec(BUSYBOX),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        ..Default::default()
    }
}

impl Client {
    fn sandbox(&mut self, config: &v1::PodSandboxConfig) -> String {
        let request =
            v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        ask!(self.runtime.run_pod_sandbox(request)).expect("it runs").pod_sandbox_id
    }

    fn create(
        &mut self,
        pod: &str,
        of: &v1::PodSandboxConfig,
        config: v1::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(of.clone()),
        };
        ask!(self.runtime.create_container(request)).map(|made| made.container_id)
    }

    fn start(
        &mut self,
        pod: &str,
        of: &v1::PodSandboxConfig,
        config: v1::ContainerConfig,
    ) -> String {
        let container_id = self.create(pod, of, config).expect("it is made");
        let request = v1::StartContainerRequest { container_id: container_id.clone() };
        ask!(self.runtime.start_container(request)).expect("it starts");
        container_id
    }

    fn status(&mut self, container: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest { container_id: container.into(), verbose: false };
        ask!(self.runtime.container_status(request)).expect("it is known").status.expect("a status")
    }

    /// What a container logs until it ends, without the times.
    fn logged(&mut self, of: &v1::PodSandboxConfig, container: &str) -> String {
        let status = eventually("the container's end", || {
            let status = self.status(container);
            if status.state() == v1::ContainerState::ContainerExited {
                return Ok(status);
            }
            Err(format!("{status:?}"))
        });
        assert!(status.log_path.starts_with(&of.log_directory), "{}", status.log_path);
        let text = fs::read_to_string(&status.log_path).expect("the log is there");
        let lines =
            text.lines().map(|line| line.split_once(' ').expect("a time").1.to_owned() + "\n");
        lines.collect()
    }

    fn image(&mut self, name: &str) -> Option<v1::Image> {
        let request = v1::ImageStatusRequest { image: spec(name), verbose: false };
        ask!(self.images.image_status(request)).expect("it is answered").image
    }

    fn pull(&mut self, name: &str) -> Result<String, tonic::Status> {
        let request = v1::PullImageRequest { image: spec(name), ..Default::default() };
        ask!(self.images.pull_image(request)).map(|pulled| pulled.image_ref)
    }

    fn remove_image(&mut self, name: &str) {
        let request = v1::RemoveImageRequest { image: spec(name) };
        ask!(self.images.remove_image(request)).expect("it is removed");
    }
}

#[test]
fn the_runtime_answers_as_its_validation_suite_asks() {
    let cluster = Cluster::prepared();
    let (server, url) = Foreground::start(&cluster, &["cri"]);
    cluster.load_busybox();
    let mut client = Client::connect(&url);
    nothing_is_stopped_twice(&mut client);
    let mut config = pod(&cluster.path("logs"));
    config.labels = [("foo".to_owned(), "bar".to_owned())].into();
    config.annotations = [("abc".to_owned(), "def".to_owned())].into();
    let id = client.sandbox(&config);
    pods_keep_their_attributes(&mut client, &id, &config);
    containers_change_states(&mut client, &id, &config);
    users_and_files(&mut client, &id, &config);
    stats_and_metrics(&mut client, &id, &config);
    client.remove(&id);
    assert!(client.pods().is_empty() && client.containers().is_empty());
    server.end(Signal::SIGTERM);
}

/// The suite asks for what containers share with their node, for their addresses and for ports of the host alike: all of
/// them are there for who is among the pods.
#[test]
fn everything_is_within_reach_among_the_pods() {
    let cluster = Cluster::prepared();
    let (server, url) = Foreground::start(&cluster, &["cri", "--host-network", "node"]);
    cluster.load_busybox();
    let mut client = Client::connect(&url);
    let port = free_port();
    let mut config = pod(&cluster.path("logs"));
    config.port_mappings =
        vec![v1::PortMapping { container_port: 80, host_port: port.into(), ..Default::default() }];
    let sandbox = client.sandbox(&config);
    let shared = cluster.path("shared");
    fs::create_dir_all(shared.join("mnt/inner")).expect("it can be made");
    fs::create_dir_all(shared.join("source/found")).expect("it can be made");
    let inside = |script: String| {
        let answer = cluster.rootlet_with(&["enter"], &["bash", "-c", &script]);
        assert_eq!(answer.code, Some(0), "{script}: {answer:?}");
        answer.out
    };
    // A mount that is made after the pod, and one within it after the container.
    let place = shared.display();
    inside(format!("mount --bind {place}/mnt {place}/mnt && mount --make-rshared {place}/mnt"));
    let mut wanted = container("web", "mkdir /www; echo served >/www/index.html; httpd -f -h /www");
    wanted.mounts = vec![v1::Mount {
        host_path: shared.join("mnt").to_string_lossy().into_owned(),
        container_path: "/shared".into(),
        propagation: v1::MountPropagation::PropagationHostToContainer.into(),
        ..Default::default()
    }];
    let web = client.start(&sandbox, &config, wanted);
    inside(format!("mount --bind {place}/source {place}/mnt/inner"));
    assert_eq!(client.exec(&web, "ls /shared/inner"), "found\n");
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
    let status = ask!(client.runtime.pod_sandbox_status(request)).unwrap().status;
    let address = status.and_then(|status| status.network).expect("it has a network").ip;
    for (host, port) in [(address.as_str(), 80), ("127.0.0.1", port)] {
        let get = format!(
            "exec 3<>/dev/tcp/{host}/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
        );
        let page = eventually("the page", || {
            let answer = cluster.rootlet_with(&["enter"], &["bash", "-c", &get]);
            if answer.code == Some(0) { Ok(answer.out) } else { Err(answer.err) }
        });
        assert!(page.ends_with("served\n"), "{host}: {page}");
    }
    let request = v1::ExecRequest {
        container_id: web,
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    let url = ask!(client.runtime.exec(request)).unwrap().url;
    let (host, path) = url.trim_start_matches("http://").split_once('/').expect("a path");
    let upgrade = "Connection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\n\
        Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\nSec-WebSocket-Protocol: v5.channel.k8s.io";
    let first = inside(format!(
        "exec 3<>/dev/tcp/{}; printf 'GET /{path} HTTP/1.1\\r\\nHost: {host}\\r\\n{upgrade}\\r\\n\\r\\n' >&3; \
        head -1 <&3",
        host.replace(':', "/")
    ));
    assert_eq!(first, "HTTP/1.1 101 Switching Protocols\r\n");
    inside(format!("umount {place}/mnt/inner {place}/mnt"));
    client.remove(&sandbox);
    server.end(Signal::SIGTERM);
}

fn nothing_is_stopped_twice(client: &mut Client) {
    let nobody = "0".repeat(64);
    let id = || nobody.clone();
    ask!(client.runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id() }))
        .unwrap();
    ask!(client.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id() }))
        .unwrap();
    let stop = v1::StopContainerRequest { container_id: id(), timeout: 0 };
    ask!(client.runtime.stop_container(stop)).unwrap();
    ask!(client.runtime.remove_container(v1::RemoveContainerRequest { container_id: id() }))
        .unwrap();
    client.remove_image(&nobody);
    client.remove_image(&nobody);
    // What is asked about and is not there is an error.
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
    let error = ask!(client.runtime.pod_sandbox_status(request)).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let request = v1::ContainerStatsRequest { container_id: id() };
    let error = ask!(client.runtime.container_stats(request)).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

fn pods_keep_their_attributes(client: &mut Client, id: &str, config: &v1::PodSandboxConfig) {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
    let answer = ask!(client.runtime.pod_sandbox_status(request)).unwrap();
    let status = answer.status.expect("a status");
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    assert!(!status.network.expect("a network").ip.is_empty() && !answer.info.is_empty());
    assert_eq!((status.metadata, status.labels), (config.metadata.clone(), config.labels.clone()));
    let labels = |value: &str| HashMap::from([("foo".to_owned(), value.to_owned())]);
    for (filter, found) in [
        (v1::PodSandboxFilter { id: id.into(), ..Default::default() }, 1),
        (v1::PodSandboxFilter { id: "none".into(), ..Default::default() }, 0),
        (v1::PodSandboxFilter { label_selector: labels("bar"), ..Default::default() }, 1),
        (v1::PodSandboxFilter { label_selector: labels("baz"), ..Default::default() }, 0),
    ] {
        let request = v1::ListPodSandboxRequest { filter: Some(filter.clone()) };
        let items = ask!(client.runtime.list_pod_sandbox(request)).unwrap().items;
        assert_eq!(items.len(), found, "{filter:?}");
        assert!(items.iter().all(|item| item.annotations == config.annotations));
    }
}

fn containers_change_states(client: &mut Client, id: &str, config: &v1::PodSandboxConfig) {
    use v1::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
    for (name, start, stop) in
        [("created", false, false), ("running", true, false), ("stopped", true, true)]
    {
        let made = client.create(id, config, container(name, "sleep 1000")).unwrap();
        let mut state = ContainerCreated;
        if start {
            let request = v1::StartContainerRequest { container_id: made.clone() };
            ask!(client.runtime.start_container(request)).unwrap();
            state = ContainerRunning;
        }
        for _ in 0..2 * i32::from(stop) {
            let request = v1::StopContainerRequest { container_id: made.clone(), timeout: 1 };
            ask!(client.runtime.stop_container(request)).unwrap();
            state = ContainerExited;
        }
        let status = client.status(&made);
        assert_eq!(
            (status.state(), status.exit_code),
            (state, if stop { 143 } else { 0 }),
            "{name}"
        );
        assert_eq!(status.image_id, client.image(BUSYBOX).expect("the image").id);
        for _ in 0..2 {
            let request = v1::RemoveContainerRequest { container_id: made.clone() };
            ask!(client.runtime.remove_container(request)).unwrap();
        }
        let filter = Some(v1::ContainerFilter { id: made, ..Default::default() });
        let left =
            ask!(client.runtime.list_containers(v1::ListContainersRequest { filter })).unwrap();
        assert!(left.containers.is_empty(), "{name}");
    }
    // A process whose time is over is gone.
    let running = client.start(id, config, container("timed", "sleep 1000"));
    let cmd = ["sleep", "4321"].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id: running.clone(), cmd, timeout: 1 };
    let error = ask!(client.runtime.exec_sync(request)).unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert_eq!(client.exec(&running, "pgrep -f 4321 || true"), "");
    // A log that was renamed goes on in a new file.
    let looping =
        client.start(id, config, container("loop", "while :; do echo line; sleep 0.1; done"));
    let path = client.status(&looping).log_path;
    let lines = |path: &str| fs::read_to_string(path).unwrap_or_default().lines().count();
    let some = |path: &str| if lines(path) > 0 { Ok(()) } else { Err(format!("{path} is empty")) };
    eventually("a line", || some(&path));
    let old = format!("{path}.old");
    fs::rename(&path, &old).expect("it can be renamed");
    let request = v1::ReopenContainerLogRequest { container_id: looping.clone() };
    ask!(client.runtime.reopen_container_log(request)).unwrap();
    let before = lines(&old);
    eventually("a line in the new file", || some(&path));
    assert_eq!(lines(&old), before);
    for container_id in [running, looping] {
        ask!(client.runtime.remove_container(v1::RemoveContainerRequest { container_id })).unwrap();
    }
}

fn users_and_files(client: &mut Client, id: &str, config: &v1::PodSandboxConfig) {
    type Change = fn(&mut v1::LinuxContainerSecurityContext);
    let user = |value| Some(v1::Int64Value { value });
    let cases: [(&str, &str, Change, &str); 8] = [
        ("groups", "id -G", |s| s.supplemental_groups = vec![1234, 5678], "stdout F 0 1234 5678\n"),
        (
            "user",
            "id -u",
            |s| s.run_as_user = Some(v1::Int64Value { value: 1001 }),
            "stdout F 1001\n",
        ),
        ("user-name", "id -nu", |s| s.run_as_username = "nobody".into(), "stdout F nobody\n"),
        (
            "user-and-group",
            "echo $(id -u):$(id -g)",
            |s| {
                s.run_as_user = Some(v1::Int64Value { value: 1001 });
                s.run_as_group = Some(v1::Int64Value { value: 1002 });
            },
            "stdout F 1001:1002\n",
        ),
        ("writable", "touch test.go && [ -f test.go ] && echo Found", |_| {}, "stdout F Found\n"),
        (
            "read-only",
            "touch test.go && [ -f test.go ] && echo Found",
            |s| s.readonly_rootfs = true,
            "stderr F touch: test.go: Read-only file system\n",
        ),
        (
            "all-dropped",
            "grep CapBnd /proc/self/status",
            |s| s.capabilities.get_or_insert_default().drop_capabilities = vec!["ALL".into()],
            "stdout F CapBnd:\t0000000000000000\n",
        ),
        ("unconfined", "grep ^Seccomp: /proc/self/status", |_| {}, "stdout F Seccomp:\t0\n"),
    ];
    for (name, script, change, logged) in cases {
        let mut wanted = container(name, script);
        let linux = wanted.linux.get_or_insert_default();
        change(linux.security_context.get_or_insert_default());
        let made = client.start(id, config, wanted);
        assert_eq!(client.logged(config, &made), logged, "{name}");
    }
    let mut wanted = container("group-alone", "true");
    let linux = wanted.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().run_as_group = user(1);
    assert_eq!(client.create(id, config, wanted).unwrap_err().code(), Code::InvalidArgument);
}

/// What the suite expects to be told of every container.
const METRICS: [&str; 45] = [
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_usage_bytes",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_kernel_usage",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_quota",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_reservation_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
    "container_ulimits_soft",
    // Where a controller of block devices is delegated they have values too.
    "container_blkio_device_usage_total",
    "container_fs_reads_bytes_total",
];

fn stats_and_metrics(client: &mut Client, id: &str, config: &v1::PodSandboxConfig) {
    let mut wanted = container("measured", "sleep 1000");
    wanted.labels = [("measured".to_owned(), "yes".to_owned())].into();
    wanted.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let made = client.start(id, config, wanted);
    let labels = |value: &str| HashMap::from([("measured".to_owned(), value.to_owned())]);
    for (filter, found) in [
        (None, true),
        (Some(v1::ContainerStatsFilter { id: made.clone(), ..Default::default() }), true),
        (
            Some(v1::ContainerStatsFilter { label_selector: labels("yes"), ..Default::default() }),
            true,
        ),
        (
            Some(v1::ContainerStatsFilter { label_selector: labels("no"), ..Default::default() }),
            false,
        ),
    ] {
        let request = v1::ListContainerStatsRequest { filter: filter.clone() };
        let stats = ask!(client.runtime.list_container_stats(request)).unwrap().stats;
        let own = stats.iter().find(|s| s.attributes.as_ref().is_some_and(|a| a.id == made));
        assert_eq!(own.is_some(), found, "{filter:?}");
        assert!(own.is_none_or(|own| own.cpu.as_ref().is_some_and(|cpu| cpu.timestamp > 0)));
    }
    let request = v1::ListMetricDescriptorsRequest {};
    let descriptors = ask!(client.runtime.list_metric_descriptors(request)).unwrap().descriptors;
    let keys: BTreeMap<String, usize> =
        descriptors.iter().map(|of| (of.name.clone(), of.label_keys.len())).collect();
    for name in METRICS {
        assert!(keys.contains_key(name), "{name} is not described");
    }
    let request = v1::ListPodSandboxMetricsRequest {};
    let metrics = ask!(client.runtime.list_pod_sandbox_metrics(request)).unwrap().pod_metrics;
    let own = metrics.into_iter().find(|of| of.pod_sandbox_id == id).expect("the pod is measured");
    let of_container = own.container_metrics.into_iter().find(|of| of.container_id == made);
    let of_container = of_container.expect("the container is measured").metrics;
    let all: Vec<v1::Metric> = own.metrics.into_iter().chain(of_container).collect();
    for metric in &all {
        assert_eq!(keys.get(&metric.name), Some(&metric.label_values.len()), "{}", metric.name);
    }
    let told: BTreeSet<&str> = all.iter().map(|metric| metric.name.as_str()).collect();
    let optional = |name: &str| name.contains("blkio") || name.starts_with("container_fs_reads");
    let missing: Vec<_> =
        METRICS.iter().filter(|name| !told.contains(**name) && !optional(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn images_are_known_by_all_their_names() {
    let cluster = Cluster::prepared();
    let registry = Registry::plain();
    let digest = registry.push("tags:1", &[]);
    for tag in ["tags:2", "tags:3", "untagged:latest", "other/place:1"] {
        assert_eq!(registry.push(tag, &[]), digest);
    }
    let (server, url) = Foreground::start(&cluster, &["cri"]);
    let mut client = Client::connect(&url);
    let name = |name: &str| registry.image(name);

    let error = client.pull(&name("nothing:1")).unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error:?}");
    assert_eq!(client.image(&name("tags:1")), None, "what is not there is nothing, not an error");

    // Without a tag the latest is meant; by its digest it has no tag at all.
    client.pull(&name("untagged")).unwrap();
    assert_eq!(client.image(&name("untagged")).unwrap().repo_tags, [name("untagged:latest")]);
    client.remove_image(&name("untagged"));
    assert_eq!(client.image(&name("untagged:latest")), None);
    let by_digest = name(&format!("tags@{digest}"));
    client.pull(&by_digest).unwrap();
    let found = client.image(&by_digest).unwrap();
    assert_eq!((found.repo_tags.len(), &found.repo_digests[..]), (0, &[by_digest.clone()][..]));
    client.remove_image(&found.id);

    // Three tags of one image, and another repository's.
    let tags = ["tags:1", "tags:2", "tags:3", "other/place:1"].map(name);
    let ids: BTreeSet<String> = tags.iter().map(|tag| client.pull(tag).unwrap()).collect();
    assert_eq!(ids.len(), 1, "one image has one id: {ids:?}");
    let whole = client.image(&tags[0]).unwrap();
    assert!(ids.contains(&whole.id) && whole.size > 0);
    assert_eq!(
        whole.repo_tags.iter().cloned().collect::<BTreeSet<_>>(),
        tags.iter().cloned().collect()
    );
    for reference in whole.repo_tags.iter().chain(&whole.repo_digests).chain([&whole.id]) {
        assert_eq!(client.image(reference).as_ref(), Some(&whole), "{reference}");
        let filter = Some(v1::ImageFilter { image: spec(reference) });
        let listed =
            ask!(client.images.list_images(v1::ListImagesRequest { filter })).unwrap().images;
        assert_eq!(listed, std::slice::from_ref(&whole), "{reference}");
    }
    let used = ask!(client.images.image_fs_info(v1::ImageFsInfoRequest {})).unwrap();
    assert!(used.image_filesystems[0].used_bytes.as_ref().is_some_and(|bytes| bytes.value > 0));

    // What is pinned stays when room is made.
    cluster.rootlet_ok(&["image", "pin", &tags[1]]);
    assert!(client.image(&tags[0]).unwrap().pinned);
    cluster.rootlet_ok(&["image", "prune", "--all"]);
    assert!(client.image(&tags[0]).is_some());
    cluster.rootlet_ok(&["image", "pin", "--off", &tags[0]]);
    assert!(!client.image(&tags[1]).unwrap().pinned);

    // Whoever else removes it meanwhile, it is gone when the answer is there.
    let handles: Vec<_> = (0..5)
        .map(|_| {
            let (url, id) = (url.clone(), whole.id.clone());
            std::thread::spawn(move || {
                let mut client = Client::connect(&url);
                client.remove_image(&id);
                assert_eq!(client.image(&id), None);
            })
        })
        .collect();
    for handle in handles {
        handle.join().expect("every removal succeeds");
    }
    let images = ask!(client.images.list_images(v1::ListImagesRequest { filter: None })).unwrap();
    assert!(images.images.is_empty());
    server.end(Signal::SIGTERM);
}
