//! The re-exec role `container`: one short-lived, single-threaded process per container start or
//! exec, the only place where libcontainer runs. (libcontainer clones and then allocates in the
//! child, which is not safe in a threaded process.)

mod executor;
mod init;
pub mod launch;
mod rootfs;
mod stage;
mod trace;
mod user;

pub use init::kill_left as kill_init;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sched::CloneFlags;
use serde_json::Value;

use crate::shim::protocol::{Identity, Reply, Task};
use executor::BpfExecutor;
use launch::{CONFIG, LAUNCH, Launch, PID, ROOTFS, STATE};

/// What kept a container process from starting, in the words a user will read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step}: {source}")]
    Io { step: String, source: io::Error },
    #[error("{0}")]
    User(#[from] user::Error),
    #[error("{0}")]
    Start(String),
}

fn at<T, E: Into<io::Error>>(step: impl Into<String>, result: Result<T, E>) -> Result<T, Error> {
    result.map_err(|source| Error::Io { step: step.into(), source: source.into() })
}

/// The re-exec role `container`: to be called before any thread exists. Its task comes as a
/// message on standard input.
pub fn container_main() -> ExitCode {
    if init::is_init() {
        return init::run();
    }
    let Ok(control) = crate::shim::take_stdin() else { return ExitCode::from(2) };
    let trace = trace::install();
    let Ok(Some((task, stdio))) = control.recv::<Task>() else { return ExitCode::from(2) };
    let result = match task {
        Task::Init => return init::become_init(&control),
        Task::Create { bundle, tty } => create(&bundle, stdio, tty),
        Task::Exec { bundle, args, tty } => exec(&bundle, args, stdio, tty),
    };
    let (reply, master) = match result {
        Ok((pid, identity, master)) => {
            let at_ns = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
            (Reply::Started { pid, at_ns, identity }, master)
        }
        Err(error) => {
            let message = match trace.and_then(|file| trace::last(&file)) {
                Some(cause) if matches!(error, Error::Start(_)) => cause,
                _ => error.to_string(),
            };
            (Reply::Failed { message }, None)
        }
    };
    let descriptors: Vec<_> = master.iter().map(OwnedFd::as_fd).collect();
    if control.send(&reply, &descriptors).is_ok() {
        return ExitCode::SUCCESS;
    }
    if let Reply::Started { pid, .. } = reply {
        // Its shim is gone: nobody would look after it.
        let _ = crate::sys::kill(pid, libc::SIGKILL);
    }
    ExitCode::FAILURE
}

type Started = (i32, Identity, Option<OwnedFd>);

/// Creates and starts the container of a bundle.
fn create(bundle: &Path, stdio: Vec<OwnedFd>, tty: bool) -> Result<Started, Error> {
    let launch: Launch = read_json(&bundle.join(LAUNCH))?;
    // The root file system is mounted in a mount namespace that only this container will have, so
    // the node never sees it, and it goes away with the container.
    at("make a mount namespace", nix::sched::unshare(CloneFlags::CLONE_NEWNS))?;
    let shared = stage::leave_node(&launch.spec)?;
    let root = bundle.join(ROOTFS);
    rootfs::mount(&launch.root, &root, false)?;
    let mut account = user::resolve(&launch.user, &root)?;
    account.fit(&launch.user, &user::Ids::of_this_process())?;
    let mut spec = launch.spec.clone();
    stage::prepare(&launch, &mut spec, bundle, shared)?;
    rootfs::declared(&launch.declared, &mut spec, &root)?;
    rootfs::prepare(&spec, &root)?;
    account.apply(&mut spec);
    for fd in &stdio {
        // A program of this user may open its stdio by name; /dev/null is not ours to change.
        if rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFIFO) {
            let (uid, gid) = (account.identity.uid, account.identity.gid);
            let owner = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(gid));
            at("give the user its stdio", rustix::fs::fchown(fd, Some(owner.0), Some(owner.1)))?;
        }
    }
    at("write config.json", std::fs::write(bundle.join(CONFIG), spec.to_string()))?;
    let state = bundle.join(STATE);
    let _ = std::fs::remove_dir_all(&state);
    at("make the state directory", std::fs::create_dir_all(&state))?;

    let console = if tty { Some(Console::listen(bundle, "console")?) } else { None };
    let builder = builder(&launch, &state, stdio, console.as_ref())?
        .with_pid_file(Some(bundle.join(PID)))
        .map_err(|error| Error::Start(error.to_string()))?;
    let mut container = builder
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| Error::Start(error.to_string()))?;
    let pid = container.pid().ok_or_else(|| Error::Start("no process id".into()))?.as_raw();
    let master = match console {
        Some(console) => Some(console.accept()?),
        None => None,
    };
    container.start().map_err(|error| Error::Start(error.to_string()))?;
    Ok((pid, account.identity, master))
}

/// Runs one more process in the container of a bundle.
fn exec(
    bundle: &Path,
    args: Vec<String>,
    stdio: Vec<OwnedFd>,
    tty: bool,
) -> Result<Started, Error> {
    let launch: Launch = read_json(&bundle.join(LAUNCH))?;
    let spec: Value = read_json(&bundle.join(CONFIG))?;
    let mut process = spec["process"].clone();
    let identity = user::identity_of(&process);
    process["args"] = args.into();
    process["terminal"] = tty.into();
    if tty
        && let Some(env) = process["env"].as_array_mut()
        && !env.iter().any(|entry| entry.as_str().is_some_and(|e| e.starts_with("TERM=")))
    {
        env.push("TERM=xterm".into());
    }
    for fd in &stdio {
        if rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFIFO) {
            let owner = rustix::process::Uid::from_raw(identity.uid);
            let _ = rustix::fs::fchown(
                fd,
                Some(owner),
                Some(rustix::process::Gid::from_raw(identity.gid)),
            );
        }
    }
    // libcontainer leaves sockets behind for each exec, so each gets a state directory to be
    // removed with them.
    let name = format!("exec-{}", std::process::id());
    let state = bundle.join(&name);
    let own = state.join(&launch.id);
    at("make the exec's directory", std::fs::create_dir_all(&own))?;
    let running = bundle.join(STATE).join(&launch.id).join("state.json");
    at("read the container's state", std::fs::copy(running, own.join("state.json")))?;
    let process_file = state.join("process.json");
    at("write process.json", std::fs::write(&process_file, process.to_string()))?;
    let result = (|| {
        let console = if tty { Some(Console::listen(bundle, &name)?) } else { None };
        let pid = builder(&launch, &state, stdio, console.as_ref())?
            .as_tenant()
            .with_process(Some(&process_file))
            .with_detach(true)
            .build()
            .map_err(|error| Error::Start(error.to_string()))?;
        let master = match console {
            Some(console) => Some(console.accept()?),
            None => None,
        };
        Ok((pid.as_raw(), identity, master))
    })();
    let _ = std::fs::remove_dir_all(&state);
    result
}

fn builder(
    launch: &Launch,
    state: &Path,
    stdio: Vec<OwnedFd>,
    console: Option<&Console>,
) -> Result<ContainerBuilder, Error> {
    let executor = at("load seccomp filters", BpfExecutor::new(launch))?;
    let mut builder = ContainerBuilder::new(launch.id.clone(), SyscallType::default())
        .with_executor(executor)
        .with_root_path(state)
        .map_err(|error| Error::Start(error.to_string()))?;
    let mut stdio = stdio.into_iter();
    if let (Some(input), Some(out), Some(err)) = (stdio.next(), stdio.next(), stdio.next()) {
        builder = builder.with_stdin(input).with_stdout(out).with_stderr(err);
    }
    Ok(builder.with_console_socket(console.map(|console| console.path.clone())))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let name = path.display().to_string();
    let bytes = at(format!("read {name}"), std::fs::read(path))?;
    serde_json::from_slice(&bytes)
        .map_err(|source| Error::Io { step: format!("parse {name}"), source: source.into() })
}

/// The socket on which the container hands out the master of its terminal.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn listen(bundle: &Path, name: &str) -> Result<Self, Error> {
        let file = format!("{name}.tty");
        let path = bundle.join(&file);
        let _ = std::fs::remove_file(&path);
        // Bound by its short name, since bundle paths may exceed the length of a socket address.
        at("enter the bundle", std::env::set_current_dir(bundle))?;
        let listener = at("listen for the terminal", UnixListener::bind(&file))?;
        Ok(Self { listener, path })
    }

    fn accept(self) -> Result<OwnedFd, Error> {
        let (stream, _) = at("accept the terminal", self.listener.accept())?;
        let _ = std::fs::remove_file(&self.path);
        let master = at("receive the terminal", receive_descriptor(&stream))?;
        Ok(master)
    }
}

fn receive_descriptor(stream: &impl AsFd) -> io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut bytes = [0u8; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        stream,
        &mut [io::IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(descriptor);
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
