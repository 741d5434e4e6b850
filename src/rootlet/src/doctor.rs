//! `rootlet doctor`: tries what rootlet needs, and says what would mend the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use cli::doctor::Check;

use crate::paths::{Paths, account};
use crate::{mend, scope, userns};

/// Carries out `rootlet doctor`.
pub fn doctor(arguments: &cli::args::Doctor) -> anyhow::Result<ExitCode> {
    let own = mend::checks(arguments.fix);
    let mut checks = checks();
    checks.extend(own);
    if arguments.output == "json" {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        print!("{}", cli::doctor::text(&checks));
        if arguments.fix && checks.iter().any(|check| !check.remedy.is_empty()) {
            println!("What is left needs root, or another machine: the commands are above.");
        }
    }
    let broken = checks.iter().any(|check| check.level == cli::doctor::Level::Broken);
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Everything there is to look at on this machine.
fn checks() -> Vec<Check> {
    let user = user();
    let problem = try_role(&["probe-namespaces"]).err();
    let refused = problem.as_deref().filter(|problem| {
        ["newuidmap refused", "newgidmap refused"].iter().any(|blame| problem.contains(blame))
    });
    let mut checks = vec![
        user_namespaces(&user, problem.is_none() || refused.is_some()),
        subordinate_ids(&user),
        newuidmap(refused),
    ];
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

fn user_namespaces(user: &str, possible: bool) -> Check {
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
    if possible {
        return Check::ok(NAME, format!("user {user} can make them"));
    }
    let restricted = number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1);
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
        format!("in a container: {UNHIDE}"),
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
        give_ids(user, uid, &fs::read_to_string("/etc/subuid").unwrap_or_default()),
    )
}

/// The command that gives a user the first ids after those of all others. usermod knows only users of this
/// machine's own list.
fn give_ids(user: &str, uid: u32, given: &str) -> String {
    let first = userns::first_free(given);
    let last = first + 65535;
    if account(uid).is_some() {
        format!("sudo usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {user}")
    } else {
        format!("echo {uid}:{first}:65536 | sudo tee -a /etc/subuid /etc/subgid")
    }
}

fn newuidmap(refused: Option<&str>) -> Check {
    const NAME: &str = "newuidmap";
    if userns::is_root() {
        return Check::ok(NAME, "not needed: running as root");
    }
    if let Some(problem) = refused {
        return Check::broken(
            NAME,
            problem,
            "in a container that is not privileged, where setuid does not suffice, as its root:\n\
             chmod u-s /usr/bin/newuidmap /usr/bin/newgidmap\n\
             setcap cap_setuid+ep /usr/bin/newuidmap\n\
             setcap cap_setgid+ep /usr/bin/newgidmap",
        );
    }
    let missing: Vec<&str> =
        ["newuidmap", "newgidmap"].into_iter().filter(|program| !on_path(program)).collect();
    if missing.is_empty() {
        return Check::ok(NAME, "newuidmap and newgidmap are installed");
    }
    Check::limited(
        NAME,
        format!("{} not found: subordinate ids cannot be used", missing.join(" and ")),
        install_newuidmap(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
    )
}

/// As this distribution calls it (os-release(5)).
fn install_newuidmap(release: &str) -> &'static str {
    let ids = release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")));
    let ids: Vec<&str> = ids.flat_map(|ids| ids.trim_matches('"').split(' ')).collect();
    let known = [
        ("debian", "sudo apt-get install -y uidmap"),
        ("fedora", "sudo dnf install -y shadow-utils"),
        ("rhel", "sudo dnf install -y shadow-utils"),
        ("suse", "sudo zypper install -y shadow"),
        ("arch", "sudo pacman -S --noconfirm shadow"),
        ("alpine", "sudo apk add shadow-subids"),
    ];
    let found = known.into_iter().find(|(id, _)| ids.contains(id));
    found.map_or(
        "install the package with newuidmap (uidmap, shadow or shadow-utils)",
        |(_, command)| command,
    )
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// For containers whose engine hides parts of /proc, or makes them read-only.
const UNHIDE: &str = "start the container with --privileged; or with --security-opt systempaths=unconfined (Docker),\n\
                      --security-opt unmask=ALL (Podman), besides seccomp=unconfined and apparmor=unconfined";

/// Tries overlay, `nf_tables` and /proc where they will be used: in namespaces of our own.
fn probe() -> [Check; 3] {
    let nft = match try_role(&["probe-nftables"]) {
        Ok(()) => Check::ok("nf_tables", "works in a user namespace"),
        Err(problem) if problem.contains("Read-only file system") => {
            Check::broken("nf_tables", problem, UNHIDE)
        }
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
    let proc = match try_role(&["probe-proc"]) {
        Ok(()) => Check::ok("/proc", "can be mounted for containers"),
        Err(problem) => Check::broken("/proc", problem, UNHIDE),
    };
    [overlay, nft, proc]
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
                  sudo systemctl daemon-reload        (then log in again)";
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
    if !writable && scope::offered() {
        return Check::ok(NAME, "systemd gives each cluster a scope of its own");
    }
    if scope::offered_plain() {
        return Check::ok(NAME, "each cluster has a cgroup of its own, without systemd");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_given_behind_those_of_others() {
        let given = "a:100000:65536\nb:165536:65536\nc:10:5\n";
        assert_eq!(
            give_ids("root", 0, given),
            "sudo usermod --add-subuids 231072-296607 --add-subgids 231072-296607 root"
        );
        assert_eq!(
            give_ids("4000000000", 4_000_000_000, ""),
            "echo 4000000000:100000:65536 | sudo tee -a /etc/subuid /etc/subgid"
        );
    }

    #[test]
    fn packages_are_those_of_the_distribution() {
        for (release, want) in [
            ("ID=ubuntu\nID_LIKE=debian\n", "apt-get"),
            ("ID=debian\n", "apt-get"),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", "dnf"),
            ("ID=arch\n", "pacman"),
            ("ID=other\n", "install the package"),
        ] {
            assert!(install_newuidmap(release).contains(want), "{release}");
        }
    }
}
