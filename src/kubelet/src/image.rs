//! Gets a container's image to the node, as its pull policy says.
//!
//! Source of behaviour: `pkg/kubelet/images/image_manager.go`.

pub mod access;
pub mod provider;
mod rate;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::background::Background;
use crate::backoff::{Backoffs, go_duration};
use crate::configuration::Limits;
use crate::container::ImageUser;
use crate::context::Context;
use crate::credentials;
use crate::pod::{self, Kind};
use crate::status::Waiting;
use access::{Access, Origin, Owner, Verdict};
use provider::Providers;
use rate::Rate;

/// How the node gets images.
pub struct Getting {
    providers: Providers,
    access: Access,
    /// Pulls at the same time, where that is limited.
    turns: Option<Semaphore>,
    most: Option<u32>,
    /// How many may begin in a second, where that is limited.
    rate: Option<Rate>,
}

impl Getting {
    /// Of the kubelet whose files are in `root`; `most` pulls at the same time, and so many in a second, or at once after
    /// a pause, as its limits say.
    pub fn new(root: &Path, providers: Providers, most: Option<u32>, limits: &Limits) -> Self {
        Self {
            rate: limits.pulls.map(|(a_second, at_once)| Rate::new(a_second, at_once)),
            providers,
            access: Access::open(root.join("image_manager"), limits.verification.clone()),
            turns: most.map(|most| Semaphore::new(most as usize)),
            most,
        }
    }

    /// How many are pulled at the same time, where that is limited.
    pub fn most(&self) -> Option<u32> {
        self.most
    }

    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.turns.as_ref()?.acquire().await.ok()
    }

    /// Forgets who may use images other than these.
    pub fn retain(&self, present: &HashSet<&str>) {
        self.access.retain(present);
    }
}

/// Whether the pod may use `image`, which is there: it shows a credential that pulled it before, where one is needed.
async fn admits(context: &Context, of: &Pod, image: &str, image_ref: &str) -> bool {
    let access = &context.images.access;
    match access.verdict(image, image_ref) {
        Verdict::Open => true,
        Verdict::Unknown => false,
        Verdict::Private => {
            let origins: Vec<Origin> =
                offers(context, of, image).await.into_iter().map(|(_, origin)| origin).collect();
            access.knows(image, image_ref, &origins)
        }
    }
}

/// Whether a container's image is there.
pub enum Ensured {
    /// It is, under this reference.
    Ready(String, ImageUser),
    /// It is being pulled; the worker is woken at the end.
    Pulling,
    /// It is not; the next attempt is due at the time, if there will be one.
    Failed(Waiting, Option<Timestamp>),
}

/// How long a failed pull is told as such; then, until the next attempt, as held back.
const TOLD_AS_FAILED: jiff::SignedDuration = jiff::SignedDuration::from_secs(3);

/// How often it is told how far a pull is.
const TELL_PROGRESS: Duration = Duration::from_secs(10);

type Pulled = Result<(), String>;

/// The pulls of one pod.
#[derive(Default)]
pub struct Pulls {
    running: HashMap<String, Background<Pulled>>,
    done: HashMap<String, Pulled>,
    backoff: Backoffs,
    failures: HashMap<String, (Timestamp, String)>,
}

impl Pulls {
    /// Looks after the image of `container`; `wake` is notified when a pull has ended.
    pub async fn ensure(
        &mut self,
        context: &Arc<Context>,
        of: &Arc<Pod>,
        kind: Kind,
        container: &Container,
        wake: &Arc<Notify>,
    ) -> Ensured {
        let started = SystemTime::now();
        let about = Some((kind, container.name.as_str()));
        let wanted = container.image.clone().unwrap_or_default();
        let image = match normalise(&wanted) {
            Ok(image) => image,
            Err(message) => {
                context.warning(of, about, "InspectFailed", message.clone());
                context.warning(of, about, "Failed", "Error: InvalidImageName");
                return failed("InvalidImageName", message, None);
            }
        };
        if let Some(task) = self.running.get_mut(&container.name) {
            let Some(outcome) = task.result() else { return Ensured::Pulling };
            self.running.remove(&container.name);
            self.done.insert(
                container.name.clone(),
                outcome.unwrap_or_else(|lost| Err(lost.to_string())),
            );
        }
        let present = match find(context, &image).await {
            Ok(present) => present,
            Err(error) => {
                let message = format!("Failed to inspect image {image:?}: {}", error.rpc_text());
                context.warning(of, about, "InspectFailed", message.clone());
                context.warning(of, about, "Failed", "Error: ImageInspectError");
                return failed("ImageInspectError", message, None);
            }
        };
        let key = format!("{}_{image}", pod::uid(of));
        let now = context.clock.now();
        match self.done.remove(&container.name) {
            Some(Ok(())) => {
                self.backoff.reset(&key);
                self.failures.remove(&key);
                return match present {
                    Some((image_ref, user)) => Ensured::Ready(image_ref, user),
                    None => failed(
                        "ErrImagePull",
                        format!("image {image:?} is gone after the pull"),
                        None,
                    ),
                };
            }
            Some(Err(message)) => {
                self.backoff.next(&key, now, now);
                let (reason, message) = told(&wanted, message);
                self.failures.insert(key, (now, format!("{reason}: {message}")));
                context.warning(of, about, "Failed", format!("Error: {reason}"));
                return failed(reason, message, Some(now + TOLD_AS_FAILED));
            }
            None => {}
        }
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        let usable = match present {
            Some(found) if policy != "Always" && admits(context, of, &image, &found.0).await => {
                Some(found)
            }
            _ => None,
        };
        match (policy, usable) {
            ("Never", None) => {
                let message =
                    format!("Container image {image:?} is not present with pull policy of Never");
                context.warning(of, about, "ErrImageNeverPull", message.clone());
                context.warning(of, about, "Failed", "Error: ErrImageNeverPull");
                return failed("ErrImageNeverPull", message, None);
            }
            (_, Some((image_ref, user))) => {
                context.normal(
                    of,
                    about,
                    "Pulled",
                    format!("Container image {wanted:?} already present on machine and can be accessed by the pod"),
                );
                let detail = format!("{wanted}, already present");
                apimachinery::trace::step("image", pod::uid(of), started, &detail);
                return Ensured::Ready(image_ref, user);
            }
            _ => {}
        }
        if let Some((since, cause)) = self.failures.get(&key)
            && let Some((_, until)) = self.backoff.held_until(&key, *since, now)
        {
            context.normal(of, about, "BackOff", format!("Back-off pulling image {wanted:?}"));
            context.warning(of, about, "Failed", "Error: ImagePullBackOff");
            let message = format!("Back-off pulling image {wanted:?}: {cause}");
            return failed("ImagePullBackOff", message, Some(until));
        }
        context.normal(of, about, "Pulling", format!("Pulling image {wanted:?}"));
        let task = pull(context.clone(), of.clone(), kind, container.name.clone(), wanted, image);
        self.running.insert(container.name.clone(), Background::spawn(task, wake.clone()));
        Ensured::Pulling
    }

    /// Gives up what is being pulled; the runtime may still finish it.
    pub fn cancel(&mut self) {
        self.running.clear();
    }
}

fn failed(reason: &str, message: String, at: Option<Timestamp>) -> Ensured {
    Ensured::Failed(Waiting { reason: reason.into(), message }, at)
}

async fn pull(
    context: Arc<Context>,
    of: Arc<Pod>,
    kind: Kind,
    container: String,
    wanted: String,
    image: String,
) -> Pulled {
    let waiting = Instant::now();
    let turn = context.images.turn().await;
    let began = Instant::now();
    let started = SystemTime::now();
    let about = Some((kind, container.as_str()));
    context.images.access.begin(&image);
    let outcome = {
        let mut work = std::pin::pin!(attempt(&context, &of, &image));
        loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                () = tokio::time::sleep(TELL_PROGRESS) => {
                    if let Some(progress) = progress(&context, &image).await {
                        let message = format!("Pulling image {wanted:?}: {progress}");
                        context.normal(&of, about, "Pulling", message);
                    }
                }
            }
        }
    };
    context.images.access.end(
        &image,
        outcome.as_ref().ok().map(|pulled| (pulled.image_ref.as_str(), pulled.origin.clone())),
    );
    drop(turn);
    let since =
        |then: Instant| go_duration(Duration::from_millis(then.elapsed().as_millis() as u64));
    let (took, whole) = (since(began), since(waiting));
    match outcome {
        Ok(CameAs { size, .. }) => {
            context.normal(
                &of,
                about,
                "Pulled",
                format!("Successfully pulled image {wanted:?} in {took} ({whole} including waiting). Image size: {size} bytes."),
            );
            apimachinery::trace::step("image", pod::uid(&of), started, &wanted);
            Ok(())
        }
        Err(message) => {
            context.warning(
                &of,
                about,
                "Failed",
                format!("Failed to pull image {wanted:?}: {message}"),
            );
            Err(message)
        }
    }
}

/// How far the pull is, where the runtime tells it.
async fn progress(context: &Context, image: &str) -> Option<String> {
    let request = cri::ImageStatusRequest { image: Some(spec(image)), verbose: true };
    let info = context.cri.image_status(request).await.ok()?.info;
    let state: serde_json::Value = serde_json::from_str(info.get("pull")?).ok()?;
    let (received, total) = (state["receivedBytes"].as_u64()?, state["totalBytes"].as_u64()?);
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    (total > 0).then(|| format!("{} of {} MB", megabytes(received), megabytes(total)))
}

/// What a pull brought.
struct CameAs {
    image_ref: String,
    size: u64,
    origin: Origin,
}

async fn attempt(context: &Context, of: &Pod, image: &str) -> Result<CameAs, String> {
    let mut attempts: Vec<(Option<cri::AuthConfig>, Origin)> = offers(context, of, image)
        .await
        .into_iter()
        .map(|(auth, origin)| (Some(auth), origin))
        .collect();
    if attempts.is_empty() {
        attempts.push((None, Origin::Node));
    }
    let mut last = String::new();
    for (auth, origin) in attempts {
        let request = cri::PullImageRequest {
            image: Some(cri::ImageSpec {
                image: image.to_owned(),
                user_specified_image: image.to_owned(),
                ..Default::default()
            }),
            auth,
            sandbox_config: None,
        };
        if context.images.rate.as_ref().is_some_and(|rate| !rate.admits()) {
            return Err("pull QPS exceeded".into());
        }
        match context.cri.pull_image(request).await {
            Ok(answer) => {
                let request = cri::ImageStatusRequest { image: Some(spec(image)), verbose: false };
                let status = context.cri.image_status(request).await;
                let found = status.ok().and_then(|s| s.image).unwrap_or_default();
                let image_ref = if found.id.is_empty() { answer.image_ref } else { found.id };
                return Ok(CameAs { image_ref, size: found.size, origin });
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Credentials the pod has for `image`, in the order in which they are tried: those of its secrets, then those that
/// plugins know.
async fn offers(context: &Context, of: &Pod, image: &str) -> Vec<(cri::AuthConfig, Origin)> {
    let secrets = pull_secrets(context, of).await;
    let borrowed: Vec<&Secret> = secrets.iter().map(AsRef::as_ref).collect();
    let mut offers = Vec::new();
    for (auth, secret) in credentials::for_image(image, &borrowed) {
        let metadata = &secret.metadata;
        let owner = Owner {
            uid: metadata.uid.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            hash: access::hash(&auth),
        };
        offers.push((auth, Origin::Secret(owner)));
    }
    offers.extend(context.images.providers.credentials(context, of, image).await);
    offers
}

async fn pull_secrets(context: &Context, of: &Pod) -> Vec<Arc<Secret>> {
    let names = of.spec.as_ref().and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
    let mut out = Vec::new();
    let mut missing = Vec::new();
    for name in names.iter().map(|r| r.name.as_str()) {
        match context.objects.secrets.get(pod::namespace(of), name, pod::uid(of)).await {
            Ok(Some(secret)) => out.push(secret),
            _ => missing.push(name),
        }
    }
    if !missing.is_empty() {
        context.warning(
            of,
            None,
            "FailedToRetrieveImagePullSecret",
            format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            ),
        );
    }
    out
}

/// Reason and message of a failed pull: runtimes name some reasons themselves, before a colon (`pkg/kubelet/images`,
/// `evalCRIPullErr`).
fn told(wanted: &str, message: String) -> (&'static str, String) {
    let rest = |name: &str| {
        let rest = message.split_once(name)?.1.trim_start_matches(':').trim();
        Some(if rest.is_empty() { String::new() } else { format!(": {rest}") })
    };
    if let Some(rest) = rest("RegistryUnavailable") {
        let message =
            format!("image pull failed for {wanted} because the registry is unavailable{rest}");
        return ("RegistryUnavailable", message);
    }
    if let Some(rest) = rest("SignatureValidationFailed") {
        let message =
            format!("image pull failed for {wanted} because the signature validation failed{rest}");
        return ("SignatureValidationFailed", message);
    }
    ("ErrImagePull", message)
}

fn spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..Default::default() }
}

/// The image by the runtime's reference, and the user it runs as; `None` when it is absent.
async fn find(
    context: &Context,
    image: &str,
) -> Result<Option<(String, ImageUser)>, crate::cri::Error> {
    let request = cri::ImageStatusRequest { image: Some(spec(image)), verbose: false };
    let found = match context.cri.image_status(request).await {
        Err(error) if error.is_not_found() => None,
        other => other?.image,
    };
    Ok(found.map(|image| {
        let user = ImageUser { uid: image.uid.map(|u| u.value), username: image.username };
        (image.id, user)
    }))
}

/// The reference with the default tag; an error when it is none.
fn normalise(image: &str) -> Result<String, String> {
    if !is_reference(image) {
        return Err(format!(
            "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: invalid reference format"
        ));
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains('@') || last.contains(':') {
        return Ok(image.to_owned());
    }
    Ok(format!("{image}:latest"))
}

/// Whether the text is an image reference (`distribution/reference`).
fn is_reference(image: &str) -> bool {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(r, d)| (r, Some(d)));
    if let Some(digest) = digest {
        let ok = digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit())
        });
        if !ok {
            return false;
        }
    }
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if let Some(tag) = tag {
        let ok = tag.starts_with(word)
            && tag.len() <= 128
            && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'));
        if !ok {
            return false;
        }
    }
    let mut components: Vec<&str> = path.split('/').collect();
    if components.len() > 1 {
        let first = components[0];
        if first.contains(['.', ':'])
            || first == "localhost"
            || first.chars().any(|c| c.is_ascii_uppercase())
        {
            let (name, port) = first.split_once(':').unwrap_or((first, "0"));
            let host = !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
                && port.chars().all(|c| c.is_ascii_digit());
            if !host {
                return false;
            }
            components.remove(0);
        }
    }
    components.iter().all(|c| {
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        c.starts_with(edge)
            && c.ends_with(edge)
            && c.chars().all(|c| edge(c) || matches!(c, '.' | '_' | '-'))
            && !c.contains("..")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (image, expected) in [
            ("busybox", Some("busybox:latest")),
            ("busybox:1.36", Some("busybox:1.36")),
            ("127.0.0.1:5000/a/b", Some("127.0.0.1:5000/a/b:latest")),
            ("localhost/x", Some("localhost/x:latest")),
            ("a__b/c-d.e", Some("a__b/c-d.e:latest")),
            ("Busybox", None),
            ("busy box", None),
            ("x:", None),
            ("", None),
            ("x@sha256:0", None),
        ] {
            assert_eq!(normalise(image).ok().as_deref(), expected, "{image}");
        }
        let digest = format!("x@sha256:{}", "0".repeat(64));
        assert_eq!(normalise(&digest).unwrap(), digest);
    }
}
