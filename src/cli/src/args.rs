//! Commands and flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::suggest;

/// A whole Kubernetes in one file, run by an ordinary user.
#[derive(Debug, Parser)]
#[command(
    name = "rootlet",
    version,
    about,
    disable_help_subcommand = true,
    after_help = "Examples:
  rootlet up                        start a cluster; kubectl then uses the context `rootlet`
  kubectl run hello --image busybox --restart Never -- echo hello
  rootlet trace pod/hello           what each step of that pod's start took
  rootlet down                      stop everything, keep the data
  rootlet doctor                    what this machine lacks, and how to mend it

Exit codes: 0 done, 1 failed, 2 wrong use; `rootlet ci` returns its command's, or 125 when there was no cluster.
Output has no colour where NO_COLOR is set, and no progress bars where it is not a terminal."
)]
pub struct Cli {
    /// Say nothing but errors and what was asked for.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The command line's definition. Commands on objects take their switches as kubectl does, `--all` and
/// `--all=true` alike.
pub fn definition() -> clap::Command {
    const OBJECTS: [&str; 11] = [
        "get",
        "apply",
        "delete",
        "describe",
        "logs",
        "exec",
        "wait",
        "run",
        "cp",
        "port-forward",
        "top",
    ];
    Cli::command().mut_subcommands(|command| {
        if OBJECTS.contains(&command.get_name()) { switches(command) } else { command }
    })
}

fn switches(command: clap::Command) -> clap::Command {
    let command = command.mut_subcommands(switches);
    command.mut_args(|arg| match arg.get_action() {
        clap::ArgAction::SetTrue => arg
            .action(clap::ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .hide_default_value(true)
            .hide_possible_values(true),
        _ => arg,
    })
}

/// Puts flags that say which cluster and namespace behind the command that they precede, as in
/// `rootlet -n shop get pods`: kubectl takes them there, too.
fn behind_command(definition: &clap::Command, words: Vec<OsString>) -> Vec<OsString> {
    let known = crate::objects::Connection::augment_args(clap::Command::new(""));
    let mut at = 1;
    while let Some(word) = words.get(at).and_then(|word| word.to_str()) {
        if !word.starts_with('-') {
            break;
        }
        let Some(taken) = taken(&known, word) else { return words };
        at += taken;
    }
    let (mut command, mut end) = (definition, at);
    while let Some(next) = words.get(end).and_then(|word| command.find_subcommand(word)) {
        (command, end) = (next, end + 1);
    }
    if at == 1 || end == at {
        return words;
    }
    let (program, rest) = words.split_at(1);
    let (flags, rest) = rest.split_at(at - 1);
    let (commands, rest) = rest.split_at(end - at);
    [program, commands, flags, rest].concat()
}

/// How many words a flag is that begins with `word`; `None` where there is no such flag.
fn taken(known: &clap::Command, word: &str) -> Option<usize> {
    let (name, attached) = match word.strip_prefix("--") {
        Some(long) => long.split_once('=').map_or((long, false), |(long, _)| (long, true)),
        None => (word.get(1..2)?, word.len() > 2),
    };
    let is = |arg: &&clap::Arg| match name.chars().next() {
        Some(short) if !word.starts_with("--") => arg.get_short() == Some(short),
        _ => arg.get_long() == Some(name),
    };
    let arg = known.get_arguments().find(is)?;
    Some(if attached || !arg.get_action().takes_values() { 1 } else { 2 })
}

/// Reads the command line of this process.
pub fn read() -> Result<Cli, clap::Error> {
    let definition = definition();
    let names: Vec<String> =
        definition.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let words = behind_command(&definition, std::env::args_os().collect());
    let matches =
        definition.try_get_matches_from(words).map_err(|error| suggest::command(error, &names))?;
    Cli::from_arg_matches(&matches)
}

/// Which cluster a command is about.
#[derive(Args, Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Cluster {
    /// Name of the cluster; several run side by side.
    #[arg(long, value_name = "N", default_value = "default", env = "ROOTLET_NAME", value_parser = cluster_name)]
    pub name: String,
}

/// A part of a cluster that another program can take over.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// Places pods on nodes.
    Scheduler,
    /// Everything that kube-controller-manager does; `--controllers` chooses among them.
    ControllerManager,
    /// Runs the pods; without it the cluster has no node of its own.
    Kubelet,
    /// Leads services' addresses to pods.
    Proxy,
    /// Answers names of services and pods.
    Dns,
}

/// Flags of a kubelet, of a cluster's own node or of one that joins another.
#[derive(Args, Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Kubelet {
    /// Upstream's file for kubelets, a KubeletConfiguration of version v1beta1; flags have the last word.
    #[arg(long, value_name = "FILE")]
    pub kubelet_config: Option<PathBuf>,
    /// Folder of further such files, `*.conf`: they are merged into the first in the order of their names.
    #[arg(long, value_name = "DIR")]
    pub kubelet_config_dir: Option<PathBuf>,
    /// What these files say together, for the process that runs the kubelet.
    #[arg(skip)]
    #[serde(default)]
    pub configuration: serde_json::Value,
    /// Pods the node takes [default: 110].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_pods: Option<u32>,
    /// Processes a pod may have [default: as many as the machine].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub pod_max_pids: Option<u32>,
    /// What of this machine is kept from pods, as `cpu=500m,memory=1Gi`.
    #[arg(long, value_name = "LIST")]
    pub system_reserved: Option<String>,
    /// Folder of static pods' manifests: the node runs them without anybody's asking.
    #[arg(long, value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Sysctls that pods may set beside the safe ones; `*` at the end of one stands for anything.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Below what the node is under pressure, as `memory.available<100Mi,nodefs.available<10%`
    /// [default: upstream's; of a large disk half a gigabyte].
    #[arg(long, value_name = "LIST")]
    pub eviction_hard: Option<String>,
    /// Plugins that know registry credentials, as upstream's kubelets have them: a CredentialProviderConfig, or a folder
    /// of such.
    #[arg(long, value_name = "FILE", requires = "image_credential_provider_bin_dir")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Folder of these plugins' programs.
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// Images pulled at the same time, 1 for one after the other [default: all that are wanted].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_parallel_image_pulls: Option<u32>,
    /// How long pods have to end when the cluster is stopped, those of higher priority after the others [default: 5s,
    /// all at once, and what they were goes on with the next start].
    #[arg(long, value_name = "DURATION")]
    pub shutdown_grace_period: Option<String>,
    /// What of that is for pods critical to the system.
    #[arg(long, value_name = "DURATION")]
    pub shutdown_grace_period_critical_pods: Option<String>,
    /// The same for each priority, as `0=20,1000=10`: pods of this priority and more have so many seconds.
    #[arg(long, value_name = "LIST")]
    pub shutdown_grace_period_by_pod_priority: Option<String>,
}

/// What `up --upgrade` replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Upgrade {
    /// The daemon, then the node process: connections to the outside break once.
    All,
    /// The daemon alone: no connection breaks.
    Daemon,
}

/// Flags of `up`.
#[derive(Args, Clone, Debug, Default)]
pub struct Up {
    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Keep the cluster's state in memory: faster, and gone with `down`.
    #[arg(long)]
    pub ephemeral: bool,
    /// Keep the cluster's state in an etcd that already runs: `etcd://HOST:PORT`, several members separated
    /// by commas, and after a slash what its keys begin with [default: a file of the cluster's own].
    #[arg(long, value_name = "ADDRESS", conflicts_with = "ephemeral")]
    pub store: Option<String>,
    /// Authorities that may vouch for etcd; with it the connection is encrypted.
    #[arg(long, value_name = "FILE", requires = "store")]
    pub etcd_cafile: Option<PathBuf>,
    /// The certificate to show to etcd.
    #[arg(long, value_name = "FILE", requires_all = ["etcd_cafile", "etcd_keyfile"])]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// Port of the API server on 127.0.0.1 [default: the last one used, or 6443, or a free one].
    #[arg(long, value_name = "P")]
    pub api_port: Option<u16>,
    /// Addresses of pods and services: `ipv4`, `ipv6`, or `dual` for both [default: as the last time, or
    /// dual].
    #[arg(long, value_name = "FAMILY", value_parser = ["ipv4", "ipv6", "dual"])]
    pub ip_family: Option<String>,
    /// Address of this machine on which node ports and host ports are offered, besides or instead of
    /// loopback; may be repeated [default: those of the last time, or 127.0.0.1].
    #[arg(long, value_name = "ADDRESS")]
    pub publish: Vec<std::net::IpAddr>,
    /// Give pods their network by CNI plugins, by the first configuration in this folder.
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Where CNI plugins are; may be repeated [default: /opt/cni/bin, /usr/lib/cni].
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Vec<PathBuf>,
    /// Serve Ingresses, at ports 80 and 443 of the published addresses or, where those cannot be had,
    /// at 8080 and 8443 or free ones.
    #[arg(long)]
    pub ingress: bool,
    /// Registry mirrors, credentials and CAs, in the format of k3s' registries.yaml.
    #[arg(long, value_name = "FILE")]
    pub registries: Option<PathBuf>,
    /// Profiles, plugins and extenders of the scheduler: a KubeSchedulerConfiguration, version v1.
    #[arg(long, value_name = "FILE")]
    pub scheduler_config: Option<PathBuf>,
    /// Let the scheduler and the controllers work only while they hold their Leases in kube-system, so that
    /// others can stand in for them.
    #[arg(long)]
    pub leader_elect: bool,
    /// Run pods through another container runtime, by its CRI socket [default: the built-in one].
    #[arg(long, value_name = "unix:///PATH", value_parser = unix_socket)]
    pub container_runtime_endpoint: Option<PathBuf>,
    /// Controllers to run: `foo` names one, `-foo` leaves it out, `*` stands for all others.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "*",
        allow_hyphen_values = true
    )]
    pub controllers: Vec<String>,
    /// Leave a component out, to run another in its place; several are separated by commas.
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    pub disable: Vec<Component>,
    /// Of its kubelet.
    #[command(flatten)]
    pub kubelet: Kubelet,
    /// Apply the manifests in this folder, and keep them applied: files that change or come are applied, what
    /// leaves the folder is removed.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Write the kubeconfig of this cluster alone to FILE, instead of adding a context to your own.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Put this build of rootlet in the place of the one that runs, with its settings; pods go on running.
    /// `daemon` leaves the process that carries their connections to the outside.
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "all", conflicts_with = "ephemeral")]
    pub upgrade: Option<Upgrade>,
    /// Stay in the foreground until SIGTERM or SIGINT, then stop the cluster.
    #[arg(long)]
    pub foreground: bool,
    /// Who may do what.
    #[command(flatten)]
    pub access: crate::access::Access,
}

/// Flags of `ci`.
#[derive(Args, Clone, Debug)]
pub struct Ci {
    /// Name of the cluster [default: `ci-` and the process id, so that several run at once].
    #[arg(long, value_name = "N", value_parser = cluster_name)]
    pub name: Option<String>,
    /// Registry mirrors, credentials and CAs, in the format of k3s' registries.yaml.
    #[arg(long, value_name = "FILE")]
    pub registries: Option<PathBuf>,
    /// An archive to load, or an image: of Docker or Podman where one has it, else of its registry.
    #[arg(long, value_name = "IMAGE")]
    pub load: Vec<String>,
    /// A manifest, or a folder of them, to apply before COMMAND starts.
    #[arg(long, value_name = "FILE")]
    pub apply: Vec<PathBuf>,
    /// What to run, with KUBECONFIG set.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// Flags of `ui`.
#[derive(Args, Clone, Debug)]
pub struct Ui {
    /// Port on 127.0.0.1 [default: a free one].
    #[arg(long, value_name = "P")]
    pub port: Option<u16>,
    /// Only print the address.
    #[arg(long)]
    pub no_browser: bool,
    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// Flags of a container runtime without a cluster.
#[derive(Args, Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Runtime {
    /// Address of this machine on which host ports are offered; may be repeated [default: 127.0.0.1].
    #[arg(long, value_name = "ADDRESS")]
    pub publish: Vec<std::net::IpAddr>,
    /// Registry mirrors, credentials and CAs, in the format of k3s' registries.yaml.
    #[arg(long, value_name = "FILE")]
    pub registries: Option<PathBuf>,
    /// Stop the pods as well when asked to end; otherwise they go on running, for the next start.
    #[arg(long)]
    pub stop_pods: bool,
}

/// Flags of `agent`.
#[derive(Args, Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Agent {
    /// Its name: images and pods are kept under it, as those of a cluster.
    #[command(flatten)]
    pub cluster: Cluster,
    /// The cluster to join, and who this node is there.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Name of the node [default: the host's name].
    #[arg(long, value_name = "NODE", value_parser = node_name)]
    pub node_name: Option<String>,
    /// Address at which the API server reaches this node; the kubelet listens there
    /// [default: the one from which this machine reaches the API server].
    #[arg(long, value_name = "ADDRESS")]
    pub node_ip: Option<std::net::IpAddr>,
    /// Port of the kubelet [default: 10250, or a free one].
    #[arg(long, value_name = "P")]
    pub port: Option<u16>,
    /// Addresses of the cluster's DNS [default: those of the Service kube-system/kube-dns].
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub cluster_dns: Vec<std::net::IpAddr>,
    /// Domain of the cluster's names [default: cluster.local].
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Authority of those who may call the kubelet [default: the kubeconfig's].
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Labels of the node.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    pub node_labels: Vec<(String, String)>,
    /// Lead services' addresses to pods and keep network policies as well, as who this file says
    /// [default: leave that to the cluster of this name].
    #[arg(long, value_name = "FILE", conflicts_with = "container_runtime_endpoint")]
    pub proxy_kubeconfig: Option<PathBuf>,
    /// Of its kubelet.
    #[command(flatten)]
    pub kubelet: Kubelet,
    /// Run pods through another container runtime, by its CRI socket [default: the built-in one].
    #[arg(long, value_name = "unix:///PATH", value_parser = unix_socket)]
    pub container_runtime_endpoint: Option<PathBuf>,
    /// Of the runtime.
    #[command(flatten)]
    pub runtime: Runtime,
}

/// Flags of `cri`.
#[derive(Args, Clone, Debug)]
pub struct Cri {
    /// Its name: images and pods are kept under it, as those of a cluster.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Where to serve CRI [default: cri.sock in the runtime folder of the name].
    #[arg(long, value_name = "unix:///PATH", value_parser = unix_socket)]
    pub listen: Option<PathBuf>,
    /// What the host's network is for pods that ask for it: this machine's, or the one that pods are reached from and
    /// `rootlet enter` shows.
    #[arg(long, value_name = "NETWORK", value_enum, default_value = "machine")]
    pub host_network: HostNetwork,
    /// Of the runtime.
    #[command(flatten)]
    pub runtime: Runtime,
}

/// The network of pods in the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum HostNetwork {
    /// The machine's own.
    Machine,
    /// The node's.
    Node,
}

/// Flags of `status`.
#[derive(Args, Clone, Debug)]
pub struct Status {
    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
    /// `text` or `json`.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    pub output: String,
}

/// Flags of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// Mend what an ordinary user can: remains of clusters that are gone, files that others can read, a service
    /// that would not start at boot. What needs root is told as commands.
    #[arg(long)]
    pub fix: bool,
    /// `text` or `json`.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    pub output: String,
}

/// What is asked of the log of a cluster's own process.
#[derive(Clone, Debug)]
pub struct Logs {
    /// The cluster.
    pub cluster: Cluster,
    /// Go on printing what is written, until the process ends.
    pub follow: bool,
    /// Only the last N lines.
    pub tail: Option<usize>,
    /// Whose: `daemon` or `node`.
    pub process: String,
}

/// `rootlet …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a cluster; return when its API answers and its node is Ready.
    #[command(after_help = "Examples:
  rootlet up
  rootlet up --name ci --ephemeral --kubeconfig ./kubeconfig
  rootlet up --registries ./registries.yaml
  rootlet up --container-runtime-endpoint unix://$XDG_RUNTIME_DIR/rootlet/default/cri.sock
  rootlet up --disable scheduler          then start one of your own with `rootlet kubeconfig`")]
    Up(Box<Up>),
    /// Tell whether the cluster runs, where its API is, what is published, and what is not well.
    #[command(after_help = "It returns 1 when the cluster does not run.
Example:
  rootlet status -o json | jq -r .server")]
    Status(Status),
    /// Stop the cluster and its pods; its data stays.
    Down(Cluster),
    /// Commands on the cluster's objects.
    #[command(flatten)]
    Objects(crate::objects::Objects),
    /// Run kubectl, from PATH, with the cluster's kubeconfig.
    #[command(
        disable_help_flag = true,
        after_help = "Examples:
  rootlet kubectl explain pod.spec
  rootlet kubectl --name test get pods        --name comes first, and is rootlet's"
    )]
    Kubectl {
        /// kubectl's own words and flags.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WORDS")]
        words: Vec<std::ffi::OsString>,
    },
    /// Print what a kustomization makes, as `apply -k` would apply it.
    #[command(after_help = "Example:
  rootlet kustomize deploy/overlays/test")]
    Kustomize {
        /// A folder with a kustomization.
        #[arg(value_name = "DIR", default_value = ".")]
        folder: String,
    },
    /// Print the cluster's kubeconfig.
    #[command(after_help = "Example:
  rootlet kubeconfig > ~/rootlet.yaml && kubectl --kubeconfig ~/rootlet.yaml get nodes")]
    Kubeconfig(Cluster),
    /// Check this machine: what works, what is limited, and the exact remedy.
    #[command(after_help = "It returns 1 when rootlet cannot start on this machine.")]
    Doctor(Doctor),
    /// Have the user's systemd start the cluster.
    #[command(subcommand)]
    Service(Service),
    /// Images of the cluster's node.
    #[command(subcommand)]
    Image(Image),
    /// Save the cluster's objects into a file, or put them back, while the cluster runs.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Print the timed steps of a pod's life.
    #[command(after_help = "Examples:
  rootlet trace pod/hello
  rootlet trace pod/web-0 -n shop -o json
  rootlet trace pod/hello --output html > hello.html")]
    Trace(Trace),
    /// Show the cluster in a browser, with your own rights: a page at an address of this machine alone.
    #[command(after_help = "Examples:
  rootlet ui
  rootlet ui --port 8001 --no-browser

It stays in the foreground until SIGTERM or SIGINT. The address that it prints has a secret: who has it may
do what you may.")]
    Ui(Ui),
    /// Tell what holds a pod, and the remedy.
    #[command(after_help = "Examples:
  rootlet why pod/hello
  rootlet why pod/web-0 -n shop -o json
  rootlet why deployment/web            also why it has no pods at all
  rootlet why service/web               what keeps it from its pods")]
    Why(Box<Why>),
    /// Run a command, or a shell, in the node's namespaces, where pods and services have their addresses.
    #[command(after_help = "Examples:
  rootlet enter -- curl http://10.42.0.7:8080
  rootlet enter -- ss -tlnp
  rootlet enter

The command is root among the pods, and the calling user everywhere else.")]
    Enter(Enter),
    /// Run a command with a cluster of its own; return its exit status.
    #[command(after_help = "Examples:
  rootlet ci -- make integration-test
  rootlet ci --load app.tar --apply deploy/ -- ./wait-and-test.sh

When the command fails, what is wrong in the cluster is printed before it goes.")]
    Ci(Ci),
    /// Run the kubelet alone, as a node of any cluster.
    #[command(after_help = "Examples:
  rootlet agent --kubeconfig ./node.kubeconfig
  rootlet agent --kubeconfig ~/.kube/config --node-name laptop --node-ip 192.0.2.7
  rootlet up --disable kubelet --kubeconfig ./kc && rootlet agent --kubeconfig ./kc
  rootlet cri & rootlet agent --kubeconfig ./kc \\
    --container-runtime-endpoint unix://$XDG_RUNTIME_DIR/rootlet/default/cri.sock

It stays in the foreground until SIGTERM or SIGINT. Pods outlive it, and the next start finds them;
`rootlet down` stops them. Services need a proxy: with the --name of a cluster on this machine, that
cluster's serves this node as well.")]
    Agent(Box<Agent>),
    /// Run the container runtime alone and serve CRI, for crictl or for a kubelet of yours.
    #[command(after_help = "Examples:
  rootlet cri &
  export CONTAINER_RUNTIME_ENDPOINT=unix://$XDG_RUNTIME_DIR/rootlet/default/cri.sock
  crictl info
  crictl pull busybox && crictl images
  crictl run container.json pod.json && crictl ps
  rootlet cri --name test --listen unix:///tmp/test.sock --stop-pods

It stays in the foreground until SIGTERM or SIGINT. Pods outlive it, and the next start finds them;
`rootlet down` stops them. A cluster serves the same at the same place: crictl works with `rootlet up`, too.
`rootlet image load` brings images in without a registry.")]
    Cri(Cri),
    /// Act as a CNI plugin: give another runtime's container an interface in the pods' network.
    #[command(
        after_help = "CNI calls a plugin by the name of a file, so make a script of that name:
  printf '#!/bin/sh\\nexec rootlet cni\\n' > ~/cni/bin/rootlet && chmod +x ~/cni/bin/rootlet
and name it in the network's configuration:
  {\"cniVersion\": \"1.1.0\", \"name\": \"pods\", \"type\": \"rootlet\", \"cluster\": \"default\"}"
    )]
    Cni,
    /// Measure the scheduler and the controllers, with nodes that only pretend to run pods.
    #[command(
        subcommand,
        after_help = "Examples:
  rootlet bench nodes --count 200
  rootlet bench loops --nodes 5000 --pods 10000"
    )]
    Bench(Bench),
    /// Print the version.
    Version {
        /// `text` or `json`.
        #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
        output: String,
    },
    /// Write the manual pages into a folder.
    #[command(after_help = "Example:
  rootlet man ~/.local/share/man/man1 && man rootlet-up")]
    Man {
        /// The folder; made if it is not there.
        #[arg(value_name = "DIR", required_unless_present = "markdown")]
        folder: Option<PathBuf>,
        /// Print the reference of docs/ instead.
        #[arg(long, hide = true, conflicts_with = "folder")]
        markdown: bool,
    },
    /// Print what may follow the words of an unfinished command line; for the scripts of `completions`.
    #[command(hide = true)]
    Candidates {
        /// The words before the one that is being written, without the program's name.
        #[arg(last = true, allow_hyphen_values = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Print a shell completion script.
    #[command(after_help = "Example:
  rootlet completions bash > ~/.local/share/bash-completion/completions/rootlet")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// The cluster that is measured.
#[derive(Args, Clone, Debug)]
pub struct BenchTarget {
    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Another cluster, by its kubeconfig.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// `rootlet bench …`
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Register simulated nodes and keep them Ready until interrupted.
    Nodes {
        /// Which cluster.
        #[command(flatten)]
        target: BenchTarget,
        /// How many.
        #[arg(long, value_name = "N", default_value_t = 200)]
        count: usize,
    },
    /// Measure scheduling, a Deployment's growth and rollout, and garbage collection.
    Loops {
        /// Which cluster.
        #[command(flatten)]
        target: BenchTarget,
        /// Simulated nodes.
        #[arg(long, value_name = "N", default_value_t = 200)]
        nodes: usize,
        /// Pods to schedule; 0 leaves this out.
        #[arg(long, value_name = "N", default_value_t = 5000)]
        pods: usize,
        /// The Deployment's size; 0 leaves this out.
        #[arg(long, value_name = "N", default_value_t = 1000)]
        replicas: i32,
        /// Objects to collect; 0 leaves this out.
        #[arg(long, value_name = "N", default_value_t = 10000)]
        dependants: usize,
        /// Seconds for which the Deployment stays before it is rolled over.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        hold: u64,
    },
}

/// `rootlet service …`
#[derive(Debug, Subcommand)]
pub enum Service {
    /// Write a unit for the cluster, enable and start it.
    #[command(after_help = "Examples:
  rootlet service install
  rootlet service install --name dev -- --ingress --publish 192.0.2.7
  loginctl enable-linger          start it at boot rather than at the first login")]
    Install {
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
        /// Do not start it now.
        #[arg(long)]
        no_start: bool,
        /// Flags of `rootlet up`.
        #[arg(last = true, value_name = "FLAGS")]
        flags: Vec<String>,
    },
    /// Stop the cluster, and remove its unit; the data stays.
    Uninstall(Cluster),
    /// Tell how the unit is. It returns 1 when it is not active.
    Status(Status),
}

/// `rootlet image …`
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Load archives (docker save, OCI archive or layout; plain, gzip or zstd), or images of Docker or Podman.
    #[command(after_help = "Examples:
  rootlet image load app.tar
  rootlet image load app:1                   an image that Docker or Podman on this machine has
  ssh builder docker save app:1 | rootlet image load -

Docker and Podman are asked at DOCKER_HOST and CONTAINER_HOST (unix://), in XDG_RUNTIME_DIR and /run;
where Podman serves no socket, the program itself.")]
    Load {
        /// Archives, `-` for standard input, or names of images.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Pull an image from its registry.
    Pull {
        /// Such as `busybox`, `ghcr.io/owner/app:1.2` or `…@sha256:…`.
        #[arg(value_name = "REF")]
        reference: String,
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
    },
    /// List the images.
    Ls {
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
        /// `text` or `json`.
        #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
        output: String,
    },
    /// Keep images when room is made for others: neither `prune` nor a full disk removes them.
    Pin {
        /// Their names or ids.
        #[arg(required = true, value_name = "REF")]
        references: Vec<String>,
        /// They may go again.
        #[arg(long)]
        off: bool,
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Write images into an archive that `docker load` and `image load` take.
    #[command(after_help = "Example:
  rootlet image save app:1 db:2 -o images.tar")]
    Save {
        /// Their names or ids.
        #[arg(required = true, value_name = "REF")]
        references: Vec<String>,
        /// The archive [default: standard output].
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Remove images that no container uses and no tag names.
    Prune {
        /// Those with tags too.
        #[arg(short, long)]
        all: bool,
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Compare every file of every image with the digests it came with.
    Fsck {
        /// Remove what is damaged, to be pulled again.
        #[arg(long)]
        repair: bool,
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Remove an image.
    Rm {
        /// Its name or id.
        #[arg(value_name = "REF")]
        reference: String,
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
    },
}

/// `rootlet enter`
#[derive(Debug, Args)]
pub struct Enter {
    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
    /// The command with its arguments [default: the shell]
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// `rootlet snapshot …`
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Write all objects, events excepted, into FILE; `-` is standard output.
    #[command(after_help = "Example:
  rootlet snapshot save before-upgrade.snapshot")]
    Save {
        /// Where to.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Make the cluster's objects those of FILE; `-` is standard input. Volumes' data stays as it is.
    #[command(after_help = "Example:
  rootlet snapshot restore before-upgrade.snapshot")]
    Restore {
        /// Where from.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The cluster.
        #[command(flatten)]
        cluster: Cluster,
    },
}

/// Flags of `trace`.
#[derive(Args, Clone, Debug)]
pub struct Trace {
    /// The pod, as `pod/NAME`.
    #[arg(value_name = "pod/NAME", value_parser = pod_name)]
    pub pod: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// `text`, `json`, or `html` for a picture.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json", "html"])]
    pub output: String,
    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// Flags of `why`.
#[derive(Args, Clone, Debug)]
pub struct Why {
    /// A pod, as `pod/NAME`, what has pods: `deployment/NAME`, `job/NAME` and so on; `service/NAME`, `pvc/NAME`.
    #[arg(value_name = "pod/NAME", value_parser = held)]
    pub object: (String, String),
    /// `text` or `json`.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    pub output: String,
    /// The cluster, and the namespace.
    #[command(flatten)]
    pub connection: crate::objects::Connection,
}

/// A cluster's name becomes part of file, node and context names, so it is a DNS label.
pub(crate) fn cluster_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > 40 || !text.chars().all(fits) {
        return Err("use 1 to 40 lower-case letters, digits and '-'".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("it may not begin or end with '-'".into());
    }
    Ok(text.to_owned())
}

/// A socket as `unix:///path`, or its path alone.
fn unix_socket(text: &str) -> Result<PathBuf, String> {
    let path = match text.split_once("://") {
        Some(("unix", path)) => path,
        Some((other, _)) => return Err(format!("{other}:// is not served, only unix:///PATH")),
        None => text,
    };
    if path.is_empty() || path.ends_with('/') {
        return Err("name the socket, as in unix:///tmp/cri.sock".into());
    }
    std::path::absolute(path).map_err(|error| error.to_string())
}

/// A node's name is a DNS subdomain.
fn node_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = |part: &str| {
        !part.is_empty() && part.chars().all(fits) && !part.starts_with('-') && !part.ends_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label) {
        return Err("use lower-case letters, digits, '-' and '.', as in node-1.example".into());
    }
    Ok(text.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn pod_name(text: &str) -> Result<String, String> {
    let name = ["pod/", "pods/", "po/"].iter().find_map(|kind| text.strip_prefix(kind));
    match name.unwrap_or(text) {
        "" => Err("name the pod, as in pod/hello".into()),
        name if name.contains('/') => Err("only pods are traced: use pod/NAME".into()),
        name => Ok(name.to_owned()),
    }
}

/// Kind and name of what `why` is asked about.
fn held(text: &str) -> Result<(String, String), String> {
    let (kind, name) = text.split_once('/').unwrap_or(("pod", text));
    if name.is_empty() || name.contains('/') {
        return Err("name the pod, as in pod/hello".into());
    }
    let known = crate::report::kind_of(kind);
    let kind = known.ok_or(
        "use pod, deployment, replicaset, statefulset, daemonset, job, cronjob, service or pvc, as in pod/NAME",
    )?;
    Ok((kind.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn switches_take_a_value_as_kubectls_do() {
        let read = |words: &str| {
            let words = std::iter::once("rootlet").chain(words.split_whitespace());
            let matches = definition().try_get_matches_from(words).map_err(|e| e.to_string())?;
            Cli::from_arg_matches(&matches).map_err(|e| e.to_string())
        };
        let cases = [
            ("get pods -Aw", true, true),
            ("get pods -A=false -w", false, true),
            ("get pods --all-namespaces=true --watch=false", true, false),
            ("get pods", false, false),
        ];
        for (words, all, watch) in cases {
            let Ok(Command::Objects(crate::objects::Objects::Get(get))) =
                read(words).map(|cli| cli.command)
            else {
                panic!("{words}: {:?}", read(words).err());
            };
            assert_eq!((get.scope.all_namespaces, get.watch), (all, watch), "{words}");
        }
        let error = read("get pods --selectro a=b").unwrap_err();
        assert!(error.contains("a similar argument exists: '--selector'"), "{error}");
        assert!(read("delte pod x").unwrap_err().contains("'delete'"));
    }

    #[test]
    fn flags_may_precede_the_command() {
        let cases = [
            ("-n a get pods", "get -n a pods"),
            ("-na --context=b top pods -A", "top pods -na --context=b -A"),
            (
                "--insecure-skip-tls-verify --name c status",
                "status --insecure-skip-tls-verify --name c",
            ),
            ("--namespace a exec p -- -n", "exec --namespace a p -- -n"),
            ("get -n a pods", "get -n a pods"),
            ("-n a nope", "-n a nope"),
            ("--nope get pods", "--nope get pods"),
            ("-n", "-n"),
            ("--help", "--help"),
        ];
        for (words, want) in cases {
            let line = format!("rootlet {words}");
            let moved =
                behind_command(&definition(), line.split(' ').map(OsString::from).collect());
            let moved: Vec<_> = moved[1..].iter().map(|w| w.to_string_lossy()).collect();
            assert_eq!(moved.join(" "), want, "{words}");
        }
    }

    #[test]
    fn names_of_clusters() {
        let cases = [
            ("default", true),
            ("a-1", true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("../x", false),
            ("a.b", false),
        ];
        for (name, good) in cases {
            assert_eq!(cluster_name(name).is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn sockets_are_urls_or_paths() {
        let cases = [
            ("unix:///run/cri.sock", Some("/run/cri.sock")),
            ("/run/cri.sock", Some("/run/cri.sock")),
            ("tcp://127.0.0.1:1", None),
            ("unix:///run/", None),
            ("unix://", None),
        ];
        for (text, want) in cases {
            assert_eq!(unix_socket(text).ok(), want.map(PathBuf::from), "{text:?}");
        }
    }

    #[test]
    fn what_has_pods_is_named_by_its_kind() {
        let cases = [
            ("a", Some(("Pod", "a"))),
            ("po/a", Some(("Pod", "a"))),
            ("deploy/a", Some(("Deployment", "a"))),
            ("svc/a", Some(("Service", "a"))),
            ("pvc/a", Some(("PersistentVolumeClaim", "a"))),
            ("node/a", None),
            ("pod/", None),
        ];
        for (text, want) in cases {
            let want = want.map(|(kind, name)| (kind.to_owned(), name.to_owned()));
            assert_eq!(held(text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn pods_are_named_with_or_without_their_kind() {
        let cases = [
            ("pod/a", Some("a")),
            ("po/a", Some("a")),
            ("a", Some("a")),
            ("svc/a", None),
            ("pod/", None),
        ];
        for (text, want) in cases {
            assert_eq!(pod_name(text).ok().as_deref(), want, "{text:?}");
        }
    }
}
