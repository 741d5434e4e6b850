"""The Python client against a server: typed, dynamic, watches, patches, custom resources."""

import threading
import time

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException

config.load_kube_config()
core = client.CoreV1Api()
apps = client.AppsV1Api()
DEADLINE_S = 30


def expect(what, found, wanted):
    assert found == wanted, f"{what}: {found!r} instead of {wanted!r}"


def eventually(what, probe):
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        found = probe()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {DEADLINE_S} s")


def typed():
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="typed", labels={"by": "python"}), data={"a": "b"})
    made = core.create_namespaced_config_map("default", body)
    expect("data", made.data, {"a": "b"})
    patched = core.patch_namespaced_config_map("typed", "default", {"data": {"a": None, "c": "d"}})
    expect("patched", patched.data, {"c": "d"})
    expect("list", [m.metadata.name for m in core.list_namespaced_config_map("default", label_selector="by=python").items], ["typed"])
    try:
        core.create_namespaced_config_map("default", body)
        raise AssertionError("a second one was made")
    except ApiException as error:
        expect("status", error.status, 409)
    core.delete_namespaced_config_map("typed", "default")


def watching():
    seen = []

    def follow():
        for event in watch.Watch().stream(core.list_namespaced_config_map, "default", label_selector="by=watch", timeout_seconds=DEADLINE_S):
            seen.append(f"{event['type']} {event['object'].metadata.name}")
            if event["type"] == "DELETED":
                return

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="watched", labels={"by": "watch"}))
    core.create_namespaced_config_map("default", body)
    eventually("the first event", lambda: seen)
    core.patch_namespaced_config_map("watched", "default", {"data": {"x": "y"}})
    core.delete_namespaced_config_map("watched", "default")
    follower.join(DEADLINE_S)
    expect("events", seen, ["ADDED watched", "MODIFIED watched", "DELETED watched"])


def by_discovery():
    of = dynamic.DynamicClient(client.ApiClient())
    deployments = of.resources.get(api_version="apps/v1", kind="Deployment")
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "localhost/none:1"}]},
            },
        },
    }
    applied = deployments.server_side_apply(body=body, name="web", namespace="default", field_manager="python")
    expect("replicas", applied.spec.replicas, 1)
    scaled = deployments.scale.patch(body={"spec": {"replicas": 3}}, name="web", namespace="default", content_type="application/merge-patch+json")
    expect("scale", scaled.spec.replicas, 3)
    expect("typed", apps.read_namespaced_deployment("web", "default").spec.replicas, 3)
    deployments.delete(name="web", namespace="default")

    definitions = of.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
    definitions.create(
        body={
            "metadata": {"name": "crontabs.python.example.com"},
            "spec": {
                "group": "python.example.com",
                "scope": "Namespaced",
                "names": {"kind": "CronTab", "plural": "crontabs"},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"every": {"type": "integer", "minimum": 1}}}}}},
                    }
                ],
            },
        }
    )

    def found():
        try:
            return of.resources.get(api_version="python.example.com/v1", kind="CronTab")
        except dynamic.exceptions.ResourceNotFoundError:
            of.resources.invalidate_cache()
            return None

    tabs = eventually("the new kind", found)
    # Of custom resources a body has to say what it is, as the stock server wants it.
    typed = {"apiVersion": "python.example.com/v1", "kind": "CronTab"}
    made = tabs.create(body=typed | {"metadata": {"name": "t"}, "spec": {"every": 5}}, namespace="default")
    expect("spec", made.spec.every, 5)
    try:
        tabs.create(body=typed | {"metadata": {"name": "bad"}, "spec": {"every": 0}}, namespace="default")
        raise AssertionError("an invalid one was made")
    except dynamic.exceptions.UnprocessibleEntityError as error:
        expect("status", error.status, 422)
    events = tabs.watch(namespace="default", timeout=DEADLINE_S)
    expect("event", next(iter(events))["object"].metadata.name, "t")
    definitions.delete(name="crontabs.python.example.com")


for step in (typed, watching, by_discovery):
    step()
    print(f"python client: {step.__name__}: ok")
