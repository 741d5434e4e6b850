//! `rootlet cni`: a CNI plugin (specification 1.1.0) that gives network namespaces of other runtimes an
//! interface in the pods' network of a running cluster.
//!
//! The namespace must belong to the cluster's user namespace, or to one within it: the node process
//! has no power over others.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::ExitCode;

use netns::{AttachRequest, Attachment, Bandwidth, Control};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::paths::Paths;

/// Versions of the specification that are spoken.
const VERSIONS: [&str; 5] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0", "0.3.0"];

/// Error codes of the specification ("Error").
const UNSUPPORTED_VERSION: u32 = 1;
const INVALID_ENVIRONMENT: u32 = 4;
const IO_FAILURE: u32 = 5;
const UNDECODABLE: u32 = 6;
const TRY_AGAIN: u32 = 11;
/// Of our own: the cluster does not run.
const NOT_RUNNING: u32 = 100;
const FAILED: u32 = 101;

/// The plugin's part of a network configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    cni_version: String,
    /// The cluster whose network is meant.
    #[serde(default = "default_cluster")]
    cluster: String,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Vec<ValidAttachment>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

fn default_cluster() -> String {
    "default".into()
}

/// What a runtime is told when something fails.
#[derive(Debug)]
struct Failure {
    code: u32,
    message: String,
    details: String,
}

fn failure(code: u32, message: &str, details: impl ToString) -> Failure {
    Failure { code, message: message.to_owned(), details: details.to_string() }
}

/// Carries out what the environment and standard input ask for.
pub fn run() -> ExitCode {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    let command = std::env::var("CNI_COMMAND").unwrap_or_default();
    if command == "VERSION" {
        println!("{}", json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}));
        return ExitCode::SUCCESS;
    }
    let outcome = read
        .map_err(|error| failure(IO_FAILURE, "cannot read the configuration", error))
        .and_then(|_| parse(&text))
        .and_then(|configuration| {
            let version = configuration.cni_version.clone();
            carry_out(&command, &configuration).map(|result| (version, result))
        });
    match outcome {
        Ok((_, None)) => ExitCode::SUCCESS,
        Ok((version, Some(mut result))) => {
            result["cniVersion"] = version.into();
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(Failure { code, message, details }) => {
            let error =
                json!({"cniVersion": "1.1.0", "code": code, "msg": message, "details": details});
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(text: &str) -> Result<Configuration, Failure> {
    let configuration: Configuration = serde_json::from_str(text)
        .map_err(|error| failure(UNDECODABLE, "the configuration cannot be decoded", error))?;
    if !VERSIONS.contains(&configuration.cni_version.as_str()) {
        let details = format!("supported are {}", VERSIONS.join(", "));
        let message = format!("incompatible CNI version {:?}", configuration.cni_version);
        return Err(failure(UNSUPPORTED_VERSION, &message, details));
    }
    Ok(configuration)
}

fn variable(name: &str) -> Result<String, Failure> {
    std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
        failure(
            INVALID_ENVIRONMENT,
            &format!("{name} is not set"),
            "the CNI specification wants it",
        )
    })
}

/// What the node process calls an attachment: a container may have several interfaces.
fn id_of(container: &str, ifname: &str) -> String {
    format!("cni/{container}/{ifname}")
}

fn carry_out(command: &str, configuration: &Configuration) -> Result<Option<Value>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failure(IO_FAILURE, "cannot start", error))?;
    runtime.block_on(async {
        let paths = Paths::of(&configuration.cluster)
            .map_err(|error| failure(NOT_RUNNING, "there is no such cluster", error))?;
        let control = match Control::connect(&paths.node_socket()).await {
            Ok(control) => control,
            // Nothing is attached to a network that is gone.
            Err(_) if matches!(command, "DEL" | "GC") => return Ok(None),
            Err(error) => {
                let code = if command == "STATUS" { 50 } else { TRY_AGAIN };
                let message = format!("cluster {:?} does not run", configuration.cluster);
                return Err(failure(code, &message, error.chain()));
            }
        };
        match command {
            "ADD" => add(&control).await.map(Some),
            "DEL" => delete(&control).await.map(|()| None),
            "CHECK" => check(&control, configuration).await.map(|()| None),
            "GC" => collect(&control, configuration).await.map(|()| None),
            "STATUS" => Ok(None),
            other => {
                let message = format!("CNI_COMMAND {other:?} is unknown");
                Err(failure(INVALID_ENVIRONMENT, &message, ""))
            }
        }
    })
}

async fn add(control: &Control) -> Result<Value, Failure> {
    let (container, ifname) = (variable("CNI_CONTAINERID")?, variable("CNI_IFNAME")?);
    let path = variable("CNI_NETNS")?;
    let namespace = File::open(&path)
        .map_err(|error| failure(IO_FAILURE, &format!("cannot open {path}"), error))?;
    let request = AttachRequest {
        id: id_of(&container, &ifname),
        ifname: ifname.clone(),
        member: None,
        bandwidth: Bandwidth::default(),
    };
    let attachment = control
        .attach(request, namespace.as_fd())
        .await
        .map_err(|error| failure(FAILED, "cannot attach the container", error.chain()))?;
    let gateways = control
        .gateways()
        .await
        .map_err(|error| failure(FAILED, "cannot ask for the gateways", error.chain()))?;
    Ok(result_of(&attachment, &gateways, &path))
}

/// The result of ADD ("Add Success").
fn result_of(attachment: &Attachment, gateways: &[IpAddr], sandbox: &str) -> Value {
    let addresses = [Some(attachment.address), attachment.address6].into_iter().flatten();
    let ips: Vec<Value> = addresses
        .map(|address| {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            let gateway = gateways.iter().find(|g| g.is_ipv4() == address.is_ipv4());
            let version = if address.is_ipv4() { "4" } else { "6" };
            json!({"interface": 0, "address": format!("{address}/{prefix}"),
                "gateway": gateway.map(ToString::to_string), "version": version})
        })
        .collect();
    let mut routes = Vec::new();
    if let Some(gateway) = gateways.iter().find(|gateway| gateway.is_ipv4()) {
        routes.push(json!({"dst": "0.0.0.0/0", "gw": gateway.to_string()}));
    }
    if attachment.address6.is_some()
        && let Some(gateway) = gateways.iter().find(|gateway| gateway.is_ipv6())
    {
        routes.push(json!({"dst": "::/0", "gw": gateway.to_string()}));
    }
    json!({
        "interfaces": [{"name": attachment.ifname, "mac": attachment.mac, "sandbox": sandbox}],
        "ips": ips, "routes": routes, "dns": {},
    })
}

async fn delete(control: &Control) -> Result<(), Failure> {
    let (container, ifname) = (variable("CNI_CONTAINERID")?, variable("CNI_IFNAME")?);
    control
        .detach(&id_of(&container, &ifname))
        .await
        .map_err(|error| failure(FAILED, "cannot detach the container", error.chain()))
}

async fn attachments(control: &Control) -> Result<Vec<Attachment>, Failure> {
    control
        .attachments()
        .await
        .map_err(|error| failure(FAILED, "cannot list the attachments", error.chain()))
}

async fn check(control: &Control, configuration: &Configuration) -> Result<(), Failure> {
    let (container, ifname) = (variable("CNI_CONTAINERID")?, variable("CNI_IFNAME")?);
    let id = id_of(&container, &ifname);
    let all = attachments(control).await?;
    let Some(found) = all.iter().find(|attachment| attachment.id == id) else {
        let message = format!("container {container} has no interface {ifname} here");
        return Err(failure(FAILED, &message, ""));
    };
    let told = configuration.prev_result.as_ref().and_then(|result| result["ips"].as_array());
    let own = format!("{}/{}", found.address, if found.address.is_ipv4() { 32 } else { 128 });
    match told {
        Some(ips) if ips.iter().all(|ip| ip["address"] != own.as_str()) => {
            let message = format!("container {container} has the address {own}, not the one told");
            Err(failure(FAILED, &message, ""))
        }
        _ => Ok(()),
    }
}

/// Detaches what a runtime has forgotten; what the cluster's own kubelet attached is not its business.
async fn collect(control: &Control, configuration: &Configuration) -> Result<(), Failure> {
    let valid: Vec<String> = configuration
        .valid_attachments
        .iter()
        .map(|valid| id_of(&valid.container_id, &valid.ifname))
        .collect();
    for attachment in attachments(control).await? {
        if attachment.id.starts_with("cni/") && !valid.contains(&attachment.id) {
            control
                .detach(&attachment.id)
                .await
                .map_err(|error| failure(FAILED, "cannot detach a container", error.chain()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read_or_refused() {
        let good = parse(
            r#"{"cniVersion": "1.1.0", "name": "n", "type": "rootlet", "cluster": "c",
            "cni.dev/valid-attachments": [{"containerID": "x", "ifname": "eth0"}]}"#,
        );
        let good = good.unwrap();
        assert_eq!(good.cluster, "c");
        assert_eq!(good.valid_attachments[0].container_id, "x");
        let cases = [(r#"{"cniVersion": "0.1.0"}"#, UNSUPPORTED_VERSION), ("{", UNDECODABLE)];
        for (text, code) in cases {
            assert_eq!(parse(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn results_name_every_address_with_its_gateway() {
        let attachment = Attachment {
            id: "cni/x/eth0".into(),
            ifname: "eth0".into(),
            address: "10.42.0.2".parse().unwrap(),
            address6: Some("fd00:10:42::2".parse().unwrap()),
            gateway: "10.42.0.1".parse().unwrap(),
            mac: "0a:58:0a:2a:00:02".into(),
            mtu: 65520,
        };
        let gateways = ["10.42.0.1".parse().unwrap(), "fd00:10:42::1".parse().unwrap()];
        let result = result_of(&attachment, &gateways, "/run/netns/x");
        assert_eq!(result["ips"][0]["address"], "10.42.0.2/32");
        assert_eq!(result["ips"][1]["gateway"], "fd00:10:42::1");
        assert_eq!(result["routes"][1]["dst"], "::/0");
        assert_eq!(result["interfaces"][0]["sandbox"], "/run/netns/x");
    }
}
