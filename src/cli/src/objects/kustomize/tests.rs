use std::fs;

use super::*;

/// Folders with files: `name`, a newline, text.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn built(files: &[(&str, &str)], at: &str) -> Result<Vec<String>, String> {
    let folder = tree(files);
    let found = build(&folder.path().join(at).display().to_string());
    let root = folder.path().canonicalize().unwrap().display().to_string();
    found
        .map(|all| {
            all.iter()
                .map(|d| format!("{} {}", d.text("/kind"), d.text("/metadata/name")))
                .collect()
        })
        .map_err(|error| error.text().replace(&root, "ROOT"))
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";

#[test]
fn layers_come_in_order() {
    let files = [
        (
            "base/kustomization.yaml",
            "resources: [pod.yaml]\nnamePrefix: in-\nconfigMapGenerator: [{name: c, literals: [a=b]}]\n",
        ),
        ("base/pod.yaml", POD),
        (
            "top/kustomization.yml",
            "resources: [../base, ns.yaml]\nnamePrefix: out-\nnamespace: there\n",
        ),
        ("top/ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n"),
    ];
    assert_eq!(
        built(&files, "top").unwrap(),
        ["Namespace there", "ConfigMap out-in-c-4h2mbtbbt6", "Pod out-in-a"]
    );
}

#[test]
fn mistakes_are_told() {
    let cases: [(&[(&str, &str)], &str); 9] = [
        (
            &[("x", "")],
            "unable to find one of 'kustomization.yaml', 'kustomization.yml' or 'Kustomization' in directory 'ROOT'",
        ),
        (&[("kustomization.yaml", "resourcez: []\n")], "unknown field `resourcez`"),
        (&[("kustomization.yaml", "helmCharts: []\n")], "run `helm template` and name its output"),
        (&[("kustomization.yaml", "resources: ['https://example.com/x.yaml']\n")], "is remote"),
        (&[("kustomization.yaml", "resources: ['github.com/a/b?ref=v1']\n")], "is remote"),
        (
            &[("kustomization.yaml", "resources: [none.yaml]\n")],
            "accumulating resources from 'none.yaml': open ROOT/none.yaml: no such file or directory",
        ),
        (
            &[("kustomization.yaml", "resources: [a.yaml, a.yaml]\n"), ("a.yaml", POD)],
            "may not add resource with an already registered id: Pod.v1.[noGrp]/a.[noNs]",
        ),
        (&[("kustomization.yaml", "resources: [.]\n")], "cycle detected"),
        (
            &[(
                "kustomization.yaml",
                "patches: [{patch: '{apiVersion: v1, kind: Pod, metadata: {name: b}}'}]\n",
            )],
            "no matches for Id Pod.v1.[noGrp]/b.[noNs]; failed to find unique target for patch",
        ),
    ];
    for (files, want) in cases {
        let error = built(files, "").unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    let above = [
        ("top/kustomization.yaml", "configMapGenerator: [{name: c, files: [../secret]}]\n"),
        ("secret", "x"),
    ];
    let error = built(&above, "top").unwrap_err();
    assert!(
        error.contains("security; file 'ROOT/secret' is not in or below 'ROOT/top'"),
        "{error}"
    );
}
