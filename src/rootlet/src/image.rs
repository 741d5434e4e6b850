//! `rootlet image`: the node's images, through the daemon's own socket.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use cli::args::Image;

use crate::control::{Client, ImageLine, Progress};
use crate::paths::Paths;

/// Carries out `rootlet image …`.
pub fn image(command: Image) -> anyhow::Result<ExitCode> {
    match command {
        Image::Load { files, cluster } => {
            let client = Client::of_images(&Paths::of(&cluster.name)?);
            for file in files {
                let file = (file.as_os_str() != "-").then_some(file);
                let images = with_bars(|progress| client.load(file.as_deref(), progress))?;
                tell("Loaded", &images);
            }
        }
        Image::Pull { reference, cluster } => {
            let client = Client::of_images(&Paths::of(&cluster.name)?);
            let images = with_bars(|progress| client.pull(&reference, progress))?;
            tell("Pulled", &images);
        }
        Image::Ls(cluster) => {
            let images = Client::of_images(&Paths::of(&cluster.name)?).images()?;
            println!("{:<60} {:<14} {:>10}", "IMAGE", "ID", "SIZE");
            for image in images {
                let id = image.id.trim_start_matches("sha256:");
                let names = if image.tags.is_empty() { &image.digests } else { &image.tags };
                for name in names {
                    println!(
                        "{name:<60} {:<14} {:>10}",
                        id.get(..12).unwrap_or(id),
                        indicatif::DecimalBytes(image.size_bytes).to_string()
                    );
                }
            }
        }
        Image::Rm { reference, cluster } => {
            Client::of_images(&Paths::of(&cluster.name)?).remove_image(&reference)?;
            println!("Removed {reference}");
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

fn tell(done: &str, images: &[ImageLine]) {
    for image in images {
        let name = image.tags.first().or(image.digests.first()).unwrap_or(&image.id);
        println!("{done} {name}");
    }
}

/// Shows a bar per layer while `work` runs, when standard error is a terminal.
fn with_bars<T>(
    work: impl FnOnce(&mut dyn FnMut(&Progress)) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let bars = indicatif::MultiProgress::new();
    let mut layers: Vec<(String, indicatif::ProgressBar)> = Vec::new();
    let answer = work(&mut |progress| {
        let Progress::Layer { digest, done_bytes, total_bytes } = progress else { return };
        let known = layers.iter().position(|(known, _)| known == digest);
        let index = known.unwrap_or_else(|| {
            let bar = bars.add(indicatif::ProgressBar::new(*total_bytes));
            if let Ok(style) = indicatif::ProgressStyle::with_template(
                "{prefix} {bar:32} {decimal_bytes:>10}/{decimal_total_bytes}",
            ) {
                bar.set_style(style);
            }
            let short = digest.trim_start_matches("sha256:");
            bar.set_prefix(short.get(..12).unwrap_or(short).to_owned());
            layers.push((digest.clone(), bar));
            layers.len() - 1
        });
        layers[index].1.set_position(*done_bytes);
    });
    for (_, bar) in &layers {
        bar.finish_and_clear();
    }
    answer
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
