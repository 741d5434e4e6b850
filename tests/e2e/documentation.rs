//! The commands in docs/ do what is said there: blocks that begin with ```sh run are run, in their order.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{folder, place, run};

/// The runnable blocks of a document, as one script.
fn script(text: &str) -> Option<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start() == "```sh run" {
            blocks.extend(lines.by_ref().take_while(|line| line.trim_start() != "```"));
        }
    }
    (!blocks.is_empty()).then(|| format!("set -eu -o pipefail\n{}\n", blocks.join("\n")))
}

fn documents(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top).expect("it is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(documents(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A folder with the programs that documents use. What a newcomer would pull is loaded after each start.
fn programs(top: &Path) -> PathBuf {
    let bin = top.join("bin");
    fs::create_dir(&bin).expect("it can be made");
    let place = place().display();
    let rootlet = format!(
        "#!/bin/sh\n\
         {place}/rootlet \"$@\" || exit\n\
         [ \"$1\" = up ] || exit 0\n\
         cluster=default\n\
         while [ $# -gt 0 ]; do if [ \"$1\" = --name ]; then cluster=$2; fi; shift; done\n\
         exec {place}/rootlet image load -q --name $cluster {place}/library.tar\n"
    );
    for (name, text) in
        [("rootlet", rootlet), ("kubectl", format!("#!/bin/sh\nexec {place}/kubectl \"$@\"\n"))]
    {
        let file = bin.join(name);
        fs::write(&file, text).expect("it can be written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    bin
}

fn follow(document: &str) {
    let file = place().join("docs").join(document);
    let text = fs::read_to_string(&file).expect("the document is there");
    let script = script(&text).expect("it has commands to run");
    let top = folder();
    let work = top.path().join("work");
    fs::create_dir(&work).expect("it can be made");
    let path =
        format!("{}:{}", programs(top.path()).display(), std::env::var("PATH").expect("set"));
    let settle = |command: &mut Command| {
        command.env_remove("KUBECONFIG").env("PATH", &path).env("HOME", top.path());
        command.env("XDG_DATA_HOME", top.path().join("data")).current_dir(&work);
        command.env("XDG_CONFIG_HOME", top.path().join("config"));
        command.env("XDG_RUNTIME_DIR", top.path());
    };
    let mut shell = Command::new("bash");
    settle(&mut shell);
    let said = run(shell.args(["-x", "-c", &script]));
    let data = top.path().join("data/rootlet");
    let left: Vec<PathBuf> =
        fs::read_dir(data).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    for cluster in &left {
        let mut delete = Command::new(place().join("rootlet"));
        settle(&mut delete);
        let name = cluster.file_name().expect("it has a name");
        run(delete.args(["delete", "--name"]).arg(name));
    }
    assert_eq!(said.code, Some(0), "{document}: {}\n{}", said.out, said.err);
    assert!(left.is_empty(), "{document} leaves {left:?}");
}

/// One test per document, so that one that fails is named and they share the machine.
macro_rules! documents {
    ($($name:ident: $file:literal,)*) => {
        $(#[test] fn $name() { follow($file); })*
        const TESTED: &[&str] = &[$($file),*];
    };
}

documents! {
    getting_started: "getting-started.md",
    networking: "networking.md",
    storage: "storage.md",
    images: "images.md",
    living: "living.md",
    client: "client.md",
    readme: "../README.md",
    ci: "ci/README.md",
}

#[test]
fn every_document_with_commands_is_followed() {
    let docs = place().join("docs");
    for file in documents(&docs) {
        let text = fs::read_to_string(&file).expect("it can be read");
        let name =
            file.strip_prefix(&docs).expect("it is below").to_str().expect("UTF-8").to_owned();
        assert_eq!(script(&text).is_some(), TESTED.contains(&name.as_str()), "{name}");
    }
}

/// The script of a step of docs/ci/action.yml.
fn step(name: &str) -> String {
    let text = fs::read_to_string(place().join("docs/ci/action.yml")).expect("it is there");
    let (_, rest) = text.split_once(&format!("- name: {name}\n")).expect("it has the step");
    let (_, rest) = rest.split_once("run: |\n").expect("it has a script");
    let lines = rest.lines().take_while(|line| line.starts_with("        ") || line.is_empty());
    lines.map(|line| format!("{}\n", line.trim_start_matches("        "))).collect()
}

#[test]
fn the_steps_of_the_action_do_what_they_say() {
    let top = folder();
    let work = top.path();
    let path = format!("{}:{}", programs(work).display(), std::env::var("PATH").expect("set"));
    fs::write(work.join("map.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: map}\n")
        .expect("it can be written");
    let bash = |script: &str, inputs: &[(&str, &str)]| {
        let mut command = Command::new("bash");
        command.args(["-eo", "pipefail", "-c", script]).current_dir(work).env("PATH", &path);
        command.env("HOME", work).env("XDG_DATA_HOME", work.join("data"));
        command.env("XDG_RUNTIME_DIR", work).env("RUNNER_TEMP", work);
        command.env("GITHUB_ENV", work.join("env")).envs(inputs.iter().copied());
        run(&mut command)
    };
    let archive = place().join("busybox.tar").display().to_string();
    let program = place().join("rootlet").display().to_string();
    let inputs = [
        ("BINARY", program.as_str()),
        ("LOAD", archive.as_str()),
        ("APPLY", "map.yaml"),
        ("REGISTRIES", ""),
        ("SCRIPT", "kubectl get configmap map -o name && exit 7"),
    ];
    let ran = bash(&step("Run with a cluster"), &inputs);
    assert_eq!(ran.code, Some(7), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("configmap/map"), "{}", ran.out);

    let started = bash(&step("Start a cluster"), &inputs);
    assert_eq!(started.code, Some(0), "{}{}", started.out, started.err);
    let exported = fs::read_to_string(work.join("env")).expect("it is told to later steps");
    let later = format!("export {exported}\nkubectl get configmap map -o name");
    let found = bash(&later, &[]);
    let deleted = bash(&format!("{program} delete"), &[]);
    assert_eq!(found.out, "configmap/map\n", "{}", found.err);
    assert_eq!(deleted.code, Some(0), "{}", deleted.err);
}

#[test]
fn links_lead_to_files() {
    let docs = place().join("docs");
    let mut checked = 0;
    for file in documents(&docs) {
        let text = fs::read_to_string(&file).expect("it can be read");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            // Outside of docs/ is what the test's folder does not have.
            if target.is_empty() || target.contains("://") || target.contains("../") {
                continue;
            }
            let path = file.parent().expect("it is in a folder").join(target);
            assert!(path.exists(), "{}: {link}", file.display());
            checked += 1;
        }
    }
    assert!(checked > 10, "links are found");
}
