#!/usr/bin/env python3
"""What the program is made of, from Cargo's own data: a CycloneDX 1.6 document, or a list of licences.

    .ci/sbom.py VERSION        the document
    .ci/sbom.py --licences     a line per crate: name, version, licence
"""
import datetime
import json
import os
import subprocess
import sys
import tomllib
import uuid

TARGET = "x86_64-unknown-linux-gnu"


def crates():
    """The packages in the program, proc macros and build scripts' included, tests' not; and who needs whom."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET]
    data = json.loads(subprocess.check_output(command))
    packages = {package["id"]: package for package in data["packages"]}
    needs = {
        node["id"]: sorted(
            dep["pkg"] for dep in node["deps"] if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])
        )
        for node in data["resolve"]["nodes"]
    }
    root = next(id for id, package in packages.items() if package["name"] == "rootlet")
    seen, todo = set(), [root]
    while todo:
        id = todo.pop()
        if id not in seen:
            seen.add(id)
            todo += needs[id]
    return root, {id: packages[id] for id in seen}, needs


def licence(package):
    # Crates of old separate alternatives by a slash.
    return (package["license"] or "unknown").replace("/", " OR ").replace("  ", " ")


def document(version):
    root, packages, needs = crates()
    with open("Cargo.lock", "rb") as lock:
        checksums = {(p["name"], p["version"]): p.get("checksum") for p in tomllib.load(lock)["package"]}

    def purl(package):
        return f"pkg:cargo/{package['name']}@{package['version']}"

    def component(package):
        found = {
            "type": "application" if package["id"] == root else "library",
            "bom-ref": purl(package),
            "name": package["name"],
            "version": package["version"],
            "licenses": [{"expression": licence(package)}],
            "purl": purl(package),
        }
        checksum = checksums.get((package["name"], package["version"]))
        if checksum:
            found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        if package["repository"]:
            found["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
        return found

    ordered = sorted(packages.values(), key=lambda p: (p["name"], p["version"]))
    components = [component(package) for package in ordered if package["id"] != root]
    content = json.dumps(components, sort_keys=True)
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    time = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": component(packages[root]) | {"version": version},
        },
        "components": components,
        "dependencies": [
            {"ref": purl(p), "dependsOn": [purl(packages[id]) for id in needs[p["id"]]]} for p in ordered
        ],
    }


if len(sys.argv) != 2:
    sys.exit(__doc__)
if sys.argv[1] == "--licences":
    _, packages, _ = crates()
    for package in sorted(packages.values(), key=lambda p: (p["name"], p["version"])):
        print(f"{package['name']} {package['version']}  {licence(package)}")
else:
    print(json.dumps(document(sys.argv[1]), indent=1))
