//! Collects the descriptions of the API's kinds and fields, for `kubectl explain`, from the sources of the
//! crate k8s-openapi, which has them from Kubernetes' own OpenAPI document.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The folder of the version that is served.
const VERSION: &str = "v1_36";

/// Descriptions by the name of the definition and of its field; the definition's own has no name.
type Descriptions = BTreeMap<String, BTreeMap<String, String>>;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../../Cargo.lock");
    let mut found = Descriptions::new();
    collect(&sources(), &mut found);
    assert!(
        found.contains_key("io.k8s.api.core.v1.Pod"),
        "k8s-openapi has another layout than known"
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let file = fs::File::create(out.join("descriptions.json.gz")).expect("the folder is ours");
    let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    serde_json::to_writer(&mut packed, &found).expect("texts can be written");
    packed.finish().and_then(|mut file| file.flush()).expect("the disk has room");
}

/// Where the crate's sources lie.
fn sources() -> PathBuf {
    let cargo = env::var_os("CARGO").expect("cargo sets it");
    let told = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform"])
        .arg(env::var_os("TARGET").expect("cargo sets it"))
        .output()
        .expect("cargo can be run");
    let complaint = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "cargo metadata: {complaint}");
    let metadata: serde_json::Value = serde_json::from_slice(&told.stdout).expect("it is JSON");
    let packages = metadata["packages"].as_array().expect("packages are listed");
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "k8s-openapi")
        .and_then(|package| package["manifest_path"].as_str())
        .expect("k8s-openapi is a dependency of the workspace");
    Path::new(manifest).with_file_name("src").join(VERSION)
}

fn collect(folder: &Path, found: &mut Descriptions) {
    for entry in fs::read_dir(folder).expect("the sources can be read") {
        let path = entry.expect("the sources can be read").path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            extract(&fs::read_to_string(&path).expect("sources are text"), found);
        }
    }
}

/// Takes what the schema of a type says: `"description"` of itself and of each property, by their indentation.
fn extract(source: &str, found: &mut Descriptions) {
    let Some((_, schema)) = source.split_once("fn schema_name()") else { return };
    let mut lines = schema.lines().skip(1);
    let Some(name) = lines.next().and_then(literal) else { return };
    let of_type = found.entry(name).or_default();
    let mut property = None;
    for line in lines {
        let text = line.trim_start();
        match line.len() - text.len() {
            12 if text.starts_with("\"description\": ") => {
                let own = literal(&text["\"description\": ".len()..]);
                of_type.extend(own.map(|own| (String::new(), own)));
            }
            16 if text.ends_with('{') => property = literal(text),
            20 => {
                let inserted = text.split_once("insert(\"description\".into(), ");
                let said =
                    text.strip_prefix("\"description\": ").or(inserted.map(|(_, rest)| rest));
                if let (Some(said), Some(name)) = (said.and_then(literal), property.clone()) {
                    of_type.insert(name, said);
                }
            }
            _ => {}
        }
    }
}

/// The Rust string literal that the text begins with.
fn literal(text: &str) -> Option<String> {
    let mut characters = text.trim_start().strip_prefix('"')?.chars();
    let mut value = String::new();
    loop {
        match characters.next()? {
            '"' => return Some(value),
            '\\' => match characters.next()? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                'u' => {
                    let code: String = characters.by_ref().take_while(|c| *c != '}').collect();
                    let code = u32::from_str_radix(code.trim_start_matches('{'), 16).ok()?;
                    value.push(char::from_u32(code)?);
                }
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
}
