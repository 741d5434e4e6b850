//! `rootlet image`: the node's images, through the daemon's own socket.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use cli::args::Image;

use crate::control::{Archive, Client, ImageLine, Progress};
use crate::output::quiet;
use crate::paths::Paths;

/// Carries out `rootlet image …`.
pub fn image(command: Image) -> anyhow::Result<ExitCode> {
    match command {
        Image::Load { files, cluster } => {
            let client = Client::of_images(&Paths::of(&cluster.name)?);
            for file in files {
                let images = with_bars(|progress| client.load(Archive::of(&file), progress))?;
                for name in images.iter().flat_map(names) {
                    say!("Loaded {name}");
                }
            }
        }
        Image::Pull { reference, cluster } => {
            let client = Client::of_images(&Paths::of(&cluster.name)?);
            with_bars(|progress| client.pull(&reference, progress))?;
            say!("Pulled {}", reference.parse::<images::Reference>()?);
        }
        Image::Ls { cluster, output } => {
            let images = Client::of_images(&Paths::of(&cluster.name)?).images()?;
            if output == "json" {
                println!("{}", serde_json::to_string_pretty(&images)?);
                return Ok(ExitCode::SUCCESS);
            }
            println!("{:<60} {:<14} {:>10}", "IMAGE", "ID", "SIZE");
            for image in images {
                let id = image.id.trim_start_matches("sha256:");
                let names = if image.tags.is_empty() { &image.digests } else { &image.tags };
                for name in names {
                    println!(
                        "{name:<60} {:<14} {:>10}{}",
                        id.get(..12).unwrap_or(id),
                        indicatif::DecimalBytes(image.size_bytes).to_string(),
                        if image.pinned { "  pinned" } else { "" }
                    );
                }
            }
        }
        Image::Rm { reference, cluster } => {
            Client::of_images(&Paths::of(&cluster.name)?).remove_image(&reference)?;
            say!("Removed {reference}");
        }
        Image::Pin { references, off, cluster } => {
            let client = Client::of_images(&Paths::of(&cluster.name)?);
            for reference in references {
                client.pin(&reference, !off)?;
                say!("{} {reference}", if off { "Unpinned" } else { "Pinned" });
            }
        }
        Image::Save { references, output, cluster } => {
            save(&references, output.as_deref(), &cluster.name)?;
        }
        Image::Prune { all, cluster } => {
            let pruned = Client::of_images(&Paths::of(&cluster.name)?).prune(all)?;
            for id in &pruned.images {
                println!("Removed {id}");
            }
            println!("{} freed", indicatif::DecimalBytes(pruned.bytes));
        }
        Image::Fsck { repair, cluster } => {
            let checked = Client::of_images(&Paths::of(&cluster.name)?).fsck(repair)?;
            for (image, reason) in &checked.damaged {
                println!("{image}: {reason}{}", if repair { "; removed" } else { "" });
            }
            for layer in &checked.uncheckable {
                println!("{layer}: its files cannot be compared with its digest");
            }
            let damaged = checked.damaged.len();
            println!("{} images with {} layers, {damaged} damaged", checked.images, checked.layers);
            if damaged > 0 && !repair {
                eprintln!("hint: `rootlet image fsck --repair` removes them, to be pulled again");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What an image is called by: its tags, else one digest.
fn names(image: &ImageLine) -> &[String] {
    match (&image.tags[..], &image.digests[..]) {
        ([], [digest, ..]) => std::slice::from_ref(digest),
        ([], []) => std::slice::from_ref(&image.id),
        (tags, _) => tags,
    }
}

/// Shows a bar per layer while `work` runs, when standard error is a terminal; a line per layer otherwise.
fn with_bars<T>(
    work: impl FnOnce(&mut dyn FnMut(&Progress)) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let terminal = std::io::stderr().is_terminal();
    let bars = indicatif::MultiProgress::new();
    let mut layers: Vec<Layer> = Vec::new();
    let answer = work(&mut |progress| {
        let Progress::Layer { digest, done_bytes, total_bytes } = progress else { return };
        if quiet() {
            return;
        }
        let index = layers.iter().position(|known| known.digest == *digest).unwrap_or_else(|| {
            let bar = bars.add(bar(digest, *total_bytes));
            layers.push(Layer { digest: digest.clone(), bar, whole: false });
            layers.len() - 1
        });
        let layer = &mut layers[index];
        layer.bar.set_position(*done_bytes);
        if !layer.whole && done_bytes == total_bytes {
            layer.whole = true;
            if !terminal {
                eprintln!("{} {}", short(digest), indicatif::DecimalBytes(*done_bytes));
            }
        }
    });
    for layer in &layers {
        layer.bar.finish_and_clear();
    }
    answer
}

/// A layer on its way.
struct Layer {
    digest: String,
    bar: indicatif::ProgressBar,
    whole: bool,
}

fn bar(digest: &str, total_bytes: u64) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new(total_bytes);
    if let Ok(style) = indicatif::ProgressStyle::with_template(
        "{prefix} {bar:32} {decimal_bytes:>10}/{decimal_total_bytes}",
    ) {
        bar.set_style(style);
    }
    bar.set_prefix(short(digest).to_owned());
    bar
}

fn short(digest: &str) -> &str {
    let digest = digest.trim_start_matches("sha256:");
    digest.get(..12).unwrap_or(digest)
}

/// Writes an archive; half of one is not left behind.
fn save(references: &[String], output: Option<&Path>, cluster: &str) -> anyhow::Result<()> {
    let client = Client::of_images(&Paths::of(cluster)?);
    let Some(path) = output else {
        return client.save(references, std::io::stdout().lock());
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))
        .with_context(|| format!("cannot write {}", path.display()))?;
    client.save(references, &file)?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
