//! Network policies, quotas, limits and budgets.

use serde_json::Value;

use super::{Page, items, map, or, selector, shown, str};

/// Writes a network policy.
pub fn network_policy(page: &mut Page, object: &Value) {
    let (meta, spec) = (&object["metadata"], &object["spec"]);
    page.field(0, "Name", str(&meta["name"]));
    page.field(0, "Namespace", str(&meta["namespace"]));
    page.field(0, "Created on", created(&meta["creationTimestamp"]));
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
    page.line(0, "Spec:");
    let all = "<none> (Allowing the specific traffic to all pods in this namespace)";
    page.line(1, format!("PodSelector:     {}", selector(&spec["podSelector"], all)));
    let types: Vec<&str> = items(&spec["policyTypes"]).map(str).collect();
    let ways = [
        ("Ingress", "ingress", "From", "from", "source"),
        ("Egress", "egress", "To", "to", "destination"),
    ];
    for (kind, way, title, peers, end) in ways {
        if !types.contains(&kind) {
            page.line(1, format!("Not affecting {way} traffic"));
            continue;
        }
        page.line(1, format!("Allowing {way} traffic:"));
        let rules: Vec<&Value> = items(&spec[way]).collect();
        if rules.is_empty() {
            page.line(2, format!("<none> (Selected pods are isolated for {way} connectivity)"));
        }
        for (index, rule) in rules.iter().enumerate() {
            if index > 0 {
                page.line(2, "----------");
            }
            ports(page, &rule["ports"]);
            let mut any = false;
            for peer in items(&rule[peers]) {
                any = true;
                page.line(2, format!("{title}:"));
                self::peer(page, peer);
            }
            if !any {
                page.line(2, format!("{title}: <any> (traffic not restricted by {end})"));
            }
        }
    }
    page.line(1, format!("Policy Types: {}", types.join(", ")));
}

fn ports(page: &mut Page, ports: &Value) {
    let mut any = false;
    for port in items(ports) {
        any = true;
        let (number, protocol) = (shown(&port["port"]), or(&port["protocol"], "TCP"));
        match &port["endPort"] {
            Value::Null => page.line(2, format!("To Port: {number}/{protocol}")),
            end => page.line(2, format!("To Port Range: {number}-{}/{protocol}", shown(end))),
        }
    }
    if !any {
        page.line(2, "To Port: <any> (traffic allowed to all ports)");
    }
}

fn peer(page: &mut Page, peer: &Value) {
    let block = &peer["ipBlock"];
    if block.is_object() {
        let except: Vec<&str> = items(&block["except"]).map(str).collect();
        page.line(3, "IPBlock:");
        page.line(4, format!("CIDR: {}", str(&block["cidr"])));
        page.line(4, format!("Except: {}", except.join(", ")));
    }
    for (title, field) in
        [("NamespaceSelector", "namespaceSelector"), ("PodSelector", "podSelector")]
    {
        if peer[field].is_object() {
            page.line(3, format!("{title}: {}", selector(&peer[field], "<none>")));
        }
    }
}

/// As Go writes a time.
fn created(value: &Value) -> String {
    let Ok(at) = apimachinery::time::parse(str(value)) else { return "<unset>".into() };
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
}

/// Writes a quota with what is used of it.
pub fn quota(page: &mut Page, object: &Value) {
    page.field(0, "Name", str(&object["metadata"]["name"]));
    page.field(0, "Namespace", str(&object["metadata"]["namespace"]));
    scopes(page, 0, " * ", object);
    page.line(0, "Resource\tUsed\tHard");
    page.line(0, "--------\t----\t----");
    used(page, 0, object);
}

/// What of each resource is used.
pub fn used(page: &mut Page, level: usize, quota: &Value) {
    for (resource, hard) in map(&quota["status"]["hard"]) {
        let used = or(&quota["status"]["used"][resource], "0");
        page.line(level, format!("{resource}\t{used}\t{}", shown(hard)));
    }
}

/// Which pods a quota is about.
pub fn scopes(page: &mut Page, level: usize, lead: &str, quota: &Value) {
    let mut scopes: Vec<&str> = items(&quota["spec"]["scopes"]).map(str).collect();
    if scopes.is_empty() {
        return;
    }
    scopes.sort_unstable();
    page.field(level, "Scopes", scopes.join(", "));
    for scope in scopes {
        let meaning = match scope {
            "Terminating" => {
                "Matches all pods that have an active deadline. These pods have a limited lifespan on a node before being actively terminated by the system."
            }
            "NotTerminating" => {
                "Matches all pods that do not have an active deadline. These pods usually include long running pods whose container command is not expected to terminate."
            }
            "BestEffort" => {
                "Matches all pods that do not have resource requirements set. These pods have a best effort quality of service."
            }
            "NotBestEffort" => {
                "Matches all pods that have at least one resource requirement set. These pods have a burstable or guaranteed quality of service."
            }
            _ => continue,
        };
        page.line(level, format!("{lead}{meaning}"));
    }
}

/// Writes a limit range.
pub fn limit_range(page: &mut Page, object: &Value) {
    page.field(0, "Name", str(&object["metadata"]["name"]));
    page.field(0, "Namespace", str(&object["metadata"]["namespace"]));
    limits(page, "", [object].into_iter());
}

/// The table of limits.
pub fn limits<'a>(page: &mut Page, lead: &str, ranges: impl Iterator<Item = &'a Value>) {
    const FIELDS: [&str; 5] = ["min", "max", "defaultRequest", "default", "maxLimitRequestRatio"];
    let header =
        "Type\tResource\tMin\tMax\tDefault Request\tDefault Limit\tMax Limit/Request Ratio";
    let rule = "----\t--------\t---\t---\t---------------\t-------------\t-----------------------";
    page.line(0, format!("{lead}{header}"));
    page.line(0, format!("{lead}{rule}"));
    for limit in ranges.flat_map(|range| items(&range["spec"]["limits"])) {
        let mut resources: Vec<&String> =
            FIELDS.iter().flat_map(|field| map(&limit[*field]).map(|(key, _)| key)).collect();
        resources.sort();
        resources.dedup();
        for resource in resources {
            let cells: Vec<String> =
                FIELDS.iter().map(|field| or(&limit[*field][resource], "-")).collect();
            page.line(
                0,
                format!("{lead}{}\t{resource}\t{}", str(&limit["type"]), cells.join("\t")),
            );
        }
    }
}

/// Writes a budget of disruptions.
pub fn disruption_budget(page: &mut Page, object: &Value) {
    let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    page.field(0, "Name", str(&meta["name"]));
    page.field(0, "Namespace", str(&meta["namespace"]));
    for (title, field) in [("Min available", "minAvailable"), ("Max unavailable", "maxUnavailable")]
    {
        if !spec[field].is_null() {
            page.field(0, title, shown(&spec[field]));
            break;
        }
    }
    let chosen = if spec["selector"].is_null() {
        "<unset>".into()
    } else {
        selector(&spec["selector"], "<none>")
    };
    page.field(0, "Selector", chosen);
    page.line(0, "Status:");
    for (title, field) in [
        ("Allowed disruptions", "disruptionsAllowed"),
        ("Current", "currentHealthy"),
        ("Desired", "desiredHealthy"),
        ("Total", "expectedPods"),
    ] {
        page.field(2, title, or(&status[field], "0"));
    }
}
