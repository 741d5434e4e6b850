//! Kustomizations: what rootlet makes of them beside what kubectl makes.

use std::fs;

use crate::harness::{Cluster, run};

/// Objects that the cases are about.
const APP: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {a: b}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: runner
      imagePullSecrets: [{name: pull}]
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}
      initContainers: [{name: first, image: "busybox:1"}]
      containers:
      - name: main
        image: example.com:5000/nginx:1.2
        args: [a, b]
        env: [{name: A, value: b}, {name: B, valueFrom: {configMapKeyRef: {name: settings, key: a}}}, {name: C, valueFrom: {secretKeyRef: {name: hidden, key: a}}}]
        envFrom: [{configMapRef: {name: settings}}, {secretRef: {name: hidden}}]
        resources: {limits: {memory: 64Mi}}
      - {name: side, image: "busybox@sha256:aa"}
      volumes: [{name: s, configMap: {name: settings}}, {name: h, secret: {secretName: hidden}}, {name: d, persistentVolumeClaim: {claimName: data}}, {name: p, projected: {sources: [{configMap: {name: settings}}]}}]
      tolerations: [{key: x}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: runner}
imagePullSecrets: [{name: pull}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Secret
metadata: {name: pull}
type: kubernetes.io/dockerconfigjson
data: {.dockerconfigjson: e30=}
"#;

const REST: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [configmaps], resourceNames: [settings], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: runner}, {kind: ServiceAccount, name: default, namespace: x}, {kind: User, name: someone, apiGroup: rbac.authorization.k8s.io}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: all}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: runner, namespace: default}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: c, image: redis}]}
  volumeClaimTemplates: [{metadata: {name: d}, spec: {accessModes: [ReadWriteOnce]}}]
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: often}
spec:
  schedule: "* * * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: busybox, envFrom: [{configMapRef: {name: settings}}]}]}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  tls: [{hosts: [a.example], secretName: hidden}]
  rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: home}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: foos.example.com}
spec: {group: example.com, names: {kind: Foo, plural: foos}, scope: Namespaced, versions: []}
---
apiVersion: example.com/v1
kind: Foo
metadata: {name: foo}
spec: {list: [{name: a, x: 1}], containers: [{name: c, image: busybox}]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: check}
webhooks: [{name: a.example.com, clientConfig: {service: {name: web, namespace: default}}}]
"#;

const GENERATED: &str = r#"
configMapGenerator:
- {name: settings, literals: [a=b, "c='d e'", 'e=<f> & "g"'], files: [app.conf, other=files/bin], envs: [vars.env]}
secretGenerator:
- {name: hidden, literals: [a=abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz]}
- {name: tls, type: kubernetes.io/tls, literals: [tls.crt=a, tls.key=b], options: {disableNameSuffixHash: true, labels: {x: z}, immutable: true}}
"#;

/// Kustomizations over the objects above, with further files.
const CASES: [(&str, &str, &[(&str, &str)]); 22] = [
    ("nothing but resources", "resources: [app.yaml, rest.yaml]", &[]),
    ("prefix, suffix", "resources: [app.yaml, rest.yaml]\nnamePrefix: p-\nnameSuffix: -s", &[]),
    ("namespace", "resources: [app.yaml, rest.yaml]\nnamespace: there", &[]),
    (
        "common labels",
        "resources: [app.yaml, rest.yaml]\ncommonLabels: {team: x}\ncommonAnnotations: {note: 'yes'}",
        &[],
    ),
    ("labels alone", "resources: [app.yaml, rest.yaml]\nlabels: [{pairs: {team: x}}]", &[]),
    (
        "labels of templates and selectors",
        "resources: [app.yaml, rest.yaml]\nlabels: [{pairs: {t: x}, includeTemplates: true}, {pairs: {s: y}, includeSelectors: true}, {pairs: {f: z}, fields: [{path: spec/labels, kind: Foo, create: true}]}]",
        &[],
    ),
    (
        "images",
        "resources: [app.yaml, rest.yaml]\nimages: [{name: 'example.com:5000/nginx', newTag: '2'}, {name: busybox, newName: other/box, digest: 'sha256:bb'}, {name: redis, newName: valkey}]",
        &[],
    ),
    (
        "replicas",
        "resources: [app.yaml, rest.yaml]\nreplicas: [{name: web, count: 5}, {name: db, count: 0}]",
        &[],
    ),
    ("generators", GENERATED, &[]),
    (
        "generators with references",
        "resources: [app.yaml, rest.yaml]\nnamePrefix: p-\nnamespace: there\n",
        &[],
    ),
    (
        "generator options",
        "generatorOptions: {disableNameSuffixHash: true, labels: {l: m}, annotations: {note: o}}\nconfigMapGenerator: [{name: a, literals: [b=c]}, {name: empty}]",
        &[],
    ),
    (
        "strategic patches",
        r#"
resources: [app.yaml, rest.yaml]
patches:
- patch: |-
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: web, annotations: {new: "1"}}
    spec:
      replicas: null
      template:
        spec:
          tolerations: [{key: z}]
          containers:
          - {name: new, image: x}
          - name: main
            args: [c]
            env: [{name: Z, value: z}, {name: B, $patch: delete}, {name: A, value: changed}]
            resources: {limits: {cpu: "1"}}
          volumes: [{name: s, configMap: null, emptyDir: {}}, {name: w, emptyDir: {}}]
- path: two.yaml
- target: {kind: Deployment|StatefulSet}
  patch: |-
    apiVersion: apps/v1
    kind: Any
    metadata: {name: any, labels: {patched: yes-it-is}}
"#,
        &[(
            "two.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: db}\n$patch: delete\n---\napiVersion: example.com/v1\nkind: Foo\nmetadata: {name: foo}\nspec: {list: [{name: b}]}\n",
        )],
    ),
    (
        "JSON patches",
        r#"
resources: [app.yaml, rest.yaml]
namePrefix: p-
patches:
- target: {kind: Deployment, name: web}
  patch: |-
    - {op: replace, path: /spec/replicas, value: 7}
    - {op: add, path: /spec/template/spec/containers/0/args/-, value: c}
    - {op: remove, path: /metadata/labels/a}
- target: {labelSelector: "a=b"}
  patch: '[{"op": "add", "path": "/metadata/annotations", "value": {"x": "y"}}]'
- {path: op.yaml, target: {kind: Service, name: "w.*"}}
- target: {kind: ConfigMap}
  patch: '[{"op": "test", "path": "/none", "value": 1}]'
"#,
        &[("op.yaml", "- op: add\n  path: /spec/ports/-\n  value: {port: 81, name: more}\n")],
    ),
    (
        "older fields",
        "resources: [app.yaml]\npatchesStrategicMerge: [sm.yaml]\npatchesJson6902: [{target: {version: v1, kind: Service, name: web}, path: op.json}]",
        &[
            (
                "sm.yaml",
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 9}\n",
            ),
            ("op.json", "[{\"op\": \"replace\", \"path\": \"/spec/ports/0/port\", \"value\": 90}]"),
        ],
    ),
    (
        "overlays",
        "resources: [base, base2]\nnameSuffix: -prod\nnamespace: prod\nconfigMapGenerator: [{name: settings, behavior: merge, literals: [more=x, a=changed]}]\npatches: [{path: p.yaml}]",
        &[
            (
                "base/kustomization.yaml",
                "resources: [app.yaml]\nnamePrefix: one-\nconfigMapGenerator: [{name: settings, literals: [a=b]}]\nsecretGenerator: [{name: hidden, literals: [a=b]}]\n",
            ),
            ("base/app.yaml", APP),
            ("base2/kustomization.yaml", "resources: [cm.yaml]\nnamePrefix: two-\n"),
            ("base2/cm.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"),
            (
                "p.yaml",
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 4}\n",
            ),
        ],
    ),
    (
        "the same base twice",
        "resources: [a, b]",
        &[
            (
                "base/kustomization.yaml",
                "resources: [app.yaml]\nconfigMapGenerator: [{name: settings, literals: [a=b]}]\n",
            ),
            ("base/app.yaml", APP),
            ("a/kustomization.yaml", "resources: [../base]\nnamePrefix: a-\n"),
            ("b/kustomization.yaml", "resources: [../base]\nnamePrefix: b-\n"),
        ],
    ),
    (
        "components",
        "resources: [app.yaml]\ncomponents: [more]\nnamePrefix: p-",
        &[
            (
                "more/kustomization.yaml",
                "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nresources: [cm.yaml]\npatches: [{target: {kind: Deployment}, patch: '[{\"op\": \"replace\", \"path\": \"/spec/replicas\", \"value\": 8}]'}]\n",
            ),
            ("more/cm.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\n"),
        ],
    ),
    (
        "replacements",
        r#"
resources: [app.yaml, rest.yaml]
namePrefix: p-
replacements:
- source: {kind: Service, name: web, fieldPath: metadata.name}
  targets:
  - select: {kind: Deployment}
    fieldPaths: ["spec.template.spec.containers.[name=main].env.[name=A].value"]
  - select: {kind: Ingress}
    fieldPaths: [spec.rules.0.host]
    options: {delimiter: ".", index: 0}
- source: {kind: Deployment, name: web, fieldPath: spec.replicas}
  targets:
  - select: {kind: StatefulSet}
    fieldPaths: [metadata.annotations.copies]
    options: {create: true}
"#,
        &[],
    ),
    ("order of the files", "resources: [rest.yaml, app.yaml]\nsortOptions: {order: fifo}", &[]),
    ("an unknown field", "resources: [app.yaml]\nresourcez: []", &[]),
    ("no such file", "resources: [none.yaml]", &[]),
    (
        "a patch for nobody",
        "resources: [app.yaml]\npatches: [{patch: '{apiVersion: v1, kind: Pod, metadata: {name: none}}'}]",
        &[],
    ),
];

#[test]
fn kustomizations_are_built_as_kubectl_builds_them() {
    let cluster = Cluster::prepared();
    let mut wrong = Vec::new();
    for (index, (name, kustomization, files)) in CASES.iter().enumerate() {
        let folder = cluster.path(&format!("kustomization-{index}"));
        let common: [(&str, &[u8]); 6] = [
            ("kustomization.yaml", kustomization.as_bytes()),
            ("app.yaml", APP.as_bytes()),
            ("rest.yaml", REST.as_bytes()),
            ("app.conf", b"one = 1\ntwo = \"2\"\n"),
            ("files/bin", b"\xff\xfe\x00"),
            ("vars.env", b"# comment\nX=y\n\n  Z=a=b\n"),
        ];
        let own = files.iter().map(|(path, text)| (*path, text.as_bytes()));
        for (path, text) in common.into_iter().chain(own) {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().expect("it is in the folder"))
                .expect("folders are made");
            fs::write(path, text).expect("files are written");
        }
        if name.ends_with("with references") {
            let path = folder.join("kustomization.yaml");
            fs::write(path, format!("{kustomization}{GENERATED}")).expect("it is written");
        }
        let ask = |program: &str| {
            let mut command = cluster.command(program);
            command.arg("kustomize").arg(&folder);
            run(&mut command)
        };
        let (theirs, ours) = (ask("kubectl"), ask("rootlet"));
        if theirs.code != ours.code || theirs.out != ours.out {
            let differing = theirs.out.lines().zip(ours.out.lines()).find(|(a, b)| a != b);
            wrong.push(format!(
                "{name}: {:?} {:?}\nkubectl: {}\nrootlet: {}\n{differing:#?}",
                theirs.code, ours.code, theirs.err, ours.err
            ));
            fs::write(folder.join("theirs"), &theirs.out).expect("it is written");
            fs::write(folder.join("ours"), &ours.out).expect("it is written");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
