//! NetworkPolicies against nine pods in three namespaces, as upstream's suite has them: after each case
//! everybody asks everybody, on two ports.
//!
//! Source: `test/e2e/network/netpol/network_policy.go`, whose cases these are, by their names.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, eventually};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 2] = [80, 81];

/// A pod as `x/a`.
type Pod = &'static str;

const ALL: [Pod; 9] = ["x/a", "x/b", "x/c", "y/a", "y/b", "y/c", "z/a", "z/b", "z/c"];

struct World {
    cluster: Cluster,
    /// Of each pod the address of its Service, and its own.
    addresses: Vec<(Pod, String, String)>,
}

fn pod(namespace: &str, name: &str) -> Value {
    let serve = "mkdir /tmp/w; echo $NAME > /tmp/w/index.html; httpd -p 80 -h /tmp/w; \
                 exec httpd -f -p 81 -h /tmp/w";
    let ports =
        PORTS.map(|port| json!({"name": format!("serve-{port}-tcp"), "containerPort": port}));
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"pod": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["sh", "-c", serve], "ports": ports,
             "env": [{"name": "NAME", "value": format!("{namespace}/{name}")}],
             "readinessProbe": {"tcpSocket": {"port": 81}, "periodSeconds": 1}}]}})
}

impl World {
    fn make() -> Self {
        let cluster = Cluster::ephemeral();
        let mut items = Vec::new();
        for namespace in NAMESPACES {
            items.push(json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": namespace, "labels": {"ns": namespace}}}));
            for name in PODS {
                items.push(pod(namespace, name));
                let ports = PORTS.map(|port| json!({"name": format!("p{port}"), "port": port}));
                items.push(json!({"apiVersion": "v1", "kind": "Service",
                    "metadata": {"name": format!("s-{name}"), "namespace": namespace},
                    "spec": {"selector": {"pod": name}, "ports": ports}}));
            }
        }
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
        for namespace in NAMESPACES {
            let wait = ["wait", "-n", namespace, "--for=condition=Ready", "pod", "--all"];
            cluster.kubectl_ok(&[&wait[..], &["--timeout=120s"]].concat());
        }
        let addresses = ALL.map(|pod| {
            let (namespace, name) = pod.split_once('/').expect("it has both");
            let get = |kind: &str, name: &str, path: &str| {
                let path = format!("jsonpath={path}");
                cluster.kubectl_ok(&["get", kind, name, "-n", namespace, "-o", &path])
            };
            let service = get("service", &format!("s-{name}"), "{.spec.clusterIP}");
            (pod, service, get("pod", name, "{.status.podIP}"))
        });
        Self { cluster, addresses: addresses.to_vec() }
    }

    fn address(&self, pod: Pod) -> &str {
        let found = self.addresses.iter().find(|(known, _, _)| *known == pod);
        &found.expect("it is one of the nine").2
    }

    /// Who is reached by a pod, as `y/b:81`.
    fn reached(&self, from: Pod) -> BTreeSet<String> {
        let mut script = String::new();
        for (to, service, _) in &self.addresses {
            for port in PORTS {
                let ask = format!("timeout 1 wget -qO- http://{service}:{port}/");
                script += &format!("{{ [ \"$({ask})\" = {to} ] && echo {to}:{port}; }} & ");
            }
        }
        let (namespace, name) = from.split_once('/').expect("it has both");
        let script = format!("{script} wait");
        let exec = ["exec", "-n", namespace, name, "--", "sh", "-c", &script];
        self.cluster.kubectl_ok(&exec).lines().map(str::to_owned).collect()
    }

    /// Applies policies, each in its namespace, and waits until exactly those reach each other that
    /// `allowed` names.
    fn check(
        &self,
        case: &str,
        policies: &[(&str, &str, Value)],
        allowed: &dyn Fn(Pod, Pod, u16) -> bool,
    ) {
        for (namespace, name, spec) in policies {
            let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"name": name, "namespace": namespace}, "spec": spec});
            self.cluster.apply(&policy.to_string());
        }
        self.settle(case, allowed);
    }

    fn settle(&self, case: &str, allowed: &dyn Fn(Pod, Pod, u16) -> bool) {
        let wanted = |from: Pod| -> BTreeSet<String> {
            let all = ALL.iter().flat_map(|to| PORTS.map(|port| (*to, port)));
            // A pod always reaches itself.
            let mine = all.filter(|(to, port)| *to == from || allowed(from, to, *port));
            mine.map(|(to, port)| format!("{to}:{port}")).collect()
        };
        eventually(case, || {
            let probes: Vec<_> = std::thread::scope(|scope| {
                let threads = ALL.map(|from| (from, scope.spawn(move || self.reached(from))));
                let joined = threads.into_iter().map(|(from, t)| (from, t.join()));
                joined.map(|(from, got)| (from, got.expect("a probe ends"))).collect()
            });
            let wrong = probes.iter().flat_map(|(from, got)| {
                let want = wanted(from);
                let differs: Vec<_> = got.symmetric_difference(&want).cloned().collect();
                differs.into_iter().map(move |to| {
                    let how = if got.contains(&to) { "reaches" } else { "does not reach" };
                    format!("{from} {how} {to}")
                })
            });
            let wrong: Vec<String> = wrong.collect();
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join(", ")) }
        });
    }

    fn forget(&self) {
        for namespace in NAMESPACES {
            self.cluster.kubectl_ok(&["delete", "networkpolicy", "--all", "-n", namespace]);
        }
    }
}

fn namespace(pod: Pod) -> &'static str {
    pod.split('/').next().unwrap_or_default()
}

fn name(pod: Pod) -> &'static str {
    pod.split('/').nth(1).unwrap_or_default()
}

/// A policy for pods with these labels.
fn spec(selector: &Value, direction: &str, rules: &Value) -> Value {
    let mut spec = json!({"podSelector": selector, "policyTypes": [direction]});
    if !rules.is_null() {
        spec[direction.to_lowercase()] = rules.clone();
    }
    spec
}

fn labelled(key: &str, value: &str) -> Value {
    json!({"matchLabels": {key: value}})
}

fn from(peers: &Value) -> Value {
    json!([{"from": peers}])
}

fn to(peers: &Value) -> Value {
    json!([{"to": peers}])
}

#[test]
fn ingress_is_as_upstreams_suite_wants_it() {
    let world = World::make();
    let (everybody, a) = (json!({}), labelled("pod", "a"));
    let ingress = |rules: &Value| spec(&a, "Ingress", rules);
    let ns = |name: &str| labelled("ns", name);
    let pod = |name: &str| labelled("pod", name);
    let in_list = |key: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": "In", "values": values}]});
    let everything: &dyn Fn(Pod, Pod, u16) -> bool = &|_, _, _| true;
    world.settle("everybody to reach everybody", everything);

    let deny = spec(&everybody, "Ingress", &Value::Null);
    world.check("default-deny-ingress", &[("x", "deny", deny)], &|_, to, _| namespace(to) != "x");
    // Namespaces are given their names as a label, and policies add.
    let own = from(&json!([{"namespaceSelector": labelled("kubernetes.io/metadata.name", "z")}]));
    world.check("another policy beside it", &[("x", "more", ingress(&own))], &|from, to, _| {
        namespace(to) != "x" || to == "x/a" && namespace(from) == "z"
    });
    world.cluster.kubectl_ok(&["delete", "networkpolicy", "deny", "-n", "x"]);
    world.settle("stop enforcing policies after they are deleted", &|from, to, _| {
        to != "x/a" || namespace(from) == "z"
    });
    world.forget();

    let to_a: [(&str, Value, &dyn Fn(Pod) -> bool); 10] = [
        ("PodSelector within the namespace", from(&json!([{"podSelector": pod("b")}])), &|from| {
            from == "x/b"
        }),
        ("allow ingress from all namespaces", from(&json!([{"namespaceSelector": {}}])), &|_| true),
        ("NamespaceSelector", from(&json!([{"namespaceSelector": ns("y")}])), &|from| {
            namespace(from) == "y"
        }),
        (
            "PodSelector with MatchExpressions",
            from(&json!([{"podSelector": in_list("pod", &["b", "c"])}])),
            &|from| from == "x/b" || from == "x/c",
        ),
        (
            "NamespaceSelector with MatchExpressions",
            from(&json!([{"namespaceSelector": in_list("ns", &["y", "z"])}])),
            &|from| namespace(from) != "x",
        ),
        (
            "PodSelector or NamespaceSelector",
            from(&json!([{"namespaceSelector": ns("y")}, {"podSelector": pod("b")}])),
            &|from| namespace(from) == "y" || from == "x/b",
        ),
        (
            "PodSelector and NamespaceSelector",
            from(&json!([{"namespaceSelector": ns("y"), "podSelector": pod("b")}])),
            &|from| from == "y/b",
        ),
        (
            "Multiple PodSelectors and NamespaceSelectors",
            from(&json!([{"namespaceSelector": {"matchExpressions": [
                {"key": "ns", "operator": "NotIn", "values": ["x"]}]},
                "podSelector": in_list("pod", &["b", "c"])}])),
            &|from| namespace(from) != "x" && name(from) != "a",
        ),
        (
            "any PodSelectors",
            from(&json!([{"podSelector": pod("b")}, {"podSelector": pod("c")}])),
            &|from| from == "x/b" || from == "x/c",
        ),
        ("an empty list of peers is everybody", json!([{"from": []}]), &|_| true),
    ];
    for (case, rules, allowed) in to_a {
        world.check(case, &[("x", "only", ingress(&rules))], &|from, to, _| {
            to != "x/a" || allowed(from)
        });
    }
    ports_and_updates(&world);
}

/// The same world: ports, updates of pods, namespaces and policies.
fn ports_and_updates(world: &World) {
    let a = labelled("pod", "a");
    let ingress = |rules: &Value| spec(&a, "Ingress", rules);
    let y = json!([{"namespaceSelector": labelled("ns", "y")}]);
    let ports: [(&str, Value, &dyn Fn(Pod, u16) -> bool); 8] = [
        ("Ports", json!([{"from": y, "ports": [{"port": 81}]}]), &|from, port| {
            namespace(from) == "y" && port == 81
        }),
        (
            "stacked rules",
            json!([{"from": y, "ports": [{"port": 81}]}, {"ports": [{"port": 80}]}]),
            &|from, port| port == 80 || namespace(from) == "y",
        ),
        ("one named port", json!([{"ports": [{"port": "serve-81-tcp"}]}]), &|_, port| port == 81),
        (
            "a namespace on one named port",
            json!([{"from": y, "ports": [{"port": "serve-81-tcp"}]}]),
            &|from, port| namespace(from) == "y" && port == 81,
        ),
        ("any port of a protocol", json!([{"ports": [{"protocol": "TCP"}]}]), &|_, _| true),
        (
            "not access by TCP when a policy specifies only UDP",
            json!([{"ports": [{"protocol": "UDP", "port": 80}]}]),
            &|_, _| false,
        ),
        (
            "not treat SCTP as TCP",
            json!([{"ports": [{"protocol": "SCTP", "port": 80}, {"protocol": "TCP", "port": 81}]}]),
            &|_, port| port == 81,
        ),
        (
            "endPort",
            json!([{"ports": [{"protocol": "TCP", "port": 81, "endPort": 90}]}]),
            &|_, port| port == 81,
        ),
    ];
    for (case, rules, allowed) in ports {
        world.check(case, &[("x", "only", ingress(&rules))], &|from, to, port| {
            to != "x/a" || allowed(from, port)
        });
    }
    let new = json!([{"namespaceSelector": labelled("ns2", "updated")}]);
    world.check("nobody yet", &[("x", "only", ingress(&from(&new)))], &|_, to, _| to != "x/a");
    world.cluster.kubectl_ok(&["label", "namespace", "y", "ns2=updated"]);
    world.settle("ingress from updated namespace", &|from, to, _| {
        to != "x/a" || namespace(from) == "y"
    });
    world.cluster.kubectl_ok(&["label", "namespace", "y", "ns2-"]);
    let new = json!([{"namespaceSelector": {}, "podSelector": labelled("pod2", "updated")}]);
    world.check("nobody again", &[("x", "only", ingress(&from(&new)))], &|_, to, _| to != "x/a");
    world.cluster.kubectl_ok(&["label", "pod", "b", "-n", "x", "pod2=updated"]);
    world.settle("ingress from updated pod", &|from, to, _| to != "x/a" || from == "x/b");
    world.cluster.kubectl_ok(&["label", "pod", "b", "-n", "x", "pod2-"]);
    world.forget();
    let target = spec(&labelled("target", "isolated"), "Ingress", &Value::Null);
    world.check("nobody is meant", &[("x", "isolated", target)], &|_, _, _| true);
    world.cluster.kubectl_ok(&["label", "pod", "a", "-n", "x", "target=isolated"]);
    world.settle("deny ingress access to updated pod", &|_, to, _| to != "x/a");
    let all = ingress(&json!([{}]));
    world.check("allow-all taking precedence", &[("x", "all", all)], &|_, _, _| true);
    world.cluster.kubectl_ok(&["label", "pod", "a", "-n", "x", "target-"]);
    world.forget();
}

#[test]
fn egress_is_as_upstreams_suite_wants_it() {
    let world = World::make();
    let (everybody, a) = (json!({}), labelled("pod", "a"));
    let egress = |rules: &Value| spec(&a, "Egress", rules);
    let y = json!([{"namespaceSelector": labelled("ns", "y")}]);
    let from_a: [(&str, Value, &dyn Fn(Pod, u16) -> bool); 6] = [
        ("deny egress based on PodSelector", egress(&Value::Null), &|_, _| false),
        ("allow-all", egress(&json!([{}])), &|_, _| true),
        (
            "egress on one named port",
            egress(&json!([{"ports": [{"port": "serve-80-tcp"}]}])),
            &|_, port| port == 80,
        ),
        (
            "a server in a different namespace",
            egress(&to(&json!([{"namespaceSelector": labelled("ns", "y"),
                "podSelector": labelled("pod", "a")}]))),
            &|to, _| to == "y/a",
        ),
        (
            "a namespace, one port",
            egress(&json!([{"to": y, "ports": [{"port": 81}]}])),
            &|to, port| namespace(to) == "y" && port == 81,
        ),
        ("endPort", egress(&json!([{"ports": [{"port": 1, "endPort": 80}]}])), &|_, port| {
            port == 80
        }),
    ];
    for (case, policy, allowed) in from_a {
        world.check(case, &[("x", "only", policy)], &|from, to, port| {
            from != "x/a" || allowed(to, port)
        });
    }
    let deny = spec(&everybody, "Egress", &Value::Null);
    world.forget();
    world.check("all pods in a namespace", &[("x", "deny", deny)], &|from, _, _| {
        namespace(from) != "x"
    });
    world.forget();

    let block = |cidr: &str, except: &[String]| {
        egress(&to(&json!([{"ipBlock": {"cidr": cidr, "except": except}}])))
    };
    let (b, all) = (format!("{}/32", world.address("x/b")), "10.42.0.0/24");
    world.check("a server in a CIDR block", &[("x", "only", block(&b, &[]))], &|from, to, _| {
        from != "x/a" || to == "x/b"
    });
    let excepted = block(all, std::slice::from_ref(&b));
    world.check("the except clause", &[("x", "only", excepted.clone())], &|from, to, _| {
        from != "x/a" || to != "x/b"
    });
    world.check("both CIDR and Except", &[("x", "more", block(&b, &[]))], &|_, _, _| true);
    world.forget();

    // Both directions: each end has its say.
    let both = json!({"podSelector": a, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": labelled("pod", "b")}]}],
        "egress": [{"ports": [{"port": 80}]}]});
    world.check("Ingress, Egress specified together", &[("x", "both", both)], &|from, to, port| {
        (from != "x/a" || port == 80) && (to != "x/a" || from == "x/b")
    });
    world.forget();
    let (out, open) = (spec(&a, "Egress", &Value::Null), spec(&everybody, "Ingress", &json!([{}])));
    let policies = [("x", "out", out), ("y", "open", open)];
    world.check("denied by the client though the server allows", &policies, &|from, _, _| {
        from != "x/a"
    });
    let all = egress(&json!([{}]));
    world.check("egress allow-all taking precedence", &[("x", "all", all)], &|_, _, _| true);
}
