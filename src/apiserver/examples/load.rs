//! Load for an API server, the same for any: `load KUBECONFIG [PID]` prints how many of each request it
//! answers in a second, and what memory process PID has then. `tests/bench-api.sh` compares servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const CLIENTS: usize = 64;
const CREATED: usize = 3000;
const FILLED: usize = 10_000;
const WATCHERS: usize = 100;
const CHANGES: usize = 300;
const SPAN: Duration = Duration::from_secs(5);
const PODS: &str = "/api/v1/namespaces/default/pods";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where the server is and who asks.
#[derive(Clone)]
struct Target {
    server: String,
    identity: Option<reqwest::Identity>,
    token: Option<String>,
}

impl Target {
    fn read(path: &str) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)?;
        let config: Value = serde_saphyr::from_str(&text)?;
        let user = &config["users"][0]["user"];
        let pem = |key: &str| STANDARD.decode(user[key].as_str().unwrap_or_default());
        let identity = match user["client-key-data"].as_str() {
            Some(_) => {
                let both = [pem("client-certificate-data")?, pem("client-key-data")?].concat();
                Some(reqwest::Identity::from_pem(&both)?)
            }
            None => None,
        };
        let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap_or_default();
        let token = user["token"].as_str().map(str::to_owned);
        Ok(Self { server: server.to_owned(), identity, token })
    }

    /// A client with a connection of its own.
    fn client(&self) -> Result<Client, Failure> {
        let mut builder = reqwest::Client::builder().danger_accept_invalid_certs(true);
        if let Some(identity) = &self.identity {
            builder = builder.identity(identity.clone());
        }
        let http = builder.build()?;
        Ok(Client { http, server: self.server.clone(), token: self.token.clone() })
    }
}

struct Client {
    http: reqwest::Client,
    server: String,
    token: Option<String>,
}

impl Client {
    async fn send(
        &self,
        method: http::Method,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Result<reqwest::Response, Failure> {
        let mut request = self.http.request(method, format!("{}{path}", self.server));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("content-type", kind).body(body.to_string());
        }
        Ok(request.send().await?.error_for_status()?)
    }

    async fn done(
        &self,
        method: http::Method,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Result<usize, Failure> {
        Ok(self.send(method, path, kind, body).await?.bytes().await?.len())
    }
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "load"}}, "spec": {
        "automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "localhost/none:1", "command": ["sleep", "1000"],
            "env": [{"name": "A", "value": "1"}], "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}}]}})
}

/// Runs `work` in many clients until `enough` says so; the rate in a second.
async fn rate<F>(
    target: &Target,
    clients: usize,
    limit: Option<usize>,
    work: F,
) -> Result<f64, Failure>
where
    F: AsyncFn(&Client, usize) -> Result<(), Failure> + Clone + 'static,
{
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let local = tokio::task::LocalSet::new();
    for _ in 0..clients {
        let (client, done, work) = (target.client()?, Arc::clone(&done), work.clone());
        local.spawn_local(async move {
            loop {
                let index = done.fetch_add(1, Ordering::Relaxed) as usize;
                let over = limit.map_or(began.elapsed() > SPAN, |limit| index >= limit);
                if over {
                    done.fetch_sub(1, Ordering::Relaxed);
                    return;
                }
                if let Err(error) = work(&client, index).await {
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
    rate(target, CLIENTS, Some(until - from), async move |client, index| {
        let name = format!("load-{:05}", from + index);
        client.done(http::Method::POST, PODS, "application/json", Some(&pod(&name))).await.map(drop)
    })
    .await
}

/// Events that all watchers get of changes, in a second.
async fn watch(target: &Target) -> Result<f64, Failure> {
    let told = Arc::new(AtomicU64::new(0));
    let mut watchers = tokio::task::JoinSet::new();
    let list: Value = serde_json::from_slice(
        &target
            .client()?
            .send(http::Method::GET, &format!("{PODS}?limit=1"), "", None)
            .await?
            .bytes()
            .await?,
    )?;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
    let (ready, mut waiting) = tokio::sync::mpsc::channel(WATCHERS);
    for _ in 0..WATCHERS {
        let (client, told, ready) = (target.client()?, Arc::clone(&told), ready.clone());
        let path = format!("{PODS}?watch=true&resourceVersion={version}");
        watchers.spawn(async move {
            let Ok(mut response) = client.send(http::Method::GET, &path, "", None).await else {
                return;
            };
            let _ = ready.send(()).await;
            while let Ok(Some(chunk)) = response.chunk().await {
                let events =
                    chunk.split_inclusive(|byte| *byte == b'\n').filter(|e| e.ends_with(b"\n"));
                told.fetch_add(events.count() as u64, Ordering::Relaxed);
            }
        });
    }
    for _ in 0..WATCHERS {
        waiting.recv().await;
    }
    let began = Instant::now();
    rate(target, 8, Some(CHANGES), async |client, index| {
        let patch = json!({"metadata": {"annotations": {"changed": index.to_string()}}});
        let path = format!("{PODS}/load-{index:05}");
        let kind = "application/merge-patch+json";
        client.done(http::Method::PATCH, &path, kind, Some(&patch)).await.map(drop)
    })
    .await?;
    let all = (WATCHERS * CHANGES) as u64;
    while told.load(Ordering::Relaxed) < all && began.elapsed() < 6 * SPAN {
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
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "no TLS provider")?;
    let target = Target::read(kubeconfig)?;
    // No controller makes it here; where it is already, that is as good.
    let account = json!({"metadata": {"name": "default"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let made = target.client()?;
    let _ = made.done(http::Method::POST, accounts, "application/json", Some(&account)).await;
    print("create, 64 clients (1/s)", fill(&target, 0, CREATED).await?);
    let get = rate(&target, CLIENTS, None, async |client, index| {
        let path = format!("{PODS}/load-{:05}", index % CREATED);
        client.done(http::Method::GET, &path, "", None).await.map(drop)
    });
    print("get, 64 clients (1/s)", get.await?);
    let list = rate(&target, 2, None, async |client, _| {
        client.done(http::Method::GET, PODS, "", None).await.map(drop)
    });
    print("list of 3000 pods, 2 clients (1/s)", list.await?);
    print("watch, 100 watchers (events/s)", watch(&target).await?);
    let apply = rate(&target, CLIENTS, None, async |client, index| {
        let mut config = pod(&format!("load-{:05}", index % CREATED));
        config["metadata"]["labels"]["round"] = (index / CREATED).to_string().into();
        let path = format!("{PODS}/load-{:05}?fieldManager=load&force=true", index % CREATED);
        let kind = "application/apply-patch+yaml";
        client.done(http::Method::PATCH, &path, kind, Some(&config)).await.map(drop)
    });
    print("server-side apply, 64 clients (1/s)", apply.await?);
    fill(&target, CREATED, FILLED).await?;
    if !pids.is_empty() {
        print("memory with 10000 pods (MiB)", memory_mib(pids));
    }
    Ok(())
}
