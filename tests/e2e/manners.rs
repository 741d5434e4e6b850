//! Manners: what is drawn on a terminal and what is not, words for programs, exit codes.

use std::process::Command;

use serde_json::Value;

use crate::harness::{Answer, BUSYBOX, Cluster, place, run};
use crate::registry::Registry;

/// What a terminal gets to see when a command runs on it.
fn on_a_terminal(cluster: &Cluster, words: &str, colour: bool) -> String {
    let line = format!("{} {words} --name {}", place().join("rootlet").display(), cluster.name);
    let mut script = Command::new("script");
    cluster.settle(&mut script);
    script.args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh").env("TERM", "xterm");
    if !colour {
        script.env("NO_COLOR", "1");
    }
    let said = run(&mut script);
    assert_eq!(said.code, Some(0), "{line}: {}", said.out);
    said.out
}

/// What stays on the terminal: a line that is drawn again from its start is what it was last.
fn what_stays(seen: &str) -> Vec<String> {
    let lines = seen.split('\n').map(|line| {
        let line = line.trim_end_matches('\r');
        let last = line.rsplit('\r').next().unwrap_or_default();
        // Erasures of the whole line.
        last.rsplit("\u{1b}[2K").next().unwrap_or_default().trim_end().to_owned()
    });
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn progress_is_drawn_on_terminals_and_leaves_nothing_there() {
    let registry = Registry::plain();
    registry.push("app:1", &[]);
    let cluster = Cluster::prepared();
    let up = on_a_terminal(&cluster, "up --ephemeral", true);
    assert!(up.contains("starting Kubernetes") && up.contains("\u{1b}[2K"), "{up:?}");
    let stays = what_stays(&up);
    let starts = ["Cluster ", "Kubeconfig: ", "Next: "];
    assert_eq!(stays.len(), starts.len(), "{stays:?}");
    for (line, start) in stays.iter().zip(starts) {
        assert!(line.starts_with(start), "{stays:?}");
    }
    let image = registry.image("app:1");
    let pull = on_a_terminal(&cluster, &format!("image pull {image}"), false);
    assert!(pull.contains('\u{1b}'), "a bar was drawn: {pull:?}");
    // Colours are `ESC [ 3 …m` and `9 …m`, bold is `1m`; erasing and moving are other letters.
    assert!(
        !pull.split('\u{1b}').any(|part| part.split_once('m').is_some_and(|(codes, _)| {
            codes
                .strip_prefix('[')
                .is_some_and(|c| c.chars().all(|c| c.is_ascii_digit() || c == ';'))
        })),
        "no colour where NO_COLOR is set: {pull:?}"
    );
    let stays = what_stays(&pull);
    assert!(stays.last().is_some_and(|line| line.contains(&image)), "{stays:?}");

    // Elsewhere there are lines, and with --quiet none.
    let plain = cluster.rootlet(&["image", "pull", &image]);
    assert!(!(plain.out + &plain.err).contains('\u{1b}'), "no terminal, nothing drawn");
    let quiet = cluster.rootlet(&["-q", "image", "pull", &image]);
    assert_eq!((quiet.code, quiet.out.as_str(), quiet.err.as_str()), (Some(0), "", ""));
    let quiet = on_a_terminal(&cluster, "-q down", true);
    assert_eq!(quiet, "");
}

#[test]
fn programs_get_json() {
    let cluster = Cluster::ephemeral();
    cluster.kubectl_ok(&["run", "one", "--image", BUSYBOX, "--", "sleep", "1000"]);
    cluster.pod_ready("one");
    for (words, fields) in [
        (&["status"][..], &["cluster", "running", "nodes", "pods", "ports", "warnings"][..]),
        (&["service", "status"], &["unit", "installed"]),
        (&["doctor"], &[]),
        (&["version"], &["version"]),
        (&["image", "ls"], &[]),
        (&["trace", "pod/one"], &[]),
        (&["why", "pod/one"], &["step", "finding", "evidence", "remedy"]),
        (&["get", "pods"], &["items"]),
    ] {
        let all = [words, &["-o", "json"]].concat();
        // Neither the doctor nor the version is of one cluster.
        let of_none = matches!(words, ["doctor" | "version"]);
        let said = if of_none {
            run(cluster.command("rootlet").args(&all))
        } else {
            cluster.rootlet(&all)
        };
        let value: Value = serde_json::from_str(&said.out)
            .unwrap_or_else(|error| panic!("{words:?}: {error}: {}{}", said.out, said.err));
        for field in fields {
            assert!(value.get(field).is_some(), "{words:?}: {field}: {value}");
        }
        assert_eq!(said.err, "", "{words:?}");
    }
}

/// The codes of docs/living.md; 125 and the command's own are tested with `rootlet ci`.
#[test]
fn exit_codes_are_what_the_table_says() {
    let cluster = Cluster::prepared();
    let code = |words: &[&str]| -> (Option<i32>, Answer) {
        let said = cluster.rootlet(words);
        (said.code, said)
    };
    for (words, want) in [
        (&["status"][..], 1),
        (&["service", "status"], 1),
        (&["down"], 0),
        (&["get", "pods"], 1),
        (&["why", "pod/none"], 1),
        (&["logs", "none"], 1),
        (&["image", "load", "none.tar"], 1),
        (&["up", "--no-such-flag"], 2),
        (&["up", "--ip-family", "none"], 2),
        (&["image"], 2),
        (&["get"], 1),
    ] {
        let (found, said) = code(words);
        assert_eq!(found, Some(want), "{words:?}: {}{}", said.out, said.err);
        if want == 2 || (want == 1 && !words.contains(&"status")) {
            assert!(said.out.is_empty() && !said.err.is_empty(), "{words:?}: {said:?}");
        }
    }
    cluster.up(&["--ephemeral"]);
    for (words, want) in [
        (&["status"][..], 0),
        (&["get", "pods"], 0),
        (&["get", "pod", "none"], 1),
        (&["why", "pod/none"], 1),
        (&["image", "pull", "127.0.0.1:9/none:1"], 1),
        (&["down"], 0),
        (&["status"], 1),
    ] {
        let (found, said) = code(words);
        assert_eq!(found, Some(want), "{words:?}: {}{}", said.out, said.err);
    }
}
