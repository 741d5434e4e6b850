//! The commands in docs/ do what is said there: blocks that begin with ```sh run are run, in their order. Other blocks
//! of commands are run by the tests that `ELSEWHERE` names; what is said within sentences is checked to be understood.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{folder, place, run};

/// The blocks of a document: what each is, and its text.
fn blocks(text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            let block: Vec<&str> =
                lines.by_ref().take_while(|line| line.trim_start() != "```").collect();
            found.push((kind, block.join("\n")));
        }
    }
    found
}

/// The runnable blocks of a document, as one script.
fn script(text: &str) -> Option<String> {
    let run = |(kind, block)| (kind == "sh run").then_some(block);
    let blocks: Vec<String> = blocks(text).into_iter().filter_map(run).collect();
    (!blocks.is_empty()).then(|| format!("set -eu -o pipefail\n{}\n", blocks.join("\n")))
}

/// Blocks of commands that are not run where they stand: the document, how the block begins, and what runs them
/// instead, or why nothing does.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("../README.md", "make demo", "the project's own checks are these"),
    (
        "ci/README.md",
        "rootlet doctor\nrootlet ci --load",
        "`ci` (its flags), in a runner's own project",
    ),
    ("conformance.md", "# in the source tree", "needs upstream's source tree and its images"),
    ("conformance.md", "rootlet up --disable scheduler", "needs upstream's programs"),
    ("conformance.md", "kube-apiserver", "needs upstream's programs"),
    ("cri.md", "rootlet cri &", "`cri_suite`, with a client of its own: Debian has no crictl"),
    ("cri.md", "rootlet agent", "`node`"),
    ("images.md", "rootlet image load app:1", "`images_come_from_podman_and_buildah`"),
    ("images.md", "buildah build", "`images_come_from_podman_and_buildah`"),
    ("install/README.md", "ssh-keygen", "`packaging`"),
    ("storage.md", "kubectl annotate csidriver", "`csi`, whose driver's object has the annotation"),
    ("living.md", "rootlet service install", "tests/vm-service.sh: needs systemd"),
    ("ui.md", "rootlet ui", "tests/ui: needs a browser"),
    ("ui.md", "rootlet trace", "`pods`"),
];

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

#[test]
fn every_block_of_commands_is_run() {
    let docs = place().join("docs");
    let mut left: Vec<_> = ELSEWHERE.to_vec();
    for file in written() {
        let text = fs::read_to_string(&file).expect("it can be read");
        let name = file.strip_prefix(&docs).expect("it is below").to_str().expect("UTF-8");
        for (kind, block) in blocks(&text) {
            match kind {
                "sh run" | "yaml" | "text" => {}
                "sh" => {
                    let known = left.iter().position(|(document, start, _)| {
                        *document == name && block.starts_with(start)
                    });
                    let known = known.unwrap_or_else(|| panic!("{name}: nothing runs {block:?}"));
                    left.remove(known);
                }
                kind => panic!("{name}: a block of {kind:?}: {block}"),
            }
        }
    }
    assert!(left.is_empty(), "not there any more: {left:?}");
}

/// The documents, but for the one that is generated from the command line itself, and the past.
fn written() -> Vec<PathBuf> {
    let docs = place().join("docs");
    let mut files = documents(&docs);
    files.retain(|file| !file.ends_with("reference.md") && !file.ends_with("CHANGELOG.md"));
    files.push(docs.join("../README.md"));
    files
}

/// What stands between backticks in a document's sentences.
fn quoted(text: &str) -> Vec<String> {
    let mut outside = String::new();
    let mut inside = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            outside.push_str(line);
            outside.push('\n');
        }
    }
    outside.split('`').skip(1).step_by(2).map(|quote| quote.replace('\n', " ")).collect()
}

/// The words of a command of ours, up to what is another's; none if it is no such command.
fn own_words(quote: &str) -> Option<Vec<String>> {
    let rest = quote.strip_prefix("rootlet ")?;
    let end =
        [" | ", " > ", " && ", " &", "; ", " -- "].iter().filter_map(|end| rest.find(end)).min();
    let words = rest[..end.unwrap_or(rest.len())].split_whitespace().map(|word| {
        // Of `a|b` the first; of what may be left out nothing.
        let word = word.split(['|', '[']).next().unwrap_or_default();
        word.trim_matches('\'').replace('…', "x")
    });
    Some(words.collect())
}

#[test]
fn commands_within_sentences_are_understood() {
    let mut seen = std::collections::BTreeSet::new();
    for file in written() {
        let text = fs::read_to_string(&file).expect("it can be read");
        let listed = blocks(&text).into_iter().filter(|(kind, _)| *kind == "sh");
        let listed = listed.flat_map(|(_, block)| {
            block
                .lines()
                .map(|line| line.split("  #").next().unwrap_or_default().trim().to_owned())
                .collect::<Vec<_>>()
        });
        // A key in the form of SSH, not a command.
        let quotes = quoted(&text).into_iter().filter(|quote| !quote.contains("ssh-ed25519"));
        seen.extend(quotes.chain(listed).filter_map(|quote| own_words(&quote)));
    }
    assert!(seen.len() > 60, "{}", seen.len());
    let top = folder();
    for words in seen {
        let mut command = Command::new(place().join("rootlet"));
        command.env("HOME", top.path()).args(&words).arg("--help");
        let said = run(&mut command);
        // Values may be missing, or words that stand for them; commands and flags are to be there.
        let unknown = ["unexpected argument", "unrecognized subcommand"];
        let known = !unknown.iter().any(|problem| said.err.contains(problem));
        assert!(known, "rootlet {}: {}{}", words.join(" "), said.out, said.err);
    }
}

/// The blocks of docs/images.md about other programs' images, where there are such.
#[test]
fn images_come_from_podman_and_buildah() {
    let text = fs::read_to_string(place().join("docs/images.md")).expect("it is there");
    let listed: Vec<String> = blocks(&text)
        .into_iter()
        .filter_map(|(kind, block)| (kind == "sh").then_some(block))
        .collect();
    assert_eq!(listed.len(), 2, "{listed:?}");
    let top = folder();
    let work = top.path();
    let bin = programs(work);
    // What Debian's podman-docker is.
    fs::write(bin.join("docker"), "#!/bin/sh\nexec podman \"$@\"\n").expect("it can be written");
    fs::set_permissions(bin.join("docker"), fs::Permissions::from_mode(0o755)).expect("ours");
    let script = format!(
        "set -eu -o pipefail
         podman load -q -i {library}
         podman tag docker.io/library/busybox:1.37 app:1
         podman save -q -o app.tar app:1
         printf 'FROM docker.io/library/busybox:1.37\\nCMD [\"echo\", \"built\"]\\n' > Containerfile
         mkdir podman
         podman system service -t 0 unix://$PWD/podman/podman.sock &
         trap \"kill $!; wait; podman system reset -f\" EXIT
         timeout 60 sh -c 'until [ -S podman/podman.sock ]; do sleep 0.1; done'
         {place}/rootlet up -q --name images --ephemeral --kubeconfig kubeconfig
         rootlet() {{ {place}/rootlet \"$@\" --name images; }}
         {blocks}
         rootlet image ls
         export KUBECONFIG=kubeconfig
         kubectl run app --image app:1 --restart Never
         kubectl wait --for=jsonpath='{{.status.phase}}'=Succeeded pod/app --timeout=60s
         kubectl logs app",
        library = place().join("library.tar").display(),
        place = place().display(),
        // buildah adds to no archive that is there already.
        blocks = listed.join("\nrm app.tar\n"),
    );
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("set"));
    let settle = |command: &mut Command| {
        command.env("PATH", &path).env("HOME", work).env("XDG_DATA_HOME", work.join("data"));
        command.env("XDG_CONFIG_HOME", work.join("config")).env("XDG_RUNTIME_DIR", work);
        command.env_remove("KUBECONFIG").current_dir(work);
    };
    let mut shell = Command::new("bash");
    settle(&mut shell);
    let said = run(shell.args(["-x", "-c", &script]));
    let mut delete = Command::new(place().join("rootlet"));
    settle(&mut delete);
    run(delete.args(["delete", "--name", "images"]));
    assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
    // Podman gives its own images a name of this machine; in an archive of buildah's the name is as it was asked for.
    assert_eq!(said.out.matches("Loaded localhost/app:1\n").count(), 4, "{}", said.out);
    assert_eq!(said.out.matches("Loaded docker.io/library/app:1\n").count(), 1, "{}", said.out);
    assert!(said.out.ends_with("\nbuilt\n"), "{}", said.out);
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
