//! Volumes of every kind that a rootless node has, from the objects that fill them to claims that outlive their pods.

use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, container, eventually, pod};

/// A pod of one container with these volumes, mounted as said.
fn with(name: &str, script: &str, volumes: Value, mounts: Value) -> Value {
    let main = container("main", script, &json!({"volumeMounts": mounts}));
    pod(name, &json!({"restartPolicy": "Never", "volumes": volumes, "containers": [main]}))
}

/// A mount of the volume `v` at `/v`, with these fields as well.
fn at(more: &Value) -> Value {
    let mut mount = json!({"name": "v", "mountPath": "/v"});
    for (key, value) in more.as_object().into_iter().flatten() {
        mount[key] = value.clone();
    }
    json!([mount])
}

fn one(source: Value) -> Value {
    let mut volume = source;
    volume["name"] = "v".into();
    json!([volume])
}

#[test]
fn objects_are_files_and_follow_their_objects() {
    let cluster = Cluster::ephemeral();
    cluster.kubectl_ok(&["create", "configmap", "map", "--from-literal=a=1", "--from-literal=b=2"]);
    cluster.kubectl_ok(&["create", "secret", "generic", "hidden", "--from-literal=key=value"]);
    let items = json!([{"key": "a", "path": "deep/a", "mode": 0o440}]);
    let field = |path: &str, field: &str| json!({"path": path, "fieldRef": {"fieldPath": field}});
    let amount = json!({"path": "cpu", "resourceFieldRef": {"containerName": "main",
        "resource": "requests.cpu", "divisor": "1m"}});
    let token = json!({"serviceAccountToken": {"path": "token", "audience": "example.com",
        "expirationSeconds": 600}});
    let all = json!([token, {"configMap": {"name": "map", "items": items}}, {"secret": {"name": "hidden"}},
        {"downwardAPI": {"items": [field("labels", "metadata.labels"), amount]}},
        {"configMap": {"name": "none", "optional": true}}]);
    let mut projected = with(
        "projected",
        "exec sleep 1000",
        one(json!({"projected": {"sources": all, "defaultMode": 0o400}})),
        at(&json!({"readOnly": true})),
    );
    projected["metadata"]["labels"] = json!({"x": "y"});
    projected["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "250m"}});
    let map = |more: Value| {
        let mut source = json!({"name": "map"});
        for (key, value) in more.as_object().into_iter().flatten() {
            source[key] = value.clone();
        }
        one(json!({ "configMap": source }))
    };
    cluster.apply_all(&[
        projected,
        with(
            "modes",
            "stat -L -c %a /v/a /v/b; cat /v/a /v/b",
            map(json!({"defaultMode": 0o640})),
            at(&json!({})),
        ),
        with(
            "item",
            "ls /v; stat -L -c %a /v/deep/a",
            map(json!({"items": items})),
            at(&json!({})),
        ),
        with("file", "cat /v; stat -L -c %F /v", map(json!({})), at(&json!({"subPath": "a"}))),
        with(
            "absent",
            "ls /v | wc -l",
            one(json!({"secret": {"secretName": "none", "optional": true}})),
            at(&json!({})),
        ),
        with(
            "secret",
            "stat -f -c %T /v; (echo x >/v/key) 2>/dev/null || echo refused",
            one(json!({"secret": {"secretName": "hidden"}})),
            at(&json!({})),
        ),
        with("waiting", "cat /v/a", one(json!({"configMap": {"name": "later"}})), at(&json!({}))),
        with("lacking", "true", map(json!({"items": [{"key": "c", "path": "c"}]})), at(&json!({}))),
    ]);
    for (name, said) in [
        ("modes", "640\n640\n12"),
        ("item", "deep\n440\n"),
        ("file", "1regular file\n"),
        ("absent", "0\n"),
    ] {
        assert_eq!(cluster.last_words(name), said, "{name}");
    }
    // A secret is in memory alone.
    let said = cluster.last_words("secret");
    assert!(said.starts_with("tmpfs\n") && said.ends_with("refused\n"), "{said}");
    let message = cluster.event("lacking", "FailedMount");
    assert!(message.contains("references non-existent config key: c"), "{message}");
    let message = cluster.event("waiting", "FailedMount");
    assert!(message.contains("configmap \"later\" not found"), "{message}");
    cluster.kubectl_ok(&["create", "configmap", "later", "--from-literal=a=come"]);
    assert_eq!(cluster.last_words("waiting"), "come");

    cluster.pod_ready("projected");
    let inside =
        |script: &str| cluster.kubectl_ok(&["exec", "projected", "--", "sh", "-c", script]);
    assert_eq!(inside("cat /v/deep/a /v/key /v/labels /v/cpu"), "1valuex=\"y\"250");
    assert_eq!(inside("stat -L -c %a /v/key /v/deep/a"), "400\n440\n");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": inside("cat /v/token"), "audiences": ["example.com"]}});
    let review = crate::harness::run_with(
        cluster.kubectl_command().args(["create", "-o", "json", "-f", "-"]),
        review.to_string().as_bytes(),
    );
    let review: Value = serde_json::from_str(&review.out).expect("a review");
    assert_eq!(review["status"]["user"]["username"], "system:serviceaccount:default:default");
    let pod_of = &review["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"];
    assert_eq!(pod_of, &json!(["projected"]), "{review}");
    // All files of a volume change at once.
    let before = inside("readlink /v/..data");
    let change = json!({"data": {"a": "other"}}).to_string();
    cluster.kubectl_ok(&["patch", "configmap", "map", "-p", &change]);
    eventually("the file has changed", || match inside("cat /v/deep/a") {
        text if text == "other" => Ok(()),
        text => Err(text),
    });
    assert_ne!(inside("readlink /v/..data"), before);
    assert_eq!(inside("cat /v/key"), "value");
}

#[test]
fn empty_folders_and_those_of_the_host_are_what_they_say() {
    let cluster = Cluster::ephemeral();
    let folder = cluster.path("host");
    std::fs::create_dir_all(folder.join("there")).expect("a folder can be made");
    std::fs::write(folder.join("file"), "text").expect("a file can be written");
    let host = |kind: &str, name: &str| {
        one(json!({"hostPath": {"path": folder.join(name), "type": kind}}))
    };
    let empty = |more: Value| one(json!({ "emptyDir": more }));
    let device = one(json!({"hostPath": {"path": "/dev/null", "type": "CharDevice"}}));
    cluster.apply_all(&[
        with(
            "memory",
            "stat -f -c %T /v; df -m /v | tail -1 | awk '{print $2}'; touch /v/x && echo written",
            empty(json!({"medium": "Memory", "sizeLimit": "16Mi"})),
            at(&json!({})),
        ),
        with("disk", "stat -c %a /v; touch /v/x && echo written", empty(json!({})), at(&json!({}))),
        with(
            "greedy",
            "dd if=/dev/zero of=/v/x bs=1M count=8; exec sleep 1000",
            empty(json!({"sizeLimit": "1Mi"})),
            at(&json!({})),
        ),
        with("huge", "true", empty(json!({"medium": "HugePages-2Mi"})), at(&json!({}))),
        with("directory", "ls /v | wc -l", host("Directory", "there"), at(&json!({}))),
        with(
            "made",
            "touch /v/x && echo written",
            host("DirectoryOrCreate", "new"),
            at(&json!({})),
        ),
        with(
            "made-file",
            "echo -n more >>/v; cat /v",
            host("FileOrCreate", "new-file"),
            at(&json!({})),
        ),
        with("file", "cat /v", host("File", "file"), at(&json!({}))),
        with("device", "echo x >/v && echo swallowed", device, at(&json!({}))),
        with("any", "cat /v/file", host("", ""), at(&json!({}))),
        with("not-there", "true", host("Directory", "none"), at(&json!({}))),
        with("no-file", "true", host("File", "there"), at(&json!({}))),
        with("no-socket", "true", host("Socket", "file"), at(&json!({}))),
    ]);
    for (name, said) in [
        ("memory", "tmpfs\n16\nwritten\n"),
        ("disk", "777\nwritten\n"),
        ("directory", "0\n"),
        ("made", "written\n"),
        ("made-file", "more"),
        ("file", "text"),
        ("device", "swallowed\n"),
        ("any", "text"),
    ] {
        assert_eq!(cluster.last_words(name), said, "{name}");
    }
    for (name, told) in [
        ("not-there", "hostPath type check failed"),
        ("no-file", "hostPath type check failed"),
        ("no-socket", "hostPath type check failed"),
    ] {
        let message = cluster.event(name, "FailedMount");
        assert!(
            message.contains(told) && message.ends_with(&folder_type(name)),
            "{name}: {message}"
        );
    }
    let evicted = cluster.pod_phase("greedy", "Failed");
    assert_eq!(evicted["status"]["reason"], "Evicted");
    assert_eq!(
        evicted["status"]["message"],
        "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "
    );
}

fn folder_type(name: &str) -> String {
    match name {
        "not-there" => "none is not a directory",
        "no-file" => "there is not a file",
        _ => "file is not a socket",
    }
    .to_owned()
}

#[test]
fn a_part_of_a_volume_is_no_way_out_of_it() {
    let cluster = Cluster::ephemeral();
    let mount = |part: &str| json!([{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/part", "subPath": part}]);
    let empty = || one(json!({"emptyDir": {}}));
    let mut expression = with(
        "expression",
        "touch /part/x; ls -d /v/*/*/*",
        empty(),
        json!([{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/part", "subPathExpr": "$(NAME)/logs"}]),
    );
    expression["spec"]["containers"][0]["env"] =
        json!([{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
    let mut unset = with(
        "unset",
        "true",
        empty(),
        json!([{"name": "v", "mountPath": "/part", "subPathExpr": "$(NAME)"}]),
    );
    unset["spec"]["containers"][0]["env"] = json!([{"name": "NAME", "value": ""}]);
    // What one container makes a link, the next may not follow.
    let link = |name: &str, target: &str| {
        let mut of = with(name, "cat /part", empty(), mount("link"));
        let first = container(
            "first",
            &format!("echo -n inside >/v/file; ln -s {target} /v/link"),
            &json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
        );
        of["spec"]["initContainers"] = json!([first]);
        of
    };
    cluster.apply_all(&[
        with("made", "touch /part/x; ls -R /v/a", empty(), mount("a/b")),
        expression,
        unset,
        link("inside", "file"),
        link("outside", "/etc/passwd"),
        link("above", "../../../../etc/passwd"),
    ]);
    assert_eq!(cluster.last_words("made"), "/v/a:\nb\n\n/v/a/b:\nx\n");
    assert_eq!(cluster.last_words("expression"), "/v/expression/logs/x\n");
    assert_eq!(cluster.event("unset", "Failed"), "Error: missing value for NAME");
    for name in ["inside", "outside", "above"] {
        let seen = cluster.pod(name, "over or refused", |pod| {
            let state = &pod["status"]["containerStatuses"][0]["state"];
            state["terminated"].is_object()
                || state["waiting"]["reason"] == "CreateContainerConfigError"
        });
        let state = &seen["status"]["containerStatuses"][0]["state"];
        if name == "inside" {
            assert_eq!(state["terminated"]["exitCode"], 0, "{state}");
            assert_eq!(cluster.last_words(name), "inside");
        } else {
            assert!(state["waiting"].is_object(), "{name}: {state}");
        }
    }
}

#[test]
fn an_image_is_a_volume_and_what_it_lacks_is_told() {
    let cluster = Cluster::ephemeral();
    let image =
        |reference: &str| one(json!({"image": {"reference": reference, "pullPolicy": "Never"}}));
    cluster.apply_all(&[
        with(
            "whole",
            "ls /v; touch /v/x 2>/dev/null || echo refused",
            image(BUSYBOX),
            at(&json!({})),
        ),
        with("part", "/v/busybox echo run", image(BUSYBOX), at(&json!({"subPath": "bin"}))),
        with("no-part", "true", image(BUSYBOX), at(&json!({"subPath": "none"}))),
        with("no-image", "true", image("localhost/none:test"), at(&json!({}))),
    ]);
    assert_eq!(cluster.last_words("whole"), "bin\netc\nroot\ntmp\nrefused\n");
    assert_eq!(cluster.last_words("part"), "run\n");
    let message = cluster.event("no-part", "Failed");
    assert!(message.contains("ImageVolumeMountFailed: "), "{message}");
    assert!(message.contains("\"none\" is not in image"), "{message}");
    let told = cluster.get(&["pod", "whole"]).expect("it is there");
    let told = &told["status"]["containerStatuses"][0];
    let mount = told["volumeMounts"].as_array().into_iter().flatten();
    let mount = mount.into_iter().find(|m| m["mountPath"] == "/v").expect("it is mounted");
    assert_eq!(mount["volumeStatus"]["image"]["imageRef"], told["imageID"], "{mount}");
    cluster.event("no-image", "ErrImageNeverPull");
}

/// An object of one of the storage kinds.
fn storage(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    let mut of = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        of[key] = value.clone();
    }
    of
}

fn claim(name: &str, class: Value, mode: &str) -> Value {
    storage(
        "v1",
        "PersistentVolumeClaim",
        name,
        json!({"spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": class, "volumeMode": mode, "resources": {"requests": {"storage": "1Gi"}}}}),
    )
}

/// A volume of a class of its own name.
fn volume(name: &str, source: Value, more: Value) -> Value {
    let mut spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": name, "persistentVolumeReclaimPolicy": "Retain"});
    for part in [source, more] {
        for (key, value) in part.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
    }
    storage("v1", "PersistentVolume", name, json!({ "spec": spec }))
}

fn on_node(node: &str) -> Value {
    json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}})
}

#[test]
fn claims_get_volumes_that_outlive_pods_as_their_class_says() {
    let cluster = Cluster::ephemeral();
    let node = format!("rootlet-{}", cluster.name);
    let folders = ["static", "local"].map(|name| cluster.path(name));
    for folder in &folders {
        std::fs::create_dir(folder).expect("a folder can be made");
    }
    let here = on_node(&node);
    let kept = json!({"provisioner": "rancher.io/local-path", "reclaimPolicy": "Retain",
        "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true});
    let provisioner = cluster.get(&["storageclass", "local-path"]).expect("the default class");
    let mut kept = kept;
    kept["provisioner"] = provisioner["provisioner"].clone();
    let writes = "cat /v/x 2>/dev/null; echo once >>/v/x; sync";
    let uses = |name: &str, claim: &str| {
        with(
            name,
            writes,
            one(json!({"persistentVolumeClaim": {"claimName": claim}})),
            at(&json!({})),
        )
    };
    let template = json!({"ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}}}});
    cluster.apply_all(&[
        storage("storage.k8s.io/v1", "StorageClass", "kept", kept),
        claim("default", Value::Null, "Filesystem"),
        claim("kept", json!("kept"), "Filesystem"),
        claim("unused", Value::Null, "Filesystem"),
        volume("static", json!({"hostPath": {"path": folders[0]}}), json!({})),
        claim("static", json!("static"), "Filesystem"),
        volume("local", json!({"local": {"path": folders[1]}}), here),
        claim("local", json!("local"), "Filesystem"),
    ]);
    let names = ["default", "kept", "static", "local"];
    let first: Vec<Value> = names.iter().map(|name| uses(&format!("{name}-1"), name)).collect();
    cluster.apply_all(&first);
    cluster.apply_all(&[with(
        "generic",
        "touch /v/x && exec sleep 1000",
        one(template),
        at(&json!({})),
    )]);
    for name in names {
        assert_eq!(cluster.last_words(&format!("{name}-1")), "", "{name}");
    }
    let second: Vec<Value> = names.iter().map(|name| uses(&format!("{name}-2"), name)).collect();
    cluster.apply_all(&second);
    for name in names {
        assert_eq!(cluster.last_words(&format!("{name}-2")), "once\n", "{name}");
    }
    for folder in &folders {
        assert_eq!(std::fs::read_to_string(folder.join("x")).unwrap_or_default(), "once\nonce\n");
    }
    cluster.pod_ready("generic");
    let path = |end: &str| format!("/api/v1/nodes/{node}/proxy{end}");
    let metrics = cluster.kubectl_ok(&["get", "--raw", &path("/metrics")]);
    let of_claim = "{namespace=\"default\",persistentvolumeclaim=\"generic-v\"} ";
    for metric in ["capacity_bytes", "used_bytes", "available_bytes", "inodes_free"] {
        let line = format!("kubelet_volume_stats_{metric}{of_claim}");
        assert!(metrics.lines().any(|told| told.starts_with(&line)), "{line}: {metrics}");
    }
    let summary = cluster.kubectl_ok(&["get", "--raw", &path("/stats/summary")]);
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    let pods = summary["pods"].as_array().into_iter().flatten();
    let mut volumes = pods.flat_map(|of| of["volume"].as_array().into_iter().flatten());
    let told = volumes.find(|volume| volume["pvcRef"]["name"] == "generic-v");
    assert!(told.is_some_and(|told| told["capacityBytes"].as_u64() > Some(0)), "{summary}");
    // Nobody uses it, so nobody knows where it is to be.
    let unused = cluster.get(&["pvc", "unused"]).expect("it is there");
    assert_eq!(unused["status"]["phase"], "Pending");
    let message = cluster.event("unused", "WaitForFirstConsumer");
    assert!(message.starts_with("waiting for first consumer"), "{message}");
    // Enlarging is answered.
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}).to_string();
    cluster.kubectl_ok(&["patch", "pvc", "kept", "-p", &larger]);
    eventually("the claim is larger", || match cluster.get(&["pvc", "kept"])? {
        claim if claim["status"]["capacity"]["storage"] == "2Gi" => Ok(()),
        claim => Err(claim["status"].to_string()),
    });
    // What belongs to a pod goes with it; what does not goes or stays as its class says.
    cluster.pod_ready("generic");
    let volume_of = |claim: &str| -> String {
        let claim = cluster.get(&["pvc", claim]).expect("it is there");
        claim["spec"]["volumeName"].as_str().unwrap_or_default().to_owned()
    };
    let (default, kept, generic) =
        (volume_of("default"), volume_of("kept"), volume_of("generic-v"));
    // A volume that is deleted before its claim waits for it, and takes its folder with it then.
    let source = cluster.get(&["pv", &default]).expect("it is there");
    let folder = source["spec"]["hostPath"]["path"].as_str().unwrap_or_default().to_owned();
    assert!(std::fs::exists(&folder).unwrap_or_default(), "{folder}");
    cluster.kubectl_ok(&["delete", "pv", &default, "--wait=false"]);
    let source = cluster.get(&["pv", &default]).expect("it waits for its claim");
    assert_eq!(source["status"]["phase"], "Bound");
    cluster.kubectl_ok(&["delete", "pods", "--all"]);
    for name in ["generic-v", "default", "kept"] {
        if name != "generic-v" {
            cluster.kubectl_ok(&["delete", "pvc", name]);
        }
        eventually(&format!("claim {name} is gone"), || match cluster.get(&["pvc", name]) {
            Err(_) => Ok(()),
            Ok(claim) => Err(claim["metadata"].to_string()),
        });
    }
    for name in [&default, &generic] {
        eventually(&format!("volume {name} is gone"), || match cluster.get(&["pv", name]) {
            Err(_) => Ok(()),
            Ok(volume) => Err(volume["status"].to_string()),
        });
    }
    assert!(!std::fs::exists(&folder).unwrap_or(true), "{folder}");
    eventually("the volume is kept", || match cluster.get(&["pv", &kept])? {
        volume if volume["status"]["phase"] == "Released" => Ok(()),
        volume => Err(volume["status"].to_string()),
    });
}

#[test]
fn a_block_volume_is_a_device_of_its_container() {
    let cluster = Cluster::ephemeral();
    let node = format!("rootlet-{}", cluster.name);
    let blocks = std::fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut devices = blocks.map(|entry| std::path::Path::new("/dev").join(entry.file_name()));
    let Some(device) = devices.find(|device| device.exists()) else {
        eprintln!("SKIPPED: this machine has no block device");
        return;
    };
    let uses = |name: &str| {
        let mut of = with(
            name,
            "stat -c %F /dev/own",
            one(json!({"persistentVolumeClaim": {"claimName": name}})),
            json!([]),
        );
        of["spec"]["containers"][0]["volumeDevices"] =
            json!([{"name": "v", "devicePath": "/dev/own"}]);
        of
    };
    let mut more = on_node(&node);
    more["volumeMode"] = "Block".into();
    cluster.apply_all(&[
        volume("device", json!({"local": {"path": device}}), more),
        claim("device", json!("device"), "Block"),
        claim("folder", Value::Null, "Block"),
        uses("device"),
        uses("folder"),
    ]);
    assert_eq!(cluster.last_words("device"), "block special file\n");
    // Folders are no devices, and nobody may make some.
    let message = cluster.event("folder", "ProvisioningFailed");
    assert!(message.contains("volumes of mode Block are not supported"), "{message}");
}

#[test]
fn a_class_of_attributes_stays_while_a_claim_refers_to_it() {
    let cluster = Cluster::ephemeral();
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass",
        "metadata": {"name": "gold"}, "driverName": "csi.example.com",
        "parameters": {"iops": "100"}});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "fast"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "volumeAttributesClassName": "gold",
            "resources": {"requests": {"storage": "1Mi"}}}});
    cluster.apply(&class.to_string());
    eventually("the class is held", || {
        let class = cluster.get(&["volumeattributesclass", "gold"])?;
        let held = class["metadata"]["finalizers"][0] == "kubernetes.io/vac-protection";
        if held { Ok(()) } else { Err(class.to_string()) }
    });
    cluster.apply(&claim.to_string());
    // Controllers know the claim, so that the class's end does not overtake it.
    cluster.event("fast", "WaitForFirstConsumer");
    cluster.kubectl_ok(&["delete", "volumeattributesclass", "gold", "--wait=false"]);
    let going = cluster.get(&["volumeattributesclass", "gold"]).expect("it is in use");
    assert!(going["metadata"]["deletionTimestamp"].is_string(), "{going}");
    cluster.kubectl_ok(&["delete", "persistentvolumeclaim", "fast"]);
    cluster.kubectl_ok(&["wait", "--for=delete", "volumeattributesclass/gold", "--timeout=60s"]);
}
