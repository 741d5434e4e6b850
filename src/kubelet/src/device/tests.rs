//! A device plugin of the tests' own, over a real socket.

use std::sync::Arc;

use futures::StreamExt as _;
use plugin::device::{Device, Listed, Mount, Register};
use plugin::serve;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::context::Context;
use crate::fake::node::Node;
use crate::node::machine;

const PAINT: &str = "example.com/paint";

/// Has devices, and notes what it is asked.
#[derive(Clone)]
struct Paint {
    devices: watch::Sender<Vec<(&'static str, bool)>>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Paint {
    async fn answer(self, request: http::Request<serve::Body>) -> http::Response<serve::Body> {
        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let note = move |text: String| self.calls.lock().unwrap().push(text);
        match method.as_str() {
            "ListAndWatch" => {
                let devices = self.devices.clone();
                let work = move |_: Empty| {
                    let listed = tokio_stream(devices.subscribe());
                    listed.map(Ok).boxed()
                };
                serve::streaming(request, work).await
            }
            "GetPreferredAllocation" => {
                // The last is the best.
                let work = move |asked: Prefer| {
                    let asked = &asked.container_requests[0];
                    let size = usize::try_from(asked.size).unwrap();
                    let devices = asked.available.iter().rev().take(size).cloned().collect();
                    Ok(Preferred { container_responses: vec![Ids { devices }] })
                };
                serve::unary(request, work).await
            }
            "Allocate" => {
                let work = move |asked: Allocate| {
                    let ids = asked.container_requests[0].devices.join(",");
                    note(format!("Allocate {ids}"));
                    let edits = Edits {
                        envs: [("PAINT".to_owned(), ids)].into(),
                        mounts: vec![Mount {
                            container_path: "/paint".into(),
                            host_path: "/usr".into(),
                            read_only: true,
                        }],
                        ..Edits::default()
                    };
                    Ok(Allocated { container_responses: vec![edits] })
                };
                serve::unary(request, work).await
            }
            _ => {
                let work = move |asked: Ids| {
                    note(format!("PreStartContainer {}", asked.devices.join(",")));
                    Ok(Empty {})
                };
                serve::unary(request, work).await
            }
        }
    }
}

fn tokio_stream(
    devices: watch::Receiver<Vec<(&'static str, bool)>>,
) -> impl futures::Stream<Item = Listed> + Send {
    futures::stream::unfold((devices, true), |(mut devices, first)| async move {
        if !first {
            devices.changed().await.ok()?;
        }
        let known = devices.borrow_and_update().clone();
        let listed = known.into_iter().map(|(id, healthy)| Device {
            id: id.to_owned(),
            health: if healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
        });
        let listed = Listed { devices: listed.collect() };
        Some((listed, (devices, false)))
    })
}

async fn register(context: &Context) -> Result<(), plugin::call::Error> {
    let folder = &context.devices.folder;
    let kubelet = Plugin::connect(&folder.join("kubelet.sock")).await?;
    let options = Options { pre_start_required: true, get_preferred_allocation_available: true };
    let request = Register {
        version: "v1beta1".into(),
        endpoint: "paint.sock".into(),
        resource_name: PAINT.into(),
        options: Some(options),
    };
    let _: Empty = kubelet.call("/v1beta1.Registration/Register", request).await?;
    Ok(())
}

async fn amounts(context: &Context, want: (&str, &str)) {
    let wait = async {
        loop {
            let told = context.devices.amounts().remove(PAINT);
            if told.is_some_and(|(all, usable)| (all.0.as_str(), usable.0.as_str()) == want) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(30), wait).await;
    assert!(seen.is_ok(), "not {want:?}: {:?}", context.devices.amounts());
}

fn pod(uid: &str, spec: &serde_json::Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": uid, "namespace": "ns", "uid": uid}, "spec": spec}),
    )
    .unwrap()
}

fn asks(name: &str, count: u32) -> serde_json::Value {
    json!({"name": name, "resources": {"limits": {PAINT: count.to_string()}}})
}

#[tokio::test]
async fn containers_get_devices_and_keep_them() {
    let node = Node::new();
    let context = node.context(machine::read());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(run(context.clone(), stop.clone()));
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let (devices, _) = watch::channel(vec![("a", true), ("b", true), ("c", false)]);
    let paint = Paint { devices: devices.clone(), calls: calls.clone() };
    let handler: serve::Handler = Arc::new(move |request| Box::pin(paint.clone().answer(request)));
    let socket = registration::listen(context.devices.folder.join("paint.sock")).await.unwrap();
    let plugin = tokio::spawn(serve::serve(socket, handler));
    let wait = async {
        while register(&context).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the kubelet is there");
    amounts(&context, ("3", "2")).await;

    let first =
        pod("u1", &json!({"initContainers": [asks("init", 1)], "containers": [asks("main", 1)]}));
    context.devices.allocate(&first).await.unwrap();
    // What the init container had is the container's afterwards.
    assert_eq!(*calls.lock().unwrap(), ["Allocate b", "Allocate b"]);
    let edits = context.devices.prepare(&first, "main").await.unwrap();
    assert_eq!(edits[0].envs["PAINT"], "b");
    assert_eq!(calls.lock().unwrap()[2], "PreStartContainer b");
    let refused =
        context.devices.allocate(&pod("u2", &json!({"containers": [asks("main", 2)]}))).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason, "UnexpectedAdmissionError");
    assert_eq!(
        refused.message,
        "Allocate failed due to requested number of devices unavailable for example.com/paint. Requested: 2, Available: 1, which is unexpected"
    );

    // What becomes unhealthy is told.
    let health = || {
        let told = context.devices.health("u1", "main").unwrap();
        told[0].resources.as_ref().unwrap()[0].health.clone().unwrap()
    };
    assert_eq!(health(), "Healthy");
    devices.send_replace(vec![("a", true), ("b", false), ("c", false)]);
    amounts(&context, ("3", "1")).await;
    assert_eq!(health(), "Unhealthy");

    // Another kubelet knows who has what, and nothing of the plugin until that registers again.
    std::fs::create_dir_all(crate::volumes::directory(&context.root_dir, "u1")).unwrap();
    let after = Devices::new(&context.root_dir);
    let told = after.amounts().remove(PAINT).unwrap();
    assert_eq!((told.0.0.as_str(), told.1.0.as_str()), ("3", "0"));
    assert!(after.health("u1", "main").is_some());

    context.devices.release("u1");
    assert!(context.devices.health("u1", "main").is_none());
    plugin.abort();
    amounts(&context, ("3", "0")).await;
    stop.cancel();
    serving.await.unwrap();
}
