//! Short-lived roles inside fresh namespaces: trying features for `doctor`, removing files of
//! subordinate ids for `delete`.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Tries what the words name and says `ready`, or fails.
pub fn run(words: &[&str]) -> anyhow::Result<()> {
    match words {
        ["probe-namespaces"] => {}
        ["probe-nftables"] => network()?,
        ["probe-overlay", folder] => overlay(Path::new(folder))?,
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
