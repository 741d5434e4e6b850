//! The OCI runtime spec of a container, from its CRI config and its image
//! (opencontainers/runtime-spec config.md; defaults as containerd's CRI plugin).
//!
//! What rootless forbids is left out here, see the comments: `/sys` is the node's, read-only; the
//! net, ipc and uts namespaces are not named, since the `container` process is born in them.

use std::path::Path;

use k8s_cri::v1;
use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};

use crate::error::Error;
use crate::oci::launch::Volume;

/// PATH of a container whose image names none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the spec is made from.
pub struct Inputs<'a> {
    pub config: &'a v1::ContainerConfig,
    /// The container's bundle.
    pub bundle: &'a Path,
    pub image: &'a ImageConfiguration,
    /// Host name of the pod.
    pub hostname: &'a str,
    /// Bind mounts of the pod: source, destination, read-only.
    pub pod_mounts: &'a [(String, &'static str, bool)],
    /// The pid namespace to join.
    pub pid: PidNamespace,
    /// The cgroup, absolute below the mount of cgroup2.
    pub cgroup: &'a Path,
    /// `linux.resources`, where the cgroup is ours to limit.
    pub resources: Option<Value>,
    /// Whether the pod is in the node's ipc namespace.
    pub node_ipc: bool,
    /// Whether group 5 (tty) exists in the user namespace.
    pub tty_group: bool,
}

/// Which pid namespace a container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    Own,
    Node,
    /// That of this process.
    Of(i32),
}

/// The security context, or an empty one.
pub fn security(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// The spec without user and HOME, which need the mounted image.
pub fn build(inputs: &Inputs<'_>) -> Result<Value, Error> {
    let security = security(inputs.config);
    let mut process = json!({
        "terminal": inputs.config.tty,
        "user": {"uid": 0, "gid": 0},
        "args": arguments(inputs)?,
        "env": environment(inputs),
        "cwd": working_directory(inputs),
        // No capabilities here: the executor still needs them when libcontainer is done.
    });
    if security.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    if let Some(profile) = crate::apparmor::profile(&security)? {
        process["apparmorProfile"] = profile.into();
    }
    let linux_resources = inputs.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    if let Some(resources) = linux_resources {
        process["oomScoreAdj"] = resources.oom_score_adj.clamp(0, 1000).into();
    }
    let mut namespaces = vec![json!({"type": "mount"})];
    match inputs.pid {
        PidNamespace::Own => namespaces.push(json!({"type": "pid"})),
        PidNamespace::Of(pid) => {
            namespaces.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")}));
        }
        PidNamespace::Node => {}
    }
    if !security.privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": inputs.cgroup,
    });
    if !security.privileged {
        linux["maskedPaths"] = security.masked_paths.clone().into();
        linux["readonlyPaths"] = security.readonly_paths.clone().into();
    }
    if let Some(resources) = &inputs.resources {
        linux["resources"] = resources.clone();
    }
    if shares_mounts(inputs.config) {
        linux["rootfsPropagation"] = "shared".into();
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": crate::oci::launch::ROOTFS, "readonly": security.readonly_rootfs},
        "mounts": mounts(inputs, &security),
        "annotations": {"io.kubernetes.cri.container-type": "container"},
        "linux": linux,
    }))
}

/// Whether a mount made in the container is to be seen on the node.
fn shares_mounts(config: &v1::ContainerConfig) -> bool {
    config
        .mounts
        .iter()
        .any(|mount| mount.propagation() == v1::MountPropagation::PropagationBidirectional)
}

fn arguments(inputs: &Inputs<'_>) -> Result<Vec<String>, Error> {
    let image = inputs.image.config().as_ref();
    let mut command = inputs.config.command.clone();
    let mut arguments = inputs.config.args.clone();
    if command.is_empty() {
        if arguments.is_empty() {
            arguments = image.and_then(|image| image.cmd().clone()).unwrap_or_default();
        }
        command = image.and_then(|image| image.entrypoint().clone()).unwrap_or_default();
    }
    command.append(&mut arguments);
    if command.is_empty() {
        return Err(Error::InvalidArgument(
            "failed to generate container spec: no command specified".into(),
        ));
    }
    Ok(command)
}

fn environment(inputs: &Inputs<'_>) -> Vec<String> {
    let image = inputs.image.config().as_ref();
    let mut env: Vec<String> = Vec::new();
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        let same = |other: &String| other.split('=').next() == Some(name.as_str());
        match env.iter().position(same) {
            Some(at) => env[at] = entry,
            None => env.push(entry),
        }
    };
    set(DEFAULT_PATH.to_owned());
    if inputs.config.tty {
        set("TERM=xterm".to_owned());
    }
    set(format!("HOSTNAME={}", inputs.hostname));
    for entry in image.and_then(|image| image.env().clone()).unwrap_or_default() {
        set(entry);
    }
    for entry in &inputs.config.envs {
        set(format!("{}={}", entry.key, entry.value));
    }
    env
}

fn working_directory(inputs: &Inputs<'_>) -> String {
    let image = inputs.image.config().as_ref().and_then(|image| image.working_dir().clone());
    let directory = if inputs.config.working_dir.is_empty() {
        image.unwrap_or_default()
    } else {
        inputs.config.working_dir.clone()
    };
    if directory.starts_with('/') { directory } else { format!("/{directory}") }
}

fn mounts(inputs: &Inputs<'_>, security: &v1::LinuxContainerSecurityContext) -> Vec<Value> {
    let bind = |source: &str, destination: &str, options: &[&str]| json!({"type": "bind", "source": source, "destination": destination, "options": options});
    let fresh = |kind: &str, destination: &str, options: &[&str]| json!({"type": kind, "source": kind, "destination": destination, "options": options});
    let mut mounts = Vec::new();
    // A new proc needs a pid namespace of ours.
    mounts.push(match inputs.pid {
        PidNamespace::Node => bind("/proc", "/proc", &["rbind"]),
        _ => fresh("proc", "/proc", &["nosuid", "noexec", "nodev"]),
    });
    mounts.push(fresh("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]));
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if inputs.tty_group {
        pts.push("gid=5");
    }
    mounts.push(fresh("devpts", "/dev/pts", &pts));
    if !inputs.node_ipc {
        mounts.push(fresh("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]));
    }
    // A new sysfs would need a network namespace that owns it; the node's is shown instead.
    mounts.push(bind(
        "/sys",
        "/sys",
        if security.privileged { &["rbind"] } else { &["rbind", "rro"] },
    ));

    let wanted: Vec<&str> = inputs
        .config
        .mounts
        .iter()
        .map(|mount| mount.container_path.trim_end_matches('/'))
        .collect();
    let mut binds = Vec::new();
    for (source, destination, read_only) in inputs.pod_mounts {
        if !wanted.contains(destination) {
            let options: &[&str] = if *read_only { &["rbind", "ro"] } else { &["rbind", "rw"] };
            binds.push(bind(source, destination, options));
        }
    }
    let mut images = 0;
    for mount in &inputs.config.mounts {
        let mut options = vec!["rbind"];
        options.push(match (mount.readonly, mount.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        });
        options.push(match mount.propagation() {
            v1::MountPropagation::PropagationPrivate => "rprivate",
            v1::MountPropagation::PropagationHostToContainer => "rslave",
            v1::MountPropagation::PropagationBidirectional => "rshared",
        });
        if mount.image.is_some() {
            let source = Volume::path(inputs.bundle, images);
            images += 1;
            binds.push(bind(&source.to_string_lossy(), &mount.container_path, &options));
        } else {
            binds.push(bind(&mount.host_path, &mount.container_path, &options));
        }
    }
    for device in &inputs.config.devices {
        // mknod is not for us; the node's device is bound, as libcontainer does by itself for the
        // usual ones.
        let options: &[&str] = if device.permissions.contains('w') || device.permissions.is_empty()
        {
            &["rbind", "rw"]
        } else {
            &["rbind", "ro"]
        };
        binds.push(bind(&device.host_path, &device.container_path, options));
    }
    if security.privileged {
        binds.extend(node_devices().iter().map(|path| bind(path, path, &["bind"])));
    }
    // Parents before what is mounted below them.
    binds.sort_by_key(|mount| {
        mount["destination"]
            .as_str()
            .unwrap_or_default()
            .split('/')
            .filter(|part| !part.is_empty())
            .count()
    });
    mounts.extend(binds);
    mounts
}

/// Devices of the node beside those every container has, for privileged containers.
fn node_devices() -> Vec<String> {
    use std::os::unix::fs::FileTypeExt;
    let usual = ["null", "zero", "full", "tty", "urandom", "random", "console", "ptmx"];
    let walk = |directory: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter(|entry| {
                entry.file_type().is_ok_and(|kind| kind.is_char_device() || kind.is_block_device())
            })
            .filter_map(|entry| entry.path().into_os_string().into_string().ok())
            .collect::<Vec<_>>()
    };
    let mut devices: Vec<String> =
        ["/dev", "/dev/net", "/dev/dri", "/dev/mapper", "/dev/snd", "/dev/input"]
            .into_iter()
            .flat_map(walk)
            .collect();
    devices.retain(|path| {
        let name = path.trim_start_matches("/dev/");
        !usual.contains(&name) && !name.starts_with("tty") && !name.starts_with("vcs")
    });
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(json: Value) -> ImageConfiguration {
        let config = json!({"architecture": "amd64", "os": "linux", "config": json,
            "rootfs": {"type": "layers", "diff_ids": []}, "history": []});
        serde_json::from_value(config).unwrap()
    }

    fn spec(config: &v1::ContainerConfig, image: &ImageConfiguration) -> Result<Value, Error> {
        build(&Inputs {
            config,
            bundle: Path::new("/bundle"),
            image,
            hostname: "pod",
            pod_mounts: &[("/s/hosts".into(), "/etc/hosts", false)],
            pid: PidNamespace::Own,
            cgroup: Path::new("/c"),
            resources: None,
            node_ipc: false,
            tty_group: true,
        })
    }

    #[test]
    fn command_and_arguments_combine_as_docker_does() {
        let image = image(json!({"Entrypoint": ["/entry"], "Cmd": ["x"]}));
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        for (command, args, expected) in [
            (vec![], vec![], vec!["/entry", "x"]),
            (vec![], vec!["y"], vec!["/entry", "y"]),
            (vec!["c"], vec![], vec!["c"]),
            (vec!["c"], vec!["y"], vec!["c", "y"]),
        ] {
            let config = v1::ContainerConfig {
                command: strings(&command),
                args: strings(&args),
                ..Default::default()
            };
            assert_eq!(spec(&config, &image).unwrap()["process"]["args"], json!(expected));
        }
    }

    #[test]
    fn no_command_is_an_error() {
        assert!(spec(&v1::ContainerConfig::default(), &image(json!({}))).is_err());
    }

    #[test]
    fn later_environment_replaces_earlier() {
        let image = image(json!({"Cmd": ["x"], "Env": ["PATH=/image", "A=1", "B=2"]}));
        let envs = vec![v1::KeyValue { key: "A".into(), value: "x=y".into() }];
        let config = v1::ContainerConfig { envs, ..Default::default() };
        let env = &spec(&config, &image).unwrap()["process"]["env"];
        assert_eq!(env, &json!(["PATH=/image", "HOSTNAME=pod", "A=x=y", "B=2"]));
    }

    #[test]
    fn the_pods_files_give_way_to_the_kubelets() {
        let image = image(json!({"Cmd": ["x"]}));
        let mount = |path: &str| v1::Mount {
            container_path: path.into(),
            host_path: "/h".into(),
            ..Default::default()
        };
        let config = v1::ContainerConfig {
            mounts: vec![mount("/a/b"), mount("/etc/hosts"), mount("/a")],
            ..Default::default()
        };
        let spec = spec(&config, &image).unwrap();
        let binds: Vec<(&str, &str)> = spec["mounts"].as_array().unwrap()[5..]
            .iter()
            .map(|mount| {
                (mount["source"].as_str().unwrap(), mount["destination"].as_str().unwrap())
            })
            .collect();
        assert_eq!(binds, [("/h", "/a"), ("/h", "/a/b"), ("/h", "/etc/hosts")]);
    }
}
