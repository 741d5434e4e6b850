//! Pods, and pod templates.

use serde_json::Value;

use super::{Page, items, map, or, selector, shown, str, time, truth};

/// Writes the pod.
pub fn describe(page: &mut Page, pod: &Value) {
    let (meta, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
    page.field(0, "Name", str(&meta["name"]));
    page.field(0, "Namespace", str(&meta["namespace"]));
    let told = [
        ("Priority", &spec["priority"]),
        ("Priority Class Name", &spec["priorityClassName"]),
        ("Runtime Class Name", &spec["runtimeClassName"]),
        ("Service Account", &spec["serviceAccountName"]),
    ];
    for (name, value) in told.into_iter().filter(|(_, value)| !shown(value).is_empty()) {
        page.field(0, name, shown(value));
    }
    match str(&spec["nodeName"]) {
        "" => page.field(0, "Node", "<none>"),
        node => page.field(0, "Node", format!("{node}/{}", str(&status["hostIP"]))),
    }
    if status["startTime"].is_string() {
        page.field(0, "Start Time", time(&status["startTime"]));
    }
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
    let ended = matches!(str(&status["phase"]), "Succeeded" | "Failed");
    if meta["deletionTimestamp"].is_string() && !ended {
        page.field(
            0,
            "Status",
            format!("Terminating (lasts {})", super::age(&meta["deletionTimestamp"])),
        );
        page.field(
            0,
            "Termination Grace Period",
            format!("{}s", shown(&meta["deletionGracePeriodSeconds"])),
        );
    } else {
        page.field(0, "Status", str(&status["phase"]));
    }
    for (name, value) in [("Reason", &status["reason"]), ("Message", &status["message"])] {
        if !str(value).is_empty() {
            page.field(0, name, str(value));
        }
    }
    seccomp(page, 0, &spec["securityContext"]);
    page.field(0, "IP", str(&status["podIP"]));
    if items(&status["podIPs"]).next().is_none() {
        page.field(0, "IPs", "<none>");
    } else {
        page.line(0, "IPs:");
        items(&status["podIPs"]).for_each(|ip| page.field(1, "IP", str(&ip["ip"])));
    }
    if let Some(owner) = controller(pod) {
        page.field(0, "Controlled By", owner);
    }
    if !str(&status["nominatedNodeName"]).is_empty() {
        page.field(0, "NominatedNodeName", str(&status["nominatedNodeName"]));
    }
    if spec["resources"].is_object() {
        page.line(0, "Resources:");
        resources(page, 1, &spec["resources"]);
    }
    for (title, list, statuses) in [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
        ("Ephemeral Containers", "ephemeralContainers", "ephemeralContainerStatuses"),
    ] {
        if list == "containers" || items(&spec[list]).next().is_some() {
            containers(page, title, &spec[list], &status[statuses], pod, "");
        }
    }
    gates(page, spec, status);
    if items(&status["conditions"]).next().is_some() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus");
        for condition in items(&status["conditions"]) {
            page.line(1, format!("{} \t{} ", str(&condition["type"]), str(&condition["status"])));
        }
    }
    volumes(page, &spec["volumes"], "");
    page.field(0, "QoS Class", str(&status["qosClass"]));
    page.labels(0, "Node-Selectors", &spec["nodeSelector"]);
    page.multiline(0, "Tolerations", &tolerations(&spec["tolerations"]));
    spread(page, 0, spec);
}

/// Whose controller made the object: `ReplicaSet/web`.
pub fn controller(object: &Value) -> Option<String> {
    let owner = items(&object["metadata"]["ownerReferences"]).find(|o| o["controller"] == true)?;
    Some(format!("{}/{}", str(&owner["kind"]), str(&owner["name"])))
}

fn gates(page: &mut Page, spec: &Value, status: &Value) {
    if items(&spec["readinessGates"]).next().is_none() {
        return;
    }
    page.line(0, "Readiness Gates:");
    page.line(1, "Type\tStatus");
    for gate in items(&spec["readinessGates"]) {
        let kind = &gate["conditionType"];
        let found = items(&status["conditions"]).find(|c| c["type"] == *kind);
        let state = found.map_or("<none>", |c| str(&c["status"]));
        page.line(1, format!("{} \t{state} ", str(kind)));
    }
}

fn seccomp(page: &mut Page, level: usize, context: &Value) {
    let profile = &context["seccompProfile"];
    if profile.is_null() {
        return;
    }
    page.field(level, "SeccompProfile", str(&profile["type"]));
    if profile["type"] == "Localhost" {
        page.field(level, "LocalhostProfile", str(&profile["localhostProfile"]));
    }
}

fn spread(page: &mut Page, level: usize, spec: &Value) {
    let texts: Vec<String> = items(&spec["topologySpreadConstraints"])
        .map(|c| {
            format!(
                "{}:{} when max skew {} is exceeded for selector {}",
                str(&c["topologyKey"]),
                str(&c["whenUnsatisfiable"]),
                shown(&c["maxSkew"]),
                selector(&c["labelSelector"], "")
            )
        })
        .collect();
    if !texts.is_empty() {
        page.multiline(level, "Topology Spread Constraints", &texts);
    }
}

/// Each toleration as text, by key.
pub fn tolerations(list: &Value) -> Vec<String> {
    let mut sorted: Vec<&Value> = items(list).collect();
    sorted.sort_by_key(|t| str(&t["key"]));
    let text = |toleration: &&Value| {
        let field = |name: &str| str(&toleration[name]);
        let mut text = field("key").to_owned();
        if !field("value").is_empty() {
            text.push_str(&format!("={}", field("value")));
        }
        if !field("effect").is_empty() {
            text.push_str(&format!(":{}", field("effect")));
        }
        if field("operator") == "Exists" && field("value").is_empty() {
            text.push_str(if text.is_empty() { "op=Exists" } else { " op=Exists" });
        }
        if let Some(seconds) = toleration["tolerationSeconds"].as_i64() {
            text.push_str(&format!(" for {seconds}s"));
        }
        text
    };
    sorted.iter().map(text).collect()
}

/// The template of a workload.
pub fn template(page: &mut Page, template: &Value) {
    page.line(0, "Pod Template:");
    let (meta, spec) = (&template["metadata"], &template["spec"]);
    page.labels(1, "Labels", &meta["labels"]);
    if map(&meta["annotations"]).next().is_some() {
        let pairs: Vec<String> =
            map(&meta["annotations"]).map(|(k, v)| format!("{k}: {}", str(v))).collect();
        page.multiline(1, "Annotations", &pairs);
    }
    if !str(&spec["serviceAccountName"]).is_empty() {
        page.field(1, "Service Account", str(&spec["serviceAccountName"]));
    }
    if items(&spec["initContainers"]).next().is_some() {
        containers(
            page,
            "Init Containers",
            &spec["initContainers"],
            &Value::Null,
            &Value::Null,
            "  ",
        );
    }
    containers(page, "Containers", &spec["containers"], &Value::Null, &Value::Null, "  ");
    volumes(page, &spec["volumes"], "  ");
    spread(page, 1, spec);
    if !str(&spec["priorityClassName"]).is_empty() {
        page.field(1, "Priority Class Name", str(&spec["priorityClassName"]));
    }
    page.labels(1, "Node-Selectors", &spec["nodeSelector"]);
    page.multiline(1, "Tolerations", &tolerations(&spec["tolerations"]));
}

fn containers(
    page: &mut Page,
    title: &str,
    list: &Value,
    statuses: &Value,
    pod: &Value,
    space: &str,
) {
    let none = if items(list).next().is_none() { " <none>" } else { "" };
    page.line(0, format!("{space}{title}:{none}"));
    let indent = if space.is_empty() { "" } else { " " };
    for container in items(list) {
        let name = str(&container["name"]);
        let status = items(statuses).find(|s| s["name"] == container["name"]);
        page.line(1, format!("{indent}{name}:"));
        basics(page, container, status);
        for (title, field) in [("Command", "command"), ("Args", "args")] {
            if items(&container[field]).next().is_some() {
                page.line(2, format!("{title}:"));
                let lines = items(&container[field]).flat_map(|word| str(word).split('\n'));
                lines.for_each(|line| page.line(3, line));
            }
        }
        if let Some(status) = status {
            state(page, "State", &status["state"]);
            if status["lastState"]["terminated"].is_object() {
                state(page, "Last State", &status["lastState"]);
            }
            page.field(2, "Ready", truth(status["ready"] == true));
            page.field(2, "Restart Count", or(&status["restartCount"], "0"));
        }
        resources(page, 2, &container["resources"]);
        for (title, field) in [
            ("Liveness", "livenessProbe"),
            ("Readiness", "readinessProbe"),
            ("Startup", "startupProbe"),
        ] {
            if container[field].is_object() {
                page.field(2, title, probe(&container[field]));
            }
        }
        environment(page, container, pod);
        mounts(page, container);
    }
}

fn basics(page: &mut Page, container: &Value, status: Option<&Value>) {
    if let Some(status) = status {
        page.field(2, "Container ID", str(&status["containerID"]));
    }
    page.field(2, "Image", str(&container["image"]));
    if let Some(status) = status {
        page.field(2, "Image ID", str(&status["imageID"]));
    }
    for (title, field) in [("Port", "containerPort"), ("Host Port", "hostPort")] {
        let texts: Vec<String> = items(&container["ports"])
            .map(|port| {
                let text = format!("{}/{}", or(&port[field], "0"), or(&port["protocol"], "TCP"));
                match str(&port["name"]) {
                    name if !name.is_empty() => {
                        format!("{text} ({name})")
                    }
                    _ => text,
                }
            })
            .collect();
        match texts.len() {
            0 => page.field(2, title, "<none>"),
            1 => page.field(2, title, &texts[0]),
            _ => page.field(2, &format!("{title}s"), texts.join(", ")),
        }
    }
    seccomp(page, 2, &container["securityContext"]);
}

fn state(page: &mut Page, title: &str, state: &Value) {
    if state["running"].is_object() {
        page.field(2, title, "Running");
        page.field(3, "Started", time(&state["running"]["startedAt"]));
    } else if state["terminated"].is_object() {
        let ended = &state["terminated"];
        page.field(2, title, "Terminated");
        for (name, value) in [("Reason", &ended["reason"]), ("Message", &ended["message"])] {
            if !str(value).is_empty() {
                page.field(3, name, str(value));
            }
        }
        page.field(3, "Exit Code", or(&ended["exitCode"], "0"));
        if ended["signal"].as_i64().is_some_and(|n| n > 0) {
            page.field(3, "Signal", shown(&ended["signal"]));
        }
        page.field(3, "Started", time(&ended["startedAt"]));
        page.field(3, "Finished", time(&ended["finishedAt"]));
    } else {
        page.field(2, title, "Waiting");
        if !str(&state["waiting"]["reason"]).is_empty() {
            page.field(3, "Reason", str(&state["waiting"]["reason"]));
        }
    }
}

fn resources(page: &mut Page, level: usize, resources: &Value) {
    for (title, field) in [("Limits", "limits"), ("Requests", "requests")] {
        if map(&resources[field]).next().is_some() {
            page.line(level, format!("{title}:"));
        }
        for (name, amount) in map(&resources[field]) {
            page.field(level + 1, name, shown(amount));
        }
    }
}

fn probe(probe: &Value) -> String {
    let number = |field: &str, otherwise: &str| or(&probe[field], otherwise);
    let times = format!(
        "delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds", "0"),
        number("timeoutSeconds", "1"),
        number("periodSeconds", "10"),
        number("successThreshold", "1"),
        number("failureThreshold", "3")
    );
    if probe["exec"].is_object() {
        let words: Vec<&str> = items(&probe["exec"]["command"]).map(str).collect();
        return format!("exec [{}] {times}", words.join(" "));
    }
    if probe["httpGet"].is_object() {
        let get = &probe["httpGet"];
        let path = str(&get["path"]);
        let slash = if path.starts_with('/') || path.is_empty() { "" } else { "/" };
        let scheme = or(&get["scheme"], "HTTP").to_lowercase();
        return format!(
            "http-get {scheme}://{}:{}{slash}{path} {times}",
            str(&get["host"]),
            shown(&get["port"])
        );
    }
    if probe["tcpSocket"].is_object() {
        let socket = &probe["tcpSocket"];
        return format!("tcp-socket {}:{} {times}", str(&socket["host"]), shown(&socket["port"]));
    }
    if probe["grpc"].is_object() {
        let grpc = &probe["grpc"];
        return format!("grpc <pod>:{} {} {times}", shown(&grpc["port"]), str(&grpc["service"]));
    }
    format!("unknown {times}")
}

fn environment(page: &mut Page, container: &Value, pod: &Value) {
    if items(&container["envFrom"]).next().is_some() {
        page.line(2, "Environment Variables from:");
        for source in items(&container["envFrom"]) {
            let (from, source_ref) = if source["secretRef"].is_object() {
                ("Secret", &source["secretRef"])
            } else {
                ("ConfigMap", &source["configMapRef"])
            };
            let prefix = match str(&source["prefix"]) {
                "" => String::new(),
                prefix => format!(" with prefix '{prefix}'"),
            };
            page.line(
                3,
                format!(
                    "{}\t{from}{prefix}\tOptional: {}",
                    str(&source_ref["name"]),
                    source_ref["optional"] == true
                ),
            );
        }
    }
    let none = if items(&container["env"]).next().is_none() { "\t<none>" } else { "" };
    page.line(2, format!("Environment:{none}"));
    for variable in items(&container["env"]) {
        let (name, from) = (str(&variable["name"]), &variable["valueFrom"]);
        if from.is_null() {
            for (index, line) in str(&variable["value"]).split('\n').enumerate() {
                page.line(
                    3,
                    if index == 0 { format!("{name}:\t{line}") } else { format!("\t{line}") },
                );
            }
            continue;
        }
        let key = |source: &Value, word: &str, what: &str| {
            format!(
                "{name}:\t<set to the key '{}' {word} {what} '{}'>\tOptional: {}",
                str(&source["key"]),
                str(&source["name"]),
                source["optional"] == true
            )
        };
        page.line(
            3,
            if from["fieldRef"].is_object() {
                let field = &from["fieldRef"];
                let path = str(&field["fieldPath"]);
                format!(
                    "{name}:\t{} ({}:{path})",
                    field_value(pod, path),
                    or(&field["apiVersion"], "v1")
                )
            } else if from["resourceFieldRef"].is_object() {
                let field = &from["resourceFieldRef"];
                format!(
                    "{name}:\t{} ({})",
                    resource_value(container, field),
                    str(&field["resource"])
                )
            } else if from["secretKeyRef"].is_object() {
                key(&from["secretKeyRef"], "in", "secret")
            } else {
                key(&from["configMapKeyRef"], "of", "config map")
            },
        );
    }
}

/// What a field of the pod's metadata is; others are known on the node alone.
fn field_value(pod: &Value, path: &str) -> String {
    let Some(path) = path.strip_prefix("metadata.") else { return String::new() };
    if let Some((map, key)) = path.split_once("['") {
        return shown(&pod["metadata"][map][key.trim_end_matches("']")]);
    }
    shown(&pod["metadata"][path])
}

fn resource_value(container: &Value, field: &Value) -> String {
    let Some((kind, resource)) = str(&field["resource"]).split_once('.') else {
        return String::new();
    };
    let amount = shown(&container["resources"][kind][resource]);
    if amount.is_empty() {
        return if kind == "limits" { "node allocatable".into() } else { "0".into() };
    }
    let divisor: f64 = or(&field["divisor"], "1")
        .parse::<apimachinery::quantity::Quantity>()
        .map_or(1.0, |d| if d.is_zero() { 1.0 } else { d.to_f64() });
    let value = amount.parse::<apimachinery::quantity::Quantity>().map_or(0.0, |a| a.to_f64());
    ((value / divisor).ceil() as i64).to_string()
}

fn mounts(page: &mut Page, container: &Value) {
    let mut mounts: Vec<&Value> = items(&container["volumeMounts"]).collect();
    mounts.sort_by_key(|mount| str(&mount["mountPath"]));
    page.line(2, format!("Mounts:{}", if mounts.is_empty() { "\t<none>" } else { "" }));
    for mount in mounts {
        let mut flags =
            vec![if mount["readOnly"] == true { "ro".to_owned() } else { "rw".to_owned() }];
        if !str(&mount["subPath"]).is_empty() {
            flags.push(format!("path={:?}", str(&mount["subPath"])));
        }
        page.line(
            3,
            format!(
                "{} from {} ({})",
                str(&mount["mountPath"]),
                str(&mount["name"]),
                flags.join(",")
            ),
        );
    }
    let mut devices: Vec<&Value> = items(&container["volumeDevices"]).collect();
    devices.sort_by_key(|device| str(&device["devicePath"]));
    if !devices.is_empty() {
        page.line(2, "Devices:");
        for device in devices {
            page.line(3, format!("{} from {}", str(&device["devicePath"]), str(&device["name"])));
        }
    }
}

fn volumes(page: &mut Page, list: &Value, space: &str) {
    if items(list).next().is_none() {
        page.line(0, format!("{space}Volumes:\t<none>"));
        return;
    }
    page.line(0, format!("{space}Volumes:"));
    let indent = if space.is_empty() { "" } else { " " };
    for volume in items(list) {
        page.line(1, format!("{indent}{}:", str(&volume["name"])));
        source(page, volume);
    }
}

/// Kinds of volumes: the field, what they are, and which of their fields are told.
const VOLUMES: [(&str, &str, &[(&str, &str, &str)]); 8] = [
    (
        "hostPath",
        "HostPath (bare host directory volume)",
        &[("Path", "path", ""), ("HostPathType", "type", "")],
    ),
    (
        "emptyDir",
        "EmptyDir (a temporary directory that shares a pod's lifetime)",
        &[("Medium", "medium", ""), ("SizeLimit", "sizeLimit", "<unset>")],
    ),
    (
        "secret",
        "Secret (a volume populated by a Secret)",
        &[("SecretName", "secretName", ""), ("Optional", "optional", "false")],
    ),
    (
        "configMap",
        "ConfigMap (a volume populated by a ConfigMap)",
        &[("Name", "name", ""), ("Optional", "optional", "false")],
    ),
    (
        "persistentVolumeClaim",
        "PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)",
        &[("ClaimName", "claimName", ""), ("ReadOnly", "readOnly", "false")],
    ),
    (
        "nfs",
        "NFS (an NFS mount that lasts the lifetime of a pod)",
        &[("Server", "server", ""), ("Path", "path", ""), ("ReadOnly", "readOnly", "false")],
    ),
    (
        "image",
        "Image (a container image or OCI artifact)",
        &[("Reference", "reference", ""), ("PullPolicy", "pullPolicy", "")],
    ),
    (
        "csi",
        "CSI (a Container Storage Interface (CSI) volume source)",
        &[("Driver", "driver", ""), ("FSType", "fsType", ""), ("ReadOnly", "readOnly", "false")],
    ),
];

fn source(page: &mut Page, volume: &Value) {
    for (field, what, told) in VOLUMES {
        if !volume[field].is_object() {
            continue;
        }
        page.field(2, "Type", what);
        for (title, name, otherwise) in told {
            page.field(2, title, or(&volume[field][*name], otherwise));
        }
        if field == "csi" {
            let attributes: Vec<String> = map(&volume[field]["volumeAttributes"])
                .map(|(k, v)| format!("{k}={}", str(v)))
                .collect();
            page.multiline(2, "VolumeAttributes", &attributes);
        }
        return;
    }
    if volume["projected"].is_object() {
        page.field(
            2,
            "Type",
            "Projected (a volume that contains injected data from multiple sources)",
        );
        for source in items(&volume["projected"]["sources"]) {
            if source["secret"].is_object() {
                page.field(2, "SecretName", str(&source["secret"]["name"]));
                page.field(2, "Optional", or(&source["secret"]["optional"], "false"));
            } else if source["downwardAPI"].is_object() {
                page.field(2, "DownwardAPI", "true");
            } else if source["configMap"].is_object() {
                page.field(2, "ConfigMapName", str(&source["configMap"]["name"]));
                page.field(2, "Optional", or(&source["configMap"]["optional"], "false"));
            } else if source["serviceAccountToken"].is_object() {
                page.field(
                    2,
                    "TokenExpirationSeconds",
                    shown(&source["serviceAccountToken"]["expirationSeconds"]),
                );
            }
        }
    } else if volume["downwardAPI"].is_object() {
        page.field(2, "Type", "DownwardAPI (a volume populated by information about the pod)");
        page.line(2, "Items:");
        for item in items(&volume["downwardAPI"]["items"]) {
            for field in [&item["fieldRef"]["fieldPath"], &item["resourceFieldRef"]["resource"]] {
                if field.is_string() {
                    page.line(3, format!("{} -> {}", str(field), str(&item["path"])));
                }
            }
        }
    } else if volume["ephemeral"].is_object() {
        page.field(2, "Type", "EphemeralVolume (an inline specification for a volume that gets created and deleted with the pod)");
        let claim = &volume["ephemeral"]["volumeClaimTemplate"]["spec"];
        page.field(2, "StorageClass", str(&claim["storageClassName"]));
        page.field(2, "Volume", str(&claim["volumeName"]));
        page.field(2, "Capacity", shown(&claim["resources"]["requests"]["storage"]));
        page.field(
            2,
            "Access Modes",
            items(&claim["accessModes"]).map(str).collect::<Vec<_>>().join(","),
        );
        page.field(2, "VolumeMode", or(&claim["volumeMode"], "Filesystem"));
    } else {
        page.line(1, "<unknown>");
    }
}
