//! CNI, both ways: the node's network given to plugins, and rootlet as the plugin of another runtime.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Answer, Cluster, eventually, run, run_with};
use crate::network::{client, reaches_the_host, server, service, sh_ok};

#[test]
fn pods_get_their_network_by_cni_plugins() {
    let place = ["/opt/cni/bin", "/usr/lib/cni"]
        .into_iter()
        .find(|place| std::path::Path::new(place).join("bridge").exists())
        .expect("the package containernetworking-plugins is installed");
    let cluster = Cluster::prepared();
    let folder = cluster.path("cni");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let conf = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "dataDir": cluster.path("cni-data"),
            "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.88.0.0/24"}]]}},
        {"type": "tuning", "sysctl": {"net.ipv4.ip_default_ttl": "33"}}]});
    std::fs::write(folder.join("10-pods.conflist"), conf.to_string()).expect("it can be written");
    let folder = folder.to_str().expect("paths are UTF-8").to_owned();
    cluster.up(&["--ephemeral", "--cni-conf-dir", &folder, "--cni-bin-dir", place]);
    cluster.load_busybox();
    cluster.apply(&server("web", &json!({"app": "web"}), "hello"));
    client(&cluster, "client");
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    cluster.apply(&service("web", &json!({"selector": {"app": "web"}, "ports": ports})));
    let web = cluster.pod_ready("web");
    cluster.pod_ready("client");
    let ip = web["status"]["podIP"].as_str().expect("it has an address").to_owned();
    assert!(ip.starts_with("10.88.0."), "{ip}");
    assert_eq!(sh_ok(&cluster, "client", "cat /proc/sys/net/ipv4/ip_default_ttl"), "33\n");
    for url in [format!("http://{ip}:8080/"), "http://web/".to_owned()] {
        assert_eq!(sh_ok(&cluster, "client", &format!("timeout 5 wget -qO- {url}")), "hello\n");
    }
    assert_eq!(
        sh_ok(&cluster, "web", "timeout 5 wget -qO- http://web.default/"),
        "hello\n",
        "itself"
    );
    let spec = json!({"type": "LoadBalancer", "selector": {"app": "web"},
        "ports": [{"port": 8080}]});
    cluster.apply(&service("lb", &spec));
    let balanced = eventually("a load balancer's address", || {
        let service = cluster.get(&["service", "lb"])?;
        let ingress = &service["status"]["loadBalancer"]["ingress"][0]["ip"];
        ingress.as_str().map(str::to_owned).ok_or_else(|| service["status"].to_string())
    });
    if balanced != "127.0.0.1" {
        let script = format!("timeout 5 wget -qO- http://{balanced}:8080/");
        assert_eq!(sh_ok(&cluster, "client", &script), "hello\n", "a load balancer");
    }
    reaches_the_host(&cluster, "client");
    cluster.kubectl_ok(&["delete", "pod", "web", "client"]);
    eventually("the addresses to be free", || {
        let left = std::fs::read_dir(cluster.path("cni-data").join("pods"));
        let names = left.into_iter().flatten().flatten().map(|file| file.file_name());
        let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        if names.iter().any(|name| name.starts_with("10.88.")) {
            Err(names.join(" "))
        } else {
            Ok(())
        }
    });
}

/// Chained reference plugins get what they ask for; a plugin of the newest version, written for the
/// test, sees every call with its input.
#[test]
fn cni_plugins_are_told_what_the_pod_wants_and_what_is_gone() {
    let place = "/usr/lib/cni";
    let cluster = Cluster::prepared();
    let (folder, own) = (cluster.path("cni"), cluster.path("own-plugins"));
    for folder in [&folder.join("pods"), &own] {
        std::fs::create_dir_all(folder).expect("a folder can be made");
    }
    let calls = cluster.path("calls");
    let script = format!(
        "#!/bin/sh\ninput=$(cat)\n\
         [ $CNI_COMMAND = VERSION ] && echo '{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"1.0.0\",\"1.1.0\"]}}' && exit\n\
         echo \"$CNI_COMMAND $CNI_CONTAINERID $input\" >>{calls}\n\
         [ $CNI_COMMAND != STATUS ] || [ ! -e {calls}.broken ] || {{ echo '{{\"code\":50,\"msg\":\"the switch is off\"}}'; exit 1; }}\n\
         [ $CNI_COMMAND != ADD ] || printf %s \"$input\" | sed 's/.*\"prevResult\"://; s/,\"runtimeConfig\".*//; s/,\"type\".*//'\n",
        calls = calls.display()
    );
    let spy = own.join("spy");
    std::fs::write(&spy, script).expect("it can be written");
    std::fs::set_permissions(&spy, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("it can be made executable");
    // The reference plugins of this machine speak 1.0.0; a folder beside the list adds the last one.
    let conf = json!({"cniVersions": ["1.0.0"], "cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
         "capabilities": {"ips": true, "mac": true},
         "ipam": {"type": "host-local", "dataDir": cluster.path("cni-data"),
            "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.88.0.0/24"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": false},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}}]});
    std::fs::write(folder.join("10-pods.conflist"), conf.to_string()).expect("it can be written");
    let beside = json!({"type": "spy", "capabilities": {"dns": true}});
    std::fs::write(folder.join("pods/90-spy.conf"), beside.to_string()).expect("it can be written");
    let folder = folder.to_str().expect("paths are UTF-8").to_owned();
    let own = own.to_str().expect("paths are UTF-8").to_owned();
    cluster.up(&["--cni-conf-dir", &folder, "--cni-bin-dir", place, "--cni-bin-dir", &own]);
    cluster.load_busybox();
    let web = server("web", &json!({"app": "web"}), "hello");
    let mut web: Value = serde_json::from_str(&web).expect("it is JSON");
    web["metadata"]["annotations"] = json!({"kubernetes.io/ingress-bandwidth": "1G",
        "cni.rootlet.dev/ips": "10.88.0.77/24", "cni.rootlet.dev/mac": "0a:00:00:00:00:77"});
    web["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": 31999}]);
    cluster.apply(&web.to_string());
    client(&cluster, "client");
    let web = cluster.pod_ready("web");
    cluster.pod_ready("client");
    assert_eq!(web["status"]["podIP"], "10.88.0.77");
    let mac = sh_ok(&cluster, "web", "ip link show eth0 | sed -n 's/.*ether \\([^ ]*\\) .*/\\1/p'");
    assert_eq!(mac, "0a:00:00:00:00:77\n");
    let enter = |words: &[&str]| cluster.rootlet_with(&["enter"], words);
    let nat = enter(&["iptables", "-t", "nat", "-S"]);
    assert!(nat.out.contains("--to-destination 10.88.0.77:8080"), "{}{}", nat.out, nat.err);
    let asked = "timeout 5 wget -qO- http://10.88.0.1:31999/";
    assert_eq!(sh_ok(&cluster, "client", asked), "hello\n", "at the bridge's own address");
    let shaped = enter(&["tc", "qdisc", "show"]);
    assert!(shaped.out.contains("rate 1Gbit"), "{}{}", shaped.out, shaped.err);
    let told = || std::fs::read_to_string(&calls).unwrap_or_default();
    let calls_of_web = told();
    let mut adds = calls_of_web.lines().filter(|line| line.starts_with("ADD "));
    let add = adds.find(|line| line.contains("10.88.0.77/24")).expect("the last plugin was called");
    assert!(add.contains("\"servers\""), "{add}");
    assert!(!told().contains("STATUS"), "which 1.0.0 does not have");

    // From now on everything speaks 1.1.0, which has STATUS and GC.
    let conf = json!({"cniVersion": "1.1.0", "name": "pods", "loadOnlyInlinedPlugins": true,
        "plugins": [{"type": "spy"}]});
    std::fs::write(format!("{folder}/10-pods.conflist"), conf.to_string()).expect("it is written");
    eventually("the plugin to be asked how it is", || {
        if told().contains("STATUS ") { Ok(()) } else { Err(told()) }
    });
    std::fs::write(format!("{}.broken", calls.display()), "").expect("it can be written");
    cluster.kubectl_ok(&["wait", "--for=condition=Ready=false", "node", "--all", "--timeout=60s"]);
    let node = cluster.kubectl_ok(&["get", "nodes", "-o", "json"]);
    assert!(node.contains("the switch is off"), "{node}");
    std::fs::remove_file(format!("{}.broken", calls.display())).expect("it is there");
    cluster.kubectl_ok(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"]);
    cluster.rootlet(&["down"]);
    cluster.up(&["--cni-conf-dir", &folder, "--cni-bin-dir", &own]);
    let gc = told().lines().find(|line| line.starts_with("GC ")).map(str::to_owned);
    let gc = gc.expect("what is gone was told");
    assert!(gc.contains("\"cni.dev/valid-attachments\":[]"), "{gc}");
}

/// A process that lives in a network namespace of its own within the cluster's user namespace, as the
/// container of another runtime would.
struct Foreign(std::process::Child);

impl Foreign {
    fn start(cluster: &Cluster) -> Self {
        let lock = cluster.path("rootlet").join(&cluster.name).join("node.pid");
        let node = std::fs::read_to_string(lock).expect("the node process has a lock file");
        let child = Command::new("nsenter")
            .args(["--preserve-credentials", "--user", "--target", node.trim()])
            .args(["unshare", "--net", "sleep", "100000"])
            .spawn()
            .expect("nsenter starts");
        let own = std::fs::read_link("/proc/self/ns/net").expect("/proc is mounted");
        let foreign = Self(child);
        eventually("a namespace", || {
            let link = std::fs::read_link(foreign.namespace()).map_err(|e| e.to_string())?;
            if link == own { Err("still the own one".into()) } else { Ok(()) }
        });
        foreign
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn run(&self, words: &[&str]) -> Answer {
        let target = self.0.id().to_string();
        let enter = ["--preserve-credentials", "--user", "--net", "--target", &target];
        run(Command::new("nsenter").args(enter).args(words))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It may have ended by itself, which the test then noticed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn other_runtimes_get_interfaces_through_cni() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&server("web", &json!({"app": "web"}), "hello"));
    let foreign = Foreign::start(&cluster);
    let cni = |command: &str, extra: &Value| {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "pods", "type": "rootlet",
            "cluster": cluster.name});
        let fields = extra.as_object().cloned().unwrap_or_default();
        conf.as_object_mut().expect("it is an object").extend(fields);
        let mut plugin = cluster.command("rootlet");
        plugin.arg("cni").env("CNI_COMMAND", command).env("CNI_CONTAINERID", "c1");
        plugin.env("CNI_IFNAME", "eth0").env("CNI_NETNS", foreign.namespace());
        let answer = run_with(&mut plugin, conf.to_string().as_bytes());
        (answer.code, serde_json::from_str::<Value>(&answer.out).unwrap_or_default())
    };
    assert_eq!(cni("VERSION", &Value::Null).1["supportedVersions"][4], "1.1.0");
    assert_eq!(cni("STATUS", &Value::Null).0, Some(0));
    let (code, result) = cni("ADD", &Value::Null);
    assert_eq!(code, Some(0), "{result}");
    let address = result["ips"][0]["address"].as_str().expect("it has an address").to_owned();
    assert!(address.starts_with("10.42.0.") && address.ends_with("/32"), "{result}");
    assert_eq!(cni("CHECK", &json!({"prevResult": result})).0, Some(0));
    let (code, error) = cni("ADD", &Value::Null);
    assert_eq!(code, Some(1), "the interface is there already: {error}");
    assert_eq!(cni("CHECK", &json!({"prevResult": result})).0, Some(0));
    let web = cluster.pod_ready("web");
    let url = format!("http://{}:8080/", web["status"]["podIP"].as_str().unwrap_or_default());
    let got = foreign.run(&["busybox", "wget", "-qO-", &url]);
    assert_eq!(got.out, "hello\n", "{}", got.err);
    // What another network or the kubelet attached is not this one's business.
    let nothing = json!({"cni.dev/valid-attachments": []});
    let others = json!({"name": "other", "cni.dev/valid-attachments": []});
    assert_eq!(cni("GC", &others).0, Some(0));
    assert_eq!(cni("CHECK", &json!({"prevResult": result})).0, Some(0));
    assert_eq!(cni("GC", &nothing).0, Some(0));
    let (code, error) = cni("CHECK", &json!({"prevResult": result}));
    assert_eq!(code, Some(1), "{error}");
    assert!(error["msg"].as_str().is_some_and(|text| text.contains("c1")), "{error}");
    assert_eq!(error["code"], 3, "the container is unknown");
    let wishes = json!({"cniVersion": "0.4.0", "runtimeConfig": {"ips": ["10.42.0.200"]}});
    let (code, result) = cni("ADD", &wishes);
    assert_eq!(code, Some(0), "{result}");
    assert_eq!(result["ips"][0]["address"], "10.42.0.200/32");
    assert_eq!(
        (&result["ips"][0]["version"], &result["cniVersion"]),
        (&json!("4"), &json!("0.4.0"))
    );
    assert_eq!(cni("DEL", &Value::Null).0, Some(0));
    assert_eq!(cni("DEL", &Value::Null).0, Some(0), "again is no error");
    assert_eq!(cni("ADD", &json!({"cniVersion": "9.0.0"})).1["code"], 1);
    let web = cluster.get(&["pod", "web"]).expect("it is there");
    assert_eq!(web["status"]["phase"], "Running", "the kubelet's pods stay");
    assert_eq!(foreign.run(&["true"]).code, Some(0));
}
