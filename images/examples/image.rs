//! The store from a shell, for trials: `image ROOT load|pull|save|ls|rm|tag|check|prune|mount …`.
//!
//! Run it in a user and mount namespace, e.g. `unshare -rm --map-auto`.

use std::path::Path;
use std::process::ExitCode;

use images::{Config, Error, PullOptions, Snapshot, Store};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[&str]) -> Result<(), Error> {
    let [root, rest @ ..] = arguments else {
        eprintln!("usage: image ROOT load|pull|save|ls|rm|tag|check|prune|mount …");
        return Ok(());
    };
    let mut config = Config::new(root);
    config.registries = std::env::var_os("REGISTRIES").map(Into::into);
    let store = Store::open(config)?;
    match rest {
        ["load", "-"] => print(store.load(tokio::io::stdin()).await?),
        ["load", path] => print(store.load_path(Path::new(path)).await?),
        ["pull", name] => {
            let start = std::time::Instant::now();
            let image = store.pull(name, PullOptions::default()).await?;
            eprintln!("pulled and unpacked in {:.2?}", start.elapsed());
            print(vec![image]);
        }
        ["save", path, names @ ..] => {
            let file = std::fs::File::create(path).expect("a writable path");
            store.save(names, std::io::BufWriter::new(file))?;
        }
        ["check"] => println!("{:#?}", store.check(false)?),
        ["prune"] => println!("{:#?}", store.prune(true)?),
        ["ls"] => print(store.list()),
        ["rm", name] => println!("{} bytes freed", store.remove(name)?),
        ["tag", name, reference] => store.tag(name, reference)?,
        ["mount", name, key, target] => store.snapshot(name, key)?.mount(Path::new(target))?,
        ["unmount", key, target] => {
            Snapshot::unmount(Path::new(target))?;
            store.remove_snapshot(key)?;
        }
        _ => eprintln!("unknown command"),
    }
    Ok(())
}

fn print(images: Vec<images::Image>) {
    for image in images {
        println!("{} {} {:?} {:?}", image.id, image.size_bytes, image.tags, image.digests);
    }
}
