//! One authority, and one key that signs tokens, for all servers on one store: a certificate or a token of
//! any of them is good with all.
//!
//! They lie in the store beside the cluster's Secrets, which give whoever can read them the whole cluster
//! already; encrypted as Secrets are, where they are.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use store::{Store, Txn, TxnOutcome};

use super::{Error, Pki, files};
use crate::encryption::{self, Encryption};

/// The key below which they are.
pub const KEY: &[u8] = b"/registry/rootlet/pki";
/// The files that are shared; certificates for serving are every server's own.
const FILES: [&str; 5] = ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key"];

/// Why the servers do not agree.
#[derive(Debug, thiserror::Error)]
pub enum Disagreement {
    /// The store.
    #[error("cannot share the cluster's keys with the other servers of the store")]
    Store(#[from] store::Error),
    /// The files.
    #[error(transparent)]
    Files(#[from] Error),
    /// What the store holds is nothing of the kind.
    #[error(
        "the cluster's keys in the store are damaged: remove the key {}",
        String::from_utf8_lossy(KEY)
    )]
    Damaged(#[source] serde_json::Error),
}

/// Puts the keys of the store's other servers into `dir`, or those of `dir` into the store, where they are
/// made if need be.
pub async fn agree(store: &Store, dir: &Path) -> Result<(), Disagreement> {
    let mut found = store.get(KEY, None).await?;
    if found.is_none() {
        Pki::load_or_create(dir)?;
        let mut own = BTreeMap::new();
        for name in FILES {
            own.insert(name, files::read(&dir.join(name))?.unwrap_or_default());
        }
        let value = serde_json::to_vec(&own).map_err(Disagreement::Damaged)?;
        let offered = store.txn(Txn::create(Bytes::from_static(KEY), value.into())).await?;
        match offered {
            TxnOutcome::Committed { .. } => return Ok(()),
            // Another server was quicker.
            TxnOutcome::Conflict { current, .. } => found = current.into_iter().next().flatten(),
        }
    }
    let Some(found) = found else { return Ok(()) };
    if encryption::is_sealed(&found.value) {
        return Err(encryption::unreadable(KEY).into());
    }
    let shared: BTreeMap<String, String> =
        serde_json::from_slice(&found.value).map_err(Disagreement::Damaged)?;
    files::private_directory(dir)?;
    for name in FILES {
        let (path, Some(text)) = (dir.join(name), shared.get(name)) else { continue };
        let own = files::read(&path)?;
        if own.as_ref() == Some(text) {
            continue;
        }
        if own.is_some() && name == "ca.crt" {
            tracing::warn!(
                "the store's cluster has another authority than this server had: it is taken over"
            );
        }
        files::write(&path, text)?;
    }
    Ok(())
}

/// Writes what is shared anew where it would be encrypted otherwise today: nobody else does, and the key that
/// it has may be taken away next.
pub async fn refresh(store: &Store, encryption: &Encryption) -> Result<(), store::Error> {
    if encryption.is_stale(KEY).await?
        && let Some(kv) = store.get(KEY, None).await?
    {
        // Another server that is quicker does the same.
        store.txn(Txn::swap(Bytes::from_static(KEY), kv.value, kv.mod_revision)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_servers_keys_are_everybodys() {
        let store = store::memory();
        let dirs = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
        // One that had keys of its own before it came to this store.
        Pki::load_or_create(dirs[1].path()).expect("keys");
        for dir in &dirs {
            agree(&store, dir.path()).await.expect("agreed");
        }
        let [first, second, third] = dirs.map(|dir| Pki::load_or_create(dir.path()).expect("keys"));
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(second.ca_pem(), third.ca_pem());
        assert_eq!(first.tokens().jwks(), third.tokens().jwks());
        let client = third.issue_client("jane", &[]).expect("a certificate");
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(client.cert_pem.as_bytes()).expect("a certificate");
        assert!(second.verifies_client(&pem.contents));
        assert_eq!(first.front_proxy_ca_pem(), third.front_proxy_ca_pem());
    }
}
