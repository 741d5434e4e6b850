//! The API server alone, for trying it with kubectl and for measuring it:
//! `cargo run -p apiserver --example serve -- PORT [DIR]` keeps its objects in memory, or in DIR.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use apiserver::{ApiServer, Config};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio_util::sync::CancellationToken;

/// As the daemon has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let port: u16 = args.next().ok_or("usage: serve PORT [DIR]")?.parse()?;
    let dir = args.next().map(PathBuf::from);
    let store = match &dir {
        Some(dir) => store::open(&dir.join("store"), store::Options::default())?,
        None => store::memory(),
    };
    let data_dir = dir.unwrap_or_else(|| std::env::temp_dir().join(format!("apiserver-{port}")));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let shutdown = CancellationToken::new();
    let started = std::time::Instant::now();
    let api = ApiServer::start(Config {
        store,
        shared: false,
        data_dir: data_dir.clone(),
        listen: vec![std::net::TcpListener::bind(address)?],
        service_cidr: "10.43.0.0/16".into(),
        // An endpoint of the Service `kubernetes` cannot be on loopback.
        advertise: SocketAddr::from(([10, 42, 0, 1], port)),
        cluster_domain: "cluster.local".into(),
        extra_sans: Vec::new(),
        node_address: Arc::new(|_, _| None),
        dial: apiserver::webhook::direct(),
        access: apiserver::Access::default(),
        metrics: Box::new(|_| ()),
        in_process: Vec::new(),
        runtime_config: Vec::new(),
        shutdown: shutdown.clone(),
    })
    .await?;
    let pair = api.pki().issue_client("kubernetes-admin", &["system:masters"])?;
    let encode = |pem: &str| STANDARD.encode(pem);
    let kubeconfig = data_dir.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://{address}', certificate-authority-data: {}}}}}]\n\
         users: [{{name: u, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\n",
        encode(api.pki().ca_pem()),
        encode(&pair.cert_pem),
        encode(&pair.key_pem),
    );
    std::fs::write(&kubeconfig, text)?;
    println!("ready in {:?}: export KUBECONFIG={}", started.elapsed(), kubeconfig.display());
    tokio::signal::ctrl_c().await?;
    api.shutdown().await;
    Ok(())
}
