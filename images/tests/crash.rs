//! The process is killed at any moment; what it had reported done is there, and nothing else is left.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{Layer, docker_archive, open};

const ROOT: &str = "IMAGES_TEST_CRASH_ROOT";
const ROUNDS: u32 = 40;

fn layer(name: &str) -> Vec<u8> {
    let text = name.repeat(500);
    (0..20)
        .fold(Layer::new(), |layer, i| layer.file(&format!("d{i}/{name}"), text.as_bytes()))
        .finish()
}

/// The victim: loads and removes images until it is killed, and says each time what it has done.
#[tokio::test]
async fn victim() {
    let Some(root) = std::env::var_os(ROOT) else {
        return;
    };
    let store = open(Path::new(&root));
    for turn in 0_u32.. {
        let name = format!("image{}", turn % 7);
        let archive = docker_archive(&name, &[layer("base"), layer(&name)]);
        println!("loading {name}");
        store.load(archive.as_slice()).await.unwrap();
        println!("loaded {name}");
        store.snapshot(&name, "c").unwrap();
        store.remove_snapshot("c").unwrap();
        let other = format!("image{}", (turn + 3) % 7);
        if store.get(&other).is_some() {
            println!("removing {other}");
            store.remove(&other).unwrap();
            println!("removed {other}");
        }
    }
}

#[tokio::test]
async fn survives_being_killed_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(ROOT, &root)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        // The moment of death is the subject here, not a condition to wait for.
        let delay = Duration::from_micros(u64::from(round) * 7919 % 60_000 + 15_000);
        std::thread::sleep(delay);
        child.kill().unwrap();
        let lines: Vec<String> =
            BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
        child.wait().unwrap();
        acknowledged += check(&root, &lines);
    }
    assert!(acknowledged > ROUNDS as usize / 4, "the victims hardly lived: {acknowledged}");
}

/// Opens the store and compares it with what the victim said; returns how many steps it had finished.
fn check(root: &Path, lines: &[String]) -> usize {
    let store = open(root);
    // Whether the container's snapshot was made when death came is not told; it must be good for removal.
    store.remove_snapshot("c").unwrap();
    let mut present = std::collections::HashMap::new();
    for line in lines {
        match line.split_once(' ') {
            Some(("loading" | "removing", name)) => present.remove(name),
            Some(("loaded", name)) => present.insert(name, true),
            Some(("removed", name)) => present.insert(name, false),
            _ => None,
        };
    }
    for (name, expected) in &present {
        assert_eq!(store.get(name).is_some(), *expected, "{name} in {lines:?}");
    }
    for image in store.list() {
        let name = image.tags[0].rsplit('/').next().unwrap().trim_end_matches(":latest");
        let lower = store.snapshot(&image.id, "check").unwrap().lower();
        for (path, content) in [(&lower[0], name), (&lower[1], "base")] {
            for i in 0..20 {
                let text = fs::read_to_string(path.join(format!("d{i}/{content}"))).unwrap();
                assert_eq!(text, content.repeat(500));
            }
        }
        store.remove_snapshot("check").unwrap();
    }
    let count = |name: &str| fs::read_dir(root.join(name)).unwrap().count();
    let layers: std::collections::HashSet<_> = store
        .list()
        .into_iter()
        .flat_map(|image| image.layers)
        .map(|layer| layer.diff_id.to_string())
        .collect();
    assert_eq!(count("layers"), layers.len());
    assert_eq!(count("blobs/sha256"), 2 * store.list().len());
    assert_eq!((count("tmp"), count("snapshots")), (0, 0), "{lines:?}");
    let hidden = fs::read_dir(root)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(hidden.count(), 0);
    lines.iter().filter(|line| line.starts_with("loaded") || line.starts_with("removed")).count()
}
