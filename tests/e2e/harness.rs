//! Clusters for tests, and the programs that speak with them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{OnceLock, atomic::AtomicU32, atomic::Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The image that every cluster has.
pub const BUSYBOX: &str = "localhost/busybox:test";
/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_mins(1);

/// The folder with the programs.
pub fn place() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        std::env::var_os("ROOTLET_E2E").map(PathBuf::from).expect("run these with tests/e2e.sh")
    })
}

/// What a program answered.
#[derive(Debug)]
pub struct Answer {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a command to its end, with `input` as its standard input.
pub fn run_with(command: &mut Command, input: &[u8]) -> Answer {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A program may end without reading everything.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("the output can be read");
    writer.join().expect("writing does not panic");
    Answer::from(output)
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Answer {
    run_with(command, &[])
}

/// Waits until `probe` answers with something.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if Instant::now() > until => panic!("{what}: not in time; last: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A folder of this test's own, removed with it.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(place()).expect("a folder can be made")
}

/// `target` with these fields as well.
fn with(mut target: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        target[key] = value.clone();
    }
    target
}

/// A container of the busybox image that runs `script`, with these fields as well.
pub fn container(name: &str, script: &str, more: &Value) -> Value {
    with(json!({"name": name, "image": BUSYBOX, "command": ["/bin/sh", "-c", script]}), more)
}

/// A pod with this spec, whose containers get a second to end unless it says otherwise.
pub fn pod(name: &str, spec: &Value) -> Value {
    let spec = with(json!({"terminationGracePeriodSeconds": 1}), spec);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

/// A running cluster; deleted with its data when dropped.
pub struct Cluster {
    /// Its name.
    pub name: String,
    home: tempfile::TempDir,
}

impl Cluster {
    /// An ephemeral cluster with the busybox image.
    pub fn ephemeral() -> Self {
        let cluster = Self::prepared();
        cluster.up(&["--ephemeral"]);
        cluster.load_busybox();
        cluster
    }

    /// A cluster that is not started yet.
    pub fn prepared() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { name: format!("t{}-{number}", std::process::id()), home: folder() }
    }

    /// What its processes have on their command lines, and no other cluster's have: the slashes tell it
    /// from a longer name.
    pub fn word(&self) -> String {
        format!("/{}/", self.name)
    }

    /// A file or folder of this cluster's user.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A program of this cluster's user.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(place().join(program));
        self.settle(&mut command);
        command
    }

    /// Gives a command this cluster's folders.
    pub fn settle(&self, command: &mut Command) {
        command
            .env("HOME", self.home.path())
            .env("XDG_DATA_HOME", self.path("data"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_RUNTIME_DIR", self.home.path())
            .env_remove("KUBECONFIG")
            .current_dir(self.home.path());
    }

    /// Runs `rootlet WORDS… --name THIS`.
    pub fn rootlet(&self, words: &[&str]) -> Answer {
        run(self.command("rootlet").args(words).args(["--name", &self.name]))
    }

    /// Runs `rootlet WORDS… --name THIS -- COMMAND…`.
    pub fn rootlet_with(&self, words: &[&str], command: &[&str]) -> Answer {
        run(self.command("rootlet").args(words).args(["--name", &self.name, "--"]).args(command))
    }

    /// `rootlet`, which must succeed.
    pub fn rootlet_ok(&self, words: &[&str]) -> String {
        let answer = self.rootlet(words);
        assert_eq!(answer.code, Some(0), "rootlet {words:?}: {}{}", answer.out, answer.err);
        answer.out
    }

    /// Starts it.
    pub fn up(&self, flags: &[&str]) -> String {
        let file = self.path("kubeconfig");
        let mut words = vec!["up", "--kubeconfig", file.to_str().expect("paths are UTF-8")];
        words.extend(flags);
        self.rootlet_ok(&words)
    }

    /// Loads the busybox image.
    pub fn load_busybox(&self) {
        let archive = place().join("busybox.tar");
        self.rootlet_ok(&["image", "load", archive.to_str().expect("paths are UTF-8")]);
    }

    /// A kubectl command that speaks with this cluster.
    pub fn kubectl_command(&self) -> Command {
        self.kubectl_named("kubectl")
    }

    /// A command of one of the kubectls there are: `kubectl`, or `kubectl-old`, which speaks SPDY.
    pub fn kubectl_named(&self, program: &str) -> Command {
        let mut command = self.command(program);
        command.arg("--kubeconfig").arg(self.path("kubeconfig"));
        command
    }

    /// The words of [`Cluster::kubectl_named`] for a shell.
    pub fn kubectl_words(&self, program: &str) -> String {
        let (program, config) = (place().join(program), self.path("kubeconfig"));
        format!("{} --kubeconfig {}", program.display(), config.display())
    }

    /// Runs kubectl.
    pub fn kubectl(&self, words: &[&str]) -> Answer {
        run(self.kubectl_command().args(words))
    }

    /// kubectl, which must succeed; returns its output.
    pub fn kubectl_ok(&self, words: &[&str]) -> String {
        let answer = self.kubectl(words);
        assert_eq!(
            answer.code,
            Some(0),
            "kubectl {words:?}: {}{}\n{}",
            answer.out,
            answer.err,
            self.state()
        );
        answer.out
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> String {
        let answer =
            run_with(self.kubectl_command().args(["apply", "-f", "-"]), manifest.as_bytes());
        assert_eq!(answer.code, Some(0), "apply: {}{}", answer.out, answer.err);
        answer.out
    }

    /// Applies all of these objects.
    pub fn apply_all(&self, items: &[Value]) {
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    }

    /// What the pod has written, once it is over.
    pub fn last_words(&self, name: &str) -> String {
        self.pod(name, "over", |pod| {
            matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
        });
        self.kubectl_ok(&["logs", name, "--all-containers"])
    }

    /// Waits until the API has no such pod.
    pub fn gone(&self, name: &str) {
        eventually(&format!("{name} is gone"), || match self.kubectl(&["get", "pod", name]) {
            answer if answer.err.contains("NotFound") => Ok(()),
            answer => Err(answer.out),
        });
    }

    /// An object as JSON.
    pub fn get(&self, words: &[&str]) -> Result<Value, String> {
        let answer = self.kubectl(&[&["get", "-o", "json"], words].concat());
        if answer.code != Some(0) {
            return Err(answer.err);
        }
        serde_json::from_str(&answer.out).map_err(|error| error.to_string())
    }

    /// Waits until `check` holds for the pod, and returns it.
    pub fn pod(&self, name: &str, what: &str, check: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.get(&["pod", name]);
            match found {
                Ok(pod) if check(&pod) => return pod,
                last if Instant::now() > deadline => {
                    let last = last.map_or_else(|error| error, |pod| pod["status"].to_string());
                    panic!("pod {name} is not {what}: {last}\n{}", self.state())
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits until the pod is in `phase`.
    pub fn pod_phase(&self, name: &str, phase: &str) -> Value {
        self.pod(name, phase, |pod| pod["status"]["phase"] == phase)
    }

    /// Waits until the pod is Ready.
    pub fn pod_ready(&self, name: &str) -> Value {
        self.pod(name, "Ready", |pod| {
            pod["status"]["conditions"].as_array().is_some_and(|conditions| {
                conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
            })
        })
    }

    /// Waits until an event of the object has `reason`, and returns its message.
    pub fn event(&self, object: &str, reason: &str) -> String {
        eventually(&format!("event {reason} of {object}"), || {
            let selector = format!("involvedObject.name={object},reason={reason}");
            let events = self.get(&["events", "--field-selector", &selector])?;
            events["items"][0]["message"]
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| self.kubectl(&["get", "events"]).out)
        })
    }

    /// What a person would look at when something went wrong.
    pub fn state(&self) -> String {
        let pods = self.kubectl(&["get", "pods,events", "-A", "-o", "wide"]).out;
        let node = self.kubectl(&["describe", "nodes"]).out;
        let log = fs::read_to_string(self.path("data/rootlet").join(&self.name).join("daemon.log"));
        let log = log.unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        format!("{pods}\n{node}\n--- daemon.log\n{}", tail.join("\n"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.state());
        }
        let answer = self.rootlet(&["delete"]);
        let failed = answer.code != Some(0) && !std::thread::panicking();
        assert!(!failed, "delete: {}{}", answer.out, answer.err);
    }
}
