//! `rootlet doctor`: tries what rootlet needs, and says what would mend the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cli::doctor::Check;

use crate::paths::{Paths, account};
use crate::userns;

/// Everything there is to look at.
pub fn checks() -> Vec<Check> {
    let user = user();
    let mut checks = vec![user_namespaces(&user), subordinate_ids(&user), newuidmap()];
    checks.extend(probe());
    checks.push(cgroups(&user));
    checks.extend([inotify(), low_ports(), ping()]);
    checks
}

fn user() -> String {
    let uid = rustix::process::geteuid().as_raw();
    account(uid).map_or_else(|| uid.to_string(), |account| account.name)
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn user_namespaces(user: &str) -> Check {
    const NAME: &str = "user namespaces";
    if userns::is_root() {
        return Check::ok(NAME, "not needed: running as root");
    }
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Check::broken(
            NAME,
            "none are allowed (user.max_user_namespaces = 0)",
            "echo user.max_user_namespaces=15000 | sudo tee /etc/sysctl.d/99-rootlet.conf\n\
             sudo sysctl --system",
        );
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Check::broken(
            NAME,
            "only root may make them (kernel.unprivileged_userns_clone = 0)",
            "echo kernel.unprivileged_userns_clone=1 | sudo tee /etc/sysctl.d/99-rootlet.conf\n\
             sudo sysctl --system",
        );
    }
    let restricted = number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1);
    if try_role(&["probe-namespaces"]).is_ok() {
        return Check::ok(NAME, format!("user {user} can make them"));
    }
    if restricted {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/rootlet"));
        return Check::broken(
            NAME,
            "AppArmor restricts them (kernel.apparmor_restrict_unprivileged_userns = 1)",
            format!(
                "printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile rootlet {} \
                 flags=(unconfined) {{\\n  userns,\\n}}\\n' | sudo tee /etc/apparmor.d/rootlet\n\
                 sudo apparmor_parser -r /etc/apparmor.d/rootlet\n\
                 (on a CI runner: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0)",
                program.display()
            ),
        );
    }
    Check::broken(
        NAME,
        "the kernel or a security policy forbids them",
        "in a container: start it with --privileged, or with \
         --security-opt seccomp=unconfined --security-opt apparmor=unconfined",
    )
}

fn subordinate_ids(user: &str) -> Check {
    const NAME: &str = "subordinate ids";
    if userns::is_root() {
        return Check::ok(NAME, "not needed: running as root");
    }
    let uid = rustix::process::geteuid().as_raw();
    let count = |file: &str| -> u64 {
        userns::subordinate(Path::new(file), uid).iter().map(|range| u64::from(range.count)).sum()
    };
    let (uids, gids) = (count("/etc/subuid"), count("/etc/subgid"));
    if uids.min(gids) >= 65536 {
        return Check::ok(NAME, format!("{uids} uids, {gids} gids"));
    }
    Check::limited(
        NAME,
        format!(
            "{uids} uids and {gids} gids of the 65536 that images expect; without any, containers \
             have one user, and images with files of others unpack as that user"
        ),
        format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"),
    )
}

fn newuidmap() -> Check {
    const NAME: &str = "newuidmap";
    if userns::is_root() {
        return Check::ok(NAME, "not needed: running as root");
    }
    let missing: Vec<&str> =
        ["newuidmap", "newgidmap"].into_iter().filter(|program| !on_path(program)).collect();
    if missing.is_empty() {
        return Check::ok(NAME, "newuidmap and newgidmap are installed");
    }
    Check::limited(
        NAME,
        format!("{} not found: subordinate ids cannot be used", missing.join(" and ")),
        "sudo apt-get install uidmap        (Debian, Ubuntu)\n\
         sudo dnf install shadow-utils      (Fedora)",
    )
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Tries overlay and `nf_tables` where they will be used: in namespaces of our own.
fn probe() -> [Check; 2] {
    let nft = match try_role(&["probe-nftables"]) {
        Ok(()) => Check::ok("nf_tables", "works in a user namespace"),
        Err(problem) => Check::broken(
            "nf_tables",
            problem,
            "sudo modprobe nf_tables nft_tproxy nf_conntrack\n\
             printf 'nf_tables\\nnft_tproxy\\nnf_conntrack\\n' | sudo tee /etc/modules-load.d/rootlet.conf",
        ),
    };
    let folder = Paths::of("default").map(|paths| paths.data);
    let overlay = folder.map_err(|error| error.to_string()).and_then(|folder| {
        let place = existing_parent(&folder).to_owned();
        try_role(&["probe-overlay", &place.to_string_lossy()])
            .map_err(|problem| format!("{problem} (tried in {})", place.display()))
    });
    let overlay = match overlay {
        Ok(()) => Check::ok("overlay", "works in a user namespace"),
        Err(problem) => Check::broken(
            "overlay",
            problem,
            "use a kernel from 5.11 on, and a local file system (ext4, xfs, btrfs) for the data: \
             set XDG_DATA_HOME to a folder on one",
        ),
    };
    [overlay, nft]
}

fn existing_parent(folder: &Path) -> &Path {
    folder.ancestors().find(|parent| parent.is_dir()).unwrap_or(Path::new("/"))
}

/// Runs a role of this program that tries something and tells whether it worked.
fn try_role(arguments: &[&str]) -> Result<(), String> {
    let mut child = Command::new("/proc/self/exe")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let answer = userns::supervise(&mut child).map_err(|error| format!("{error:#}"));
    // It ends by itself after its word.
    let _ = child.wait();
    answer.map(drop)
}

fn cgroups(user: &str) -> Check {
    const NAME: &str = "cgroup delegation";
    let remedy = "sudo mkdir -p /etc/systemd/system/user@.service.d\n\
                  printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | \
                  sudo tee /etc/systemd/system/user@.service.d/delegate.conf\n\
                  sudo systemctl daemon-reload, then log in again\n\
                  start with: systemd-run --user --scope -p Delegate=yes rootlet up";
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Check::limited(
            NAME,
            "this machine does not use the unified cgroup v2 hierarchy; limits are not enforced",
            "boot with systemd.unified_cgroup_hierarchy=1",
        );
    }
    let own = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned)))
        .unwrap_or_default();
    let folder = PathBuf::from(format!("/sys/fs/cgroup{own}"));
    let writable = rustix::fs::access(folder.join("cgroup.procs"), rustix::fs::Access::WRITE_OK)
        .is_ok()
        && rustix::fs::access(&folder, rustix::fs::Access::WRITE_OK).is_ok();
    if !writable {
        return Check::limited(
            NAME,
            format!("{own} is not delegated to user {user}; limits are not enforced"),
            remedy,
        );
    }
    let controllers = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|wanted| !controllers.split_whitespace().any(|found| found == *wanted))
        .collect();
    if missing.is_empty() {
        return Check::ok(NAME, format!("{} in {own}", controllers.trim()));
    }
    Check::limited(NAME, format!("{} not delegated", missing.join(", ")), remedy)
}

fn inotify() -> Check {
    const NAME: &str = "inotify instances";
    let limit = number("/proc/sys/fs/inotify/max_user_instances").unwrap_or_default();
    if limit >= 512 {
        return Check::ok(NAME, limit.to_string());
    }
    Check::limited(
        NAME,
        format!("{limit}; rootlet needs few, but what runs in pods may need more"),
        "echo fs.inotify.max_user_instances=1024 | sudo tee /etc/sysctl.d/99-rootlet-inotify.conf\n\
         sudo sysctl --system",
    )
}

fn low_ports() -> Check {
    const NAME: &str = "ports below 1024";
    let first = number("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or(1024);
    if first <= 80 || userns::is_root() {
        return Check::ok(NAME, "can be published on this machine");
    }
    Check::limited(
        NAME,
        format!("ports below {first} cannot be published on this machine"),
        "echo net.ipv4.ip_unprivileged_port_start=80 | sudo tee /etc/sysctl.d/99-rootlet-ports.conf\n\
         sudo sysctl --system",
    )
}

fn ping() -> Check {
    const NAME: &str = "ping to outside";
    let range = fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap_or_default();
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u64>().ok());
    let gid = u64::from(rustix::process::getegid().as_raw());
    if let (Some(first), Some(last)) = (ends.next(), ends.next())
        && (first..=last).contains(&gid)
    {
        return Check::ok(NAME, "allowed to this user's group");
    }
    Check::limited(
        NAME,
        "pods cannot ping hosts outside the cluster (net.ipv4.ping_group_range)",
        "echo 'net.ipv4.ping_group_range=0 2147483647' | sudo tee /etc/sysctl.d/99-rootlet-ping.conf\n\
         sudo sysctl --system",
    )
}
