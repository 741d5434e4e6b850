//! Layers good and hostile, through the same door as any archive.

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use images::{ErrorKind, Limits, Store};
use support::{Layer, load, lower, settings, store};
use tar::EntryType;

/// Unpacks one layer and returns its directory.
async fn unpack(layer: Layer) -> (tempfile::TempDir, std::path::PathBuf) {
    let (directory, store) = store();
    let image = load(&store, &[layer.finish()]).await.unwrap();
    let path = lower(&store, &image).remove(0);
    (directory, path)
}

async fn refused(layer: Layer) -> (ErrorKind, String) {
    let (directory, store) = store();
    let error = load(&store, &[layer.finish()]).await.unwrap_err();
    assert!(store.list().is_empty());
    drop(store);
    let left: Vec<_> = fs::read_dir(directory.path().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "leftovers {left:?}");
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn keeps_what_a_layer_says() {
    let mut setuid = Layer::header(b"bin/su", EntryType::Regular, 3);
    setuid.set_mode(0o4755);
    let layer = Layer::new()
        .directory("bin/", 0o700)
        .entry(setuid, b"abc")
        .hard_link("bin/su2", "bin/su")
        .symlink("bin/sh", "/bin/su")
        .entry(Layer::header(b"fifo", EntryType::Fifo, 0), b"")
        .pax(&[("path", "deep/".repeat(40).as_bytes()), ("mtime", b"1600000000.5")])
        .directory("x/", 0o755)
        .pax(&[("SCHILY.xattr.user.key", b"va\0lue")])
        .file("attributed", b"x")
        .file("./dotted//name", b"y");
    let (_directory, root) = unpack(layer).await;
    let su = fs::metadata(root.join("bin/su")).unwrap();
    assert_eq!(su.permissions().mode() & 0o7777, 0o4755);
    assert_eq!(su.mtime(), 1_700_000_000);
    assert_eq!(su.nlink(), 2);
    assert_eq!(fs::metadata(root.join("bin")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_link(root.join("bin/sh")).unwrap().to_str(), Some("/bin/su"));
    assert!(fs::symlink_metadata(root.join("fifo")).unwrap().file_type().is_fifo());
    let deep = fs::metadata(root.join("deep/".repeat(40))).unwrap();
    assert_eq!((deep.mtime(), deep.mtime_nsec()), (1_600_000_000, 500_000_000));
    let value = xattr::get(root.join("attributed"), "user.key").unwrap();
    assert_eq!(value.as_deref(), Some(b"va\0lue".as_slice()));
    assert_eq!(fs::read(root.join("dotted/name")).unwrap(), b"y");
}

#[tokio::test]
async fn removals_become_overlay_marks() {
    let layer = Layer::new()
        .file("kept", b"")
        .whiteout("gone/.wh.file")
        .directory("opaque/", 0o755)
        .whiteout("opaque/.wh..wh..opq")
        .file("opaque/new", b"n")
        // Removed below and made anew here, in either order.
        .whiteout(".wh.anew")
        .directory("anew/", 0o755)
        .directory("renew/", 0o755)
        .whiteout(".wh.renew")
        .whiteout(".wh.kept")
        .whiteout(".wh.fileanew")
        .file("fileanew", b"f")
        .whiteout(".wh..wh.plnk");
    let (_directory, root) = unpack(layer).await;
    let gone = fs::symlink_metadata(root.join("gone/file")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for directory in ["opaque", "anew", "renew"] {
        let mark = xattr::get(root.join(directory), "user.overlay.opaque").unwrap();
        assert_eq!(mark.as_deref(), Some(b"y".as_slice()), "{directory}");
    }
    assert!(root.join("kept").is_file());
    assert_eq!(fs::read(root.join("fileanew")).unwrap(), b"f");
    let names: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with(".wh.")), "{names:?}");
}

#[tokio::test]
async fn a_later_entry_replaces_an_earlier_one() {
    let layer = Layer::new()
        .directory("a/", 0o755)
        .file("a/b", b"1")
        .file("a", b"file now")
        .file("c", b"1")
        .directory("c/", 0o750)
        .symlink("d", "nowhere")
        .file("d", b"not through the link")
        .symlink("e", "nowhere")
        .file("e/f", b"a directory instead of the dangling link");
    let (_directory, root) = unpack(layer).await;
    assert_eq!(fs::read(root.join("a")).unwrap(), b"file now");
    assert_eq!(fs::metadata(root.join("c")).unwrap().permissions().mode() & 0o777, 0o750);
    assert_eq!(fs::read(root.join("d")).unwrap(), b"not through the link");
    assert!(root.join("e/f").is_file());
    assert!(!root.join("nowhere").exists());
}

#[tokio::test]
async fn links_within_the_layer_are_followed_for_parents() {
    let layer =
        Layer::new().directory("usr/lib/", 0o755).symlink("lib", "usr/lib").file("lib/x", b"1");
    let (_directory, root) = unpack(layer).await;
    assert!(root.join("usr/lib/x").is_file());
    assert!(fs::symlink_metadata(root.join("lib")).unwrap().file_type().is_symlink());
}

#[tokio::test]
async fn hostile_layers_are_refused() {
    let long = "a/".repeat(2100);
    let cases: Vec<(&str, Layer, &str)> = vec![
        ("absolute", Layer::new().file("/etc/passwd", b""), "absolute"),
        ("dotdot", Layer::new().file("a/../../x", b""), "\"..\""),
        ("dotdot whiteout", Layer::new().whiteout("../.wh.x"), "\"..\""),
        ("whiteout of dotdot", Layer::new().whiteout("a/.wh..."), "whiteout"),
        ("whiteout of nothing", Layer::new().whiteout("a/.wh."), "whiteout"),
        ("link out", Layer::new().symlink("l", "/etc").file("l/x", b""), "symbolic link"),
        ("link up", Layer::new().symlink("l", "../../..").file("l/x", b""), "symbolic link"),
        (
            "link chain",
            Layer::new().symlink("a", "b").symlink("b", "/tmp").whiteout("a/.wh.x"),
            "symbolic link",
        ),
        ("link loop", Layer::new().symlink("a", "a").file("a/x", b""), "symbolic links"),
        (
            "hard link through a link",
            Layer::new().symlink("l", "/etc").hard_link("x", "l/passwd"),
            "symbolic link",
        ),
        ("hard link out", Layer::new().hard_link("x", "../../etc/passwd"), "\"..\""),
        ("hard link to nothing", Layer::new().hard_link("x", "/etc/passwd"), "not in this layer"),
        (
            "hard link to a directory",
            Layer::new().directory("d/", 0o755).hard_link("x", "d"),
            "not a file",
        ),
        ("long path", Layer::new().pax(&[("path", long.as_bytes())]).file("x", b""), "4200 bytes"),
        ("long name", Layer::new().pax(&[("path", &[b'a'; 256])]).file("x", b""), "255"),
        ("NUL", Layer::new().pax(&[("path", b"a\0b")]).file("x", b""), "pax"),
        (
            "xattrs",
            Layer::new().pax(&[("SCHILY.xattr.user.a", &[b'v'; 200_000])]).file("x", b""),
            "extended attributes",
        ),
        (
            "huge extension",
            Layer::new().entry(Layer::header(b"x", EntryType::XHeader, 1 << 40), b""),
            "extension header",
        ),
        (
            "huge name",
            Layer::new().entry(Layer::header(b"x", EntryType::GNULongName, 1 << 40), b""),
            "extension header",
        ),
        (
            "cut",
            Layer::new().entry(Layer::header(b"x", EntryType::Regular, 1 << 20), b""),
            "middle",
        ),
        ("odd type", Layer::new().entry(Layer::header(b"x", EntryType::new(b'Z'), 0), b""), "type"),
        ("not a tar", Layer::new().raw(&[7; 2048]), "checksum"),
    ];
    for (name, layer, want) in cases {
        let (kind, message) = refused(layer).await;
        assert!(message.contains(want), "{name}: {message}");
        assert_ne!(kind, ErrorKind::Io, "{name}: {message}");
    }
}

#[tokio::test]
async fn bounds_hold() {
    let zeros = Layer::header(b"bomb", EntryType::Regular, 8 << 20);
    let bomb = Layer::new().entry(zeros, &vec![0; 8 << 20]).finish();
    let many = (0..50).fold(Layer::new(), |layer, i| layer.file(&format!("f{i}"), b"")).finish();
    let trailing = Layer::new().finish().into_iter().chain(vec![0; 8 << 20]).collect();
    for (limits, layer, want) in [
        (Limits { layer_bytes: 1 << 20, ..Limits::default() }, &bomb, "1048576"),
        (Limits { layer_bytes: 1 << 20, ..Limits::default() }, &trailing, "1048576"),
        (Limits { layer_entries: 40, ..Limits::default() }, &many, "40 entries"),
        (Limits { layers: 0, ..Limits::default() }, &many, "1 layers"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = settings(directory.path());
        config.limits = limits;
        let store = Store::open(config).unwrap();
        let error = load(&store, std::slice::from_ref(layer)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[tokio::test]
async fn overlay_marks_of_the_archive_are_not_taken() {
    let layer = Layer::new()
        .pax(&[
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
        ])
        .directory("d/", 0o755)
        .entry(Layer::header(b"d/null", EntryType::Char, 0), b"");
    let (_directory, root) = unpack(layer).await;
    let names: Vec<_> = xattr::list(root.join("d")).unwrap().collect();
    assert!(names.is_empty(), "{names:?}");
    assert!(!root.join("d/null").exists());
}

#[tokio::test]
async fn sparse_files_keep_their_holes() {
    let mut map = b"2\n0\n3\n1048576\n2\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"abcde");
    let pax = Layer::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"2097152"),
        ])
        .file("GNUSparseFile.1/sparse", &map);
    let mut old = Layer::header(b"old", EntryType::GNUSparse, 5);
    {
        let gnu = old.as_gnu_mut().unwrap();
        gnu.set_real_size(2_097_152);
        gnu.sparse[0].set_offset(0);
        gnu.sparse[0].set_length(3);
        gnu.sparse[1].set_offset(1_048_576);
        gnu.sparse[1].set_length(2);
    }
    let (_directory, root) = unpack(pax.entry(old, b"abcde")).await;
    for name in ["sparse", "old"] {
        let bytes = fs::read(root.join(name)).unwrap();
        assert_eq!(bytes.len(), 2_097_152, "{name}");
        assert_eq!(
            (&bytes[..3], &bytes[1_048_576..1_048_578]),
            (&b"abc"[..], &b"de"[..]),
            "{name}"
        );
        assert!(fs::metadata(root.join(name)).unwrap().blocks() < 1000, "{name} has no holes");
    }
}

#[tokio::test]
async fn a_wrong_sparse_map_is_refused() {
    for map in
        ["2\n0\n3\n1\n2\n", "1\n4194304\n3\n", "1\n0\n4000\n", "9999999999999\n", "x\n", "1\n0\n"]
    {
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        data.extend_from_slice(b"abcde");
        let layer = Layer::new()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"2097152")])
            .file("sparse", &data);
        let (kind, message) = refused(layer).await;
        assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::TooLarge), "{map:?}: {message}");
    }
}
