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
use crate::plugins::is_name;

/// Versions of the specification that are spoken.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST];
const NEWEST: &str = "1.1.0";

/// Error codes of the specification ("Error").
const UNSUPPORTED_VERSION: u32 = 1;
const UNSUPPORTED_FIELD: u32 = 2;
const UNKNOWN_CONTAINER: u32 = 3;
const INVALID_ENVIRONMENT: u32 = 4;
const IO_FAILURE: u32 = 5;
const UNDECODABLE: u32 = 6;
const INVALID_CONFIGURATION: u32 = 7;
const TRY_AGAIN: u32 = 11;
const UNAVAILABLE: u32 = 50;
/// Of our own: the cluster does not run.
const NOT_RUNNING: u32 = 100;
const FAILED: u32 = 101;

/// The plugin's part of a network configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    cni_version: String,
    #[serde(default)]
    name: String,
    /// The cluster whose network is meant.
    #[serde(default = "default_cluster")]
    cluster: String,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(default)]
    runtime_config: Wishes,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

/// What runtimes tell of a container, if the configuration says that this plugin wants to know.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wishes {
    #[serde(default)]
    bandwidth: Rates,
    #[serde(default)]
    ips: Vec<String>,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    port_mappings: Vec<Value>,
}

/// Bits a second; zero is no limit.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rates {
    #[serde(default)]
    ingress_rate: u64,
    #[serde(default)]
    egress_rate: u64,
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
    let version = version_of(&text);
    if command == "VERSION" {
        println!("{}", json!({"cniVersion": version, "supportedVersions": VERSIONS}));
        return ExitCode::SUCCESS;
    }
    let outcome = read
        .map_err(|error| failure(IO_FAILURE, "cannot read the configuration", error))
        .and_then(|_| parse(&text, &command))
        .and_then(|configuration| {
            let call = Call::of(&command, &configuration)?;
            carry_out(&call, &configuration)
        });
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => {
            println!("{}", in_version(result, &version));
            ExitCode::SUCCESS
        }
        Err(Failure { code, message, details }) => {
            let error =
                json!({"cniVersion": version, "code": code, "msg": message, "details": details});
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The version that the answer is in: the caller's, if it can be.
fn version_of(text: &str) -> String {
    let configuration: Value = serde_json::from_str(text).unwrap_or_default();
    let asked = configuration["cniVersion"].as_str().unwrap_or_default();
    VERSIONS.iter().find(|version| **version == asked).copied().unwrap_or(NEWEST).to_owned()
}

fn parse(text: &str, command: &str) -> Result<Configuration, Failure> {
    let configuration: Configuration = serde_json::from_str(text)
        .map_err(|error| failure(UNDECODABLE, "the configuration cannot be decoded", error))?;
    let version = configuration.cni_version.as_str();
    let Some(place) = VERSIONS.iter().position(|known| *known == version) else {
        let details = format!("supported are {}", VERSIONS.join(", "));
        let message = format!("incompatible CNI version {version:?}");
        return Err(failure(UNSUPPORTED_VERSION, &message, details));
    };
    let since = match command {
        "CHECK" => "0.4.0",
        "GC" | "STATUS" => "1.1.0",
        _ => VERSIONS[0],
    };
    if VERSIONS.iter().position(|known| *known == since).is_some_and(|first| place < first) {
        let message = format!("config version does not allow {command}");
        let details = format!("{command} came with {since}, and the version is {version}");
        return Err(failure(UNSUPPORTED_VERSION, &message, details));
    }
    match configuration.name.as_str() {
        "" => Err(failure(INVALID_CONFIGURATION, "missing network name", "")),
        name if !is_name(name) => {
            Err(failure(INVALID_CONFIGURATION, "invalid characters found in network name", name))
        }
        _ => Ok(configuration),
    }
}

/// What the environment asks for.
enum Call {
    Add {
        id: String,
        ifname: String,
        namespace: String,
    },
    Delete {
        id: String,
    },
    Check {
        id: String,
        container: String,
        ifname: String,
        told: Value,
    },
    /// Everything of this network but these.
    Collect {
        network: String,
        valid: Vec<String>,
    },
    Status,
}

impl Call {
    fn of(command: &str, configuration: &Configuration) -> Result<Self, Failure> {
        let wanted: &[&str] = match command {
            "ADD" | "CHECK" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME"],
            "GC" | "STATUS" => &[],
            other => {
                let message = format!("unknown CNI_COMMAND: {other}");
                return Err(failure(INVALID_ENVIRONMENT, &message, ""));
            }
        };
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let missing: Vec<&str> =
            wanted.iter().copied().filter(|name| variable(name).is_empty()).collect();
        if !missing.is_empty() {
            let message = format!("required env variables [{}] missing", missing.join(","));
            return Err(failure(INVALID_ENVIRONMENT, &message, ""));
        }
        let network = configuration.name.clone();
        if wanted.is_empty() {
            if command == "STATUS" {
                return Ok(Self::Status);
            }
            let Some(valid) = &configuration.valid_attachments else {
                let message = "cni.dev/valid-attachments is missing";
                return Err(failure(INVALID_CONFIGURATION, message, ""));
            };
            let valid = valid.iter().map(|v| id_of(&network, &v.container_id, &v.ifname));
            return Ok(Self::Collect { valid: valid.collect(), network });
        }
        let (container, ifname) = (variable("CNI_CONTAINERID"), variable("CNI_IFNAME"));
        if !is_name(&container) {
            let message = "invalid characters in containerID";
            return Err(failure(INVALID_ENVIRONMENT, message, container));
        }
        if let Some(mistake) = interface_mistake(&ifname) {
            return Err(failure(INVALID_ENVIRONMENT, mistake, ifname));
        }
        let id = id_of(&network, &container, &ifname);
        match command {
            "ADD" => Ok(Self::Add { id, ifname, namespace: variable("CNI_NETNS") }),
            "DEL" => Ok(Self::Delete { id }),
            _ => match configuration.prev_result.clone() {
                Some(told) => Ok(Self::Check { id, container, ifname, told }),
                None => Err(failure(INVALID_CONFIGURATION, "required prevResult missing", "")),
            },
        }
    }
}

/// What is wrong with the name of an interface (`ValidateInterfaceName` of libcni).
fn interface_mistake(name: &str) -> Option<&'static str> {
    const BYTES_MAX: usize = 15;
    if name.is_empty() {
        Some("interface name is empty")
    } else if name.len() > BYTES_MAX {
        Some("interface name is too long")
    } else if matches!(name, "." | "..") {
        Some("interface name is . or ..")
    } else if name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace()) {
        Some("interface name contains / or : or whitespace characters")
    } else {
        None
    }
}

/// What the node process calls an attachment: networks may share containers, and a container may have
/// several interfaces.
fn id_of(network: &str, container: &str, ifname: &str) -> String {
    format!("cni/{network}/{container}/{ifname}")
}

fn carry_out(call: &Call, configuration: &Configuration) -> Result<Option<Value>, Failure> {
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
            Err(_) if matches!(call, Call::Delete { .. } | Call::Collect { .. }) => {
                return Ok(None);
            }
            Err(error) => {
                let code = if matches!(call, Call::Status) { UNAVAILABLE } else { TRY_AGAIN };
                let message = format!("cluster {:?} does not run", configuration.cluster);
                return Err(failure(code, &message, error.chain()));
            }
        };
        match call {
            Call::Add { id, ifname, namespace } => {
                add(&control, request(id, ifname, &configuration.runtime_config)?, namespace)
                    .await
                    .map(Some)
            }
            Call::Delete { id } => delete(&control, id).await.map(|()| None),
            Call::Check { id, container, ifname, told } => {
                check(&control, id, (container, ifname), told).await.map(|()| None)
            }
            Call::Collect { network, valid } => {
                collect(&control, network, valid).await.map(|()| None)
            }
            Call::Status => Ok(None),
        }
    })
}

/// What is asked of the node process. What cannot be had is refused, never ignored.
fn request(id: &str, ifname: &str, wishes: &Wishes) -> Result<AttachRequest, Failure> {
    if !wishes.port_mappings.is_empty() {
        let details = "chain the plugin portmap, and let that one have the capability";
        return Err(failure(UNSUPPORTED_FIELD, "portMappings are not for this plugin", details));
    }
    if !wishes.mac.is_empty() {
        let details = "link addresses follow from the addresses";
        return Err(failure(UNSUPPORTED_FIELD, "mac cannot be chosen", details));
    }
    let mut address = None;
    for ip in &wishes.ips {
        let text = ip.split('/').next().unwrap_or_default();
        match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(v4)) if address.is_none() => address = Some(v4),
            // It has the same place in its range as the IPv4 address, so it is none to choose.
            Ok(_) => return Err(failure(UNSUPPORTED_FIELD, "ips: one IPv4 address at most", ip)),
            Err(error) => {
                let message = format!("ips: {ip:?} is no address");
                return Err(failure(INVALID_CONFIGURATION, &message, error));
            }
        }
    }
    let rate = |bps: u64| (bps > 0).then_some(bps);
    Ok(AttachRequest {
        id: id.to_owned(),
        ifname: ifname.to_owned(),
        member: None,
        bandwidth: Bandwidth {
            ingress_bps: rate(wishes.bandwidth.ingress_rate),
            egress_bps: rate(wishes.bandwidth.egress_rate),
        },
        address,
        // "If an interface of the requested name already exists in the container, the plugin MUST return
        // with an error."
        anew: true,
    })
}

/// A result as a version of the specification has it.
fn in_version(mut result: Value, version: &str) -> Value {
    result["cniVersion"] = version.into();
    let ips = result["ips"].as_array_mut().into_iter().flatten();
    for ip in ips {
        // It went with 1.0.0.
        if let (true, Some(ip)) = (version.starts_with("0."), ip.as_object_mut()) {
            let four = ip["address"].as_str().is_some_and(|text| text.contains('.'));
            ip.insert("version".into(), if four { "4" } else { "6" }.into());
        }
    }
    if version != NEWEST {
        let interfaces = result["interfaces"].as_array_mut().into_iter().flatten();
        for interface in interfaces.filter_map(Value::as_object_mut) {
            interface.remove("mtu");
        }
    }
    result
}

async fn add(control: &Control, request: AttachRequest, path: &str) -> Result<Value, Failure> {
    let namespace = File::open(path)
        .map_err(|error| failure(IO_FAILURE, &format!("cannot open {path}"), error))?;
    let attachment = control
        .attach(request, namespace.as_fd())
        .await
        .map_err(|error| failure(FAILED, "cannot attach the container", error.chain()))?;
    let gateways = control
        .gateways()
        .await
        .map_err(|error| failure(FAILED, "cannot ask for the gateways", error.chain()))?;
    Ok(result_of(&attachment, &gateways, path))
}

/// The result of ADD ("Add Success").
fn result_of(attachment: &Attachment, gateways: &[IpAddr], sandbox: &str) -> Value {
    let addresses = [Some(attachment.address), attachment.address6].into_iter().flatten();
    let ips: Vec<Value> = addresses
        .map(|address| {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            let gateway = gateways.iter().find(|g| g.is_ipv4() == address.is_ipv4());
            json!({"interface": 0, "address": format!("{address}/{prefix}"),
                "gateway": gateway.map(ToString::to_string)})
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
        "interfaces": [{"name": attachment.ifname, "mac": attachment.mac, "sandbox": sandbox,
            "mtu": attachment.mtu}],
        "ips": ips, "routes": routes, "dns": {},
    })
}

async fn delete(control: &Control, id: &str) -> Result<(), Failure> {
    control
        .detach(id)
        .await
        .map_err(|error| failure(FAILED, "cannot detach the container", error.chain()))
}

async fn attachments(control: &Control) -> Result<Vec<Attachment>, Failure> {
    control
        .attachments()
        .await
        .map_err(|error| failure(FAILED, "cannot list the attachments", error.chain()))
}

async fn check(
    control: &Control,
    id: &str,
    (container, ifname): (&str, &str),
    told: &Value,
) -> Result<(), Failure> {
    let all = attachments(control).await?;
    let Some(found) = all.iter().find(|attachment| attachment.id == id) else {
        let message = format!("container {container} has no interface {ifname} here");
        return Err(failure(UNKNOWN_CONTAINER, &message, ""));
    };
    let ips = told["ips"].as_array().cloned().unwrap_or_default();
    for own in [Some(found.address), found.address6].into_iter().flatten() {
        let own = format!("{own}/{}", if own.is_ipv4() { 32 } else { 128 });
        if ips.iter().all(|ip| ip["address"] != own.as_str()) {
            let message =
                format!("container {container} has the address {own}, which was not told");
            return Err(failure(FAILED, &message, ""));
        }
    }
    Ok(())
}

/// Detaches what a runtime has forgotten of its network; what the cluster's own kubelet attached is not
/// its business. Goes on after a failure.
async fn collect(control: &Control, network: &str, valid: &[String]) -> Result<(), Failure> {
    let own = format!("cni/{network}/");
    let mut outcome = Ok(());
    for attachment in attachments(control).await? {
        if attachment.id.starts_with(&own) && !valid.contains(&attachment.id) {
            outcome = outcome.and(delete(control, &attachment.id).await);
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read_or_refused() {
        let good = parse(
            r#"{"cniVersion": "1.1.0", "name": "n", "type": "rootlet", "cluster": "c",
            "cni.dev/valid-attachments": [{"containerID": "x", "ifname": "eth0"}]}"#,
            "GC",
        );
        let good = good.unwrap();
        assert_eq!(good.cluster, "c");
        let Call::Collect { network, valid } = Call::of("GC", &good).unwrap_or(Call::Status) else {
            panic!("GC is no STATUS");
        };
        assert_eq!((network.as_str(), valid), ("n", vec!["cni/n/x/eth0".to_owned()]));
        let cases = [
            (r#"{"cniVersion": "0.1.0", "name": "n"}"#, "ADD", UNSUPPORTED_VERSION),
            (r#"{"cniVersion": "0.3.1", "name": "n"}"#, "CHECK", UNSUPPORTED_VERSION),
            (r#"{"cniVersion": "1.0.0", "name": "n"}"#, "GC", UNSUPPORTED_VERSION),
            (r#"{"cniVersion": "1.0.0", "name": "n"}"#, "STATUS", UNSUPPORTED_VERSION),
            (r#"{"cniVersion": "1.0.0"}"#, "ADD", INVALID_CONFIGURATION),
            (r#"{"cniVersion": "1.0.0", "name": "a/b"}"#, "ADD", INVALID_CONFIGURATION),
            ("{", "ADD", UNDECODABLE),
        ];
        for (text, command, code) in cases {
            assert_eq!(parse(text, command).unwrap_err().code, code, "{command} {text}");
        }
        let of = |command: &str| Call::of(command, &good).map(|_| ()).unwrap_err();
        assert_eq!(of("SUB").code, INVALID_ENVIRONMENT);
        let missing = of("ADD");
        assert_eq!(missing.code, INVALID_ENVIRONMENT);
        assert!(missing.message.contains("CNI_NETNS"), "{}", missing.message);
        let no_list = parse(r#"{"cniVersion": "1.1.0", "name": "n"}"#, "GC").unwrap();
        assert_eq!(Call::of("GC", &no_list).err().unwrap().code, INVALID_CONFIGURATION);
    }

    #[test]
    fn interfaces_have_names_that_the_kernel_takes() {
        for (name, good) in [
            ("eth0", true),
            ("", false),
            ("fifteen-letters", true),
            ("sixteen-letters.", false),
            ("..", false),
            ("a/b", false),
            ("a:1", false),
            ("a b", false),
        ] {
            assert_eq!(interface_mistake(name).is_none(), good, "{name:?}");
        }
    }

    #[test]
    fn wishes_are_granted_or_refused() {
        let ask = |wishes: Value| request("i", "eth0", &serde_json::from_value(wishes).unwrap());
        let request = ask(json!({"ips": ["10.42.0.9/24"], "bandwidth": {"ingressRate": 8}}));
        let request = request.unwrap();
        assert_eq!(request.address, Some([10, 42, 0, 9].into()));
        assert_eq!((request.bandwidth.ingress_bps, request.bandwidth.egress_bps), (Some(8), None));
        let cases = [
            (json!({"mac": "0a:58:0a:2a:00:02"}), UNSUPPORTED_FIELD),
            (json!({"portMappings": [{"hostPort": 80}]}), UNSUPPORTED_FIELD),
            (json!({"ips": ["fd00::9"]}), UNSUPPORTED_FIELD),
            (json!({"ips": ["10.42.0.9", "10.42.0.10"]}), UNSUPPORTED_FIELD),
            (json!({"ips": ["next"]}), INVALID_CONFIGURATION),
        ];
        for (wishes, code) in cases {
            assert_eq!(ask(wishes.clone()).unwrap_err().code, code, "{wishes}");
        }
    }

    #[test]
    fn answers_are_in_the_callers_version() {
        let result = || {
            json!({"interfaces": [{"name": "eth0", "mtu": 1500}],
                "ips": [{"address": "10.42.0.2/32"}, {"address": "fd00::2/128"}]})
        };
        for (version, ip_version, mtu) in [
            ("0.4.0", json!("6"), Value::Null),
            ("1.0.0", Value::Null, Value::Null),
            ("1.1.0", Value::Null, json!(1500)),
        ] {
            let told = in_version(result(), version);
            assert_eq!(told["cniVersion"], version);
            assert_eq!(told["ips"][1]["version"], ip_version, "{version}");
            assert_eq!(told["interfaces"][0]["mtu"], mtu, "{version}");
        }
        assert_eq!(version_of(r#"{"cniVersion": "0.4.0"}"#), "0.4.0");
        assert_eq!(version_of(r#"{"cniVersion": "9"}"#), "1.1.0");
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
