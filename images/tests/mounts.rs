//! Overlays as a container sees them. Each test runs itself again in a user and mount namespace.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use images::{Snapshot, Store};
use support::{Layer, docker_archive, load, open, skip};

const INSIDE: &str = "IMAGES_TEST_INSIDE";

/// True inside. Outside, runs the test `name` inside and returns false.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let probe =
        Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        skip("no user namespaces, or no unshare(1)");
        return false;
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{complaint}");
    false
}

struct Mounted {
    directory: tempfile::TempDir,
    store: Store,
    target: PathBuf,
}

/// Loads an image of `layers` and mounts a snapshot of it.
async fn mounted(layers: &[Vec<u8>]) -> Mounted {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("store"));
    let image = load(&store, layers).await.unwrap();
    let target = directory.path().join("mnt");
    fs::create_dir(&target).unwrap();
    store.snapshot(&image.id, "c1").unwrap().mount(&target).unwrap();
    Mounted { directory, store, target }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Snapshot::unmount(&self.target).unwrap();
    }
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn layers_hide_and_show() {
    if !inside("layers_hide_and_show") {
        return;
    }
    let bottom = Layer::new()
        .directory("d/", 0o755)
        .file("d/a", b"1")
        .file("d/b", b"1")
        .directory("o/", 0o755)
        .file("o/old", b"1")
        .directory("r/", 0o755)
        .file("r/old", b"1")
        .file("f", b"1");
    let top = Layer::new()
        .whiteout("d/.wh.a")
        .file("d/c", b"2")
        .directory("o/", 0o755)
        .whiteout("o/.wh..wh..opq")
        .file("o/new", b"2")
        .whiteout(".wh.r")
        .directory("r/", 0o755)
        .file("r/new", b"2")
        .whiteout(".wh.f");
    let mounted = mounted(&[bottom.finish(), top.finish()]).await;
    assert_eq!(names(&mounted.target), ["d", "o", "r"]);
    assert_eq!(names(&mounted.target.join("d")), ["b", "c"]);
    assert_eq!(names(&mounted.target.join("o")), ["new"]);
    assert_eq!(names(&mounted.target.join("r")), ["new"]);
    // Containers write to their own layer alone.
    fs::write(mounted.target.join("d/b"), b"changed").unwrap();
    fs::remove_file(mounted.target.join("d/c")).unwrap();
    fs::rename(mounted.target.join("d/b"), mounted.target.join("moved")).unwrap();
    let other = mounted.directory.path().join("other");
    fs::create_dir(&other).unwrap();
    mounted.store.snapshot("test/image:1", "c2").unwrap().mount(&other).unwrap();
    assert_eq!(fs::read(other.join("d/b")).unwrap(), b"1");
    assert_eq!(fs::read(other.join("d/c")).unwrap(), b"2");
    Snapshot::unmount(&other).unwrap();
    mounted.store.remove_snapshot("c2").unwrap();
}

#[tokio::test]
async fn directories_a_layer_does_not_name_keep_their_attributes() {
    if !inside("directories_a_layer_does_not_name_keep_their_attributes") {
        return;
    }
    let bottom = Layer::new()
        .directory("./", 0o751)
        .directory("tmp/", 0o1777)
        .directory("a/", 0o700)
        .directory("a/b/", 0o710)
        .directory("gone/", 0o700)
        .directory("opaque/", 0o700)
        .directory("opaque/in/", 0o700);
    let middle = Layer::new()
        .whiteout(".wh.gone")
        .file("tmp/x", b"")
        .file("a/b/c/y", b"")
        .directory("opaque/", 0o705)
        .whiteout("opaque/.wh..wh..opq")
        .file("opaque/in/z", b"");
    let top = Layer::new().file("gone/z", b"").file("a/b/w", b"");
    let mounted = mounted(&[bottom.finish(), middle.finish(), top.finish()]).await;
    let mode =
        |path: &str| fs::metadata(mounted.target.join(path)).unwrap().permissions().mode() & 0o7777;
    let modes: Vec<String> = ["", "tmp", "a", "a/b", "a/b/c", "gone", "opaque", "opaque/in"]
        .iter()
        .map(|path| format!("{path}:{:o}", mode(path)))
        .collect();
    assert_eq!(
        modes,
        [
            ":751",
            "tmp:1777",
            "a:700",
            "a/b:710",
            "a/b/c:755",
            "gone:755",
            "opaque:705",
            "opaque/in:755"
        ]
    );
    assert_eq!(fs::metadata(mounted.target.join("tmp")).unwrap().mtime(), 1_700_000_000);
    assert_eq!(names(&mounted.target.join("a/b")), ["c", "w"]);
}

#[tokio::test]
async fn many_layers_fit() {
    if !inside("many_layers_fit") {
        return;
    }
    let layers: Vec<Vec<u8>> =
        (0..300).map(|i| Layer::new().file(&format!("f{i:03}"), b"").finish()).collect();
    let mounted = mounted(&layers).await;
    assert_eq!(names(&mounted.target).len(), 300);
}

#[tokio::test]
async fn an_image_without_layers_is_an_empty_root() {
    if !inside("an_image_without_layers_is_an_empty_root") {
        return;
    }
    let mounted = mounted(&[]).await;
    assert!(names(&mounted.target).is_empty());
    fs::write(mounted.target.join("x"), b"").unwrap();
}

#[tokio::test]
async fn a_snapshot_is_found_again_and_mounts_again() {
    if !inside("a_snapshot_is_found_again_and_mounts_again") {
        return;
    }
    let layer = Layer::new().file("f", b"1").finish();
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("mnt");
    fs::create_dir(&target).unwrap();
    let root = directory.path().join("store");
    {
        let store = open(&root);
        let archive = docker_archive("a", &[layer]);
        let image = store.load(archive.as_slice()).await.unwrap().remove(0);
        store.snapshot(&image.id, "c").unwrap().mount(&target).unwrap();
        fs::write(target.join("written"), b"w").unwrap();
        // Gone without unmounting cleanly, as after a power cut.
        Snapshot::unmount(&target).unwrap();
        fs::create_dir_all(root.join("snapshots/c/work/work/incompat/volatile")).unwrap();
    }
    let store = open(&root);
    let snapshot = store.existing_snapshot("c").unwrap().unwrap();
    snapshot.mount(&target).unwrap();
    assert_eq!(names(&target), ["f", "written"]);
    Snapshot::unmount(&target).unwrap();
    snapshot.mount_read_only(&target).unwrap();
    assert!(fs::write(target.join("more"), b"").is_err());
    Snapshot::unmount(&target).unwrap();
    Snapshot::unmount(&target).unwrap();
    store.remove_snapshot("c").unwrap();
    assert!(store.existing_snapshot("c").unwrap().is_none());
    assert_eq!(names(&root.join("snapshots")), Vec::<String>::new());
}

#[tokio::test]
async fn a_full_disk_is_told() {
    if !inside("a_full_disk_is_told") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(target).status();
    assert!(mounted.unwrap().success());
    let big = Layer::new().file("big", &vec![7; 3 << 20]).finish();
    // Compressed it fits, so that the layer fills the disk; plain the archive does.
    for archive in
        [support::gzip(&docker_archive("a", &[support::gzip(&big)])), docker_archive("a", &[big])]
    {
        let store = open(&target.join("store"));
        let error = store.load(archive.as_slice()).await.unwrap_err();
        assert_eq!(error.kind(), images::ErrorKind::DiskFull, "{error}");
        assert!(error.to_string().contains("no space left"), "{error}");
        assert_eq!(names(&target.join("store/tmp")), Vec::<String>::new());
        let small = Layer::new().file("small", b"s").finish();
        load(&store, &[small]).await.unwrap();
    }
    Command::new("umount").arg(target).status().unwrap();
}
