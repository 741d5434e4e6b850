//! docs/troubleshooting.md explains messages that exist.

use std::fs;
use std::path::Path;

/// What the kernel, registries, kubectl, or a word put together at run time says.
const FOREIGN: [&str; 7] = [
    "x509: certificate signed by unknown authority",
    "toomanyrequests",
    "Insufficient memory",
    "Insufficient cpu",
    "Too many open files",
    "inotify",
    "no space left on device",
];

fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).expect("it is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).expect("it is UTF-8"));
        }
    }
}

#[test]
fn messages_are_quoted_as_they_are() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut code = String::new();
    for folder in ["src", "netns", "images"] {
        sources(&top.join(folder), &mut code);
    }
    // A string that goes on in the next line.
    let parts: Vec<&str> = code.split("\\\n").collect();
    let code: String =
        parts[..1].iter().copied().chain(parts[1..].iter().map(|part| part.trim_start())).collect();
    let text = fs::read_to_string(top.join("docs/troubleshooting.md")).expect("it is there");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut checked = 0;
    for row in rows {
        let cell = row.split(" | ").next().unwrap_or_default();
        for message in cell.split("`, `").flat_map(|part| part.split("` / `")) {
            let message = message.split('`').next().unwrap_or_default();
            for fragment in message.split('…').map(str::trim).filter(|f| f.len() > 3) {
                let known =
                    code.contains(fragment.trim_end_matches(':')) || FOREIGN.contains(&fragment);
                assert!(known, "{fragment:?} is said by nobody");
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "messages are found: {checked}");
}
