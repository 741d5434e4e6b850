//! exec, attach, port-forward and cp with a kubectl of each age: the new one speaks over WebSockets,
//! the old one over SPDY.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::harness::{Answer, BUSYBOX, Cluster, eventually, run, run_with};

const KUBECTLS: [&str; 2] = ["kubectl", "kubectl-old"];

/// A web server that also reads its input line by line.
fn server() -> String {
    let script = "mkdir /www; head -c 3000000 /dev/zero > /www/large; echo hello > /www/index.html; \
                  httpd -p 8080 -h /www; while read line; do echo got $line; done; exec sleep 1000";
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "server"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": BUSYBOX, "stdin": true, "command": ["sh", "-c", script]}]},
    })
    .to_string()
}

/// A port-forward that runs until it is dropped.
struct Forward {
    child: Child,
    errors: Option<std::thread::JoinHandle<String>>,
    port: u16,
}

impl Forward {
    fn start(cluster: &Cluster, kubectl: &str, remote: u16) -> Self {
        let mut child = cluster
            .kubectl_named(kubectl)
            .args(["port-forward", "pod/server", &format!(":{remote}"), "--address", "127.0.0.1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut errors = child.stderr.take().expect("it is a pipe");
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("it is a pipe"));
        out.read_line(&mut line).expect("text");
        // "Forwarding from 127.0.0.1:40123 -> 8080"
        let port = line.split_whitespace().nth(2).and_then(|address| address.rsplit(':').next());
        let port = port.and_then(|port| port.parse().ok());
        // What it says later must not find its reader gone.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        let Some(port) = port else {
            let _ = child.kill();
            panic!("{kubectl}: {line:?}: {:?}", errors.join())
        };
        Self { child, errors: Some(errors), port }
    }

    fn get(&self, path: &str) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    }

    fn end(mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.errors.take().expect("it ends once").join().expect("reading does not panic")
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ports_are_forwarded() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&server());
    cluster.pod_ready("server");
    for kubectl in KUBECTLS {
        let forward = Forward::start(&cluster, kubectl, 8080);
        eventually("the web server", || match forward.get("/index.html") {
            Ok(answer) if answer.ends_with(b"hello\n") => Ok(()),
            other => Err(format!("{kubectl}: {other:?}")),
        });
        let large = |_| forward.get("/large").expect("the large file comes").len();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || large(n))).collect();
            for thread in threads {
                assert!(thread.join().expect("no panic") > 3_000_000, "{kubectl}");
            }
        });
        // More than the connection's buffers, towards the pod: the server answers 404 all the same.
        let mut stream = TcpStream::connect(("127.0.0.1", forward.port)).expect("it listens");
        stream.write_all(b"GET /none HTTP/1.0\r\n\r\n").expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        assert!(answer.contains("404"), "{kubectl}: {answer}");
        drop(forward);

        let forward = Forward::start(&cluster, kubectl, 81);
        let nothing = forward.get("/").unwrap_or_default();
        assert!(nothing.is_empty(), "{kubectl}: nobody listens there");
        let told = forward.end();
        assert!(told.contains("connection refused"), "{kubectl}: {told}");
        assert!(told.contains("error forwarding port 81 to pod"), "{kubectl}: {told}");
    }
}

/// Runs a kubectl command in a terminal of its own, with lines typed into it.
fn in_terminal(cluster: &Cluster, kubectl: &str, words: &str, typed: &[u8]) -> Answer {
    let line = format!("stty cols 91 rows 37; {} {words}", cluster.kubectl_words(kubectl));
    run_with(
        Command::new("script").args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh"),
        typed,
    )
}

#[test]
fn commands_run_with_and_without_a_terminal() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&server());
    cluster.pod_ready("server");
    for kubectl in KUBECTLS {
        let exec = |words: &[&str], input: &[u8]| {
            let mut command = cluster.kubectl_named(kubectl);
            run_with(command.args(["exec", "-i", "server", "--"]).args(words), input)
        };
        let both = exec(&["sh", "-c", "cat; echo err >&2; exit 5"], b"through");
        assert_eq!(both.code, Some(5), "{kubectl}: {}", both.err);
        assert_eq!(both.out, "through", "{kubectl}");
        assert!(both.err.starts_with("err\n"), "{kubectl}: {}", both.err);

        let large: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8 + 1).collect();
        let mut command = cluster.kubectl_named(kubectl);
        let sum = run_with(command.args(["exec", "-i", "server", "--", "md5sum"]), &large);
        let local = run_with(&mut Command::new("md5sum"), &large);
        assert_eq!(sum.out, local.out, "{kubectl}: {}", sum.err);

        let terminal = in_terminal(
            &cluster,
            kubectl,
            "exec -it server -- sh -c 'until stty size 2>/dev/null | grep .; do sleep 0.1; done; read x; echo got-$x; exit 4'",
            b"typed\n",
        );
        assert!(terminal.out.contains("37 91"), "{kubectl}: {terminal:?}");
        assert!(terminal.out.contains("got-typed"), "{kubectl}: {terminal:?}");
        assert_eq!(terminal.code, Some(4), "{kubectl}: {terminal:?}");
    }
}

#[test]
fn a_terminal_may_change_its_size() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&server());
    cluster.pod_ready("server");
    for kubectl in KUBECTLS {
        let words = cluster.kubectl_words(kubectl);
        // Only when the command has seen the first size does the terminal get the second.
        let line = format!(
            r#"stty cols 91 rows 37
            {{ until {words} exec server -- test -e /tmp/{kubectl} 2>/dev/null; do sleep 0.1; done
               stty cols 92 rows 38 </dev/tty; }} &
            {words} exec -it server -- sh -c 'until stty size | grep "37 91"; do sleep 0.1; done
               touch /tmp/{kubectl}; until stty size | grep "38 92"; do sleep 0.1; done; exit 6'"#
        );
        let mut script = Command::new("timeout");
        script.args(["60", "script", "-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh");
        let answer = run(&mut script);
        assert_eq!(answer.code, Some(6), "{kubectl}: {answer:?}");
        assert!(answer.out.contains("38 92"), "{kubectl}: {answer:?}");
    }
}

#[test]
fn attach_reaches_the_first_process() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&server());
    cluster.pod_ready("server");
    for kubectl in KUBECTLS {
        let mut child = cluster
            .kubectl_named(kubectl)
            .args(["attach", "-i", "server"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut input = child.stdin.take().expect("it is a pipe");
        writeln!(input, "from-{kubectl}").expect("written");
        let mut lines = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
        let said = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with("got"));
        assert_eq!(said, Some(format!("got from-{kubectl}")));
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        eventually("the log", || {
            let log = cluster.kubectl_ok(&["logs", "server"]);
            if log.contains(&format!("got from-{kubectl}")) { Ok(()) } else { Err(log) }
        });
    }
}

#[test]
fn a_run_ends_with_its_input() {
    let cluster = Cluster::ephemeral();
    for kubectl in KUBECTLS {
        let mut command = cluster.kubectl_named(kubectl);
        command.args(["run", "-i", "--image", BUSYBOX, "--restart=Never", kubectl]);
        command.args(["--", "sh", "-c", "cat; exit 3"]);
        let answer = run_with(&mut command, b"typed");
        assert!(answer.out.contains("typed"), "{kubectl}: {answer:?}");
        assert_eq!(answer.code, Some(3), "{kubectl}: {answer:?}");
    }
}

#[test]
fn files_are_copied() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&server());
    cluster.pod_ready("server");
    let mut text = String::new();
    for number in 0..100_000 {
        let _ = writeln!(text, "line {number}");
    }
    std::fs::write(cluster.path("there"), &text).expect("written");
    for kubectl in KUBECTLS {
        let copy = |from: &str, to: &str| {
            let answer = run(cluster.kubectl_named(kubectl).args(["cp", from, to]));
            assert_eq!(answer.code, Some(0), "{kubectl}: {}", answer.err);
        };
        copy("there", &format!("server:/tmp/{kubectl}"));
        let back = format!("back-{kubectl}");
        copy(&format!("server:/tmp/{kubectl}"), &back);
        let back = std::fs::read_to_string(cluster.path(&back)).expect("it is there");
        assert!(back == text, "{kubectl}: {} bytes came back", back.len());
    }
}
