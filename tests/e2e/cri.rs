//! The container runtime alone (`rootlet cri`), through a CRI client of our own over its socket, and the
//! kubelet alone (`rootlet agent`), with the runtime built in and on that socket.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};

use k8s_cri::v1;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::transport::Channel;

use crate::harness::{BUSYBOX, Cluster, eventually};
use crate::hygiene::processes;

/// A program in the foreground that has said that it is ready.
pub struct Foreground(Child);

impl Foreground {
    /// Starts `rootlet WORDS… --name THIS`; returns what follows its `ready: `.
    pub fn start(cluster: &Cluster, words: &[&str]) -> (Self, String) {
        let mut child = cluster
            .command("rootlet")
            .args(words)
            .args(["--name", &cluster.name])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be started");
        let mut line = String::new();
        let out = child.stdout.take().expect("its output is a pipe");
        BufReader::new(out).read_line(&mut line).expect("its output can be read");
        let ready = line.strip_prefix("ready: ").unwrap_or_else(|| panic!("{words:?}: {line:?}"));
        (Self(child), ready.trim().to_owned())
    }

    /// Asks it to end, and waits until it has.
    pub fn end(mut self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id() as i32);
        kill(pid, signal).expect("it lives");
        assert!(self.0.wait().expect("it can be waited for").success());
    }
}

/// A client of a CRI socket.
pub struct Client {
    pub threads: tokio::runtime::Runtime,
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

impl Client {
    pub fn connect(url: &str) -> Self {
        let threads =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let url = url.to_owned();
        let (runtime, images) = threads
            .block_on(async {
                let runtime = RuntimeServiceClient::connect(url.clone()).await?;
                Ok::<_, tonic::transport::Error>((runtime, ImageServiceClient::connect(url).await?))
            })
            .expect("the socket is served");
        Self { threads, runtime, images }
    }

    pub fn pods(&mut self) -> Vec<v1::PodSandbox> {
        let request = v1::ListPodSandboxRequest { filter: None };
        let answer = self.threads.block_on(self.runtime.list_pod_sandbox(request));
        answer.expect("pods are listed").into_inner().items
    }

    pub fn containers(&mut self) -> Vec<v1::Container> {
        let request = v1::ListContainersRequest { filter: None };
        let answer = self.threads.block_on(self.runtime.list_containers(request));
        answer.expect("containers are listed").into_inner().containers
    }

    /// Runs a pod with one container; returns their ids.
    fn run(&mut self, config: v1::PodSandboxConfig, script: &str) -> (String, String) {
        let container = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: "c.log".into(),
            ..Default::default()
        };
        let run = async {
            let request =
                v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
            let pod_sandbox_id =
                self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
            let request = v1::CreateContainerRequest {
                pod_sandbox_id: pod_sandbox_id.clone(),
                config: Some(container),
                sandbox_config: Some(config),
            };
            let container_id =
                self.runtime.create_container(request).await?.into_inner().container_id;
            let request = v1::StartContainerRequest { container_id: container_id.clone() };
            self.runtime.start_container(request).await?;
            Ok::<_, tonic::Status>((pod_sandbox_id, container_id))
        };
        self.threads.block_on(run).expect("the pod runs")
    }

    pub fn exec(&mut self, container: &str, script: &str) -> String {
        let request = v1::ExecSyncRequest {
            container_id: container.into(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: 10,
        };
        let answer = self.threads.block_on(self.runtime.exec_sync(request)).expect("it runs");
        String::from_utf8(answer.into_inner().stdout).expect("text")
    }

    pub fn remove(&mut self, pod: &str) {
        let gone = async {
            let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.into() };
            self.runtime.stop_pod_sandbox(request).await?;
            let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.into() };
            self.runtime.remove_pod_sandbox(request).await
        };
        self.threads.block_on(gone).expect("the pod is removed");
    }
}

pub fn pod(logs: &Path) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web".into(),
            uid: "u-1".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: "web-0".into(),
        log_directory: logs.to_string_lossy().into_owned(),
        dns_config: Some(v1::DnsConfig {
            servers: vec!["10.10.10.10".into()],
            searches: vec!["example.org".into()],
            options: vec!["ndots:8".into()],
        }),
        ..Default::default()
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it has an address").port()
}

fn get(port: u16) -> Result<String, String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).map_err(failed)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(failed)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// The parent of the process with this command line: of a container's, its pod's shim.
fn parent_of(command: &str) -> Pid {
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let found = entries.filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        (line.trim_end() == command).then(|| parent.trim().parse().ok())?
    });
    Pid::from_raw(found.last().expect("it runs"))
}

#[test]
fn the_runtime_runs_alone() {
    let cluster = Cluster::prepared();
    let (server, url) = Foreground::start(&cluster, &["cri"]);
    let socket = cluster.path("rootlet").join(&cluster.name).join("cri.sock");
    assert_eq!(url, format!("unix://{}", socket.display()));
    let again = cluster.rootlet(&["cri"]);
    assert!(again.err.contains("runs already"), "{again:?}");
    let up = cluster.rootlet(&["up"]);
    assert!(up.err.contains("--container-runtime-endpoint"), "{up:?}");
    cluster.load_busybox();

    let mut client = Client::connect(&url);
    let request = v1::VersionRequest { version: "0.1.0".into() };
    let version = client.threads.block_on(client.runtime.version(request)).unwrap().into_inner();
    assert_eq!(
        (version.runtime_name.as_str(), version.runtime_api_version.as_str()),
        ("rootlet", "v1")
    );
    let request = v1::StatusRequest { verbose: true };
    let status = client.threads.block_on(client.runtime.status(request)).unwrap().into_inner();
    for kind in ["RuntimeReady", "NetworkReady"] {
        let conditions = &status.status.as_ref().unwrap().conditions;
        assert!(conditions.iter().any(|found| found.r#type == kind && found.status), "{kind}");
    }
    let request = v1::ListImagesRequest { filter: None };
    let images = client.threads.block_on(client.images.list_images(request)).unwrap().into_inner();
    assert_eq!(images.images[0].repo_tags, [BUSYBOX]);

    let (port, logs) = (free_port(), cluster.path("logs"));
    let mut config = pod(&logs);
    config.port_mappings =
        vec![v1::PortMapping { container_port: 80, host_port: port.into(), ..Default::default() }];
    let script = "mkdir /www; echo served >/www/index.html; echo started; httpd -f -p 80 -h /www";
    let (web, container) = client.run(config, script);
    let page = eventually("the published port", || get(port));
    assert!(page.ends_with("served\n"), "{page}");
    assert_eq!(
        client.exec(&container, "hostname; cat /etc/resolv.conf"),
        "web-0\nsearch example.org\nnameserver 10.10.10.10\noptions ndots:8\n"
    );
    let log = std::fs::read_to_string(logs.join("c.log")).unwrap();
    assert!(log.ends_with(" stdout F started\n"), "{log:?}");

    // Pods outlive it, and are there again, with their ports.
    server.end(Signal::SIGTERM);
    let (server, url) = Foreground::start(&cluster, &["cri"]);
    let mut client = Client::connect(&url);
    assert_eq!(client.pods()[0].state(), v1::PodSandboxState::SandboxReady);
    assert_eq!(client.exec(&container, "echo again"), "again\n");
    eventually("the published port again", || get(port));

    // What ends while it is away takes its ports along, outside and within.
    let lost = free_port();
    let mut other = pod(&logs);
    other.metadata.get_or_insert_default().uid = "other".to_owned();
    other.port_mappings =
        vec![v1::PortMapping { container_port: 80, host_port: lost.into(), ..Default::default() }];
    let script = "mkdir /www; echo served >/www/index.html; httpd -p 80 -h /www; exec sleep 543210";
    client.run(other, script);
    eventually("the other port", || get(lost));
    let within = |port: u16| {
        let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
        cluster.rootlet_with(&["enter"], &["bash", "-c", &connect]).code == Some(0)
    };
    assert!(within(port) && within(lost));
    server.end(Signal::SIGTERM);
    kill(parent_of("sleep 543210"), Signal::SIGKILL).unwrap();
    let (server, url) = Foreground::start(&cluster, &["cri"]);
    let mut client = Client::connect(&url);
    assert!(get(lost).is_err(), "nobody answers any more");
    assert!(!within(lost), "nor within");
    assert!(within(port), "the one that lives on is there");
    let gone = client.pods().into_iter().find(|of| of.state() != v1::PodSandboxState::SandboxReady);
    client.remove(&gone.expect("it is known").id);
    assert_eq!(processes("httpd -p 80 -h"), BTreeSet::new(), "nobody would look after it");
    client.remove(&web);
    assert!(get(port).is_err(), "the port is free");
    server.end(Signal::SIGINT);
    assert_eq!(processes(&cluster.word()), BTreeSet::new(), "without pods nothing stays");

    let (server, url) = Foreground::start(&cluster, &["cri", "--stop-pods"]);
    let mut client = Client::connect(&url);
    client.run(pod(&logs), "sleep 5432");
    server.end(Signal::SIGTERM);
    assert_eq!(processes(&cluster.word()), BTreeSet::new(), "asked to, it stops its pods");
    assert_eq!(processes("sleep 5432"), BTreeSet::new());
}

#[test]
fn a_cluster_serves_cri_beside_its_api() {
    let cluster = Cluster::ephemeral();
    cluster.kubectl_ok(&["run", "hello", "--image", BUSYBOX, "--", "sleep", "1000"]);
    cluster.pod_ready("hello");
    let socket = cluster.path("rootlet").join(&cluster.name).join("cri.sock");
    let mut client = Client::connect(&format!("unix://{}", socket.display()));
    let names = client.pods().into_iter().filter_map(|pod| pod.metadata).map(|own| own.name);
    assert!(names.collect::<Vec<_>>().contains(&"hello".to_owned()));
    let container = client.containers().remove(0);
    assert_eq!(client.exec(&container.id, "hostname"), "hello\n");
}

#[test]
fn the_kubelet_runs_alone() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral", "--disable", "kubelet"]);
    let file = cluster.path("kubeconfig");
    let words =
        ["agent", "--kubeconfig", file.to_str().expect("UTF-8"), "--node-labels", "kind=agent"];
    let (agent, ready) = Foreground::start(&cluster, &words);
    assert_eq!(ready, format!("node rootlet-{}", cluster.name));
    cluster.load_busybox();
    works(&cluster, "sleep 7171");
    let labels = cluster.kubectl_ok(&["get", "nodes", "-l", "kind=agent", "-o", "name"]);
    assert_eq!(labels, format!("node/rootlet-{}\n", cluster.name));
    agent.end(Signal::SIGTERM);
    let (agent, _) = Foreground::start(&cluster, &words);
    assert_eq!(cluster.kubectl_ok(&["exec", "hello", "--", "echo", "again"]), "again\n");
    agent.end(Signal::SIGTERM);
    assert_eq!(processes("sleep 7171").len(), 1, "the pod lives on");
    cluster.rootlet_ok(&["down"]);
    assert_eq!(processes("sleep 7171"), BTreeSet::new(), "nobody's pods are stopped too");
}

#[test]
fn the_kubelet_and_the_proxy_serve_another_cluster() {
    let far = Cluster::prepared();
    far.up(&["--ephemeral", "--disable", "kubelet,proxy,dns"]);
    let near = Cluster::prepared();
    let kubeconfig = far.path("kubeconfig");
    let file = kubeconfig.to_str().expect("UTF-8");
    let words = ["agent", "--kubeconfig", file, "--proxy-kubeconfig", file, "--node-name", "near"];
    let (agent, ready) = Foreground::start(&near, &words);
    assert_eq!(ready, "node near");
    near.load_busybox();
    let script = "mkdir /www; echo served >/www/index.html; httpd -f -p 80 -h /www";
    far.kubectl_ok(&["run", "web", "--image", BUSYBOX, "--port=80", "--", "sh", "-c", script]);
    far.pod_ready("web");
    far.kubectl_ok(&["expose", "pod", "web", "--port=8080", "--target-port=80"]);
    let address = far.kubectl_ok(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let url = format!("http://{address}:8080/");
    eventually("the service by its address", || {
        let answer = far.kubectl(&["exec", "web", "--", "timeout", "3", "wget", "-qO-", &url]);
        if answer.out == "served\n" { Ok(()) } else { Err(format!("{}{}", answer.out, answer.err)) }
    });
    far.kubectl_ok(&["delete", "pod", "web", "--now"]);
    agent.end(Signal::SIGTERM);
}

#[test]
fn the_kubelet_uses_another_runtime() {
    let cluster = Cluster::prepared();
    let (server, url) = Foreground::start(&cluster, &["cri"]);
    cluster.load_busybox();
    cluster.up(&["--ephemeral", "--container-runtime-endpoint", &url]);
    works(&cluster, "sleep 7272");
    let mut client = Client::connect(&url);
    assert_eq!(client.pods().len(), 1);
    cluster.kubectl_ok(&["delete", "pod", "hello", "--now"]);
    cluster.rootlet_ok(&["down"]);
    drop(server);
    assert_eq!(processes(&cluster.word()), BTreeSet::new());
}

#[test]
fn an_image_is_a_volume() {
    let cluster = Cluster::ephemeral();
    let manifest = |name: &str, sub_path: &str, script: &str| {
        serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"restartPolicy": "Never",
                "volumes": [{"name": "v", "image": {"reference": BUSYBOX}}],
                "containers": [{"name": "c", "image": BUSYBOX, "command": ["sh", "-c", script],
                    "volumeMounts": [{"name": "v", "mountPath": "/image", "subPath": sub_path}]}]}})
        .to_string()
    };
    cluster.apply(&manifest("whole", "", "! touch /image/x && /image/bin/busybox echo fine"));
    cluster.apply(&manifest("part", "bin", "/image/busybox echo fine"));
    for name in ["whole", "part"] {
        cluster.pod_phase(name, "Succeeded");
        let log = cluster.kubectl_ok(&["logs", name]);
        assert!(log.ends_with("fine\n"), "{name}: {log}");
    }
}

/// Runs a pod, and does with it what goes through the kubelet.
fn works(cluster: &Cluster, sleep: &str) {
    let script = format!("echo hello; {sleep}");
    let run = ["run", "hello", "--image", BUSYBOX, "--", "sh", "-c", &script];
    cluster.kubectl_ok(&run);
    cluster.pod_ready("hello");
    assert_eq!(cluster.kubectl_ok(&["logs", "hello"]), "hello\n");
    assert_eq!(cluster.kubectl_ok(&["exec", "hello", "--", "hostname"]), "hello\n");
}
