//! The events about an object.

use serde_json::Value;

use super::{Page, age, items, or, shown, str};
use crate::objects::error::Error;
use crate::objects::selection::Query;
use crate::objects::session::Session;

/// Those about an object, oldest first.
pub async fn about(session: &Session, object: &Value) -> Result<Vec<Value>, Error> {
    let meta = &object["metadata"];
    let namespace = str(&meta["namespace"]);
    // A node's events carry its name as their object's uid, from kubelets, or its uid, from controllers.
    let uid = if object["kind"] == "Node" { "" } else { str(&meta["uid"]) };
    let mut fields = vec![format!("involvedObject.name={}", str(&meta["name"]))];
    if !namespace.is_empty() {
        fields.push(format!("involvedObject.namespace={namespace}"));
    }
    if uid.is_empty() {
        fields.push(format!("involvedObject.kind={}", str(&object["kind"])));
    } else {
        fields.push(format!("involvedObject.uid={uid}"));
    }
    let query = Query::default().with("fieldSelector", &fields.join(","));
    let place =
        if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
    let list = session.api.get(&format!("/api/v1{place}/events{}", query.text())).await;
    let list = match list {
        Ok(list) => list,
        // Who may not see events is shown none.
        Err(Error::Refused { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut events: Vec<Value> = items(&list["items"]).cloned().collect();
    events.sort_by_key(|event| str(&event["lastTimestamp"]).to_owned());
    Ok(events)
}

/// Writes them as a table.
pub fn write(page: &mut Page, events: &[Value]) {
    if events.is_empty() {
        page.field(0, "Events", "<none>");
        return;
    }
    page.line(0, "Events:");
    page.line(1, "Type\tReason\tAge\tFrom\tMessage");
    page.line(1, "----\t------\t----\t----\t-------");
    for event in events {
        let first = match str(&event["eventTime"]) {
            "" => &event["firstTimestamp"],
            _ => &event["eventTime"],
        };
        let since = age(first);
        let series = &event["series"];
        let interval = if series.is_object() {
            let last = age(&series["lastObservedTime"]);
            format!("{last} (x{} over {since})", or(&series["count"], "0"))
        } else if event["count"].as_u64().is_some_and(|count| count > 1) {
            format!("{} (x{} over {since})", age(&event["lastTimestamp"]), shown(&event["count"]))
        } else {
            since
        };
        let source = [&event["source"]["component"], &event["reportingComponent"]];
        let source = source.into_iter().map(str).find(|s| !s.is_empty()).unwrap_or_default();
        let part = match str(&event["involvedObject"]["fieldPath"]) {
            "" => String::new(),
            path => format!("{path}: "),
        };
        page.line(
            1,
            format!(
                "{}\t{}\t{interval}\t{source}\t{part}{}",
                str(&event["type"]),
                str(&event["reason"]),
                str(&event["message"]).trim()
            ),
        );
    }
}
