//! Network configurations: which plugins run, in which order, and what each is told.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Versions of the specification that are spoken, the newest last.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network: its plugins in order, each with its configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkList {
    /// What the network is called.
    pub name: String,
    /// The version of the specification that its plugins are spoken to in.
    pub version: String,
    /// Their configurations.
    pub plugins: Vec<Value>,
    /// CHECK is not to be called.
    #[serde(default)]
    pub disable_check: bool,
    /// GC is not to be called.
    #[serde(default)]
    pub disable_gc: bool,
}

impl NetworkList {
    /// The first configuration of a folder, as libcni takes it: by name, of `*.conflist`, `*.conf` and
    /// `*.json`.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let place = folder.display();
        let files = files(folder, &["conflist", "conf", "json"])
            .with_context(|| format!("--cni-conf-dir: cannot read {place}"))?;
        let file = files.first().with_context(|| format!("{place} has no CNI configuration"))?;
        let no_configuration = || format!("{} is no CNI configuration", file.display());
        let value = read(file)?;
        let name = value["name"].as_str().unwrap_or_default();
        let alone = flag(&value, "loadOnlyInlinedPlugins").with_context(no_configuration)?;
        let more = if alone || !is_name(name) { Vec::new() } else { inserted(&folder.join(name))? };
        Self::parse(&value, more).with_context(no_configuration)
    }

    /// A list of plugins with `more` of them behind, or a single one, which is a list of itself.
    pub fn parse(value: &Value, more: Vec<Value>) -> anyhow::Result<Self> {
        let name = value["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            bail!("it has no name");
        }
        if !is_name(&name) {
            bail!("{name:?} is no name for a network");
        }
        let mut plugins = match &value["plugins"] {
            Value::Array(plugins) => plugins.clone(),
            Value::Null if value["type"].is_string() => vec![value.clone()],
            Value::Null => Vec::new(),
            _ => bail!("its plugins are no list"),
        };
        plugins.extend(more);
        if plugins.is_empty() || plugins.iter().any(|plugin| !plugin["type"].is_string()) {
            bail!("every plugin needs a type, and there must be one at least");
        }
        Ok(Self {
            name,
            version: version(value)?,
            plugins,
            disable_check: flag(value, "disableCheck")?,
            disable_gc: flag(value, "disableGC")?,
        })
    }

    /// Whether the version that is spoken is this one, or a later one.
    pub fn speaks(&self, version: &str) -> bool {
        numbers(&self.version) >= numbers(version)
    }

    /// A plugin's configuration as it gets it ("Deriving execution configuration").
    pub fn configuration(&self, plugin: &Value, capabilities: &Value, result: &Value) -> Value {
        let mut conf = plugin.clone();
        conf["cniVersion"] = self.version.clone().into();
        conf["name"] = self.name.clone().into();
        let wanted = plugin["capabilities"].as_object();
        let told: Map<String, Value> = wanted
            .into_iter()
            .flatten()
            .filter(|(_, wanted)| **wanted == true)
            .filter_map(|(name, _)| Some((name.clone(), capabilities.get(name)?.clone())))
            .collect();
        if let Some(conf) = conf.as_object_mut() {
            conf.remove("capabilities");
        }
        if !told.is_empty() {
            conf["runtimeConfig"] = told.into();
        }
        if !result.is_null() {
            conf["prevResult"] = result.clone();
        }
        conf
    }

    /// What plugins get for GC: the attachments that are to stay.
    pub fn collection(&self, plugin: &Value, valid: &[(String, String)]) -> Value {
        let valid: Vec<Value> = valid
            .iter()
            .map(|(container, ifname)| json!({"containerID": container, "ifname": ifname}))
            .collect();
        let mut conf = self.configuration(plugin, &Value::Null, &Value::Null);
        conf["cni.dev/valid-attachments"] = valid.clone().into();
        // As the draft of the specification had it, and libcni still says it.
        conf["cni.dev/attachments"] = valid.into();
        conf
    }
}

/// Plugins that others put beside a list, into the folder of its name.
fn inserted(folder: &Path) -> anyhow::Result<Vec<Value>> {
    match files(folder, &["conf"]) {
        Ok(files) => files.iter().map(|file| read(file)).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", folder.display())),
    }
}

fn files(folder: &Path, extensions: &[&str]) -> std::io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder)?.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    files.retain(|file| {
        let extension = file.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension))
    });
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> anyhow::Result<Value> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))
}

/// The names that the specification has for networks and for containers.
pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The newest version that both sides speak.
fn version(value: &Value) -> anyhow::Result<String> {
    let single = value["cniVersion"].as_str().filter(|version| !version.is_empty());
    let mut offered: Vec<&str> = match &value["cniVersions"] {
        Value::Array(versions) => versions.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    match single {
        Some(single) => offered.push(single),
        // A configuration without a version is of the times when there was none.
        None if offered.is_empty() => offered.push(VERSIONS[0]),
        None => {}
    }
    let spoken = VERSIONS.iter().rev().find(|version| offered.contains(*version));
    spoken.map(|version| (*version).to_owned()).with_context(|| {
        let (first, last) = (VERSIONS[0], VERSIONS[VERSIONS.len() - 1]);
        format!("its cniVersion is {}; {first} to {last} are spoken", offered.join(", "))
    })
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').filter_map(|number| number.parse().ok()).collect()
}

/// A truth value; libcni takes it as a string too.
fn flag(value: &Value, name: &str) -> anyhow::Result<bool> {
    match &value[name] {
        Value::Null => Ok(false),
        Value::Bool(flag) => Ok(*flag),
        Value::String(text) if text == "true" => Ok(true),
        Value::String(text) if text == "false" => Ok(false),
        other => bail!("its {name} is {other}, neither true nor false"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(value: &Value) -> anyhow::Result<NetworkList> {
        NetworkList::parse(value, Vec::new())
    }

    #[test]
    fn configurations_are_lists_of_plugins() {
        let one = json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge"});
        assert_eq!(list(&one).unwrap().plugins, [one]);
        let two = json!({"cniVersion": "0.4.0", "name": "n", "plugins": [
            {"type": "bridge"}, {"type": "tuning"}]});
        assert_eq!(list(&two).unwrap().plugins.len(), 2);
        let cases = [
            (json!({"cniVersion": "1.0.0", "type": "bridge"}), "no name"),
            (json!({"cniVersion": "1.0.0", "name": "a/b", "type": "bridge"}), "no name for"),
            (json!({"cniVersion": "2.0.0", "name": "n", "type": "b"}), "2.0.0"),
            (json!({"cniVersion": "0.2.0", "name": "n", "type": "b"}), "0.2.0"),
            (json!({"cniVersion": "1.0.0", "name": "n", "plugins": []}), "at least"),
            (json!({"cniVersion": "1.0.0", "name": "n"}), "type"),
            (json!({"name": "n", "type": "b", "disableCheck": "no"}), "disableCheck"),
        ];
        for (text, want) in cases {
            let error = list(&text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn the_newest_version_that_both_speak_is_spoken() {
        let cases = [
            (json!({}), "0.3.0"),
            (json!({"cniVersion": "0.4.0"}), "0.4.0"),
            (json!({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "0.3.1"]}), "1.0.0"),
            (json!({"cniVersions": ["1.1.0", "9.0.0"]}), "1.1.0"),
        ];
        for (versions, want) in cases {
            let mut conf = json!({"name": "n", "type": "bridge"});
            conf.as_object_mut().unwrap().extend(versions.as_object().unwrap().clone());
            assert_eq!(list(&conf).unwrap().version, want, "{versions}");
        }
        let old = list(&json!({"name": "n", "type": "b", "cniVersion": "0.3.1"})).unwrap();
        assert!(!old.speaks("0.4.0") && old.speaks("0.3.0"));
    }

    #[test]
    fn plugins_beside_a_list_follow_unless_it_wants_none() {
        let folder = tempfile::tempdir().unwrap();
        let beside = folder.path().join("n");
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("20-b.conf"), r#"{"type": "b"}"#).unwrap();
        fs::write(beside.join("10-a.conf"), r#"{"type": "a"}"#).unwrap();
        fs::write(beside.join("notes.txt"), "").unwrap();
        let kinds = |conf: Value| {
            fs::write(folder.path().join("10-n.conflist"), conf.to_string()).unwrap();
            let list = NetworkList::load(folder.path()).map_err(|error| format!("{error:#}"))?;
            let kinds = list.plugins.iter().filter_map(|plugin| plugin["type"].as_str());
            Ok::<_, String>(kinds.map(str::to_owned).collect::<Vec<_>>().join(" "))
        };
        let conf = |fields: Value| {
            let mut conf = json!({"cniVersion": "1.1.0", "name": "n"});
            conf.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            conf
        };
        let bridge = json!([{"type": "bridge"}]);
        assert_eq!(kinds(conf(json!({"plugins": bridge}))).unwrap(), "bridge a b");
        assert_eq!(kinds(conf(json!({}))).unwrap(), "a b");
        let only = json!({"plugins": bridge, "loadOnlyInlinedPlugins": true});
        assert_eq!(kinds(conf(only)).unwrap(), "bridge");
        assert!(kinds(conf(json!({"loadOnlyInlinedPlugins": true}))).is_err());
        fs::write(beside.join("30-c.conf"), "{").unwrap();
        let error = kinds(conf(json!({"plugins": bridge}))).unwrap_err();
        assert!(error.contains("30-c.conf"), "{error}");
    }

    #[test]
    fn plugins_are_told_what_they_ask_for() {
        let plugin = json!({"type": "bandwidth", "capabilities": {"bandwidth": true, "ips": true}});
        let list = list(&json!({"cniVersion": "1.0.0", "name": "n", "plugins": [plugin]})).unwrap();
        let capabilities = json!({"bandwidth": {"ingressRate": 8}, "portMappings": []});
        let conf = list.configuration(&plugin, &capabilities, &json!({"ips": []}));
        assert_eq!(conf["runtimeConfig"], json!({"bandwidth": {"ingressRate": 8}}));
        assert_eq!((&conf["name"], &conf["cniVersion"]), (&json!("n"), &json!("1.0.0")));
        assert_eq!(conf["prevResult"], json!({"ips": []}));
        assert!(conf.get("capabilities").is_none());
        let plain = list.configuration(&json!({"type": "bridge"}), &capabilities, &Value::Null);
        assert!(plain.get("runtimeConfig").is_none());
        let gc = list.collection(&plugin, &[("c1".into(), "eth0".into())]);
        let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
        assert_eq!(gc["cni.dev/valid-attachments"], valid);
        assert!(gc.get("prevResult").is_none());
    }
}
