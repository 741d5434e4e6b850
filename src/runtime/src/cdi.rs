//! Devices by the names of the Container Device Interface: what files of the node say that a container needs for them.
//!
//! Source: the CDI specification, `SPEC.md` (versions 0.3 to 1.0), `container-device-interface/pkg/cdi` (`cache.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_cri::v1;
use serde::Deserialize;

use crate::error::Error;

/// Where everybody looks; files of a later folder replace devices of an earlier one.
const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
const VERSIONS: [&str; 8] =
    ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// The folders of devices' files: the machine's, then the user's.
pub fn folders() -> Vec<PathBuf> {
    let of = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let config = of("XDG_CONFIG_HOME").or_else(|| Some(of("HOME")?.join(".config")));
    let own = [config, of("XDG_RUNTIME_DIR")].into_iter().flatten().map(|path| path.join("cdi"));
    FOLDERS.iter().map(PathBuf::from).chain(own).collect()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    additional_gids: Vec<u32>,
    intel_rdt: Option<serde_json::Value>,
    net_devices: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: Option<String>,
    #[serde(default)]
    permissions: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default)]
    r#type: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    hook_name: String,
}

/// A file's part in a device.
struct Found {
    /// Which file, by number, for what is done once for all of its devices.
    file: usize,
    edits: Edits,
}

struct Registry {
    devices: BTreeMap<String, Found>,
    /// What each file says for all of its devices.
    shared: Vec<Edits>,
    /// Names that two files of one folder claim.
    disputed: BTreeSet<String>,
}

fn read(path: &Path) -> Result<Spec, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let spec: Spec = serde_saphyr::from_str(&text).map_err(|error| error.to_string())?;
    if !VERSIONS.contains(&spec.cdi_version.as_str()) {
        return Err(format!("version {:?} of CDI is not known", spec.cdi_version));
    }
    if spec.kind.split('/').filter(|part| !part.is_empty()).count() != 2 {
        return Err(format!("{:?} is no vendor/class", spec.kind));
    }
    Ok(spec)
}

impl Registry {
    fn read(folders: &[PathBuf]) -> Self {
        let mut all =
            Self { devices: BTreeMap::new(), shared: Vec::new(), disputed: BTreeSet::new() };
        for folder in folders {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            files.retain(|path| path.extension().is_some_and(|e| e == "json" || e == "yaml"));
            files.sort();
            let mut here = BTreeSet::new();
            for path in files {
                let spec = match read(&path) {
                    Ok(spec) => spec,
                    Err(error) => {
                        tracing::warn!(file = %path.display(), error, "a file of devices is not used");
                        continue;
                    }
                };
                let file = all.shared.len();
                all.shared.push(spec.container_edits);
                for device in spec.devices {
                    let name = format!("{}={}", spec.kind, device.name);
                    if here.insert(name.clone()) {
                        all.disputed.remove(&name);
                        all.devices.insert(name, Found { file, edits: device.container_edits });
                    } else {
                        all.disputed.insert(name);
                    }
                }
            }
        }
        all
    }
}

/// Puts into the container what its devices need.
pub fn inject(config: &mut v1::ContainerConfig, folders: &[PathBuf]) -> Result<(), Error> {
    if config.cdi_devices.is_empty() {
        return Ok(());
    }
    let known = Registry::read(folders);
    let (mut seen, mut files) = (BTreeSet::new(), BTreeSet::new());
    let (mut edits, mut missing) = (Vec::new(), Vec::new());
    for device in std::mem::take(&mut config.cdi_devices) {
        match known.devices.get(&device.name).filter(|_| !known.disputed.contains(&device.name)) {
            Some(found) if seen.insert(device.name.clone()) => {
                if files.insert(found.file) {
                    edits.push(known.shared[found.file].clone());
                }
                edits.push(found.edits.clone());
            }
            Some(_) => {}
            None => missing.push(device.name),
        }
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(Error::Failed(format!(
            "CDI device injection failed: unresolvable CDI devices {missing}"
        )));
    }
    for edit in edits {
        apply(config, edit)?;
    }
    Ok(())
}

fn apply(config: &mut v1::ContainerConfig, edits: Edits) -> Result<(), Error> {
    let refuse =
        |what: String| Err(Error::Unimplemented(format!("CDI device injection failed: {what}")));
    if let Some(hook) = edits.hooks.first() {
        return refuse(format!("hooks ({}) are not run", hook.hook_name));
    }
    if edits.intel_rdt.is_some() || !edits.net_devices.is_empty() {
        return refuse("intelRdt and netDevices need the host's root".into());
    }
    for variable in edits.env {
        let Some((key, value)) = variable.split_once('=') else {
            return refuse(format!("invalid environment variable {variable:?}"));
        };
        config.envs.retain(|known| known.key != key);
        config.envs.push(v1::KeyValue { key: key.to_owned(), value: value.to_owned() });
    }
    for node in edits.device_nodes {
        config.devices.push(v1::Device {
            host_path: node.host_path.unwrap_or_else(|| node.path.clone()),
            container_path: node.path,
            permissions: node.permissions,
        });
    }
    for mount in edits.mounts {
        if !["", "bind", "none"].contains(&mount.r#type.as_str()) {
            return refuse(format!("mounts of type {:?}", mount.r#type));
        }
        config.mounts.push(v1::Mount {
            host_path: mount.host_path,
            container_path: mount.container_path,
            readonly: mount.options.iter().any(|option| option == "ro"),
            ..v1::Mount::default()
        });
    }
    if !edits.additional_gids.is_empty() {
        let linux = config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        // Those of the node's own ids that it has; a group 0 says nothing.
        let groups = edits.additional_gids.into_iter().filter(|gid| *gid != 0);
        security.supplemental_groups.extend(groups.map(i64::from));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(devices: &[&str]) -> v1::ContainerConfig {
        v1::ContainerConfig {
            envs: vec![v1::KeyValue { key: "COLOUR".into(), value: "red".into() }],
            cdi_devices: devices
                .iter()
                .map(|name| v1::CdiDevice { name: (*name).to_owned() })
                .collect(),
            ..v1::ContainerConfig::default()
        }
    }

    fn folders(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let top = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = top.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let all = vec![top.path().join("a"), top.path().join("b")];
        (top, all)
    }

    const SPEC: &str = r#"
cdiVersion: "0.6.0"
kind: example.com/paint
containerEdits:
  env: [SHARED=yes]
devices:
- name: one
  containerEdits:
    env: [COLOUR=blue]
    deviceNodes: [{path: /dev/paint1, hostPath: /dev/null, permissions: rw}]
    mounts: [{hostPath: /usr/lib, containerPath: /paint, options: [ro, bind]}]
    additionalGids: [7]
- name: two
  containerEdits: {deviceNodes: [{path: /dev/zero}]}
- name: hooked
  containerEdits: {hooks: [{hookName: createContainer, path: /bin/true}]}
"#;

    #[test]
    fn a_container_gets_what_its_devices_need() {
        let (_top, folders) = folders(&[("a/paint.yaml", SPEC)]);
        let mut config = container(&["example.com/paint=one", "example.com/paint=two"]);
        inject(&mut config, &folders).unwrap();
        let env: Vec<String> =
            config.envs.iter().map(|env| format!("{}={}", env.key, env.value)).collect();
        assert_eq!(env, ["SHARED=yes", "COLOUR=blue"]);
        let devices: Vec<(&str, &str)> = config
            .devices
            .iter()
            .map(|device| (device.host_path.as_str(), device.container_path.as_str()))
            .collect();
        assert_eq!(devices, [("/dev/null", "/dev/paint1"), ("/dev/zero", "/dev/zero")]);
        assert!(config.mounts[0].readonly && config.mounts[0].container_path == "/paint");
        let groups = config.linux.unwrap().security_context.unwrap().supplemental_groups;
        assert_eq!(groups, [7]);
        assert!(config.cdi_devices.is_empty());
    }

    #[test]
    fn what_is_not_there_or_cannot_be_is_refused() {
        let other = SPEC.replace("0.6.0", "9.0.0").replace("paint", "wood");
        let (_top, folders) = folders(&[("a/paint.yaml", SPEC), ("a/wood.yaml", &other)]);
        for (name, want) in [
            ("example.com/paint=three", "unresolvable CDI devices example.com/paint=three"),
            ("example.com/wood=one", "unresolvable CDI devices"),
            ("example.com/paint=hooked", "hooks (createContainer) are not run"),
        ] {
            let error = inject(&mut container(&[name]), &folders).unwrap_err().to_string();
            assert!(error.contains(want), "{name}: {error}");
        }
    }

    #[test]
    fn later_folders_win_and_equal_ones_quarrel() {
        let json = r#"{"cdiVersion": "1.0.0", "kind": "example.com/paint",
            "devices": [{"name": "one", "containerEdits": {"env": ["FROM=json"]}}]}"#;
        let (_top, later) = folders(&[("a/paint.yaml", SPEC), ("b/paint.json", json)]);
        let mut config = container(&["example.com/paint=one"]);
        inject(&mut config, &later).unwrap();
        assert!(config.envs.iter().any(|env| env.key == "FROM"));
        let (_top, same) = folders(&[("a/paint.yaml", SPEC), ("a/paint.json", json)]);
        assert!(inject(&mut container(&["example.com/paint=one"]), &same).is_err());
        assert!(inject(&mut container(&["example.com/paint=two"]), &same).is_ok());
    }
}
