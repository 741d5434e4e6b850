//! Archives of every kind, and what the store does with the images in them.

mod support;

use std::fs;

use images::{Digest, ErrorKind};
use support::{Layer, config, docker_archive, gzip, load, open, store, zstd};

/// An OCI layout as files: index, manifests, blobs.
struct Layout(Vec<(String, Vec<u8>)>);

impl Layout {
    fn new() -> Self {
        Self(vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())])
    }

    fn blob(&mut self, bytes: Vec<u8>) -> serde_json::Value {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        self.0.push((format!("blobs/sha256/{}", digest.hex()), bytes));
        serde_json::json!({"digest": digest, "size": size})
    }

    fn image(&mut self, layer: &[u8], packed: Vec<u8>, media_type: &str) -> serde_json::Value {
        let mut config = self.blob(config(&[layer.to_vec()]));
        config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
        let mut layer = self.blob(packed);
        layer["mediaType"] = media_type.into();
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        self.blob(manifest.to_string().into_bytes())
    }

    fn index(&mut self, manifests: Vec<serde_json::Value>) {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        self.0.push(("index.json".to_owned(), index.to_string().into_bytes()));
    }

    fn archive(&self) -> Vec<u8> {
        self.0
            .iter()
            .fold(Layer::new(), |archive, (path, bytes)| archive.file(path, bytes))
            .finish()
    }
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn layer(text: &str) -> Vec<u8> {
    Layer::new().file("hello", text.as_bytes()).finish()
}

/// An archive with an index of three platforms, an attestation, and a name.
fn multi_platform() -> Vec<u8> {
    let mut layout = Layout::new();
    let mut entries = Vec::new();
    for (architecture, variant) in [("arm64", Some("v8")), ("amd64", None), ("386", None)] {
        let content = layer(architecture);
        let mut entry = layout.image(&content, zstd(&content), ZSTD);
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        if let Some(variant) = variant {
            entry["platform"]["variant"] = variant.into();
        }
        entries.push(entry);
    }
    let mut attestation =
        layout.image(&layer("attested"), layer("attested"), "application/vnd.in-toto+json");
    attestation["platform"] = serde_json::json!({"os": "unknown", "architecture": "unknown"});
    attestation["annotations"] =
        serde_json::json!({"vnd.docker.reference.type": "attestation-manifest"});
    entries.push(attestation);
    let inner = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    });
    let mut outer = layout.blob(inner.to_string().into_bytes());
    outer["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    outer["annotations"] = serde_json::json!({
        "io.containerd.image.name": "quay.io/team/multi:v2",
        "org.opencontainers.image.ref.name": "v2",
    });
    layout.index(vec![outer]);
    layout.archive()
}

#[tokio::test]
async fn loads_docker_archives_of_any_compression() {
    let plain = docker_archive("busybox", &[layer("one"), layer("two")]);
    for bytes in [
        plain.clone(),
        gzip(&plain),
        zstd(&plain),
        [gzip(&plain[..700]), gzip(&plain[700..])].concat(),
    ] {
        let (_directory, store) = store();
        let image = store.load(bytes.as_slice()).await.unwrap().remove(0);
        assert_eq!(image.tags, ["docker.io/library/busybox:latest"]);
        assert_eq!(image.layers.len(), 2);
        let cmd = image.config.config().as_ref().and_then(|config| config.cmd().clone());
        assert_eq!(cmd.unwrap(), ["/bin/sh"]);
    }
}

#[tokio::test]
async fn loads_the_platform_of_this_machine() {
    let (_directory, store) = store();
    let images = store.load(multi_platform().as_slice()).await.unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].tags, ["quay.io/team/multi:v2"]);
    assert!(images[0].digests[0].starts_with("quay.io/team/multi@sha256:"));
    let lower = store.snapshot("quay.io/team/multi:v2", "c").unwrap().lower();
    assert_eq!(fs::read_to_string(lower[0].join("hello")).unwrap(), "amd64");
}

#[tokio::test]
async fn loads_layout_directories_and_files() {
    let (_directory, store) = store();
    let mut layout = Layout::new();
    let content = layer("dir");
    let mut entry = layout.image(&content, gzip(&content), GZIP);
    entry["annotations"] =
        serde_json::json!({"org.opencontainers.image.ref.name": "localhost/app:1"});
    layout.index(vec![entry]);
    let directory = tempfile::tempdir().unwrap();
    for (path, bytes) in &layout.0 {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let loaded = store.load_path(directory.path()).await.unwrap();
    assert_eq!(loaded[0].tags, ["localhost/app:1"]);
    let file = directory.path().join("archive.tar");
    for bytes in [layout.archive(), gzip(&layout.archive())] {
        fs::write(&file, bytes).unwrap();
        assert_eq!(store.load_path(&file).await.unwrap()[0].id, loaded[0].id);
    }
    assert_eq!(store.list().len(), 1);
}

#[tokio::test]
async fn a_damaged_archive_is_told() {
    let content = layer("x");
    let mut wrong_layer = Layout::new();
    let entry = wrong_layer.image(&content, gzip(&layer("y")), GZIP);
    wrong_layer.index(vec![entry]);
    let mut missing = Layout::new();
    let entry = missing.image(&content, gzip(&content), GZIP);
    missing.index(vec![entry]);
    missing.0.retain(|(path, bytes)| !path.starts_with("blobs") || bytes[0] == b'{');
    let mut swapped = Layout::new();
    let entry = swapped.image(&content, gzip(&content), GZIP);
    swapped.index(vec![entry]);
    for (path, bytes) in &mut swapped.0 {
        if path.starts_with("blobs") && bytes[0] != b'{' {
            *bytes = gzip(&layer("z"));
        }
    }
    let docker = docker_archive("a", &[content]);
    for (bytes, want) in [
        (wrong_layer.archive(), "the image says"),
        (missing.archive(), "missing"),
        (swapped.archive(), "digest"),
        (docker[..docker.len() / 2].to_vec(), "corrupt"),
        (gzip(&docker)[..400].to_vec(), "corrupt"),
        (b"not an archive at all".repeat(100), "checksum"),
        (Layer::new().file("readme", b"").finish(), "neither index.json nor manifest.json"),
        (Vec::new(), "neither"),
        (b"BZh91AY".repeat(100), "bzip2"),
    ] {
        let (_directory, store) = store();
        let error = store.load(bytes.as_slice()).await.unwrap_err();
        assert!(error.to_string().contains(want), "want {want}: {error}");
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error}");
        assert!(store.list().is_empty());
    }
}

#[tokio::test]
async fn images_live_across_restarts_and_go_when_removed() {
    let (directory, store) = store();
    let shared = layer("shared");
    let one = load(&store, &[shared.clone(), layer("one")]).await.unwrap();
    let archive = docker_archive("test/other", &[shared, layer("two")]);
    let two = store.load(archive.as_slice()).await.unwrap().remove(0);
    assert_eq!(one.layers[0], two.layers[0]);
    store.tag(&one.id, "again:2").unwrap();
    drop(store);

    let store = open(directory.path());
    let layers = || fs::read_dir(directory.path().join("layers")).unwrap().count();
    assert_eq!((store.list().len(), layers()), (2, 3));
    for name in ["test/image:1", "again:2", &one.id, &one.id[7..], &one.id[7..19]] {
        assert_eq!(store.get(name).unwrap().id, one.id, "{name}");
    }
    assert!(store.get("test/image:2").is_none());
    store.snapshot(&one.id, "container").unwrap();
    store.remove("test/image:1").unwrap();
    assert!(store.get(&one.id).is_some(), "it has another name");
    store.remove("again:2").unwrap();
    assert!(store.get(&one.id).is_none());
    assert_eq!(layers(), 3, "a container uses them");
    store.remove_snapshot("container").unwrap();
    assert_eq!(layers(), 2);
    store.remove(&two.id).unwrap();
    assert_eq!(layers(), 0);
    assert_eq!(store.remove("absent").unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn one_process_at_a_time() {
    let (directory, store) = store();
    let error = images::Store::open(images::Config::new(directory.path())).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InUse);
    drop(store);
}

#[tokio::test]
async fn a_broken_catalog_is_told_with_the_remedy() {
    let (directory, store) = store();
    drop(store);
    fs::write(directory.path().join("catalog.json"), "{\"version\":1,").unwrap();
    let error = images::Store::open(images::Config::new(directory.path())).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("remove the file"), "{error}");
}

#[tokio::test]
async fn an_image_that_lost_something_is_dropped() {
    let (directory, store) = store();
    load(&store, &[layer("one")]).await.unwrap();
    drop(store);
    let layers = directory.path().join("layers");
    fs::remove_dir_all(layers.join("0")).unwrap();
    let store = open(directory.path());
    assert!(store.list().is_empty());
    let image = load(&store, &[layer("one")]).await.unwrap();
    drop(store);
    // A power cut before the layers were on the disk: written during another boot, and not synced.
    let catalog = directory.path().join("catalog.json");
    let text = fs::read_to_string(&catalog).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["images"][&image.id]["unsynced_boot"] = "another".into();
    fs::write(&catalog, value.to_string()).unwrap();
    let store = open(directory.path());
    assert!(store.list().is_empty());
    assert_eq!(fs::read_dir(layers).unwrap().count(), 0);
}

#[tokio::test]
async fn a_saved_image_is_the_same_image() {
    let (_directory, store) = store();
    let bottom = Layer::new()
        .directory("d/", 0o700)
        .file("d/long", &b"content ".repeat(5000))
        .hard_link("d/hard", "d/long")
        .symlink("link", "d")
        .file("link/through", b"a parent that is a link")
        .pax(&[("path", "deep/".repeat(40).as_bytes()), ("SCHILY.xattr.user.a", b"\0\n")])
        .directory("x/", 0o755)
        .file("empty", b"")
        .finish();
    let top = Layer::new().whiteout("d/.wh.long").file("d/.wh..wh..opq", b"odd content").finish();
    let image = load(&store, &[bottom, top]).await.unwrap();
    store.tag(&image.id, "quay.io/other:2").unwrap();
    let mut saved = Vec::new();
    store.save(&["test/image:1"], &mut saved).unwrap();
    let mut again = Vec::new();
    store.save(&[&image.id], &mut again).unwrap();
    assert_eq!(saved, again);

    let (_directory, other) = support::store();
    let loaded = other.load(saved.as_slice()).await.unwrap();
    assert_eq!((loaded.len(), &loaded[0].id), (1, &image.id));
    let tags = ["docker.io/test/image:1", "quay.io/other:2"];
    assert_eq!(loaded[0].tags, tags);
    assert_eq!(other.get(&image.id).unwrap().tags, tags);
    other.tag(&image.id, "quay.io/third:3").unwrap();
    let again = other.load(saved.as_slice()).await.unwrap();
    assert_eq!(again[0].tags, tags, "only the archive's names are told");
    let checked = other.check(false).unwrap();
    assert_eq!((checked.layers, checked.damaged.len(), checked.uncheckable.len()), (2, 0, 0));
}

#[tokio::test]
async fn damage_is_found_and_repaired() {
    let (directory, store) = store();
    let good = load(&store, &[layer("good")]).await.unwrap();
    let archive = docker_archive(
        "bad",
        &[layer("good"), layer("bad"), Layer::new().file("x", b"1").file("x", b"2").finish()],
    );
    let bad = store.load(archive.as_slice()).await.unwrap().remove(0);
    let checked = store.check(true).unwrap();
    assert_eq!((checked.images, checked.layers, checked.damaged.len()), (2, 3, 0));
    assert_eq!(checked.uncheckable, [bad.layers[2].diff_id.clone()]);
    let error = store.save(&["bad"], Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");

    let file = fs::read_dir(directory.path().join("layers")).unwrap().find_map(|entry| {
        let path = entry.unwrap().path().join("fs/hello");
        fs::read(&path).is_ok_and(|text| text == b"bad").then_some(path)
    });
    fs::write(file.unwrap(), "BAD").unwrap();
    let checked = store.check(true).unwrap();
    assert_eq!(checked.damaged.len(), 1);
    assert_eq!(checked.damaged[0].tags, ["docker.io/library/bad:latest"]);
    assert!(store.get("bad").is_none());
    assert!(store.get(&good.id).is_some());
}

#[tokio::test]
async fn prune_leaves_what_is_used() {
    let (_directory, store) = store();
    for name in ["used", "named"] {
        store.load(docker_archive(name, &[layer(name)]).as_slice()).await.unwrap();
    }
    // Its name goes to another image.
    let old =
        store.load(docker_archive("moved", &[layer("old")]).as_slice()).await.unwrap().remove(0);
    store.load(docker_archive("moved", &[layer("new")]).as_slice()).await.unwrap();
    store.snapshot("used", "c").unwrap();
    assert_eq!(store.prune(false).unwrap().images, [old.id]);
    assert_eq!(store.prune(false).unwrap().images.len(), 0);
    assert_eq!(store.prune(true).unwrap().images.len(), 2);
    assert_eq!(store.list()[0].tags, ["docker.io/library/used:latest"]);
}
