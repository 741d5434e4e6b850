//! `kustomization.yaml`, as it is written.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The file. A field that is not here is refused: nothing is left out in silence.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Kustomization {
    api_version: String,
    kind: String,
    #[serde(rename = "metadata")]
    _metadata: Value,
    pub resources: Vec<String>,
    pub bases: Vec<String>,
    pub components: Vec<String>,
    pub namespace: String,
    pub name_prefix: String,
    pub name_suffix: String,
    pub common_labels: BTreeMap<String, String>,
    pub labels: Vec<Labels>,
    pub common_annotations: BTreeMap<String, String>,
    pub images: Vec<Image>,
    pub replicas: Vec<Replicas>,
    pub patches: Vec<Patch>,
    pub patches_strategic_merge: Vec<String>,
    #[serde(rename = "patchesJson6902")]
    pub patches_json6902: Vec<Patch>,
    pub config_map_generator: Vec<Generator>,
    pub secret_generator: Vec<Generator>,
    pub generator_options: Options,
    pub replacements: Vec<Replacement>,
    pub sort_options: Option<SortOptions>,
}

/// Labels, and where they go besides `metadata.labels`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Labels {
    pub pairs: BTreeMap<String, String>,
    pub include_selectors: bool,
    pub include_templates: bool,
    pub fields: Vec<FieldSpec>,
}

/// A field of some kinds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FieldSpec {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub path: String,
    pub create: bool,
}

/// What becomes of an image's name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Image {
    pub name: String,
    pub new_name: String,
    pub new_tag: String,
    pub tag_suffix: String,
    pub digest: String,
}

/// How many of something there are.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replicas {
    pub name: String,
    pub count: i64,
}

/// A patch of either kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Patch {
    pub path: String,
    pub patch: String,
    pub target: Option<Selector>,
    pub options: BTreeMap<String, bool>,
}

/// What is meant by a patch or a replacement; names are regular expressions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selector {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub name: String,
    pub namespace: String,
    pub label_selector: String,
    pub annotation_selector: String,
}

/// A config map or secret that is made.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Generator {
    pub name: String,
    pub namespace: String,
    pub behavior: String,
    /// Of secrets.
    #[serde(rename = "type")]
    pub of: String,
    pub literals: Vec<String>,
    pub files: Vec<String>,
    pub env: String,
    pub envs: Vec<String>,
    pub options: Options,
}

/// How what is made is called and marked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Options {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub disable_name_suffix_hash: bool,
    pub immutable: bool,
}

/// A value that is copied from one object into others.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Replacement {
    pub path: String,
    pub source: Option<Source>,
    pub source_value: Option<String>,
    pub targets: Vec<Target>,
}

/// Where the value is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Source {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub name: String,
    pub namespace: String,
    pub field_path: String,
    pub options: Option<FieldOptions>,
}

/// Where it goes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Target {
    pub select: Selector,
    pub reject: Vec<Selector>,
    pub field_paths: Vec<String>,
    pub options: Option<FieldOptions>,
}

/// Which part of a field is meant.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FieldOptions {
    pub delimiter: String,
    pub index: i64,
    pub create: bool,
    pub encoding: String,
}

/// The order of what comes out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SortOptions {
    pub order: String,
    pub legacy_sort_options: Option<LegacySort>,
}

/// Kinds that come first and last.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LegacySort {
    pub order_first: Vec<String>,
    pub order_last: Vec<String>,
}

/// What kustomize has and this does not, with what to do instead.
const ELSEWHERE: [(&str, &str); 10] = [
    ("helmCharts", "run `helm template` and name its output"),
    ("helmChartInflationGenerator", "run `helm template` and name its output"),
    ("helmGlobals", "run `helm template` and name its output"),
    ("vars", "use `replacements`"),
    ("generators", PLUGIN),
    ("transformers", PLUGIN),
    ("validators", PLUGIN),
    ("configurations", PLUGIN),
    ("crds", PLUGIN),
    ("openapi", PLUGIN),
];
const PLUGIN: &str = "build it with `kubectl kustomize DIR | rootlet apply -f -`";

impl Kustomization {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut value, _) =
            apimachinery::decode::yaml_unstructured(text).map_err(|error| error.to_string())?;
        if value.is_null() {
            return Err("kustomization.yaml is empty".into());
        }
        let Some(fields) = value.as_object_mut() else {
            return Err("it is no mapping".into());
        };
        // Null says nothing.
        fields.retain(|_, value| !value.is_null());
        for (field, instead) in ELSEWHERE {
            if fields.contains_key(field) {
                return Err(format!("field {field:?} is not covered; {instead}"));
            }
        }
        let read: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        read.check()?;
        Ok(read)
    }

    fn check(&self) -> Result<(), String> {
        if !matches!(self.kind.as_str(), "" | "Kustomization" | "Component") {
            return Err("kind should be Kustomization or Component".into());
        }
        let known = [
            "",
            "kustomize.config.k8s.io/v1beta1",
            "kustomize.config.k8s.io/v1",
            "kustomize.config.k8s.io/v1alpha1",
        ];
        if !known.contains(&self.api_version.as_str()) {
            return Err(format!(
                "apiVersion for {} should be kustomize.config.k8s.io/v1beta1",
                self.kind
            ));
        }
        if let Some(option) = self
            .patches
            .iter()
            .flat_map(|patch| patch.options.keys())
            .find(|option| !matches!(option.as_str(), "allowNameChange" | "allowKindChange"))
        {
            return Err(format!("unknown option {option:?} of a patch"));
        }
        Ok(())
    }

    /// Whether it works on its user's resources.
    pub fn is_component(&self) -> bool {
        self.kind == "Component"
    }

    /// What is told about fields that have better ones.
    pub fn deprecated(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut note = |there: bool, old: &str, new: &str| {
            if there {
                words.push(format!("'{old}' is deprecated. Please use '{new}' instead."));
            }
        };
        note(!self.bases.is_empty(), "bases", "resources");
        note(!self.common_labels.is_empty(), "commonLabels", "labels");
        note(!self.patches_json6902.is_empty(), "patchesJson6902", "patches");
        note(!self.patches_strategic_merge.is_empty(), "patchesStrategicMerge", "patches");
        words
    }
}
