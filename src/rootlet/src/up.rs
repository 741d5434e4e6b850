//! `rootlet up`: starts the node process and the daemon, and waits until the node is Ready.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::control::{self, Client};
use crate::foreground::Foreground;
use crate::paths::{Paths, home};
use crate::settings::{Settings, StoreAddress};
use crate::{build, lock, member, output, scope, service, userns};

/// Carries out `rootlet up`.
pub fn up(arguments: &cli::args::Up) -> anyhow::Result<()> {
    let paths = Paths::of(&arguments.cluster.name)?;
    let foreground = arguments.foreground.then(Foreground::new).transpose()?;
    let (settings, held) = launch(arguments, &paths)?;
    announce(arguments, settings)?;
    drop(held);
    foreground.map_or(Ok(()), |foreground| foreground.wait(&paths))
}

/// Waits for a start that is under way, and lets no other begin until the lock is dropped.
pub fn hold(paths: &Paths) -> anyhow::Result<lock::Lock> {
    lock::wait(&paths.lock("up")).context("cannot lock the cluster")
}

/// Starts the cluster unless it runs. Nobody else starts or removes it until the lock is dropped.
pub fn launch(arguments: &cli::args::Up, paths: &Paths) -> anyhow::Result<(Settings, lock::Lock)> {
    paths.create()?;
    let held = hold(paths)?;
    let settings = settings(arguments, paths.clone())?;
    for role in ["daemon", "runtime", "node"] {
        lock::await_dying(&paths.lock(role));
    }
    if let Some(daemon) = lock::holder(&paths.lock("daemon")) {
        if let Some(what) = arguments.upgrade {
            upgrade(paths, what)?;
            return Ok((Settings::read(&paths.settings())?.unwrap_or(settings), held));
        }
        say!("Cluster {:?} is already running.", paths.name);
        if build::differs(daemon) {
            say!(
                "It runs another build of rootlet; `rootlet up --upgrade` moves it to this one, with its pods running."
            );
        }
    } else {
        check_moved(paths)?;
        settings.write()?;
        start(paths)?;
    }
    Ok((Settings::read(&paths.settings())?.unwrap_or(settings), held))
}

/// How long a node process may take to end, and another to stand in its place.
const HANDOVER: Duration = Duration::from_secs(10);

/// Puts this build in the place of the one that runs. Pods belong to their shims and go on, and so do connections
/// between them, which are the kernel's. Those to the outside are the node process': they go on while it stays.
fn upgrade(paths: &Paths, what: cli::args::Upgrade) -> anyhow::Result<()> {
    let known = Settings::read(&paths.settings())?.context("the settings are gone")?;
    if known.ephemeral {
        bail!(
            "the state of cluster {0:?} is in memory and would be lost; keep it by hand: rootlet snapshot save \
             FILE, rootlet down, rootlet up --ephemeral, rootlet snapshot restore FILE (each with --name {0})",
            paths.name
        );
    }
    lock::end_holder(&paths.lock("daemon"), Duration::from_mins(1))
        .context("the daemon that runs cannot be ended")?;
    start(paths)?;
    if what == cli::args::Upgrade::All {
        replace_node(paths)?;
    }
    say!("Cluster {:?} now runs rootlet {}.", paths.name, build::VERSION);
    Ok(())
}

/// Ends a node process of another build. The daemon, which holds its network, puts one of its own build there.
fn replace_node(paths: &Paths) -> anyhow::Result<()> {
    let lock = paths.lock("node");
    let Some(old) = lock::holder(&lock).filter(|node| build::differs(*node)) else { return Ok(()) };
    lock::end_holder(&lock, HANDOVER).context("the node process that runs cannot be ended")?;
    let until = std::time::Instant::now() + HANDOVER;
    // Its DNS is the last that it serves.
    let ready = || {
        lock::holder(&lock).is_some_and(|node| node != old)
            && std::os::unix::net::UnixStream::connect(paths.dns_socket()).is_ok()
    };
    while !ready() {
        if std::time::Instant::now() > until {
            bail!("the daemon started no node process; see {}", paths.log("daemon").display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Volumes are named by their whole path in objects that cannot be changed: where the data was moved they are
/// found by a link from the old place. Without it pods would find them empty.
fn check_moved(paths: &Paths) -> anyhow::Result<()> {
    let Some(known) = Settings::read(&paths.settings())? else { return Ok(()) };
    let old = &known.paths.data;
    let volumes = std::fs::read_dir(paths.data.join("volumes"));
    let some = volumes.is_ok_and(|mut entries| entries.next().is_some());
    let leads_here = std::fs::canonicalize(old).ok() == std::fs::canonicalize(&paths.data).ok();
    if some && !leads_here {
        bail!(
            "the data of cluster {:?} was moved, and its volumes are known by the old path; move it back, or \
             lead there: mkdir -p {} && ln -s {} {}",
            paths.name,
            old.parent().unwrap_or(old).display(),
            paths.data.display(),
            old.display()
        );
    }
    Ok(())
}

/// What a cluster is started with: what was asked for, and what is known of the last time.
pub fn settings(arguments: &cli::args::Up, paths: Paths) -> anyhow::Result<Settings> {
    let known = Settings::read(&paths.settings())?;
    controllers::check(&arguments.controllers).context("--controllers")?;
    let registries = match &arguments.registries {
        Some(file) => Some(whole("--registries", file)?),
        None => default_registries(),
    };
    let scheduler_config = match &arguments.scheduler_config {
        Some(file) => {
            scheduler_config(file)?;
            Some(whole("--scheduler-config", file)?)
        }
        None => None,
    };
    let conf_dir = arguments.cni_conf_dir.as_ref();
    let manifests = arguments.manifests.as_ref().map(|dir| {
        std::fs::read_dir(dir)
            .with_context(|| format!("--manifests: cannot read {}", dir.display()))?;
        whole("--manifests", dir)
    });
    Ok(Settings {
        ephemeral: arguments.ephemeral,
        store: store_address(arguments, known.as_ref())?,
        api_port: arguments.api_port.or(known.as_ref().and_then(|known| known.api_port)),
        api_port_fixed: arguments.api_port.is_some(),
        dual_stack: match &arguments.ip_family {
            Some(family) => family != "ipv4",
            None => known.as_ref().is_none_or(|known| known.dual_stack),
        },
        ipv6_only: match &arguments.ip_family {
            Some(family) => family == "ipv6",
            None => known.as_ref().is_some_and(|known| known.ipv6_only),
        },
        publish: match (&arguments.publish[..], &known) {
            ([], Some(known)) => known.publish.clone(),
            ([], None) => crate::settings::loopback(),
            (asked, _) => asked.to_vec(),
        },
        kubelet: member::checked(&arguments.kubelet, &member::OF_THE_CLUSTER)?,
        host_network_within: false,
        cni_conf_dir: conf_dir.map(|dir| whole("--cni-conf-dir", dir)).transpose()?,
        cni_bin_dirs: match &arguments.cni_bin_dir[..] {
            [] => ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from).to_vec(),
            asked => asked.iter().map(std::path::absolute).collect::<Result<_, _>>()?,
        },
        ingress: arguments.ingress,
        manifests: manifests.transpose()?,
        kubelet_port: known.as_ref().and_then(|known| known.kubelet_port),
        access: arguments
            .access
            .or(&known.as_ref().map(|known| known.access.clone()).unwrap_or_default()),
        created: known.as_ref().and_then(|known| known.created.clone()),
        merged_into: known.and_then(|known| known.merged_into),
        registries,
        scheduler_config,
        leader_elect: arguments.leader_elect,
        runtime_endpoint: arguments.container_runtime_endpoint.clone(),
        controllers: arguments.controllers.clone(),
        disabled: arguments.disable.clone(),
        paths,
    })
}

/// What `flag` names, for a process that works in another folder.
pub fn whole(flag: &str, file: &Path) -> anyhow::Result<PathBuf> {
    std::fs::canonicalize(file).with_context(|| format!("{flag}: cannot read {}", file.display()))
}

/// Reads the scheduler's configuration.
pub fn scheduler_config(file: &Path) -> anyhow::Result<scheduler::configuration::Configuration> {
    let named = || format!("--scheduler-config: {}", file.display());
    let text = std::fs::read_to_string(file).with_context(named)?;
    scheduler::configuration::parse(&text).with_context(named)
}

/// The store that was asked for, else that of the last time.
fn store_address(
    arguments: &cli::args::Up,
    known: Option<&Settings>,
) -> anyhow::Result<Option<StoreAddress>> {
    let Some(address) = &arguments.store else {
        let known = known.and_then(|known| known.store.clone());
        return Ok(known.filter(|_| !arguments.ephemeral));
    };
    let file = |flag: &str, file: &Option<PathBuf>| {
        file.as_ref().map(|file| whole(flag, file)).transpose()
    };
    // What is mistyped is told before anything is started.
    let nowhere: store::etcd::Dial =
        std::sync::Arc::new(|_, _| Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) }));
    store::etcd::EtcdOptions::parse(address, store::etcd::TlsFiles::default(), nowhere)
        .context("--store")?;
    Ok(Some(StoreAddress {
        address: address.clone(),
        ca: file("--etcd-cafile", &arguments.etcd_cafile)?,
        cert: file("--etcd-certfile", &arguments.etcd_certfile)?,
        key: file("--etcd-keyfile", &arguments.etcd_keyfile)?,
    }))
}

fn default_registries() -> Option<PathBuf> {
    let folder = match std::env::var_os("XDG_CONFIG_HOME").filter(|v| !v.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => home().ok()?.join(".config"),
    };
    let file = folder.join("rootlet/registries.yaml");
    std::path::absolute(file).ok().filter(|file| file.exists())
}

/// Starts a cluster's daemon again, unless somebody else has.
pub fn start_again(paths: &Paths) -> anyhow::Result<()> {
    let _held = hold(paths)?;
    if lock::holder(&paths.lock("daemon")).is_none() { start(paths) } else { Ok(()) }
}

/// Starts what does not run of the two processes.
fn start(paths: &Paths) -> anyhow::Result<()> {
    let own_runtime = Settings::read(&paths.settings())?.is_none_or(|known| known.own_runtime());
    if let Some(pid) = control::runtime_alone(paths).filter(|_| own_runtime) {
        bail!(
            "`rootlet cri --name {0}` runs (process {pid}) and has the pods of this name; use another \
             --name, end it (rootlet down --name {0}), or run pods through it: \
             --container-runtime-endpoint unix://{1}",
            paths.name,
            paths.cri_socket().display()
        );
    }
    let wait = output::Wait::new("starting the node's network");
    let _ = std::fs::remove_file(paths.stopped());
    let node = start_node(paths)?;
    wait.say("starting Kubernetes");
    spawn(paths, "daemon", &paths.settings(), &[&node.to_string()])
}

/// Starts the node process unless it runs, in the scope of its name, and moves this process there; returns its id.
pub fn start_node(paths: &Paths) -> anyhow::Result<u32> {
    // The node process makes its cgroup namespace where it starts: at the top of the scope.
    let scope = scope::enter(&paths.name, lock::holder(&paths.lock("node")));
    if lock::holder(&paths.lock("node")).is_none() {
        spawn(paths, "node", &paths.settings(), &[])?;
    }
    // Without one pods run without limits, which the node's conditions and `doctor` tell.
    if let Ok(scope) = scope {
        scope.settle().context("cannot make a cgroup below the own scope")?;
    }
    let node = lock::holder(&paths.lock("node")).context("the node process ended at once")?;
    if userns::ids(node)? == 1 {
        eprintln!(
            "warning: only one user id is mapped: containers run as root alone, and what an image gives to other \
             users becomes root's; `rootlet doctor` tells the remedy"
        );
    }
    Ok(node)
}

/// The log of `role`, to write to.
pub fn open_log(paths: &Paths, role: &str) -> anyhow::Result<File> {
    let log = paths.log(role);
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
    opened.with_context(|| format!("cannot write {}", log.display()))
}

/// Starts the process of `role` and waits until it says that it is ready.
pub fn spawn(paths: &Paths, role: &str, settings: &Path, rest: &[&str]) -> anyhow::Result<()> {
    let (log, output) = (paths.log(role), open_log(paths, role)?);
    let mut child = Command::new("/proc/self/exe")
        .arg(role)
        .arg(settings)
        .args(rest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot start the {role} process"))?;
    ready(&mut child)
        .with_context(|| format!("the {role} process did not start (log: {})", log.display()))
}

fn ready(child: &mut Child) -> anyhow::Result<()> {
    let answer = userns::supervise(child);
    if answer.is_err() {
        // It may still be there when it was us who could not go on.
        let _ = child.kill();
        let _ = child.wait();
    }
    answer.map(|_| ())
}

/// Writes the kubeconfigs and says what to do next.
fn announce(arguments: &cli::args::Up, mut settings: Settings) -> anyhow::Result<()> {
    let paths = settings.paths.clone();
    let context = paths.context();
    let access = control::access(&paths)?;
    if let Some(file) = &arguments.kubeconfig {
        let text = cli::kubeconfig::standalone(&context, &access);
        cli::kubeconfig::write(file, &text)?;
        say!("Cluster {:?} is ready: {}", paths.name, access.server);
        say!("Kubeconfig: {}", file.display());
        say!("Next: kubectl --kubeconfig {} get nodes", file.display());
        return Ok(());
    }
    let file = cli::kubeconfig::user_path(std::env::var("KUBECONFIG").ok().as_deref(), &home()?);
    let file = std::path::absolute(file)?;
    let missing = file.ancestors().take_while(|place| !place.exists()).last().map(Path::to_owned);
    let current = cli::kubeconfig::merge(&file, &context, &access)?;
    if settings.merged_into.as_ref() != Some(&file) || missing.is_some() {
        settings.created = missing;
    }
    settings.merged_into = Some(file.clone());
    settings.write()?;
    say!("Cluster {:?} is ready: {}", paths.name, access.server);
    say!("Kubeconfig: {} (context {context})", file.display());
    let flag = if current { String::new() } else { format!("--context {context} ") };
    say!("Next: kubectl {flag}get nodes");
    Ok(())
}

/// Stops the cluster: pods first, then the daemon, then the node process and with it every mount and
/// namespace.
pub fn down(paths: &Paths) -> anyhow::Result<()> {
    let agent = lock::holder(&paths.lock("agent"));
    if agent.is_some() && agent != lock::holder(&paths.lock("runtime")) {
        // It would start again what the runtime stops.
        lock::end_holder(&paths.lock("agent"), Duration::from_mins(1))
            .context("the agent cannot be stopped")?;
    }
    let ending = ["daemon", "runtime"].map(|role| lock::process(&paths.lock(role)));
    let pods = stop_pods(paths);
    // Whatever came of that, the processes end: with them go every mount and namespace.
    let daemon = lock::end_holder(&paths.lock("daemon"), Duration::from_mins(1));
    let agent = lock::end_holder(&paths.lock("agent"), Duration::from_mins(1));
    let runtime = lock::end_holder(&paths.lock("runtime"), Duration::from_mins(1));
    for process in ending.iter().flatten() {
        let _ = lock::wait_exit(process, Duration::from_secs(10));
    }
    let node = lock::end_holder(&paths.lock("node"), Duration::from_secs(10));
    let sockets = [
        paths.daemon_socket(),
        paths.runtime_socket(),
        paths.cri_socket(),
        paths.node_socket(),
        paths.dns_socket(),
    ];
    for socket in sockets {
        // It is of no use without its process; the next start would replace it anyway.
        let _ = std::fs::remove_file(socket);
    }
    scope::remove(&paths.name);
    pods?;
    daemon.context("the daemon cannot be stopped")?;
    agent.context("the agent cannot be stopped")?;
    runtime.context("the container runtime cannot be stopped")?;
    node.context("the node process cannot be stopped")
}

fn stop_pods(paths: &Paths) -> anyhow::Result<()> {
    if lock::holder(&paths.lock("daemon")).is_some() {
        Client::new(paths).down()?;
        let settings = Settings::read(&paths.settings()).ok().flatten();
        if settings.is_none_or(|settings| settings.own_runtime()) {
            return Ok(());
        }
        // The pods are not its own: they are stopped when it is gone.
        lock::end_holder(&paths.lock("daemon"), Duration::from_mins(1))
            .context("the daemon cannot be stopped")?;
    }
    if control::runtime_alone(paths).is_some() {
        return Client::of_images(paths).down();
    }
    // Somebody has to stop the pods that a daemon, an agent or a runtime left behind.
    match lock::holder(&paths.lock("node")) {
        Some(pid) => spawn(paths, "daemon", &paths.settings(), &[&pid.to_string(), "sweep"]),
        None => Ok(()),
    }
}

/// Stops the cluster and removes everything of it.
pub fn delete(paths: &Paths) -> anyhow::Result<()> {
    if let Err(error) = service::remove(&paths.name) {
        // Without its unit the rest can be removed all the same.
        eprintln!("warning: {error:#}");
    }
    down(paths)?;
    let settings = Settings::read(&paths.settings()).ok().flatten();
    if let Some(Settings { merged_into: Some(file), created, .. }) = settings {
        let empty = cli::kubeconfig::remove(&file, &paths.context())?;
        if let Some(created) = created.filter(|_| empty) {
            // It was made for this cluster, and so were its folders.
            std::fs::remove_file(&file)
                .with_context(|| format!("cannot remove {}", file.display()))?;
            remove_empty(file.parent(), &created);
        }
    }
    if paths.data.exists() {
        // Files of containers belong to subordinate ids: only root of the namespace may remove them.
        let folder = paths.data.clone();
        let mut child = Command::new("/proc/self/exe")
            .arg("remove")
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process to remove the data")?;
        ready(&mut child).with_context(|| format!("cannot remove {}", folder.display()))?;
        child.wait()?;
        crate::paths::remove_tree(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    crate::paths::remove_tree(&paths.run)
        .with_context(|| format!("cannot remove {}", paths.run.display()))?;
    for folder in [&paths.data, &paths.run] {
        // Other clusters' folders may be beside it.
        let _ = folder.parent().map(std::fs::remove_dir);
    }
    Ok(())
}

/// Removes `folder` and those above it up to `top`, as long as nothing else is in them.
fn remove_empty(folder: Option<&Path>, top: &Path) {
    for folder in folder.into_iter().flat_map(Path::ancestors) {
        if !folder.starts_with(top) || std::fs::remove_dir(folder).is_err() {
            return;
        }
    }
}
