//! Pulls from a registry that misbehaves.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use images::{Auth, Digest, ErrorKind, LayerEvent, Progress, PullOptions, Store};
use support::registry::{Faults, PASSWORD, Registry, Security, USER};
use support::{Layer, settings, store};

/// A layer that does not compress, so that a download takes several chunks.
fn layer(name: &str, bytes: usize) -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64 ^ name.len() as u64;
    let noise: Vec<u8> = (0..bytes)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        })
        .collect();
    Layer::new().file(name, &noise).finish()
}

fn user() -> PullOptions {
    PullOptions {
        auth: Some(Auth::Basic { username: USER.to_owned(), password: PASSWORD.to_owned() }),
        ..PullOptions::default()
    }
}

#[derive(Default)]
struct Events(Mutex<Vec<LayerEvent>>);

impl Events {
    fn count(&self, wanted: impl Fn(&LayerEvent) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| wanted(event)).count()
    }
}

impl Progress for Events {
    fn layer(&self, _: &Digest, event: LayerEvent) {
        self.0.lock().unwrap().push(event);
    }
}

#[tokio::test]
async fn pulls_by_tag_and_by_digest() {
    let registry = Registry::start().await;
    let digest = registry.image("team/app", "v1", &[layer("a", 100_000), layer("bb", 10)]);
    let (_directory, store) = store();
    let reference = registry.reference("team/app:v1");
    let image = store.pull(&reference, PullOptions::default()).await.unwrap();
    assert_eq!(image.tags, std::slice::from_ref(&reference));
    let by_digest = registry.reference(&format!("team/app@{digest}"));
    assert_eq!(image.digests, std::slice::from_ref(&by_digest));
    assert_eq!(store.get(&by_digest).unwrap().id, image.id);

    // A tag beside a digest is no name.
    let both = registry.reference(&format!("team/app:other@{digest}"));
    let same = store.pull(&both, PullOptions::default()).await.unwrap();
    assert_eq!((same.id.as_str(), same.tags.len()), (image.id.as_str(), 1));
    assert_eq!(store.get(&both).unwrap().id, image.id);

    // Again: only the digest is asked for.
    let before = registry.requests("GET");
    store.pull(&reference, PullOptions::default()).await.unwrap();
    store.pull(&by_digest, PullOptions::default()).await.unwrap();
    assert_eq!(registry.requests("GET"), before);

    // The tag moves: shared layers are not fetched again.
    registry.image("team/app", "v1", &[layer("a", 100_000), layer("ccc", 10)]);
    let blobs = registry.requests("/blobs/");
    let moved = store.pull(&reference, PullOptions::default()).await.unwrap();
    assert_ne!(moved.id, image.id);
    assert_eq!(registry.requests("/blobs/"), blobs + 2, "a configuration and one layer");
    assert!(store.get(&image.id).unwrap().tags.is_empty());
}

#[tokio::test]
async fn a_broken_connection_resumes() {
    for no_ranges in [false, true] {
        let registry = Registry::start().await;
        registry.image("a", "1", &[layer("x", 200_000)]);
        let break_after = Some(if no_ranges { 150_000 } else { 60_000 });
        registry
            .with(|state| state.faults = Faults { break_after, no_ranges, ..Faults::default() });
        let events = Arc::new(Events::default());
        let options = PullOptions { progress: Some(events.clone()), ..PullOptions::default() };
        let (_directory, store) = store();
        let result = store.pull(&registry.reference("a:1"), options).await;
        if no_ranges {
            // Each connection ends at the same place: without ranges there is no way past it.
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Unreachable);
            continue;
        }
        result.unwrap();
        assert_eq!(events.count(|event| matches!(event, LayerEvent::Resumed { .. })), 3);
        assert_eq!(registry.requests("bytes="), 3);
    }
}

#[tokio::test]
async fn wrong_content_is_refused() {
    for (faults, want) in [
        (Faults { flip: true, ..Faults::default() }, "corrupt"),
        (Faults { lie_about_manifests: true, ..Faults::default() }, "its digest is"),
    ] {
        let registry = Registry::start().await;
        registry.image("a", "1", &[layer("x", 50_000)]);
        registry.with(|state| state.faults = faults);
        let (directory, store) = store();
        let error =
            store.pull(&registry.reference("a:1"), PullOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(want), "{error}");
        assert!(store.list().is_empty());
        assert_eq!(std::fs::read_dir(directory.path().join("layers")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_wrong_size_is_refused() {
    let registry = Registry::start().await;
    let content = layer("x", 50_000);
    let config = registry.blob(support::config(std::slice::from_ref(&content)));
    for (size, want) in [(10_u64, "longer"), (10_000_000, "ended after")] {
        let mut blob = registry.blob(support::gzip(&content));
        blob["size"] = size.into();
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [blob]});
        registry.manifest("a", "1", "application/vnd.oci.image.manifest.v1+json", &manifest);
        let (_directory, store) = store();
        let error =
            store.pull(&registry.reference("a:1"), PullOptions::default()).await.unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[tokio::test]
async fn errors_tell_what_to_do() {
    let registry = Registry::start().await;
    registry.image("a", "1", &[layer("x", 10)]);
    let (_directory, store) = store();
    let pull =
        async |reference: &str| store.pull(reference, PullOptions::default()).await.unwrap_err();
    let reference = registry.reference("nope:1");
    let error = pull(&reference).await;
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        format!("failed to resolve reference \"{reference}\": not found")
    );
    assert_eq!(pull("Upper").await.kind(), ErrorKind::Invalid);
    let refused = pull("127.0.0.1:1/a").await;
    assert_eq!(refused.kind(), ErrorKind::Unreachable);
    assert!(refused.to_string().contains("onnection refused"), "{refused}");
    let schema_1 = serde_json::json!({"schemaVersion": 1, "fsLayers": []});
    registry.manifest(
        "old",
        "1",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        &schema_1,
    );
    let error = pull(&registry.reference("old:1")).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("schema 1"), "{error}");
    registry.with(|state| state.faults.refuse = Some((100, StatusCode::FORBIDDEN)));
    assert_eq!(pull(&registry.reference("a:1")).await.kind(), ErrorKind::Unauthorized);
    registry.with(|state| state.faults.refuse = Some((200, StatusCode::TOO_MANY_REQUESTS)));
    let error = pull(&registry.reference("a:1")).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("429"), "{error}");
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    let registry = Registry::start().await;
    registry.image("a", "1", &[layer("x", 10)]);
    registry.with(|state| state.faults.refuse = Some((3, StatusCode::SERVICE_UNAVAILABLE)));
    let (_directory, store) = store();
    store.pull(&registry.reference("a:1"), PullOptions::default()).await.unwrap();
}

#[tokio::test]
async fn credentials_are_used_as_asked() {
    for (security, anonymous, named) in [
        (Security::Basic, false, true),
        (Security::Token, true, true),
        (Security::UserToken, false, true),
    ] {
        let registry = Registry::start().await;
        registry.image("a", "1", &[layer("x", 10)]);
        registry.with(|state| state.security = security);
        for (options, works) in [(PullOptions::default(), anonymous), (user(), named)] {
            let (_directory, store) = store();
            match store.pull(&registry.reference("a:1"), options).await {
                Ok(_) => assert!(works),
                Err(error) => {
                    assert!(!works, "{error}");
                    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
                }
            }
        }
        let wrong = PullOptions {
            auth: Some(Auth::Basic { username: USER.to_owned(), password: "wrong".to_owned() }),
            ..PullOptions::default()
        };
        let (_directory, store) = store();
        let result = store.pull(&registry.reference("a:1"), wrong).await;
        if security != Security::Token {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Unauthorized);
        }
    }
}

#[tokio::test]
async fn one_token_serves_a_whole_image() {
    let registry = Registry::start().await;
    registry.image("a", "1", &[layer("x", 10), layer("yy", 10), layer("zzz", 10)]);
    registry.with(|state| state.security = Security::Token);
    let (_directory, store) = store();
    store.pull(&registry.reference("a:1"), PullOptions::default()).await.unwrap();
    assert_eq!(registry.requests("/token"), 1);
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let other = Registry::start().await;
    let registry = Registry::start().await;
    registry.image("a", "1", &[layer("x", 10)]);
    other.image("a", "1", &[layer("x", 10)]);
    registry.with(|state| {
        state.security = Security::Basic;
        state.faults.redirect_blobs = Some(format!("http://localhost:{}", other.address.port()));
    });
    let (_directory, store) = store();
    store.pull(&registry.reference("a:1"), user()).await.unwrap();
    assert_eq!(other.requests("/blobs/"), 2);
    assert_eq!(other.requests("authorized"), 0);
    assert!(registry.requests("authorized") > 0);
}

#[tokio::test]
async fn two_pulls_share_the_work() {
    let registry = Registry::start().await;
    registry.image("a", "1", &[layer("x", 100_000)]);
    registry.with(|state| state.faults.slow = Some(Duration::from_millis(5)));
    let (_directory, store) = store();
    let reference = registry.reference("a:1");
    let pulls = (0..5).map(|_| store.pull(&reference, PullOptions::default()));
    let results = futures::future::join_all(pulls).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(registry.requests("/blobs/"), 2, "one configuration, one layer");
    assert_eq!(registry.requests("/manifests/"), 1);
}

#[tokio::test]
async fn two_images_share_a_layer_on_its_way() {
    let registry = Registry::start().await;
    let shared = layer("x", 100_000);
    registry.image("a", "1", &[shared.clone(), layer("yy", 10)]);
    registry.image("b", "1", &[shared, layer("zzz", 10)]);
    registry.with(|state| state.faults.slow = Some(Duration::from_millis(5)));
    let (_directory, store) = store();
    let (a, b) = (registry.reference("a:1"), registry.reference("b:1"));
    let (a, b) = tokio::join!(
        store.pull(&a, PullOptions::default()),
        store.pull(&b, PullOptions::default())
    );
    assert_ne!(a.unwrap().id, b.unwrap().id);
    assert_eq!(registry.requests("/blobs/"), 5, "two configurations, three layers");
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing() {
    let registry = Registry::start().await;
    registry.image("a", "1", &[layer("x", 2_000_000)]);
    registry.with(|state| state.faults.slow = Some(Duration::from_millis(20)));
    let (directory, store) = store();
    let reference = registry.reference("a:1");
    let events = Arc::new(Events::default());
    let options = PullOptions { progress: Some(events.clone()), ..PullOptions::default() };
    let pull = store.pull(&reference, options);
    let started = async {
        while events.count(|event| matches!(event, LayerEvent::Received { .. })) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = pull => panic!("it should not have ended"),
        () = started => {}
    }
    let tmp = directory.path().join("tmp");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while std::fs::read_dir(&tmp).unwrap().count() > 0 {
        assert!(std::time::Instant::now() < deadline, "the unpacking thread did not clean up");
        tokio::task::yield_now().await;
    }
    registry.with(|state| state.faults.slow = None);
    store.pull(&reference, PullOptions::default()).await.unwrap();
}

#[tokio::test]
async fn mirrors_come_first_and_may_fail() {
    let dead = Registry::start().await;
    let mirror = Registry::start().await;
    mirror.image("hub/app", "1", &[layer("x", 10)]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("registries.yaml");
    let yaml = format!(
        "mirrors:\n  registry.invalid:\n    endpoint: [\"http://{}\", \"http://{}\"]\n    rewrite: {{\"^team/(.*)\": \"hub/$1\"}}\n",
        dead.address, mirror.address
    );
    std::fs::write(&path, yaml).unwrap();
    let mut config = settings(&directory.path().join("store"));
    config.registries = Some(path);
    let store = Store::open(config).unwrap();
    let image = store.pull("registry.invalid/team/app:1", user()).await.unwrap();
    assert_eq!(image.tags, ["registry.invalid/team/app:1"]);
    assert_eq!(dead.requests("/v2/hub/app/manifests/1?ns=registry.invalid"), 1);
    assert_eq!(mirror.requests("authorized"), 0);
}

#[tokio::test]
async fn an_index_leads_to_this_platform() {
    let registry = Registry::start().await;
    let arm = registry.image("a", "arm", &[layer("arm", 10)]);
    let amd = registry.image("a", "amd", &[layer("amd64", 10)]);
    let size =
        |digest: &Digest| registry.with(|state| state.manifests[&format!("a/{digest}")].1.len());
    let entry = |digest: &Digest, architecture: &str| serde_json::json!({"digest": digest, "size": size(digest), "platform": {"os": "linux", "architecture": architecture}});
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": list, "manifests": [entry(&arm, "arm64"), entry(&amd, "amd64")]});
    let digest = registry.manifest("a", "1", list, &index);
    let (_directory, store) = store();
    let image = store.pull(&registry.reference("a:1"), PullOptions::default()).await.unwrap();
    assert_eq!(image.digests, [registry.reference(&format!("a@{digest}"))]);
    assert!(support::lower(&store, &image)[0].join("amd64").is_file());
    let only_arm = serde_json::json!({"schemaVersion": 2, "mediaType": list, "manifests": [entry(&arm, "arm64")]});
    registry.manifest("a", "2", list, &only_arm);
    let error = store.pull(&registry.reference("a:2"), PullOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("no match for platform"), "{error}");
}

#[tokio::test]
async fn tls_is_configured_per_registry() {
    let (registry, pem) = Registry::start_tls().await;
    registry.image("a", "1", &[layer("x", 10)]);
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let path = directory.path().join("registries.yaml");
    let mut config = settings(&directory.path().join("store"));
    config.registries = Some(path.clone());
    let store = Store::open(config).unwrap();
    let reference = registry.reference("a:1");
    let error = store.pull(&reference, PullOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("certificate"), "{error}");
    for tls in [format!("ca_file: {}", ca.display()), "insecure_skip_verify: true".to_owned()] {
        // The file is read anew for each pull.
        std::fs::write(&path, format!("configs: {{\"{}\": {{tls: {{{tls}}}}}}}", registry.address))
            .unwrap();
        store.pull(&reference, PullOptions::default()).await.unwrap();
        store.remove(&reference).unwrap();
    }
}
