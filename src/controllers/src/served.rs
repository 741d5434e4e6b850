//! Which APIs the server offers: those of beta versions are often left out.

use std::time::Duration;

use kube::Client;
use tokio_util::sync::CancellationToken;

/// How long to wait before the API server is asked again what it has.
const ASK_AGAIN_MIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MAX: Duration = Duration::from_mins(1);

/// Whether the API server has this kind in `version`, such as `apps/v1`. False when `shutdown` comes before the answer.
pub async fn served(
    client: &Client,
    version: &str,
    kind: &str,
    shutdown: &CancellationToken,
) -> bool {
    let mut wait = ASK_AGAIN_MIN;
    loop {
        match client.list_api_group_resources(version).await {
            Ok(list) => return list.resources.iter().any(|resource| resource.kind == kind),
            Err(kube::Error::Api(status)) if status.code == 404 => return false,
            Err(error) => tracing::debug!(%error, "cannot ask what {version} has"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(ASK_AGAIN_MAX),
        }
    }
}
