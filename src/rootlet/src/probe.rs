//! Short-lived roles inside fresh namespaces: trying features for `doctor`, removing files of
//! subordinate ids for `delete`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Tries what the words name and says `ready`, or fails.
pub fn run(words: &[&str]) -> anyhow::Result<()> {
    match words {
        ["probe-namespaces"] => {}
        ["probe-nftables"] => network()?,
        ["probe-overlay", folder] => overlay(Path::new(folder))?,
        ["probe-proc"] => proc()?,
        ["probe-proc-mounted"] => {
            let none: Option<&str> = None;
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)
                .context("/proc cannot be mounted for a container")?;
        }
        other => bail!("unknown probe {other:?}"),
    }
    println!("ready");
    Ok(())
}

/// Makes a node's whole network, and lets it go.
fn network() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let node = netns::Node::start(crate::node::network(false, false)?).await?;
        node.shutdown().await;
        Ok(())
    })
}

/// Mounts /proc as a container gets it: in a process namespace of its own. The kernel refuses that where parts of
/// the /proc that is there are hidden (mount_namespaces(7)).
fn proc() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWPID).context("cannot make a process namespace")?;
    let child =
        Command::new("/proc/self/exe").args(["probe-inside", "probe-proc-mounted"]).output();
    let child = child.context("cannot start a process in it")?;
    let said = String::from_utf8_lossy(&child.stdout);
    match said.lines().find_map(|line| line.strip_prefix("error: ")) {
        Some(problem) => bail!("{problem}"),
        None if child.status.success() => Ok(()),
        None => bail!("the process in it ended with {}", child.status),
    }
}

fn overlay(place: &Path) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix(".rootlet-probe").tempdir_in(place)?;
    let [lower, upper, work, merged] =
        ["lower", "upper", "work", "merged"].map(|name| folder.path().join(name));
    for path in [&lower, &upper, &work, &merged] {
        fs::create_dir(path)?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={},userxattr",
        lower.display(),
        upper.display(),
        work.display()
    );
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("overlay cannot be mounted in a user namespace")?;
    fs::write(merged.join("file"), "x").context("overlay cannot be written")?;
    umount2(&merged, MntFlags::MNT_DETACH).context("overlay cannot be unmounted")
}

/// Removes a folder's content, as root of the namespace.
pub fn remove(folder: &str) -> anyhow::Result<()> {
    crate::paths::remove_tree(Path::new(folder))
        .or_else(|error| {
            // The folder itself lies in one that is not ours to change; its content is what matters.
            let empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
            if empty { Ok(()) } else { Err(error) }
        })
        .with_context(|| format!("cannot remove {folder}"))?;
    println!("ready");
    Ok(())
}
