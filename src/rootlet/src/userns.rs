//! Entering the namespaces in which an ordinary user is root.
//!
//! Everything here runs in a process with a single thread, before anything else is started.
//! Source: user_namespaces(7), newuidmap(1), subuid(5), and the order found to work for libcontainer.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::paths::account;

/// The child has its user namespace and waits for its ids to be mapped.
const UNSHARED: &str = "unshared";
/// The parent has mapped the ids.
const MAPPED: &str = "mapped";
/// The parent cannot map subordinate ids; the child shall map its own id alone.
const SINGLE: &str = "single";

/// A range of subordinate ids that belongs to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First id, outside.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// The ranges that `file` (`/etc/subuid`, `/etc/subgid`) gives to the user.
pub fn subordinate(file: &Path, uid: u32) -> Vec<Range> {
    let text = fs::read_to_string(file).unwrap_or_default();
    parse_subordinate(&text, uid, account(uid).map(|account| account.name).as_deref())
}

/// The first subordinate id, from useradd's usual first one on, that a file's `text` gives to nobody, nor any after it.
pub fn first_free(text: &str) -> u32 {
    let ends = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':').skip(1);
        let start: u32 = fields.next()?.parse().ok()?;
        start.checked_add(fields.next()?.parse().ok()?)
    });
    ends.max().unwrap_or_default().max(100_000)
}

fn parse_subordinate(text: &str, uid: u32, name: Option<&str>) -> Vec<Range> {
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let range =
            Range { start: fields.next()?.parse().ok()?, count: fields.next()?.parse().ok()? };
        (Some(owner) == name || owner.parse() == Ok(uid)).then_some(range)
    });
    // The kernel takes no id twice, but files have lines twice.
    ranges.fold(Vec::new(), |mut known, range| {
        let new = known.iter().fold(vec![range], |parts, taken| without(parts, *taken));
        known.extend(new);
        known
    })
}

/// What of `parts` is not in `taken`.
fn without(parts: Vec<Range>, taken: Range) -> Vec<Range> {
    let pieces = parts.into_iter().flat_map(|part| {
        let (start, end) = (u64::from(part.start), u64::from(part.start) + u64::from(part.count));
        let from = u64::from(taken.start);
        let to = from + u64::from(taken.count);
        [(start, end.min(from)), (start.max(to), end)]
    });
    let pieces = pieces.filter(|(start, end)| start < end).filter_map(|(start, end)| {
        Some(Range { start: start.try_into().ok()?, count: (end - start).try_into().ok()? })
    });
    pieces.collect()
}

/// Whether this process may do without a user namespace of its own: it is root with full privileges.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
        && caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN)
            .unwrap_or(false)
        && caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN)
            .unwrap_or(false)
}

/// In the new process: makes the user, mount and cgroup namespaces, and executes `arguments` of this
/// same program in them, so that the process image belongs to the namespace. Standard input and output
/// speak with [`supervise`].
pub fn enter_new(arguments: &[&str]) -> anyhow::Result<std::convert::Infallible> {
    detach()?;
    if !is_root() {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| {
            anyhow!(
                "this kernel does not let user {uid} make a user namespace: {}; run `rootlet doctor`",
                errno.desc()
            )
        })?;
        match ask(UNSHARED)?.as_str() {
            MAPPED => setgroups(&[]).context("cannot drop the supplementary groups")?,
            SINGLE => {
                fs::write("/proc/self/setgroups", "deny").context("cannot write setgroups")?;
                fs::write("/proc/self/uid_map", format!("0 {uid} 1"))
                    .context("cannot map the user id")?;
                fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
                    .context("cannot map the group id")?;
            }
            other => bail!("the parent process gave up: {other:?}"),
        }
        become_root()?;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
        .context("cannot make a mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .context("cannot detach the mounts from the host's")?;
    // Among the node's own namespaces mounts may be shared, where a container asks for it.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)
        .context("cannot share the mounts")?;
    // libcontainer reads the cgroup tree even where nothing is delegated to us.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let cover = |kind: &str| mount(Some(kind), "/sys/fs/cgroup", Some(kind), flags, none);
    // Where cgroup2 is mounted there already the kernel refuses it a second time in the same place.
    let covered = cover("cgroup2").or_else(|_| cover("tmpfs").and_then(|()| cover("cgroup2")));
    if let Err(errno) = covered {
        eprintln!("cannot mount cgroup2 over /sys/fs/cgroup: {}", errno.desc());
    }
    crate::scope::settle_inside();
    Err(Command::new("/proc/self/exe").args(arguments).exec()).context("cannot execute myself")
}

/// In a new process: joins the namespaces of process `pid`, and executes `arguments` of this same
/// program in them.
pub fn enter_existing(pid: u32, arguments: &[&str]) -> anyhow::Result<std::convert::Infallible> {
    detach()?;
    join(pid, arguments)
}

/// Leaves what belongs to the caller: a terminal, whose signals are not for a process that stays, and the folder it was
/// called in, whose file system could not be unmounted as long as the process lives.
pub fn detach() -> anyhow::Result<()> {
    // It fails where this process leads a group already.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/").context("cannot leave the folder I was called in")
}

/// The same for a process that stays in the foreground of its terminal.
pub fn join(pid: u32, arguments: &[&str]) -> anyhow::Result<std::convert::Infallible> {
    step_into(pid)?;
    again(arguments)
}

/// Executes a command in the namespaces of process `pid` and in the network namespace `network`, in the folder
/// where this process is.
pub fn execute(
    pid: u32,
    network: impl AsFd,
    command: &mut Command,
) -> anyhow::Result<std::convert::Infallible> {
    let folder = std::env::current_dir().context("cannot tell the current folder")?;
    step_into(pid)?;
    setns(network.as_fd(), CloneFlags::CLONE_NEWNET)
        .context("cannot join the network namespace")?;
    std::env::set_current_dir(&folder)
        .with_context(|| format!("{} is not there", folder.display()))?;
    let program = command.get_program().display().to_string();
    Err(command.exec()).with_context(|| format!("cannot run {program}"))
}

/// Joins the user, mount and cgroup namespaces of process `pid`.
fn step_into(pid: u32) -> anyhow::Result<()> {
    let open = |kind: &str| {
        let path = format!("/proc/{pid}/ns/{kind}");
        File::open(&path).with_context(|| format!("cannot open {path}"))
    };
    let (user, mounts, cgroup) = (open("user")?, open("mnt")?, open("cgroup")?);
    if !is_root() {
        setns(user.as_fd(), CloneFlags::CLONE_NEWUSER).context("cannot join the user namespace")?;
        if fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "allow") {
            setgroups(&[]).context("cannot drop the supplementary groups")?;
        }
        become_root()?;
    }
    setns(cgroup.as_fd(), CloneFlags::CLONE_NEWCGROUP)
        .context("cannot join the cgroup namespace")?;
    setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS).context("cannot join the mount namespace")
}

/// Executes `arguments` of this same program where this process is.
pub fn again(arguments: &[&str]) -> anyhow::Result<std::convert::Infallible> {
    Err(Command::new("/proc/self/exe").args(arguments).exec()).context("cannot execute myself")
}

fn become_root() -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).context("cannot become group 0 of the namespace")?;
    setresuid(uid, uid, uid).context("cannot become user 0 of the namespace")
}

/// Tells the parent `word` and returns its answer.
fn ask(word: &str) -> anyhow::Result<String> {
    println!("{word}");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("the parent process is gone")?;
    Ok(answer.trim().to_owned())
}

/// In the parent: maps ids when the child asks for it, until the child says `ready` (with what follows
/// the word) or fails.
pub fn supervise(child: &mut Child) -> anyhow::Result<String> {
    let output = child.stdout.take().context("the child's output is not a pipe")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read from the child")?;
        if line == UNSHARED {
            let answer = if map_subordinate(child.id())? { MAPPED } else { SINGLE };
            let input = child.stdin.as_mut().context("the child's input is not a pipe")?;
            writeln!(input, "{answer}").context("the child is gone")?;
        } else if let Some(rest) = line.strip_prefix("ready") {
            return Ok(rest.trim().to_owned());
        } else if let Some(problem) = line.strip_prefix("error: ") {
            // Whole chains come in one line each; the hint, if any, is part of them.
            let _ = child.wait();
            bail!("{}", problem.replace("\\n", "\n"));
        }
    }
    let status = child.wait().context("cannot wait for the child")?;
    bail!("it ended before it was ready ({status})")
}

/// Tells the parent why this process cannot go on.
pub fn report_failure(error: &anyhow::Error) {
    eprintln!("{error:#}");
    println!("error: {}", format!("{error:#}").replace('\n', "\\n"));
}

/// Maps id 0 to the caller and the following to its subordinate ids. `false` when there are none, or
/// the programs that may do it are not installed.
fn map_subordinate(pid: u32) -> anyhow::Result<bool> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    for (program, file, own) in
        [("newuidmap", "/etc/subuid", uid), ("newgidmap", "/etc/subgid", gid)]
    {
        let ranges = subordinate(Path::new(file), uid);
        if ranges.is_empty() {
            return Ok(false);
        }
        let mut command = Command::new(program);
        command.arg(pid.to_string()).args(mapping(own, &ranges));
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("cannot run {program}")),
        };
        if !output.status.success() {
            bail!(
                "{program} refused: {}; check {file} and that {program} is setuid root; `rootlet doctor` tells more",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    Ok(true)
}

/// How many user ids the namespace of process `pid` has.
pub fn ids(pid: u32) -> anyhow::Result<u64> {
    let file = format!("/proc/{pid}/uid_map");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let counts =
        text.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    Ok(counts.sum())
}

fn mapping(own: u32, ranges: &[Range]) -> Vec<String> {
    let mut arguments = vec!["0".to_owned(), own.to_string(), "1".to_owned()];
    let mut inside = 1u32;
    for range in ranges {
        arguments.extend([inside.to_string(), range.start.to_string(), range.count.to_string()]);
        inside = inside.saturating_add(range.count);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_users_by_name_or_number() {
        let text = "me:100000:65536\nyou:165536:65536\n1000:300000:10\nbad line\nme:x:1\n";
        let range = |start, count| Range { start, count };
        assert_eq!(
            parse_subordinate(text, 1000, Some("me")),
            [range(100_000, 65536), range(300_000, 10)]
        );
        assert_eq!(parse_subordinate(text, 7, Some("you")), [range(165_536, 65536)]);
        assert!(parse_subordinate(text, 7, None).is_empty());
        let overlapping = "me:100:50\nme:100:50\nme:120:100\nme:90:200\n";
        assert_eq!(
            parse_subordinate(overlapping, 1, Some("me")),
            [range(100, 50), range(150, 70), range(90, 10), range(220, 70)]
        );
    }

    #[test]
    fn ranges_follow_each_other_inside() {
        let ranges = [Range { start: 100_000, count: 10 }, Range { start: 300_000, count: 5 }];
        assert_eq!(mapping(1000, &ranges).join(" "), "0 1000 1 1 100000 10 11 300000 5");
    }
}
