//! Load for an API server, the same for any: `load KUBECONFIG [PID]` prints how many of each request it
//! answers in a second, and what memory process PID has then. `tests/bench-api.sh` compares servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use connection::{Connection, Failure, Target};

mod connection;

const CLIENTS: usize = 64;
const CREATED: usize = 3000;
const FILLED: usize = 10_000;
const WATCHERS: usize = 100;
const CHANGES: usize = 3000;
const SPAN: Duration = Duration::from_secs(5);
const PODS: &str = "/api/v1/namespaces/default/pods";
const JSON: &str = "application/json";

fn pod(name: &str, round: usize) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "load", "round": round.to_string()}}, "spec": {
        "automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "localhost/none:1", "command": ["sleep", "1000"],
            "env": [{"name": "A", "value": "1"}], "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}}]}})
    .to_string()
}

/// Runs `work` in many clients until `limit` or the time is reached; the rate in a second.
async fn rate<F>(
    target: &Target,
    clients: usize,
    limit: Option<usize>,
    work: F,
) -> Result<f64, Failure>
where
    F: AsyncFn(&mut Connection, usize) -> Result<(), Failure> + Clone + 'static,
{
    let mut connections = Vec::with_capacity(clients);
    for _ in 0..clients {
        connections.push(target.connect().await?);
    }
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let local = tokio::task::LocalSet::new();
    for mut connection in connections {
        let (done, work) = (Arc::clone(&done), work.clone());
        local.spawn_local(async move {
            loop {
                let index = done.fetch_add(1, Ordering::Relaxed) as usize;
                let over = limit.map_or(began.elapsed() > SPAN, |limit| index >= limit);
                if over {
                    done.fetch_sub(1, Ordering::Relaxed);
                    return;
                }
                if let Err(error) = work(&mut connection, index).await {
                    eprintln!("load: {error}");
                    std::process::exit(1);
                }
            }
        });
    }
    local.await;
    Ok(done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

fn print(what: &str, rate: f64) {
    println!("{what:<40} {rate:>10.0}");
}

async fn fill(target: &Target, from: usize, until: usize) -> Result<f64, Failure> {
    rate(target, CLIENTS, Some(until - from), async move |connection, index| {
        let pod = pod(&format!("load-{:05}", from + index), 0);
        connection.done("POST", PODS, JSON, &pod).await.map(drop)
    })
    .await
}

/// How many lines end in `piece`; counted in bytes, of which the compiler adds many at once.
fn lines(piece: &[u8]) -> u64 {
    let ends = |few: &[u8]| few.iter().fold(0_u8, |sum, byte| sum + u8::from(*byte == b'\n'));
    piece.chunks(255).map(|few| u64::from(ends(few))).sum()
}

/// Events that all watchers get of changes, in a second.
async fn watch(target: &Target) -> Result<f64, Failure> {
    let told = Arc::new(AtomicU64::new(0));
    let mut watchers = tokio::task::JoinSet::new();
    let mut first = target.connect().await?;
    first.send("GET", &format!("{PODS}?limit=1"), JSON, "").await?;
    let mut list = Vec::new();
    while let Some(piece) = first.piece().await? {
        list.extend_from_slice(piece);
    }
    let list: serde_json::Value = serde_json::from_slice(&list)?;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or("0");
    let path = format!("{PODS}?watch=true&resourceVersion={version}");
    for _ in 0..WATCHERS {
        let (mut connection, told) = (target.connect().await?, Arc::clone(&told));
        connection.send("GET", &path, JSON, "").await?;
        watchers.spawn(async move {
            while let Ok(Some(piece)) = connection.piece().await {
                told.fetch_add(lines(piece), Ordering::Relaxed);
            }
        });
    }
    let began = Instant::now();
    rate(target, 8, Some(CHANGES), async |connection, index| {
        let patch =
            json!({"metadata": {"annotations": {"changed": index.to_string()}}}).to_string();
        let path = format!("{PODS}/load-{:05}", index % CREATED);
        let kind = "application/merge-patch+json";
        connection.done("PATCH", &path, kind, &patch).await.map(drop)
    })
    .await?;
    let all = (WATCHERS * CHANGES) as u64;
    while told.load(Ordering::Relaxed) < all && began.elapsed() < 12 * SPAN {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    watchers.abort_all();
    Ok(told.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

fn memory_mib(pids: &[String]) -> f64 {
    let kib = pids.iter().filter_map(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?.to_owned();
        line.split_whitespace().nth(1)?.parse::<f64>().ok()
    });
    kib.sum::<f64>() / 1024.0
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kubeconfig, pids @ ..] = arguments.as_slice() else {
        return Err("usage: load KUBECONFIG [PID…]".into());
    };
    let target = Target::read(kubeconfig)?;
    // No controller makes it here; where it is already, that is as good.
    let account = json!({"metadata": {"name": "default"}}).to_string();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let _ = target.connect().await?.done("POST", accounts, JSON, &account).await;
    print("create, 64 clients (1/s)", fill(&target, 0, CREATED).await?);
    let get = rate(&target, CLIENTS, None, async |connection, index| {
        let path = format!("{PODS}/load-{:05}", index % CREATED);
        connection.done("GET", &path, JSON, "").await.map(drop)
    });
    print("get, 64 clients (1/s)", get.await?);
    let list = rate(&target, 2, None, async |connection, _| {
        connection.done("GET", PODS, JSON, "").await.map(drop)
    });
    print("list of 3000 pods, 2 clients (1/s)", list.await?);
    print("watch, 100 watchers (events/s)", watch(&target).await?);
    let apply = rate(&target, CLIENTS, None, async |connection, index| {
        let config = pod(&format!("load-{:05}", index % CREATED), index / CREATED);
        let path = format!("{PODS}/load-{:05}?fieldManager=load&force=true", index % CREATED);
        let kind = "application/apply-patch+yaml";
        connection.done("PATCH", &path, kind, &config).await.map(drop)
    });
    print("server-side apply, 64 clients (1/s)", apply.await?);
    fill(&target, CREATED, FILLED).await?;
    if !pids.is_empty() {
        print("memory with 10000 pods (MiB)", memory_mib(pids));
    }
    Ok(())
}
