//! The shim's state and its loop.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus};

use super::log::Log;
use super::protocol::{Exec, Exit, Reply, Request, Start, Task};
use super::stdio::{Progress, Stream};
use super::{SHM, SOCKET};
use crate::wire::Socket;

/// One read of container output.
const BUFFER_BYTES: usize = 32 * 1024;

/// Everything the shim knows.
pub struct Pod {
    dir: PathBuf,
    listener: Socket,
    signals: SignalFd,
    pod_pid: Option<i32>,
    containers: Vec<Container>,
    connections: HashMap<u64, Connection>,
    next_connection: u64,
    pending: Vec<Pending>,
    execs: HashMap<i32, u64>,
    /// Exits of children nobody has claimed yet, while a `container` process is at work: its
    /// child may end before we have read its name.
    unclaimed: HashMap<i32, i32>,
    buffer: Vec<u8>,
    stopping: bool,
}

struct Container {
    id: String,
    bundle: PathBuf,
    pid: i32,
    /// Refers to the process even after its number is used again.
    pidfd: Option<OwnedFd>,
    started_at_ns: i64,
    exit: Option<Exit>,
    exit_file: PathBuf,
    cgroup: Option<PathBuf>,
    stdin: Option<OwnedFd>,
    stdin_once: bool,
    /// A copy of the terminal's master to hand out.
    terminal: Option<OwnedFd>,
    output: Vec<Stream>,
    log: Option<Log>,
}

struct Connection {
    socket: Socket,
    watching: bool,
    exec: Option<i32>,
    attached: Option<String>,
}

/// A `container` process at work.
struct Pending {
    control: Socket,
    connection: u64,
    work: Work,
}

enum Work {
    Start {
        request: Box<Start>,
        stdin: Option<OwnedFd>,
        output: Vec<(OwnedFd, &'static str)>,
        log: Option<Log>,
    },
    Exec,
}

/// What a ready descriptor belongs to.
enum Ready {
    Signal,
    Accept,
    Connection(u64),
    Pending,
    Output(usize, usize),
    Sink(usize, usize),
}

impl Pod {
    pub fn new(dir: PathBuf, listener: Socket, pod_pid: Option<i32>) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        listener.set_nonblocking()?;
        Ok(Self {
            dir,
            listener,
            signals,
            pod_pid,
            containers: Vec::new(),
            connections: HashMap::new(),
            next_connection: 0,
            pending: Vec::new(),
            execs: HashMap::new(),
            unclaimed: HashMap::new(),
            buffer: vec![0; BUFFER_BYTES],
            stopping: false,
        })
    }

    /// Serves until asked to stop. `first` is the connection the configuration came on.
    pub fn run(mut self, first: Socket) {
        self.add_connection(first);
        while !self.stopping {
            for ready in self.wait() {
                match ready {
                    Ready::Signal | Ready::Pending => {}
                    Ready::Accept => {
                        if let Ok(socket) = self.listener.accept() {
                            self.add_connection(socket);
                        }
                    }
                    Ready::Connection(key) => self.serve(key),
                    Ready::Output(container, stream) => self.read_output(container, stream),
                    Ready::Sink(container, stream) => {
                        if let Some(stream) = self.stream(container, stream) {
                            stream.flush();
                        }
                    }
                }
            }
            // What a `container` process reports comes before the exit of what it started.
            self.collect_pending();
            self.reap();
        }
        self.shut_down();
    }

    fn stream(&mut self, container: usize, stream: usize) -> Option<&mut Stream> {
        self.containers.get_mut(container)?.output.get_mut(stream)
    }

    fn add_connection(&mut self, socket: Socket) {
        if socket.set_nonblocking().is_ok() {
            let connection = Connection { socket, watching: false, exec: None, attached: None };
            self.connections.insert(self.next_connection, connection);
            self.next_connection += 1;
        }
    }

    fn wait(&self) -> Vec<Ready> {
        let mut polled: Vec<(Ready, BorrowedFd<'_>, PollFlags)> = vec![
            (Ready::Signal, self.signals.as_fd(), PollFlags::IN),
            (Ready::Accept, self.listener.as_fd(), PollFlags::IN),
        ];
        for (key, connection) in &self.connections {
            polled.push((Ready::Connection(*key), connection.socket.as_fd(), PollFlags::IN));
        }
        for pending in &self.pending {
            polled.push((Ready::Pending, pending.control.as_fd(), PollFlags::IN));
        }
        for (index, container) in self.containers.iter().enumerate() {
            for (at, stream) in container.output.iter().enumerate() {
                match stream.blocked_on() {
                    Some(sink) => polled.push((Ready::Sink(index, at), sink, PollFlags::OUT)),
                    None => polled.push((
                        Ready::Output(index, at),
                        stream.source.as_fd(),
                        PollFlags::IN,
                    )),
                }
            }
        }
        let mut fds: Vec<PollFd<'_>> =
            polled.iter().map(|(_, fd, events)| PollFd::from_borrowed_fd(*fd, *events)).collect();
        if rustix::event::poll(&mut fds, None).is_err() {
            return Vec::new();
        }
        let events: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        // Streams that closed are removed as we go, so the last ones come first.
        polled
            .into_iter()
            .zip(events)
            .filter(|(_, ready)| *ready)
            .map(|((ready, ..), _)| ready)
            .rev()
            .collect()
    }

    fn read_output(&mut self, container: usize, stream: usize) {
        let Some(container) = self.containers.get_mut(container) else { return };
        let Some(source) = container.output.get_mut(stream) else { return };
        if source.read(container.log.as_mut(), &mut self.buffer) == Progress::Closed {
            let mut closed = container.output.remove(stream);
            closed.drain(container.log.as_mut(), &mut self.buffer);
        }
    }

    fn serve(&mut self, key: u64) {
        let Some(connection) = self.connections.get(&key) else { return };
        match connection.socket.recv::<Request>() {
            Ok(Some((request, descriptors))) => self.handle(key, request, descriptors),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => self.disconnect(key),
        }
    }

    fn disconnect(&mut self, key: u64) {
        let Some(connection) = self.connections.remove(&key) else { return };
        if let Some(pid) = connection.exec {
            kill(pid, Signal::SIGKILL as i32);
        }
        let Some(container) = connection.attached.and_then(|id| self.find(&id)) else { return };
        for stream in &mut container.output {
            stream.detach(key);
        }
    }

    fn find(&mut self, id: &str) -> Option<&mut Container> {
        self.containers.iter_mut().find(|container| container.id == id)
    }

    fn reply(&mut self, key: u64, reply: &Reply, descriptors: &[BorrowedFd<'_>]) {
        let Some(connection) = self.connections.get(&key) else { return };
        if connection.socket.send(reply, descriptors).is_err() {
            self.disconnect(key);
        }
    }

    fn answer(&mut self, key: u64, result: Result<(), String>) {
        let reply = match result {
            Ok(()) => Reply::Done,
            Err(message) => Reply::Failed { message },
        };
        self.reply(key, &reply, &[]);
    }

    fn handle(&mut self, key: u64, request: Request, descriptors: Vec<OwnedFd>) {
        match request {
            Request::Watch => {
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.watching = true;
                }
                let states: Vec<Reply> = self.containers.iter().map(Container::state).collect();
                for state in states {
                    self.reply(key, &state, &[]);
                }
                self.reply(key, &Reply::Done, &[]);
            }
            Request::Start(start) => {
                if let Err(error) = self.start(key, start) {
                    self.answer(key, Err(error.to_string()));
                }
            }
            Request::Exec(exec) => {
                if let Err(error) = self.exec(key, exec, &descriptors) {
                    self.answer(key, Err(error.to_string()));
                }
            }
            Request::SignalExec { signal } => {
                if let Some(pid) = self.connections.get(&key).and_then(|connection| connection.exec)
                {
                    kill(pid, signal);
                }
            }
            Request::Signal { id, signal } => {
                let result = match self.find(&id) {
                    Some(container) => container.signal(signal),
                    None => Err(format!("container {id} is not known to the shim")),
                };
                self.answer(key, result);
            }
            Request::Attach { id, stdin } => self.attach(key, &id, stdin, descriptors),
            Request::ReopenLog { id } => {
                let result = match self.find(&id).and_then(|container| container.log.as_mut()) {
                    Some(log) => log.reopen().map_err(|error| error.to_string()),
                    None => Ok(()),
                };
                self.answer(key, result);
            }
            Request::Dial { port, v6 } => match dial(port, v6) {
                Ok(socket) => self.reply(key, &Reply::Done, &[socket.as_fd()]),
                Err(error) => self.answer(key, Err(error.to_string())),
            },
            Request::Forget { id } => {
                self.containers.retain(|container| container.id != id || container.exit.is_none());
                self.answer(key, Ok(()));
            }
            Request::Stop => {
                self.stopping = true;
                self.answer(key, Ok(()));
            }
        }
    }

    fn start(&mut self, key: u64, request: Start) -> io::Result<()> {
        self.containers.retain(|container| container.id != request.id || container.exit.is_none());
        let log = match &request.log {
            Some(path) => Some(Log::open(path)?),
            None => None,
        };
        let task = Task::Create { bundle: request.bundle.clone(), tty: request.tty };
        let mut stdin = None;
        let mut output = Vec::new();
        let control = if request.tty {
            super::spawn_container(&task, &[])?
        } else {
            let input = if request.stdin {
                let (read, write) = pipe()?;
                stdin = Some(write);
                read
            } else {
                std::fs::File::open("/dev/null")?.into()
            };
            let (out, out_write) = pipe()?;
            let (err, err_write) = pipe()?;
            output.push((out, "stdout"));
            output.push((err, "stderr"));
            super::spawn_container(&task, &[input.as_fd(), out_write.as_fd(), err_write.as_fd()])?
        };
        control.set_nonblocking()?;
        let work = Work::Start { request: Box::new(request), stdin, output, log };
        self.pending.push(Pending { control, connection: key, work });
        Ok(())
    }

    fn exec(&mut self, key: u64, request: Exec, stdio: &[OwnedFd]) -> io::Result<()> {
        let Some(container) = self.find(&request.id).filter(|container| container.exit.is_none())
        else {
            return Err(io::Error::other(format!("container {} is not running", request.id)));
        };
        let task =
            Task::Exec { bundle: container.bundle.clone(), args: request.args, tty: request.tty };
        let stdio: Vec<BorrowedFd<'_>> = stdio.iter().map(OwnedFd::as_fd).collect();
        let control = super::spawn_container(&task, &stdio)?;
        control.set_nonblocking()?;
        self.pending.push(Pending { control, connection: key, work: Work::Exec });
        Ok(())
    }

    fn attach(&mut self, key: u64, id: &str, stdin: bool, descriptors: Vec<OwnedFd>) {
        let Some(container) = self.find(id).filter(|container| container.exit.is_none()) else {
            return self.answer(key, Err(format!("container {id} is not running")));
        };
        for (stream, pipe) in container.output.iter_mut().zip(descriptors) {
            stream.attach(key, pipe);
        }
        let input = match &container.terminal {
            Some(terminal) => terminal.try_clone().ok(),
            None if !stdin => None,
            None if container.stdin_once => container.stdin.take(),
            None => container.stdin.as_ref().and_then(|fd| fd.try_clone().ok()),
        };
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.attached = Some(id.to_owned());
        }
        let input: Vec<BorrowedFd<'_>> = input.iter().map(OwnedFd::as_fd).collect();
        self.reply(key, &Reply::Attached, &input);
    }

    fn collect_pending(&mut self) {
        let mut index = 0;
        while index < self.pending.len() {
            let reply = match self.pending[index].control.recv::<Reply>() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    index += 1;
                    continue;
                }
                Ok(Some(reply)) => reply,
                Ok(None) | Err(_) => {
                    let message = "the process that sets up the container died".to_owned();
                    (Reply::Failed { message }, Vec::new())
                }
            };
            let pending = self.pending.swap_remove(index);
            self.finish_pending(pending, reply.0, reply.1);
        }
    }

    fn finish_pending(&mut self, pending: Pending, reply: Reply, mut descriptors: Vec<OwnedFd>) {
        let key = pending.connection;
        let Reply::Started { pid, at_ns, .. } = reply else {
            return self.reply(key, &reply, &[]);
        };
        let terminal = (!descriptors.is_empty()).then(|| descriptors.remove(0));
        match pending.work {
            Work::Start { request, stdin, output, log } => {
                let mut container = Container {
                    id: request.id.clone(),
                    bundle: request.bundle.clone(),
                    pid,
                    pidfd: pidfd(pid),
                    started_at_ns: at_ns,
                    exit: None,
                    exit_file: request.exit_file.clone(),
                    cgroup: request.cgroup.clone(),
                    stdin,
                    stdin_once: request.stdin_once,
                    terminal: None,
                    output: Vec::new(),
                    log,
                };
                for (pipe, name) in output {
                    container.output.extend(Stream::new(pipe, name));
                }
                if let Some(master) = terminal {
                    container.terminal = master.try_clone().ok();
                    container.output.extend(Stream::new(master, "stdout"));
                }
                self.containers.push(container);
                self.reply(key, &reply, &[]);
            }
            Work::Exec => {
                let Some(connection) = self.connections.get_mut(&key) else {
                    kill(pid, Signal::SIGKILL as i32);
                    return;
                };
                connection.exec = Some(pid);
                self.execs.insert(pid, key);
                let terminal: Vec<BorrowedFd<'_>> = terminal.iter().map(OwnedFd::as_fd).collect();
                self.reply(key, &reply, &terminal);
            }
        }
        if let Some(code) = self.unclaimed.remove(&pid) {
            self.exited(pid, code);
        }
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.exited(pid.as_raw_nonzero().get(), exit_code(status));
        }
        if self.pending.is_empty() {
            self.unclaimed.clear();
        }
    }

    fn exited(&mut self, pid: i32, code: i32) {
        if let Some(key) = self.execs.remove(&pid) {
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.exec = None;
            }
            return self.reply(key, &Reply::Exited { code }, &[]);
        }
        let running = |container: &Container| container.pid == pid && container.exit.is_none();
        let Some(index) = self.containers.iter().position(running) else {
            self.unclaimed.insert(pid, code);
            return;
        };
        let container = &mut self.containers[index];
        for mut stream in std::mem::take(&mut container.output) {
            stream.drain(container.log.as_mut(), &mut self.buffer);
        }
        (container.stdin, container.terminal, container.log, container.pidfd) =
            (None, None, None, None);
        let oom = container.cgroup.as_deref().is_some_and(killed_for_memory);
        if let Some(cgroup) = &container.cgroup {
            // Whatever left the container's own pid namespace ends with it.
            let _ = std::fs::write(cgroup.join("cgroup.kill"), "1");
        }
        let exit = Exit { code, at_ns: now_ns(), oom };
        let _ = record(&container.exit_file, &exit);
        container.exit = Some(exit);
        let state = container.state();
        let id = container.id.clone();
        let interested: Vec<(u64, bool)> = self
            .connections
            .iter()
            .filter(|(_, c)| c.watching || c.attached.as_ref() == Some(&id))
            .map(|(key, c)| (*key, c.watching))
            .collect();
        for (key, watching) in interested {
            let exited = Reply::Exited { code };
            self.reply(key, if watching { &state } else { &exited }, &[]);
        }
    }

    fn shut_down(mut self) {
        for container in &self.containers {
            if container.exit.is_none() {
                let _ = container.signal(Signal::SIGKILL as i32);
            }
        }
        for pid in self.execs.keys().chain(self.pod_pid.as_ref()) {
            kill(*pid, Signal::SIGKILL as i32);
        }
        loop {
            // What was being started as well; a container becomes our child when the process that made it ends.
            for pid in children() {
                kill(pid, Signal::SIGKILL as i32);
            }
            let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::empty()) else {
                break;
            };
            self.exited(pid.as_raw_nonzero().get(), exit_code(status));
        }
        super::unmount_shm(&self.dir.join(SHM));
        let _ = std::fs::remove_file(self.dir.join(SOCKET));
    }
}

impl Container {
    fn state(&self) -> Reply {
        Reply::Container {
            id: self.id.clone(),
            pid: self.pid,
            started_at_ns: self.started_at_ns,
            exit: self.exit.clone(),
        }
    }

    fn signal(&self, signal: i32) -> Result<(), String> {
        if self.exit.is_some() {
            return Ok(());
        }
        match &self.pidfd {
            Some(pidfd) => crate::sys::pidfd_send_signal(pidfd, signal),
            None => crate::sys::kill(self.pid, signal),
        }
        .or_else(|error| {
            // It has ended, and we have not reaped it yet.
            if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
        })
        .map_err(|error| format!("signal container {}: {error}", self.id))
    }
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// The children of this process, which has one thread (proc(5)).
fn children() -> Vec<i32> {
    let file = format!("/proc/self/task/{}/children", std::process::id());
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Signals a child of ours that has not been reaped, so that its number is still its own.
fn kill(pid: i32, signal: i32) {
    let _ = crate::sys::kill(pid, signal);
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

fn exit_code(status: WaitStatus) -> i32 {
    status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
        .unwrap_or(255)
}

fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

fn record(path: &Path, exit: &Exit) -> io::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, serde_json::to_vec(exit)?)?;
    std::fs::rename(&temporary, path)
}

/// Whether the kernel killed something in the cgroup for lack of memory (cgroup-v2: memory.events).
fn killed_for_memory(cgroup: &Path) -> bool {
    let Ok(events) = std::fs::read_to_string(cgroup.join("memory.events")) else { return false };
    events
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .any(|count| count.trim() != "0")
}

fn dial(port: u16, v6: bool) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let address: std::net::SocketAddr = if v6 {
        (std::net::Ipv6Addr::LOCALHOST, port).into()
    } else {
        (std::net::Ipv4Addr::LOCALHOST, port).into()
    };
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}
