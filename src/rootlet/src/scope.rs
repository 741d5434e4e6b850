//! A cgroup of our own: systemd is asked for a scope whose subtree is delegated to us, as a login's own cgroup
//! never is.
//!
//! The message is written by hand: it is one call, and a D-Bus library would be larger than all of this crate.
//! Source: the D-Bus specification (message protocol, EXTERNAL authentication),
//! org.freedesktop.systemd1(5), "Control Group APIs and Delegation" of systemd's documentation.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cgroup2 is mounted, if the machine uses it alone.
const MOUNT: &str = "/sys/fs/cgroup";
/// The cgroup of our own processes below the scope: only leaves may hold processes.
const LEAF: &str = "init";
/// How long systemd may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Controllers that pods are limited with.
const CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"];

/// The scope this process is in.
pub struct Scope {
    folder: PathBuf,
}

/// Names the unit that a process was started as, in the environment of what `rootlet service install` writes.
pub const UNIT: &str = "ROOTLET_UNIT";

/// The unit of a cluster that the user's systemd starts.
pub fn service_unit(cluster: &str) -> String {
    if cluster == "default" {
        "rootlet.service".into()
    } else {
        format!("rootlet-{cluster}.service")
    }
}

/// Whether this process was started as the cluster's service.
pub fn is_service(cluster: &str) -> bool {
    std::env::var(UNIT).is_ok_and(|unit| unit == service_unit(cluster))
}

/// Moves this process into the scope of the cluster, made if need be, or where the cluster's `node` process, if
/// it runs, already is. A process that systemd started as the cluster's service stays in that one's cgroup.
/// `Err` tells why there is no cgroup of our own.
pub fn enter(cluster: &str, node: Option<u32>) -> Result<Scope, String> {
    if !Path::new(MOUNT).join("cgroup.controllers").exists() {
        return Err("this machine does not use the unified cgroup v2 hierarchy".into());
    }
    let service = service_unit(cluster);
    let beside = node.and_then(|pid| cgroup_of(&pid.to_string()));
    let in_service = match &beside {
        Some(path) => in_unit(path, &service),
        None => is_service(cluster) && own_cgroup().is_some_and(|path| in_unit(&path, &service)),
    };
    let unit = if in_service { service } else { format!("rootlet-{}.scope", escape(cluster)) };
    let (own, pid) = (own_cgroup(), std::process::id());
    if own.as_ref().is_none_or(|path| !in_unit(path, &unit)) {
        let mut bus = Bus::connect().map_err(|e| format!("systemd does not answer: {e}"))?;
        if in_service {
            bus.attach(&unit, pid)?;
        } else if let Err(refusal) = bus.start_scope(&unit, pid) {
            // The node process of an earlier `up` holds it.
            bus.attach(&unit, pid).map_err(|_| refusal)?;
        }
    }
    let began = Instant::now();
    loop {
        if let Some(path) = own_cgroup().filter(|path| in_unit(path, &unit)) {
            let end = path.find(&unit).map_or(path.len(), |at| at + unit.len());
            let folder = Path::new(MOUNT).join(path[..end].trim_start_matches('/'));
            return Ok(Scope { folder });
        }
        if began.elapsed() > TIMEOUT {
            return Err(format!("systemd did not move this process into {unit}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a service manager is there to be asked for one, with controllers to pass on.
pub fn offered() -> bool {
    let uid = rustix::process::geteuid().as_raw();
    let manager = format!("{MOUNT}/user.slice/user-{uid}.slice/user@{uid}.service");
    let folder = if uid == 0 { MOUNT } else { &manager };
    let controllers = fs::read_to_string(Path::new(folder).join("cgroup.controllers"));
    let enough = controllers.is_ok_and(|all| {
        ["cpu", "memory", "pids"].iter().all(|wanted| all.split_whitespace().any(|c| c == *wanted))
    });
    enough && Bus::connect().is_ok()
}

impl Scope {
    /// Moves this process, and with it what it starts from now on, from the scope into its leaf.
    pub fn settle(&self) -> io::Result<()> {
        let leaf = self.folder.join(LEAF);
        match fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => fs::write(leaf.join("cgroup.procs"), "0"),
        }
    }
}

/// In the namespaces of the node, whose cgroups begin at the scope: moves this process into the leaf.
pub fn settle_inside() {
    let leaf = Path::new(MOUNT).join(LEAF);
    if own_cgroup().as_deref() != Some("/") || fs::create_dir_all(&leaf).is_err() {
        return;
    }
    // Where nothing is delegated this fails, and nothing is lost.
    if fs::write(leaf.join("cgroup.procs"), "0").is_err() {
        let _ = fs::remove_dir(&leaf);
    }
}

/// In the daemon: the root of the cgroups that are ours, with its controllers switched on; `None` when none is.
pub fn delegated() -> Option<PathBuf> {
    if own_cgroup().as_deref() != Some(&format!("/{LEAF}")) {
        return None;
    }
    let root = Path::new(MOUNT);
    // What is mounted there is to begin where our namespace does.
    let procs = fs::read_to_string(root.join(LEAF).join("cgroup.procs")).ok()?;
    if !procs.lines().any(|pid| pid == std::process::id().to_string()) {
        return None;
    }
    for controller in CONTROLLERS {
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    let on = fs::read_to_string(root.join("cgroup.subtree_control")).ok()?;
    let on: Vec<&str> = on.split_whitespace().collect();
    ["cpu", "memory", "pids"].iter().any(|c| on.contains(c)).then(|| PathBuf::from("/"))
}

fn in_unit(path: &str, unit: &str) -> bool {
    path.split('/').any(|part| part == unit)
}

/// The cgroup v2 of this process (cgroups(7)).
fn own_cgroup() -> Option<String> {
    cgroup_of("self")
}

fn cgroup_of(pid: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// A cluster's name as a part of a unit's: dashes mean slices there (systemd.unit(5)).
fn escape(name: &str) -> String {
    name.replace('-', "\\x2d")
}

/// A connection to the service manager: the user's, or root's.
struct Bus {
    stream: UnixStream,
    serial: u32,
}

const PATH: (&str, &str, &str) =
    ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "org.freedesktop.systemd1");

impl Bus {
    fn connect() -> io::Result<Self> {
        let root = rustix::process::geteuid().is_root();
        let private = if root {
            PathBuf::from("/run/systemd/private")
        } else {
            let folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let own = PathBuf::from(format!("/run/user/{}", rustix::process::geteuid().as_raw()));
            // A runtime folder of the caller's choice has no manager in it.
            let folder = folder.filter(|f| f.join("systemd/private").exists()).unwrap_or(own);
            folder.join("systemd/private")
        };
        let mut bus = Self { stream: UnixStream::connect(private)?, serial: 0 };
        bus.stream.set_read_timeout(Some(TIMEOUT))?;
        bus.stream.set_write_timeout(Some(TIMEOUT))?;
        bus.authenticate()?;
        Ok(bus)
    }

    fn authenticate(&mut self) -> io::Result<()> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|b| format!("{b:02x}")).collect();
        write!(self.stream, "\0AUTH EXTERNAL {hex}\r\n")?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        if !line.starts_with(b"OK ") {
            return Err(io::Error::other(String::from_utf8_lossy(&line).trim().to_owned()));
        }
        self.stream.write_all(b"BEGIN\r\n")
    }

    fn start_scope(&mut self, unit: &str, pid: u32) -> Result<(), String> {
        let mut body = Writer::default();
        body.text(unit);
        body.text("fail");
        body.array(8, |properties| {
            properties.property("Description", "s", |w| w.text("rootlet: a Kubernetes cluster"));
            properties.property("Delegate", "b", |w| w.u32(1));
            properties.property("CollectMode", "s", |w| w.text("inactive-or-failed"));
            properties.property("TasksMax", "t", |w| w.u64(u64::MAX));
            properties.property("PIDs", "au", |w| w.array(4, |pids| pids.u32(pid)));
        });
        body.array(8, |_| {});
        self.call("StartTransientUnit", "ssa(sv)a(sa(sv))", &body.0)
    }

    fn attach(&mut self, unit: &str, pid: u32) -> Result<(), String> {
        let mut body = Writer::default();
        body.text(unit);
        body.text(&format!("/{LEAF}"));
        body.array(4, |pids| pids.u32(pid));
        self.call("AttachProcessesToUnit", "ssau", &body.0)
    }

    fn call(&mut self, member: &str, signature: &str, body: &[u8]) -> Result<(), String> {
        self.serial += 1;
        let message = message(self.serial, member, signature, body);
        self.stream.write_all(&message).map_err(|e| e.to_string())?;
        loop {
            let answer = Answer::read(&mut self.stream).map_err(|e| e.to_string())?;
            if answer.reply_to == Some(self.serial) {
                return match answer.error {
                    None => Ok(()),
                    Some(name) => Err(name),
                };
            }
        }
    }
}

fn message(serial: u32, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    let (path, interface, destination) = PATH;
    let mut out = Writer(vec![b'l', METHOD_CALL, 0, 1]);
    out.u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.u32(serial);
    out.array(8, |fields| {
        for (code, kind, value) in
            [(1, "o", path), (2, "s", interface), (3, "s", member), (6, "s", destination)]
        {
            fields.align(8);
            fields.0.push(code);
            fields.signature(kind);
            fields.text(value);
        }
        fields.align(8);
        fields.0.push(8);
        fields.signature("g");
        fields.signature(signature);
    });
    out.align(8);
    out.0.extend_from_slice(body);
    out.0
}

/// Values in D-Bus' marshalling, little-endian.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend(text.bytes().chain([0]));
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.bytes().chain([0]));
    }

    /// An array whose items are aligned to `to`: its length does not count what aligns the first.
    fn array(&mut self, to: usize, items: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length = self.0.len() - 4;
        self.align(to);
        let first = self.0.len();
        items(self);
        let bytes = u32::try_from(self.0.len() - first).unwrap_or(u32::MAX);
        self.0[length..length + 4].copy_from_slice(&bytes.to_le_bytes());
    }

    /// A structure of a name and a variant.
    fn property(&mut self, name: &str, signature: &str, value: impl FnOnce(&mut Self)) {
        self.align(8);
        self.text(name);
        self.signature(signature);
        value(self);
    }
}

/// What of an answer matters.
struct Answer {
    reply_to: Option<u32>,
    error: Option<String>,
}

impl Answer {
    fn read(stream: &mut impl Read) -> io::Result<Self> {
        const LARGEST: usize = 1 << 20;
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let number = |at: usize| {
            u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize
        };
        let (body, fields) = (number(4), number(12));
        if head[0] != b'l' || body > LARGEST || fields > LARGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        stream.read_exact(&mut rest)?;
        let (fields, body) = rest.split_at(fields.next_multiple_of(8));
        let mut answer = Self { reply_to: None, error: None };
        let mut at = 0;
        while let Some(code) = fields.get(at).copied().filter(|code| *code != 0) {
            // Code, length of the signature, one letter, NUL; then the value.
            let kind = fields.get(at + 2).copied().unwrap_or_default();
            let value = (at + 4).next_multiple_of(if kind == b'g' { 1 } else { 4 });
            let word = fields.get(value..value + 4).and_then(|w| w.try_into().ok());
            let word = u32::from_le_bytes(word.unwrap_or_default());
            let length = match kind {
                b's' | b'o' => 4 + word as usize + 1,
                b'g' => fields.get(value).map_or(0, |l| usize::from(*l)) + 2,
                _ => 4,
            };
            match code {
                4 => {
                    let name = fields.get(value + 4..value + length - 1).unwrap_or_default();
                    answer.error = Some(String::from_utf8_lossy(name).into_owned());
                }
                5 => answer.reply_to = Some(word),
                _ => {}
            }
            at = (value + length).next_multiple_of(8);
        }
        if let (Some(error), Some(text)) = (&mut answer.error, body.get(4..)) {
            let text = text.split(|b| *b == 0).next().unwrap_or_default();
            *error = format!("{error}: {}", String::from_utf8_lossy(text));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned() {
        let mut writer = Writer::default();
        writer.text("ab");
        writer.array(8, |w| w.property("n", "u", |w| w.u32(7)));
        let expected: Vec<u8> = [
            &[2, 0, 0, 0, b'a', b'b', 0, 0][..],
            &[16, 0, 0, 0, 0, 0, 0, 0][..4],
            &[0, 0, 0, 0][..],
            &[1, 0, 0, 0, b'n', 0, 1, b'u', 0, 0, 0, 0, 7, 0, 0, 0][..],
        ]
        .concat();
        assert_eq!(writer.0, expected);
    }

    #[test]
    fn a_refusal_is_read() {
        let mut out = Writer(vec![b'l', 3, 1, 1]);
        let mut body = Writer::default();
        body.text("Unit exists");
        out.u32(body.0.len() as u32);
        out.u32(9);
        out.array(8, |fields| {
            fields.0.push(5);
            fields.signature("u");
            fields.u32(3);
            fields.align(8);
            fields.0.push(4);
            fields.signature("s");
            fields.text("a.Error");
            fields.align(8);
            fields.0.push(8);
            fields.signature("g");
            fields.signature("s");
        });
        out.align(8);
        out.0.extend(body.0);
        let answer = Answer::read(&mut out.0.as_slice()).unwrap();
        assert_eq!(answer.reply_to, Some(3));
        assert_eq!(answer.error.as_deref(), Some("a.Error: Unit exists"));
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("ci-7"), "ci\\x2d7");
        assert!(in_unit("/user.slice/rootlet-a.scope/init", "rootlet-a.scope"));
        assert!(!in_unit("/user.slice/rootlet-ab.scope", "rootlet-a.scope"));
    }
}
