//! `rootlet snapshot`: the cluster's objects as a file, through the daemon's own socket.

use std::path::Path;

use anyhow::Context;
use cli::args::Snapshot;

use crate::control::Client;
use crate::paths::Paths;

/// Carries out `rootlet snapshot …`.
pub fn snapshot(command: &Snapshot) -> anyhow::Result<()> {
    match command {
        Snapshot::Save { file, cluster } => {
            let client = Client::new(&Paths::of(&cluster.name)?);
            if file.as_os_str() == "-" {
                return client.save_snapshot(std::io::stdout().lock()).map(drop);
            }
            let bytes = save(&client, file)?;
            println!("Saved {} ({})", file.display(), indicatif::DecimalBytes(bytes));
        }
        Snapshot::Restore { file, cluster } => {
            let client = Client::new(&Paths::of(&cluster.name)?);
            let file = (file.as_os_str() != "-").then_some(file.as_path());
            let restored = client.restore_snapshot(file)?;
            println!("Restored: {} written, {} removed", restored.written, restored.removed);
        }
    }
    Ok(())
}

/// Writes beside the file and renames, so that a snapshot that breaks off takes nobody's place. Others
/// cannot read it: secrets are in it.
fn save(client: &Client, path: &Path) -> anyhow::Result<u64> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let bytes = client.save_snapshot(&file)?;
    file.as_file().sync_all().context("cannot write the snapshot")?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(bytes)
}
