//! The arrows between the crates, as DESIGN draws them: a manifest with any other arrow fails here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What each crate may depend on of ours.
const ARROWS: &[(&str, &[&str])] = &[
    ("images", &[]),
    ("netns", &[]),
    ("src/apimachinery", &[]),
    ("src/store", &[]),
    ("src/client", &["apimachinery"]),
    ("src/apiserver", &["store", "apimachinery", "plugin"]),
    ("src/scheduler", &["client", "apimachinery"]),
    ("src/controllers", &["client", "apimachinery", "plugin"]),
    ("src/proxy", &["client", "apimachinery", "netns"]),
    ("src/dns", &["client", "apimachinery", "netns"]),
    ("src/cri", &[]),
    ("src/plugin", &[]),
    ("src/runtime", &["cri", "images", "netns"]),
    ("src/kubelet", &["client", "apimachinery", "cri", "plugin"]),
    ("src/cli", &["client", "apimachinery"]),
    (
        "src/rootlet",
        &[
            "apimachinery",
            "apiserver",
            "cli",
            "client",
            "controllers",
            "plugin",
            "dns",
            "images",
            "kubelet",
            "netns",
            "proxy",
            "runtime",
            "scheduler",
            "store",
        ],
    ),
    ("tests", &["cri", "plugin"]),
];

#[test]
fn crates_depend_only_along_the_arrows() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the project");
    let manifests: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let read = |path: &str| {
        let file = top.join(path);
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    let workspace = read("Cargo.toml");
    let members: Vec<&str> = workspace
        .lines()
        .skip_while(|line| !line.starts_with("members"))
        .skip(1)
        .take_while(|line| !line.starts_with(']'))
        .map(|line| line.trim().trim_matches([',', '"']))
        .collect();
    assert_eq!(members.len(), ARROWS.len(), "each crate has its arrows written down: {members:?}");
    let ours: Vec<&str> =
        members.iter().map(|member| member.rsplit('/').next().unwrap_or(member)).collect();
    for member in members {
        let allowed =
            manifests.get(member).unwrap_or_else(|| panic!("{member} has no arrows written down"));
        for line in read(&format!("{member}/Cargo.toml")).lines() {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if line.contains('=') && ours.contains(&name) && line.contains("workspace") {
                assert!(allowed.contains(&name), "{member} may not depend on {name}");
            }
        }
    }
}
