//! Images made by hand: layers as tar entries, archives and registries around them.
#![allow(dead_code, reason = "each test uses its part")]

pub mod registry;

use std::io::Write;
use std::path::Path;

use images::{Config, Digest, Image, Ownership, Store};
use tar::{EntryType, Header};

/// A layer's archive under construction.
#[derive(Default)]
pub struct Layer(Vec<u8>);

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn header(path: &[u8], kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len().min(100)]
            .copy_from_slice(&path[..path.len().min(100)]);
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size);
        header.set_cksum();
        header
    }

    /// Any entry, its name exactly as given.
    pub fn entry(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        let header = Self::header(path.as_bytes(), EntryType::Regular, data.len() as u64);
        self.entry(header, data)
    }

    pub fn directory(self, path: &str, mode: u32) -> Self {
        let mut header = Self::header(path.as_bytes(), EntryType::Directory, 0);
        header.set_mode(mode);
        self.entry(header, b"")
    }

    pub fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = Self::header(path.as_bytes(), kind, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.entry(header, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, path, target)
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Link, path, target)
    }

    pub fn whiteout(self, path: &str) -> Self {
        self.file(path, b"")
    }

    /// Pax records for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(body, "{length} {key}=").unwrap();
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let header = Self::header(b"pax", EntryType::XHeader, body.len() as u64);
        self.entry(header, &body)
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// The configuration of an image with these uncompressed layers.
pub fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// What `docker save` writes.
pub fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config(layers);
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let mut archive = Layer::new();
    let mut paths = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let path = format!("{index}/layer.tar");
        archive = archive.file(&path, layer);
        paths.push(path);
    }
    let table = serde_json::json!([{"Config": config_name, "RepoTags": [name], "Layers": paths}]);
    archive.file(&config_name, &config).file("manifest.json", table.to_string().as_bytes()).finish()
}

/// A store in a fresh directory. The directory outlives the test's use of it.
pub fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    (directory, store)
}

pub fn open(root: &Path) -> Store {
    Store::open(settings(root)).unwrap()
}

pub fn settings(root: &Path) -> Config {
    let mut config = Config::new(root);
    config.auth_files = Vec::new();
    config.ownership = Ownership::Squash;
    config
}

/// Loads one image of these layers.
pub async fn load(store: &Store, layers: &[Vec<u8>]) -> Result<Image, images::Error> {
    let archive = docker_archive("test/image:1", layers);
    Ok(store.load(archive.as_slice()).await?.remove(0))
}

/// Overlay directories of the image, topmost first.
pub fn lower(store: &Store, image: &Image) -> Vec<std::path::PathBuf> {
    store.snapshot(&image.id, "look").unwrap().lower()
}

/// A feature of the kernel is missing: told on a person's machine, an error in CI.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "CI must be able to run this: {why}");
    eprintln!("SKIPPED: {why}");
}
