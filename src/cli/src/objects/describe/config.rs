//! Config maps, secrets, service accounts, namespaces.

use serde_json::Value;

use super::{Page, items, map, policy, shown, str};
use crate::objects::error::Error;
use crate::objects::session::Session;

/// Name, namespace, labels, annotations.
pub fn head(page: &mut Page, object: &Value) {
    let meta = &object["metadata"];
    page.field(0, "Name", str(&meta["name"]));
    if meta["namespace"].is_string() {
        page.field(0, "Namespace", str(&meta["namespace"]));
    }
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
}

/// Writes a config map.
pub fn config_map(page: &mut Page, object: &Value) {
    head(page, object);
    page.line(0, "");
    page.line(0, "Data");
    page.line(0, "====");
    for (key, value) in map(&object["data"]) {
        page.line(0, format!("{key}:\n----\n{}", str(value)));
        page.line(0, "");
    }
    page.line(0, "");
    page.line(0, "BinaryData");
    page.line(0, "====");
    for (key, value) in map(&object["binaryData"]) {
        page.line(0, format!("{key}: {} bytes", decoded(str(value))));
    }
    page.line(0, "");
}

/// How many bytes base64 stands for.
fn decoded(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

/// Writes a secret, not what it holds.
pub fn secret(page: &mut Page, object: &Value) {
    head(page, object);
    page.line(0, "");
    page.field(0, "Type", str(&object["type"]));
    page.line(0, "");
    page.line(0, "Data");
    page.line(0, "====");
    for (key, value) in map(&object["data"]) {
        let shown = if key == "token" && object["type"] == "kubernetes.io/service-account-token" {
            let bytes =
                base64::Engine::decode(&base64::engine::general_purpose::STANDARD, str(value));
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        } else {
            format!("{} bytes", decoded(str(value)))
        };
        page.field(0, key, shown);
    }
}

/// Writes a service account.
pub async fn service_account(
    page: &mut Page,
    session: &Session,
    object: &Value,
) -> Result<(), Error> {
    head(page, object);
    let meta = &object["metadata"];
    let path = format!("/api/v1/namespaces/{}/secrets", str(&meta["namespace"]));
    let secrets = session.api.get(&path).await.unwrap_or_default();
    let tokens: Vec<String> = items(&secrets["items"])
        .filter(|secret| {
            let annotations = &secret["metadata"]["annotations"];
            secret["type"] == "kubernetes.io/service-account-token"
                && annotations["kubernetes.io/service-account.name"] == meta["name"]
        })
        .map(|secret| str(&secret["metadata"]["name"]).to_owned())
        .collect();
    let names = |list: &Value| items(list).map(|s| str(&s["name"]).to_owned()).collect::<Vec<_>>();
    page.multiline(0, "Image pull secrets", &names(&object["imagePullSecrets"]));
    for (title, values) in [("Mountable secrets", names(&object["secrets"])), ("Tokens", tokens)] {
        if !values.is_empty() {
            page.multiline(0, title, &values);
        }
    }
    Ok(())
}

/// Writes a namespace with its quotas and limits.
pub async fn namespace(page: &mut Page, session: &Session, object: &Value) -> Result<(), Error> {
    let name = str(&object["metadata"]["name"]);
    head(page, object);
    page.field(0, "Status", str(&object["status"]["phase"]));
    let quotas = session.api.get(&format!("/api/v1/namespaces/{name}/resourcequotas")).await;
    let quotas = quotas.unwrap_or_default();
    page.line(0, "");
    if items(&quotas["items"]).next().is_none() {
        page.line(0, "No resource quota.");
    } else {
        page.line(0, "Resource Quotas");
    }
    for quota in items(&quotas["items"]) {
        page.line(1, format!("Name:\t{}", str(&quota["metadata"]["name"])));
        policy::scopes(page, 1, "* ", quota);
        page.line(1, "Resource\tUsed\tHard");
        page.line(1, "--------\t---\t---");
        policy::used(page, 1, quota);
    }
    let limits = session.api.get(&format!("/api/v1/namespaces/{name}/limitranges")).await;
    let limits = limits.unwrap_or_default();
    page.line(0, "");
    if items(&limits["items"]).next().is_none() {
        page.line(0, "No LimitRange resource.");
        return Ok(());
    }
    page.line(0, "Resource Limits");
    policy::limits(page, " ", items(&limits["items"]));
    Ok(())
}

/// Writes a priority class.
pub fn priority_class(page: &mut Page, object: &Value) {
    page.field(0, "Name", str(&object["metadata"]["name"]));
    page.field(0, "Value", shown(&object["value"]));
    page.field(0, "GlobalDefault", if object["globalDefault"] == true { "true" } else { "false" });
    page.field(0, "PreemptionPolicy", str(&object["preemptionPolicy"]));
    page.field(0, "Description", str(&object["description"]));
    page.field(0, "Annotations", super::storage::joined(&object["metadata"]["annotations"]));
}
