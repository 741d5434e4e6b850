//! Whatever the archive: nothing outside the layer changes, and nothing panics.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::{Ownership, unpack};
use crate::limits::Limits;

fn names() -> impl Strategy<Value = String> {
    let component = prop_oneof![
        4 => "[abc]",
        1 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just(".wh.a".to_owned()),
        1 => Just(".wh..wh..opq".to_owned()),
        1 => Just(".wh...".to_owned()),
        1 => Just(String::new()),
    ];
    prop::collection::vec(component, 1..4).prop_map(|parts| parts.join("/"))
}

fn targets() -> impl Strategy<Value = String> {
    prop_oneof![
        names(),
        Just("/".to_owned()),
        Just("..".to_owned()),
        Just("../outside".to_owned()),
        Just("../../outside/secret".to_owned()),
        Just("/etc/passwd".to_owned()),
        Just("/proc/self/root".to_owned()),
    ]
}

fn kinds() -> impl Strategy<Value = EntryType> {
    prop_oneof![
        3 => Just(EntryType::Regular),
        3 => Just(EntryType::Directory),
        3 => Just(EntryType::Symlink),
        2 => Just(EntryType::Link),
        1 => Just(EntryType::Fifo),
        1 => Just(EntryType::Char),
        1 => Just(EntryType::GNUSparse),
    ]
}

fn entry(kind: EntryType, name: &str, target: &str, data: u8) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    let size = if kind == EntryType::Regular { u64::from(data) } else { 0 };
    header.set_size(size);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(512 + size as usize, data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Unpacks beside a directory that must not change.
fn try_unpack(archive: &[u8]) {
    let around = tempfile::tempdir().unwrap();
    let target = around.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::create_dir(around.path().join("outside")).unwrap();
    fs::write(around.path().join("outside/secret"), b"secret").unwrap();
    let before = state(around.path());
    let _ = unpack(
        archive,
        &target,
        tempfile::tempfile().unwrap(),
        &Limits::default(),
        Ownership::Squash,
    );
    assert_eq!(state(around.path()), before);
    let _ = crate::durable::remove_tree(&target);
}

fn state(around: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for directory in [around.to_owned(), around.join("outside")] {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let content = fs::read(entry.path()).unwrap_or_default();
            found.push(format!("{:?} {:?} {content:?}", entry.path(), metadata.permissions()));
        }
    }
    found.sort();
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_outside_changes(
        entries in prop::collection::vec((kinds(), names(), targets(), any::<u8>()), 1..12)
    ) {
        let mut archive: Vec<u8> =
            entries.iter().flat_map(|(kind, name, target, data)| entry(*kind, name, target, *data)).collect();
        archive.extend_from_slice(&[0; 1024]);
        try_unpack(&archive);
    }

    #[test]
    fn damaged_archives_do_not_panic(
        entries in prop::collection::vec((kinds(), names(), targets(), any::<u8>()), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut archive: Vec<u8> =
            entries.iter().flat_map(|(kind, name, target, data)| entry(*kind, name, target, *data)).collect();
        for (place, byte) in damage {
            let place = place.index(archive.len());
            archive[place] = byte;
            // With the checksum mended the damage reaches the fields behind it.
            let start = place / 512 * 512;
            let mut header = Header::from_byte_slice(&archive[start..start + 512]).clone();
            header.set_cksum();
            archive[start..start + 512].copy_from_slice(header.as_bytes());
        }
        archive.truncate(cut.index(archive.len()) + 1);
        try_unpack(&archive);
    }
}
