//! How many durable creates a second the store takes: `throughput DIRECTORY [CLIENTS] [SECONDS]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::{Options, Txn, TxnOutcome};

/// The size of a small pod as JSON.
const VALUE_BYTES: usize = 2048;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: throughput DIRECTORY [CLIENTS] [SECONDS]")?);
    let clients: u64 = args.next().map_or(Ok(64), |text| text.parse())?;
    let seconds: u64 = args.next().map_or(Ok(3), |text| text.parse())?;
    let opened = Instant::now();
    let store = store::open(&dir, Options::default())?;
    println!("open: {:?}", opened.elapsed());
    let base = store.revision().await?;
    let created = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let (store, created) = (store.clone(), Arc::clone(&created));
        tasks.spawn(async move {
            let mut index = 0;
            while Instant::now() < until {
                let key = format!("/registry/pods/ns-{client}/pod-{base}-{index}");
                let txn = Txn::create(key.into(), Bytes::from(vec![b'x'; VALUE_BYTES]));
                let outcome = store.txn(txn).await?;
                assert!(matches!(outcome, TxnOutcome::Committed { .. }), "{outcome:?}");
                index += 1;
                created.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), store::Error>(())
        });
    }
    while let Some(joined) = tasks.join_next().await {
        joined??;
    }
    let created = created.load(Ordering::Relaxed);
    let rate = created as f64 / started.elapsed().as_secs_f64();
    println!("{clients} clients: {created} creates, {rate:.0}/s");
    let closed = Instant::now();
    store.close().await?;
    println!("close: {:?}", closed.elapsed());
    Ok(())
}
