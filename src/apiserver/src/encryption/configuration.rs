//! `EncryptionConfiguration`: which resources are encrypted, and how.
//!
//! Source: <https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/> and
//! `k8s.io/apiserver/pkg/apis/apiserver/validation`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;

use super::kms::Plugin;
use super::kms::envelope::Envelope;
use super::provider::{ENCRYPTED, Error, Key, Kind};
use crate::pki::shared::KEY as SHARED_KEY;
use crate::resource;
use crate::zero::Zero;

/// The resources of a rule, `secrets`, `deployments.apps`, `*.apps`, `*.` or `*.*`.
#[derive(Debug, PartialEq, Eq)]
struct Pattern {
    /// All resources where there is none.
    plural: Option<String>,
    /// All groups where there is none.
    group: Option<String>,
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let (plural, group) = text.split_once('.').unwrap_or((text, ""));
        if plural.is_empty() || (plural != "*" && (plural.contains('*') || group.contains('*'))) {
            return Err(
                "should be a resource, a resource and its group as in deployments.apps, or one of *.GROUP, *. and *.*"
                    .into(),
            );
        }
        if text == "*" {
            return Err("use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources".into());
        }
        if plural != plural.to_lowercase() {
            return Err("resource must be lowercase".into());
        }
        if text == "events.events.k8s.io" {
            return Err("events.events.k8s.io objects are stored using the 'events' API group; use 'events' instead".into());
        }
        Ok(Self {
            plural: (plural != "*").then(|| plural.to_owned()),
            group: (group != "*").then(|| group.to_owned()),
        })
    }

    fn covers(&self, group: &str, plural: &str) -> bool {
        self.plural.as_deref().is_none_or(|own| own == plural)
            && self.group.as_deref().is_none_or(|own| own == group)
    }
}

/// One way to store values.
enum Provider {
    /// As they are.
    Identity,
    /// By the first of these keys; the others can read.
    Cipher(Kind, Vec<(String, Key)>),
    /// By keys that a plugin keeps.
    Kms(Arc<Plugin>),
}

/// Resources, and how they are stored: by the first provider; the others can read.
struct Rule {
    patterns: Vec<Pattern>,
    providers: Vec<Provider>,
}

/// The whole file.
#[derive(Default)]
pub struct Configuration(Vec<Rule>);

impl Configuration {
    fn providers(&self, key: &[u8]) -> Option<&[Provider]> {
        // The keys that servers on one store share are as secret as Secrets.
        let (group, plural) =
            if key == SHARED_KEY { ("", "secrets") } else { resource::of_key(key)? };
        let covers = |rule: &&Rule| rule.patterns.iter().any(|p| p.covers(group, plural));
        self.0.iter().find(covers).map(|rule| rule.providers.as_slice())
    }

    /// What is to be stored of `plain` under `key`.
    pub fn seal(&self, key: &[u8], plain: Bytes) -> Result<Bytes, Error> {
        let (kind, keys) = match self.providers(key) {
            Some([Provider::Cipher(kind, keys), ..]) => (kind, keys),
            Some([Provider::Kms(plugin), ..]) => return plugin.seal(key, &plain),
            _ => return Ok(plain),
        };
        let Some((name, secret)) = keys.first() else { return Ok(plain) };
        let sealed = secret.seal(key, &plain)?;
        Ok([kind.prefix().as_bytes(), name.as_bytes(), b":", &sealed].concat().into())
    }

    /// What is stored as `value` under `key`, and whether it would be stored otherwise today.
    pub fn open(&self, key: &[u8], value: &Bytes) -> Result<(Bytes, bool), Error> {
        let Some(providers) = self.providers(key) else {
            // Once it may have been encrypted.
            return if value.starts_with(ENCRYPTED) {
                self.open_by_any(key, value).map(|plain| (plain, true))
            } else {
                Ok((value.clone(), false))
            };
        };
        for (place, provider) in providers.iter().enumerate() {
            if let Some((plain, rank)) = provider.open(key, value) {
                return Ok((plain, place > 0 || rank > 0));
            }
        }
        Err(Error::Foreign)
    }

    /// The plugins of key management services.
    pub fn plugins(&self) -> impl Iterator<Item = &Arc<Plugin>> {
        self.0.iter().flat_map(|rule| &rule.providers).filter_map(|provider| match provider {
            Provider::Kms(plugin) => Some(plugin),
            _ => None,
        })
    }

    /// What a plugin must decrypt before `value` can be read.
    pub fn missing(&self, value: &[u8]) -> Option<(&Arc<Plugin>, Envelope)> {
        if !value.starts_with(super::kms::PREFIX.as_bytes()) {
            return None;
        }
        self.plugins().find_map(|plugin| Some((plugin, plugin.missing(value)?)))
    }

    /// Tries all keys there are, for a resource that no rule covers any more.
    fn open_by_any(&self, key: &[u8], value: &Bytes) -> Result<Bytes, Error> {
        let providers = self.0.iter().flat_map(|rule| &rule.providers);
        let mut opened = providers.filter_map(|provider| provider.open(key, value));
        opened.next().map(|(plain, _)| plain).ok_or(Error::Foreign)
    }

    /// Reads the text of the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value =
            apimachinery::decode::yaml_to_value(text).map_err(|error| error.to_string())?;
        if value["kind"] != "EncryptionConfiguration"
            || value["apiVersion"] != "apiserver.config.k8s.io/v1"
        {
            return Err(
                "want apiVersion apiserver.config.k8s.io/v1 and kind EncryptionConfiguration"
                    .into(),
            );
        }
        let rules = value["resources"].items();
        if rules.is_empty() {
            return Err("resources: Required value: at least one resource is required".into());
        }
        let parse =
            |(index, rule): (usize, &Value)| Rule::parse(rule, &format!("resources[{index}]"));
        let configuration = Self(rules.iter().enumerate().map(parse).collect::<Result<_, _>>()?);
        let mut names: Vec<&str> = configuration.plugins().map(|plugin| plugin.name()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!(
                "resources: Invalid value: {:?}: duplicate KMS provider name {}, names must be unique",
                pair[0], pair[0]
            )),
            None => Ok(configuration),
        }
    }
}

impl Rule {
    fn parse(value: &Value, path: &str) -> Result<Self, String> {
        let mut patterns: Vec<Pattern> = Vec::new();
        for (index, name) in value["resources"].texts().enumerate() {
            let at = |error: &str| {
                format!("{path}.resources[{index}]: Invalid value: {name:?}: {error}")
            };
            let pattern = Pattern::parse(name).map_err(|error| at(&error))?;
            if patterns.contains(&pattern) {
                return Err(at("resource is mentioned twice in the same list"));
            }
            patterns.push(pattern);
        }
        if patterns.is_empty() {
            return Err(format!("{path}.resources: Required value: resources are required"));
        }
        let entries = value["providers"].items();
        if entries.is_empty() {
            return Err(format!("{path}.providers: Required value: providers are required"));
        }
        let parse = |(index, provider): (usize, &Value)| {
            Provider::parse(provider, &format!("{path}.providers[{index}]"))
        };
        let providers = entries.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { patterns, providers })
    }
}

impl Provider {
    fn parse(value: &Value, path: &str) -> Result<Self, String> {
        let set: Vec<&str> = value.entries().map(|(name, _)| name.as_str()).collect();
        let kind = match set[..] {
            ["identity"] => return Ok(Self::Identity),
            ["aescbc"] => Kind::AesCbc,
            ["aesgcm"] => Kind::AesGcm,
            ["secretbox"] => Kind::Secretbox,
            ["kms"] => {
                let plugin = Plugin::parse(&value["kms"], &format!("{path}.kms"))?;
                return Ok(Self::Kms(Arc::new(plugin)));
            }
            [] => {
                return Err(format!(
                    "{path}: Required value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"
                ));
            }
            [other] => return Err(format!("{path}: unknown provider {other:?}")),
            _ => {
                return Err(format!(
                    "{path}: more than one provider specified in a single element, should split into different list elements"
                ));
            }
        };
        let path = format!("{path}.{}.keys", set[0]);
        let mut keys: Vec<(String, Key)> = Vec::new();
        for (index, key) in value[set[0]]["keys"].items().iter().enumerate() {
            let name = key["name"].text();
            if name.is_empty() || name.contains(':') {
                return Err(format!("{path}[{index}].name: a name without colons is required"));
            }
            if keys.iter().any(|(known, _)| known == name) {
                return Err(format!("{path}[{index}].name: Duplicate value: {name:?}"));
            }
            // The secret itself is not told: this may go to a log.
            let secret = STANDARD
                .decode(key["secret"].text())
                .map_err(|_| format!("{path}[{index}].secret: must be base64 encoded"))?;
            let length = secret.len();
            let secret = Key::new(kind, secret).map_err(|_| {
                let lengths = kind.lengths();
                format!("{path}[{index}].secret: secret is not of the expected length, got {length}, expected one of {lengths:?}")
            })?;
            keys.push((name.to_owned(), secret));
        }
        if keys.is_empty() {
            return Err(format!("{path}: Required value: keys are required"));
        }
        Ok(Self::Cipher(kind, keys))
    }

    /// The plain value, if this wrote it, and the place of the key among the others.
    fn open(&self, context: &[u8], value: &Bytes) -> Option<(Bytes, usize)> {
        match self {
            Self::Identity => (!value.starts_with(ENCRYPTED)).then(|| (value.clone(), 0)),
            Self::Cipher(kind, keys) => {
                let rest = value.strip_prefix(kind.prefix().as_bytes())?;
                keys.iter().enumerate().find_map(|(place, (name, key))| {
                    let sealed = rest.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
                    Some((key.open(context, sealed).ok()?.into(), place))
                })
            }
            Self::Kms(plugin) => {
                plugin.open(context, value).map(|(plain, stale)| (plain, usize::from(stale)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";
    const OTHER: &str = "ZmVkY2JhOTg3NjU0MzIxMA==";

    fn parse(rules: &str) -> Result<Configuration, String> {
        Configuration::parse(&format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{rules}"
        ))
    }

    #[test]
    fn keys_are_rotated() {
        let secret = b"/registry/secrets/a/b";
        let plain = Bytes::from_static(b"{}");
        let by = |providers: &str| {
            parse(&format!("- {{resources: [secrets], providers: [{providers}]}}")).expect("sound")
        };
        let cbc = |keys: &[(&str, &str)]| {
            let keys: Vec<String> =
                keys.iter().map(|(n, s)| format!("{{name: {n}, secret: {s}}}")).collect();
            format!("{{aescbc: {{keys: [{}]}}}}", keys.join(", "))
        };
        let first = by(&format!("{}, {{identity: {{}}}}", cbc(&[("a", ONE)])));
        let sealed = first.seal(secret, plain.clone()).expect("sealed");
        assert!(sealed.starts_with(b"k8s:enc:aescbc:v1:a:"));
        assert_eq!(first.open(secret, &sealed), Ok((plain.clone(), false)));
        // What was there before can be read, and is due to be written anew.
        assert_eq!(first.open(secret, &plain), Ok((plain.clone(), true)));
        let second = by(&cbc(&[("b", OTHER), ("a", ONE)]));
        assert_eq!(second.open(secret, &sealed), Ok((plain.clone(), true)));
        let third = by(&cbc(&[("b", OTHER)]));
        assert_eq!(third.open(secret, &sealed), Err(Error::Foreign));
        // Nobody may put plain values there where they are not expected.
        assert_eq!(third.open(secret, &plain), Err(Error::Foreign));
        let back = by(&format!("{{identity: {{}}}}, {}", cbc(&[("a", ONE)])));
        assert_eq!(back.open(secret, &sealed), Ok((plain.clone(), true)));
        assert_eq!(back.seal(secret, plain.clone()), Ok(plain));
    }

    #[test]
    fn the_first_rule_that_covers_a_resource_decides() {
        let configuration = parse(&format!(
            "- {{resources: [configmaps, pandas.awesome.example], providers: [{{identity: {{}}}}]}}\n\
             - {{resources: ['*.apps'], providers: [{{aescbc: {{keys: [{{name: a, secret: {ONE}}}]}}}}]}}\n\
             - {{resources: ['*.'], providers: [{{aesgcm: {{keys: [{{name: b, secret: {ONE}}}]}}}}]}}\n\
             - {{resources: ['*.*'], providers: [{{secretbox: {{keys: [{{name: c, secret: {ONE}}}]}}}}]}}"
        )
        .replacen(&format!("c, secret: {ONE}"), "c, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", 1))
        .expect("sound");
        for (key, want) in [
            ("/registry/configmaps/a/b", "{}"),
            ("/registry/awesome.example/pandas/a/b", "{}"),
            ("/registry/awesome.example/bears/a/b", "k8s:enc:secretbox:v1:c:"),
            ("/registry/apps/deployments/a/b", "k8s:enc:aescbc:v1:a:"),
            ("/registry/secrets/a/b", "k8s:enc:aesgcm:v1:b:"),
            ("/registry/batch/jobs/a/b", "k8s:enc:secretbox:v1:c:"),
        ] {
            let sealed = configuration.seal(key.as_bytes(), Bytes::from_static(b"{}"));
            assert!(sealed.expect("sealed").starts_with(want.as_bytes()), "{key}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let key = format!("keys: [{{name: a, secret: {ONE}}}]");
        for (rules, want) in [
            ("- {resources: [secrets], providers: [{identity: {}}]}".to_owned(), ""),
            (
                "- {resources: [], providers: [{identity: {}}]}".into(),
                "resources[0].resources: Required value: resources are required",
            ),
            (
                "- {resources: [secrets]}".into(),
                "resources[0].providers: Required value: providers are required",
            ),
            (
                "- {resources: ['*'], providers: [{identity: {}}]}".into(),
                "resources[0].resources[0]: Invalid value: \"*\": use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
            ),
            (
                "- {resources: [Secrets], providers: [{identity: {}}]}".into(),
                "resources[0].resources[0]: Invalid value: \"Secrets\": resource must be lowercase",
            ),
            (
                format!(
                    "- {{resources: [secrets], providers: [{{identity: {{}}, aescbc: {{{key}}}}}]}}"
                ),
                "resources[0].providers[0]: more than one provider specified in a single element, should split into different list elements",
            ),
            (
                format!("- {{resources: [secrets], providers: [{{secretbox: {{{key}}}}}]}}"),
                "resources[0].providers[0].secretbox.keys[0].secret: secret is not of the expected length, got 16, expected one of [32]",
            ),
            (
                "- {resources: [secrets], providers: [{aescbc: {keys: [{name: a, secret: '!'}]}}]}"
                    .into(),
                "resources[0].providers[0].aescbc.keys[0].secret: must be base64 encoded",
            ),
        ] {
            assert_eq!(parse(&rules).err().unwrap_or_default(), want, "{rules}");
        }
    }
}
