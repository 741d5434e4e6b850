//! Images from a real registry: plain HTTP, TLS from a private CA, basic authentication.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::{Cluster, eventually, folder, place, run};

/// Debian's docker-registry on a port of its own; ended when dropped.
pub struct Registry {
    process: Child,
    port: u16,
    home: tempfile::TempDir,
}

impl Registry {
    fn start(options: &str, home: tempfile::TempDir) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        let config = home.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n{options}",
            home.path().join("data").display()
        );
        fs::write(&config, text).expect("it can be written");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { process, port, home };
        eventually("the registry", || {
            TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string())
        });
        registry
    }

    pub fn plain() -> Self {
        Self::start("", folder())
    }

    pub fn with_users() -> Self {
        let home = folder();
        let users = home.path().join("htpasswd");
        let answer = run(Command::new("htpasswd").args(["-Bbn", "me", "secret"]));
        assert_eq!(answer.code, Some(0), "{}", answer.err);
        fs::write(&users, answer.out).expect("it can be written");
        let options = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display());
        Self::start(&options, home)
    }

    /// With a certificate from a CA that nobody knows; returns the CA's file too.
    pub fn with_tls() -> (Self, PathBuf) {
        let home = folder();
        let file = |name: &str| home.path().join(name);
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "private CA");
        let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = rcgen::CertificateParams::new(names)
            .and_then(|parameters| parameters.signed_by(&key, &issuer))
            .expect("a certificate");
        fs::write(file("ca.pem"), ca_certificate.pem()).expect("it can be written");
        fs::write(file("cert.pem"), certificate.pem()).expect("it can be written");
        fs::write(file("key.pem"), key.serialize_pem()).expect("it can be written");
        let options = format!(
            "  tls: {{certificate: {}, key: {}}}\n",
            file("cert.pem").display(),
            file("key.pem").display()
        );
        let ca = file("ca.pem");
        (Self::start(&options, home), ca)
    }

    pub fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Pushes the busybox image as `name`; returns its digest.
    pub fn push(&self, name: &str, flags: &[&str]) -> String {
        let digest = self.home.path().join("digest");
        let answer = run(Command::new("skopeo")
            .env("HOME", self.home.path())
            .args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"])
            .arg("--digestfile")
            .arg(&digest)
            .args(flags)
            .arg(format!("docker-archive:{}", place().join("busybox.tar").display()))
            .arg(format!("docker://{}", self.image(name))));
        assert_eq!(answer.code, Some(0), "{}", answer.err);
        fs::read_to_string(&digest).expect("the digest is there").trim().to_owned()
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it can be asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// A manifest's text.
    pub fn manifest(&self, name: &str, reference: &str) -> String {
        let answer = self.ask(&format!(
            "GET /v2/{name}/manifests/{reference} HTTP/1.0\r\nAccept: application/vnd.docker.distribution.manifest.v2+json\r\n\r\n"
        ));
        answer.split_once("\r\n\r\n").expect("there is a body").1.to_owned()
    }

    /// Stores an index under a tag.
    pub fn put_index(&self, name: &str, tag: &str, text: &str) {
        let answer = self.ask(&format!(
            "PUT /v2/{name}/manifests/{tag} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        ));
        assert!(answer.contains(" 201 "), "{answer}");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself, which the test then noticed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pod(name: &str, image: &str, extra: &Value) -> String {
    let mut pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "containers": [
            {"name": "main", "image": image, "command": ["echo", "pulled"]}]},
    });
    if let (Some(spec), Some(extra)) = (pod["spec"].as_object_mut(), extra.as_object()) {
        spec.extend(extra.clone());
    }
    pod.to_string()
}

fn waiting(pod: &Value, reason: &str) -> bool {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
}

#[test]
fn images_come_by_tag_and_by_digest() {
    let registry = Registry::plain();
    let digest = registry.push("team/app:1", &[]);
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    let none = Value::Null;
    cluster.apply(&pod("by-tag", &registry.image("team/app:1"), &none));
    let by_tag = cluster.pod_phase("by-tag", "Succeeded");
    let id = by_tag["status"]["containerStatuses"][0]["imageID"].as_str().unwrap_or_default();
    assert_eq!(id, registry.image(&format!("team/app@{digest}")));
    assert!(cluster.event("by-tag", "Pulled").starts_with("Successfully pulled image"));
    cluster.apply(&pod("by-digest", &registry.image(&format!("team/app@{digest}")), &none));
    cluster.pod_phase("by-digest", "Succeeded");
    assert_eq!(cluster.kubectl_ok(&["logs", "by-digest"]), "pulled\n");
    let listed = cluster.rootlet_ok(&["image", "ls"]);
    assert!(listed.contains(&registry.image("team/app:1")), "{listed}");
    cluster.rootlet_ok(&["image", "rm", &registry.image("team/app:1")]);
    cluster.rootlet_ok(&["image", "pull", &registry.image("team/app:1")]);
}

#[test]
fn an_image_that_is_not_there_backs_off() {
    let registry = Registry::plain();
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    cluster.apply(&pod("absent", &registry.image("team/none:1"), &Value::Null));
    cluster.pod("absent", "in ErrImagePull", |pod| {
        waiting(pod, "ErrImagePull") || waiting(pod, "ImagePullBackOff")
    });
    cluster.pod("absent", "in ImagePullBackOff", |pod| waiting(pod, "ImagePullBackOff"));
    let message = cluster.event("absent", "Failed");
    assert!(message.contains("not found"), "{message}");
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = nobody.local_addr().expect("it is bound").port();
    drop(nobody);
    let answer = cluster.rootlet(&["image", "pull", &format!("127.0.0.1:{port}/x:1")]);
    assert_eq!(answer.code, Some(1));
    assert!(answer.err.to_lowercase().contains("refused"), "{}", answer.err);
}

#[test]
fn private_images_need_a_pull_secret() {
    let registry = Registry::with_users();
    registry.push("team/private:1", &["--dest-creds", "me:secret"]);
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    let image = registry.image("team/private:1");
    cluster.apply(&pod("without", &image, &Value::Null));
    cluster.pod("without", "refused", |pod| {
        waiting(pod, "ErrImagePull") || waiting(pod, "ImagePullBackOff")
    });
    let message = cluster.event("without", "Failed");
    assert!(message.contains("authorization failed") || message.contains("401"), "{message}");
    let server = format!("--docker-server=127.0.0.1:{}", registry.port);
    cluster.kubectl_ok(&[
        "create",
        "secret",
        "docker-registry",
        "pull",
        &server,
        "--docker-username=me",
        "--docker-password=secret",
    ]);
    let secrets = serde_json::json!({"imagePullSecrets": [{"name": "pull"}]});
    cluster.apply(&pod("with", &image, &secrets));
    cluster.pod_phase("with", "Succeeded");
    // That it is there by now does not make it everybody's.
    cluster.kubectl_ok(&["delete", "pod", "without", "--now"]);
    cluster.apply(&pod("without", &image, &Value::Null));
    cluster.pod("without", "refused again", |pod| {
        waiting(pod, "ErrImagePull") || waiting(pod, "ImagePullBackOff")
    });
    cluster.apply(&pod("again", &image, &secrets));
    cluster.pod_phase("again", "Succeeded");
    assert!(cluster.event("again", "Pulled").contains("already present on machine"));
}

#[test]
fn a_plugin_knows_who_may_pull() {
    let registry = Registry::with_users();
    registry.push("team/private:1", &["--dest-creds", "me:secret"]);
    let cluster = Cluster::prepared();
    let folder = cluster.path("plugins");
    fs::create_dir_all(&folder).expect("it can be made");
    let plugin = folder.join("words");
    let answer = serde_json::json!({
        "kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "cacheKeyType": "Registry", "cacheDuration": "1h",
        "auth": {format!("127.0.0.1:{}", registry.port): {"username": "me", "password": "secret"}}});
    fs::write(&plugin, format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")).expect("written");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&plugin, executable).expect("it is ours");
    let config = cluster.path("providers.yaml");
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
         - name: words\n  matchImages: ['127.0.0.1:{}']\n  defaultCacheDuration: 0s\n  \
         apiVersion: credentialprovider.kubelet.k8s.io/v1\n",
        registry.port
    );
    fs::write(&config, text).expect("written");
    let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let flag = |name: &str, value: String| format!("--image-credential-provider-{name}={value}");
    let config_flag = flag("config", path(&config));
    let nowhere = ["up", "--ephemeral", &config_flag, &flag("bin-dir", "/nowhere".into())];
    let refused = cluster.rootlet(&nowhere);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("/nowhere/words did not exist"), "{}", refused.err);
    let flags = [
        "--ephemeral",
        "--max-parallel-image-pulls=1",
        &config_flag,
        &flag("bin-dir", path(&folder)),
    ];
    cluster.up(&flags);
    cluster.apply(&pod("plain", &registry.image("team/private:1"), &Value::Null));
    cluster.pod_phase("plain", "Succeeded");
}

#[test]
fn a_private_ca_is_named_in_registries_yaml() {
    let (registry, ca) = Registry::with_tls();
    registry.push("team/app:1", &[]);
    let cluster = Cluster::prepared();
    let file = cluster.path("registries.yaml");
    let text = format!(
        "configs:\n  \"127.0.0.1:{}\":\n    tls:\n      ca_file: {}\n",
        registry.port,
        ca.display()
    );
    fs::write(&file, text).expect("it can be written");
    cluster.up(&["--ephemeral", "--registries", file.to_str().expect("UTF-8")]);
    cluster.apply(&pod("tls", &registry.image("team/app:1"), &Value::Null));
    cluster.pod_phase("tls", "Succeeded");
}
