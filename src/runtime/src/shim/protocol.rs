//! What daemon and shim say to each other, and shim and container process.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The first message to a new shim, on its standard input. With `node_network` a descriptor of
/// the network namespace to join comes along.
#[derive(Debug, Serialize, Deserialize)]
pub struct Boot {
    /// Sandbox id.
    pub id: String,
    /// The pod's directory for its socket and mounts.
    pub dir: PathBuf,
    /// Host name for the new uts namespace; `None` keeps the node's namespace.
    pub hostname: Option<String>,
    /// Whether to join the network namespace that comes along instead of making one.
    pub node_network: bool,
    /// Whether to keep the node's ipc namespace.
    pub node_ipc: bool,
    /// Whether the pod has one pid namespace for all of its containers.
    pub pod_pid: bool,
    /// Whether the pod has a user namespace of its own, inside that of the node.
    #[serde(default)]
    pub own_users: bool,
    /// Size of the pod's /dev/shm; `None` mounts none.
    pub shm_bytes: Option<u64>,
    /// Sysctls of the net, ipc and uts namespaces.
    pub sysctls: BTreeMap<String, String>,
}

/// The answer to [`Reply::Unshared`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Mapped;

/// Requests to a shim. Each comes on a connection of its own, unless said otherwise.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Asks for an [`Event`] for every container there is, then for each later change.
    Watch,
    /// Creates and starts a container. Answered by `Started` or `Failed`.
    Start(Start),
    /// Runs one more process in a container. Descriptors: stdin, stdout, stderr; none with `tty`.
    /// Answered by `Started` (with the terminal's master when `tty`) or `Failed`, later by
    /// `Exited`. The process is killed when the connection closes.
    Exec(Exec),
    /// Sends a signal to the process started by the `Exec` of this connection.
    SignalExec { signal: i32 },
    /// Sends a signal to a container's first process. Answered by `Done` or `Failed`.
    Signal { id: String, signal: i32 },
    /// Attaches to a container. Descriptors: write ends for stdout and stderr. Answered by
    /// `Attached` with the container's terminal when it has one, or else with its stdin when that is
    /// wanted. Lasts until the connection closes, or the container exits, which is told by `Exited`.
    Attach {
        /// Container id.
        id: String,
        /// Whether there will be input.
        #[serde(default)]
        stdin: bool,
    },
    /// Opens the container's log again, after its rotation.
    ReopenLog { id: String },
    /// Asks for a TCP socket of the pod's network namespace whose connection to this port of
    /// localhost is under way. Answered by `Done` with the descriptor.
    Dial { port: u16, v6: bool },
    /// Forgets a container that has exited.
    Forget { id: String },
    /// Kills what is left and ends the shim. Answered by `Done`.
    Stop,
}

/// See [`Request::Start`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// Container id.
    pub id: String,
    /// Directory with `launch.json`.
    pub bundle: PathBuf,
    /// Log file in CRI format; `None` discards the output.
    pub log: Option<PathBuf>,
    /// Where the exit is recorded, so that it outlives the shim.
    pub exit_file: PathBuf,
    /// Keep stdin open for attachments.
    pub stdin: bool,
    /// The first attachment with input gets the only writing end of stdin, and closes it.
    pub stdin_once: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// The container's cgroup directory where there is one.
    pub cgroup: Option<PathBuf>,
}

/// See [`Request::Exec`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exec {
    /// Container id.
    pub id: String,
    /// Command and arguments.
    pub args: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
}

/// Who a container's first process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// All groups, the first one included.
    pub groups: Vec<u32>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// When, in nanoseconds since the epoch.
    pub at_ns: i64,
    /// Whether the kernel killed for lack of memory in its cgroup.
    pub oom: bool,
}

/// Answers of a shim, and of a container process to its shim.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The shim serves; `pod_pid` is the pod's init where there is one.
    Ready { pid: i32, pod_pid: Option<i32> },
    /// The shim is in its pod's user namespace, and waits for its ids to be mapped.
    Unshared { pid: i32 },
    /// Done.
    Done,
    /// A process runs.
    Started { pid: i32, at_ns: i64, identity: Identity },
    /// Attached.
    Attached,
    /// The process of this connection has ended.
    Exited { code: i32 },
    /// It did not work.
    Failed { message: String },
    /// To watchers: the state of a container.
    Container { id: String, pid: i32, started_at_ns: i64, exit: Option<Exit> },
}

/// What a shim asks of a `container` process, on its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// Create and start the container in `bundle`. Descriptors: its stdio, none with a terminal.
    Create { bundle: PathBuf, tty: bool },
    /// Run one more process in it.
    Exec { bundle: PathBuf, args: Vec<String>, tty: bool },
    /// Become the first process of a new pid namespace.
    Init,
}
