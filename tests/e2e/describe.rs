//! `describe` of the rarer kinds beside kubectl's.

use crate::client::same;
use crate::harness::Cluster;

const KINDS: &str = include_str!("strangers/kinds.yaml");
const FOO: &str = r"
apiVersion: example.com/v1
kind: Foo
metadata: {name: foo}
spec: {list: [{name: a, x: 1.5}, b], big: 12345678901, emptyM: {}, emptyL: [], t: true, aURL: x, podIPs: [a]}
";

#[test]
fn rarer_kinds_are_described_as_kubectl_describes_them() {
    let cluster = Cluster::ephemeral();
    cluster.apply(KINDS);
    cluster.kubectl_ok(&[
        "wait",
        "--for=condition=Established",
        "crd/foos.example.com",
        "--timeout=60s",
    ]);
    cluster.apply(FOO);
    for line in [
        "netpol np",
        "netpol np-none",
        "ingress ing",
        "ingressclass ic",
        "hpa hpa",
        "pdb pdb",
        "pdb pdb2",
        "quota quota",
        "quota scoped",
        "limitrange range",
        "role role",
        "clusterrole crole",
        "clusterrole agg",
        "clusterrole view",
        "clusterrole cluster-admin",
        "rolebinding bind",
        "clusterrolebinding cbind",
        "pv pv",
        "pv pvcsi",
        "pv pvnfs",
        "sc sc",
        "csidriver csid",
        "csinode",
        "priorityclass pc",
        "rc rc",
        "podtemplate pt",
        "endpoints ep",
        "endpointslice es",
        "endpointslice",
        "crd foos.example.com",
        "foo foo",
        "ns default",
        "sa default",
        "cm kube-root-ca.crt",
        "secret",
        "flowschema catch-all",
        "validatingwebhookconfiguration down",
        "apiservice v1.",
        "servicecidr",
        "ipaddress",
        "lease -n kube-node-lease",
        "runtimeclass",
    ] {
        same(&cluster, &format!("describe {line}"));
    }
}
