//! A pod's volumes: made before its containers, kept current, taken away after them.
//!
//! Source of behaviour: the volumes page of the Kubernetes documentation, `pkg/volume`.

pub mod atomic;
mod empty_dir;
mod host_path;
pub mod mounts;
pub mod project;
mod subpath;
pub mod trust;
pub mod usage;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, ProjectedVolumeSource,
    Volume,
};
use kube::Api;

use crate::context::Context;
use crate::csi;
use crate::fields::Facts;
use crate::pod;
use atomic::{Owner, Payload, Projected};

/// How old what was read of trust bundles may be.
const BUNDLES_AGE: SignedDuration = SignedDuration::from_secs(60);

/// How often it is looked whether a driver's volume has grown.
const CLAIMS_AGE: SignedDuration = SignedDuration::from_secs(60);

/// Why a volume is not there; the text is that of the `FailedMount` event.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
pub struct Error {
    /// The volume's name in the pod.
    pub volume: String,
    /// Why.
    pub cause: Cause,
}

impl Error {
    /// Whether somebody is about to bring the volume to the node.
    pub fn is_on_its_way(&self) -> bool {
        matches!(self.cause, Cause::Csi(csi::Error::NotAttached(_)))
    }
}

/// What can be wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// A config map that is not optional is absent.
    #[error("configmap {0:?} not found")]
    ConfigMapNotFound(String),
    /// A secret that is not optional is absent.
    #[error("secret {0:?} not found")]
    SecretNotFound(String),
    /// The API server did not answer as needed.
    #[error("failed to fetch {what}: {}", crate::api::text(source))]
    Fetch {
        /// The object.
        what: String,
        /// Why.
        source: kube::Error,
    },
    /// The object's content does not fit the volume.
    #[error(transparent)]
    Content(#[from] project::Error),
    /// The host path is not what it should be.
    #[error(transparent)]
    HostPath(#[from] host_path::Error),
    /// The files could not be written.
    #[error("{what}: {source}")]
    Io {
        /// The path.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The driver's volume is not there.
    #[error(transparent)]
    Csi(#[from] csi::Error),
    /// The claim has no volume yet.
    #[error("PersistentVolumeClaim is not bound: {0:?}")]
    Unbound(String),
    /// There is no trust bundle that is not optional.
    #[error("no trust anchors: {0} not found")]
    NoBundle(String),
    /// The pod has no certificate.
    #[error(transparent)]
    Certificate(#[from] crate::certificates::Error),
    /// A kind of volume this kubelet cannot give.
    #[error("volume type {0:?} is not supported by this node")]
    Unsupported(&'static str),
}

/// The volumes of a pod, ready.
#[derive(Clone, Debug, Default)]
pub struct Mounted {
    /// Where each is on the node.
    pub paths: BTreeMap<String, PathBuf>,
    /// When a token in one of them is to be renewed.
    pub renew_at: Option<Timestamp>,
    /// Volumes whose drivers want to be asked again.
    pub republish: std::collections::BTreeSet<String>,
    /// Claims whose volumes may grow, by the volume's name in the pod.
    claims: BTreeMap<String, String>,
    /// What was written, so that nothing is written twice.
    written: BTreeMap<String, Plan>,
}

#[derive(Clone, Debug, PartialEq)]
enum Plan {
    EmptyDir(EmptyDirVolumeSource),
    Files(Payload, Owner),
    /// Files that are nowhere but in memory.
    Secrets(Payload, Owner),
    HostPath(String),
    /// A local volume: a folder of the node that belongs to the pod's group.
    Local,
    Nothing,
}

/// Makes the volumes of `pod`, or brings them up to date.
pub async fn set_up(
    context: &Context,
    of: &Pod,
    facts: &Facts,
    before: Option<&Mounted>,
) -> Result<Mounted, Error> {
    let mut mounted = Mounted::default();
    let volumes = of.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let mut work = Vec::with_capacity(volumes.len());
    for volume in volumes {
        // A driver is asked once.
        let known = before.filter(|b| {
            b.written.get(&volume.name) == Some(&Plan::Nothing)
                && !b.republish.contains(&volume.name)
        });
        if let Some(path) = known.and_then(|b| b.paths.get(&volume.name)) {
            mounted.paths.insert(volume.name.clone(), path.clone());
            mounted.written.insert(volume.name.clone(), Plan::Nothing);
            if let Some(claim) = before.and_then(|b| b.claims.get(&volume.name)) {
                mounted.claims.insert(volume.name.clone(), claim.clone());
                grow_claimed(context, of, &volume.name, claim).await;
                renew(&mut mounted, context.clock.now() + CLAIMS_AGE);
            }
            continue;
        }
        let fail = |cause| Error { volume: volume.name.clone(), cause };
        let (path, plan) = plan(context, of, volume, facts, &mut mounted).await.map_err(fail)?;
        mounted.paths.insert(volume.name.clone(), path.clone());
        mounted.written.insert(volume.name.clone(), plan.clone());
        if before.and_then(|b| b.written.get(&volume.name)) != Some(&plan) {
            tell_of_hidden(context, of, volume);
            work.push((volume.name.clone(), path, plan));
        }
    }
    if work.is_empty() {
        return Ok(mounted);
    }
    let pod = of.clone();
    let stamp = context.clock.now().strftime("%Y_%m_%d_%H_%M_%S.").to_string();
    let done = tokio::task::spawn_blocking(move || {
        for (volume, path, plan) in work {
            let stamp = format!("{stamp}{}", uuid::Uuid::new_v4().simple());
            apply(&pod, &path, plan, &stamp).map_err(|cause| Error { volume, cause })?;
        }
        Ok(())
    });
    match done.await {
        Ok(result) => result.map(|()| mounted),
        Err(error) => Err(Error {
            volume: String::new(),
            cause: Cause::Io {
                what: "volume set-up was cancelled".into(),
                source: io::Error::other(error),
            },
        }),
    }
}

/// Says so when the pod does not get what the host may have.
fn tell_of_hidden(context: &Context, of: &Pod, volume: &Volume) {
    let Some(source) = &volume.host_path else { return };
    if host_path::is_hidden(Path::new(&source.path)) {
        let message = format!(
            "hostPath {:?} of volume {:?}: the user who runs this node may not see what the host has there; \
             an empty one of the node is in its place",
            source.path, volume.name
        );
        context.warning(of, None, "HostPathHidden", message);
    }
}

fn apply(pod: &Pod, path: &Path, plan: Plan, stamp: &str) -> Result<(), Cause> {
    let fail = |source| Cause::Io { what: path.display().to_string(), source };
    match plan {
        Plan::EmptyDir(source) => {
            empty_dir::set_up(path, &source, pod).map_err(fail)?;
            match fs_group(pod) {
                Some(gid) => own(path, gid).map_err(fail),
                None => Ok(()),
            }
        }
        Plan::Files(payload, owner) => {
            atomic::write(path, &payload, owner, stamp).map(drop).map_err(fail)
        }
        Plan::Secrets(payload, owner) => {
            // Where an older version wrote to the disk, containers look at what is there.
            if !path.join(atomic::DATA).is_symlink() {
                std::fs::create_dir_all(path).map_err(fail)?;
                empty_dir::mount_memory(path, None).map_err(fail)?;
            }
            atomic::write(path, &payload, owner, stamp).map(drop).map_err(fail)
        }
        Plan::HostPath(kind) => Ok(host_path::check(path, &kind)?),
        Plan::Local => {
            host_path::check(path, "Directory")?;
            match fs_group(pod) {
                Some(gid) => own_all(path, gid, changes_always(pod)).map_err(fail),
                None => Ok(()),
            }
        }
        Plan::Nothing => Ok(()),
    }
}

/// The pod's fsGroup.
pub fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    context.and_then(|c| c.fs_group).and_then(|g| u32::try_from(g).ok())
}

/// Gives the directory to the group: new files in it belong to the group too.
fn own(path: &Path, gid: u32) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    let metadata = std::fs::metadata(path)?;
    if metadata.gid() == gid && metadata.mode() & 0o2770 == 0o2770 {
        return Ok(());
    }
    chown(path, None, Some(gid))?;
    std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(metadata.mode() & 0o7777 | 0o2770),
    )
}

/// Whether all of a volume is given to the group each time (`fsGroupChangePolicy`).
pub fn changes_always(pod: &Pod) -> bool {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    context.and_then(|c| c.fs_group_change_policy.as_deref()) != Some("OnRootMismatch")
}

/// Gives everything at and below `path` to the group; unless `always`, only when the top is not its already.
///
/// Source of behaviour: `pkg/volume/volume_linux.go`.
pub fn own_all(path: &Path, gid: u32, always: bool) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
    let top = std::fs::metadata(path)?;
    if !always && top.gid() == gid && top.mode() & 0o2770 == 0o2770 {
        return Ok(());
    }
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = std::fs::symlink_metadata(&path)?;
        lchown(&path, None, Some(gid))?;
        if metadata.is_symlink() {
            continue;
        }
        let mut mode = metadata.mode() & 0o7777 | 0o660;
        if metadata.is_dir() {
            mode |= 0o2110;
            pending.extend(std::fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Where a path of the node lies.
fn on_host(context: &Context, path: &str, kind: &str) -> Result<PathBuf, host_path::Error> {
    let path = csi::Places::of(context).inside(Path::new(path));
    host_path::place(path, kind, &context.root_dir.join("host"))
}

async fn plan(
    context: &Context,
    of: &Pod,
    volume: &Volume,
    facts: &Facts,
    mounted: &mut Mounted,
) -> Result<(PathBuf, Plan), Cause> {
    let base = directory(&context.root_dir, pod::uid(of)).join("volumes");
    let owner = Owner { uid: None, gid: fs_group(of) };
    let below = |plugin: &str| base.join(format!("kubernetes.io~{plugin}")).join(&volume.name);
    if let Some(source) = &volume.empty_dir {
        return Ok((below("empty-dir"), Plan::EmptyDir(source.clone())));
    }
    if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        let object = config_map(context, of, &source.name, optional).await?;
        let mode = source.default_mode.unwrap_or(0o644);
        let files =
            project::config_map(object.as_deref(), source.items.as_deref(), mode, optional)?;
        return Ok((below("configmap"), Plan::Files(files, owner)));
    }
    if let Some(source) = &volume.secret {
        let optional = source.optional == Some(true);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let object = secret(context, of, name, optional).await?;
        let mode = source.default_mode.unwrap_or(0o644);
        let files = project::secret(object.as_deref(), source.items.as_deref(), mode, optional)?;
        return Ok((below("secret"), Plan::Secrets(files, owner)));
    }
    if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(0o644);
        let files =
            project::downward(of, source.items.as_deref().unwrap_or_default(), mode, facts)?;
        return Ok((below("downward-api"), Plan::Secrets(files, owner)));
    }
    if let Some(source) = &volume.projected {
        let files = projected(context, of, &volume.name, source, facts, mounted).await?;
        let owner = Owner { uid: common_user(of), ..owner };
        return Ok((below("projected"), Plan::Secrets(files, owner)));
    }
    if let Some(source) = &volume.host_path {
        let kind = source.type_.clone().unwrap_or_default();
        return Ok((on_host(context, &source.path, &kind)?, Plan::HostPath(kind)));
    }
    if let Some(source) = &volume.csi {
        let inline = csi::Volume::inline(of, &volume.name, source);
        return published(context, of, &volume.name, &inline, mounted).await;
    }
    if let Some(source) = &volume.persistent_volume_claim {
        return claimed(context, of, &volume.name, &source.claim_name, mounted).await;
    }
    if volume.ephemeral.is_some() {
        let claim = format!("{}-{}", pod::name(of), volume.name);
        return claimed(context, of, &volume.name, &claim, mounted).await;
    }
    if volume.image.is_some() {
        // The runtime mounts it from the image itself.
        return Ok((PathBuf::new(), Plan::Nothing));
    }
    let kind = if volume.nfs.is_some() {
        "nfs"
    } else if volume.iscsi.is_some() {
        "iscsi"
    } else {
        "unknown"
    };
    Err(Cause::Unsupported(kind))
}

async fn config_map(
    context: &Context,
    of: &Pod,
    name: &str,
    optional: bool,
) -> Result<Option<std::sync::Arc<k8s_openapi::api::core::v1::ConfigMap>>, Cause> {
    let found = context.objects.config_maps.get(pod::namespace(of), name, pod::uid(of)).await;
    match found {
        Ok(None) if !optional => Err(Cause::ConfigMapNotFound(name.into())),
        Ok(found) => Ok(found),
        Err(source) => Err(Cause::Fetch { what: format!("configmap {name:?}"), source }),
    }
}

async fn secret(
    context: &Context,
    of: &Pod,
    name: &str,
    optional: bool,
) -> Result<Option<std::sync::Arc<k8s_openapi::api::core::v1::Secret>>, Cause> {
    match context.objects.secrets.get(pod::namespace(of), name, pod::uid(of)).await {
        Ok(None) if !optional => Err(Cause::SecretNotFound(name.into())),
        Ok(found) => Ok(found),
        Err(source) => Err(Cause::Fetch { what: format!("secret {name:?}"), source }),
    }
}

/// Looks at the volumes again at `at`, if nothing does so before.
fn renew(mounted: &mut Mounted, at: Timestamp) {
    mounted.renew_at = Some(mounted.renew_at.map_or(at, |before| before.min(at)));
}

async fn projected(
    context: &Context,
    of: &Pod,
    volume: &str,
    source: &ProjectedVolumeSource,
    facts: &Facts,
    mounted: &mut Mounted,
) -> Result<Payload, Cause> {
    let mode = source.default_mode.unwrap_or(0o644);
    // Where the user or the group of the pod is known, what is secret is for them alone.
    let private = fs_group(of).is_some() || common_user(of).is_some();
    let mut files = Payload::new();
    for (index, part) in source.sources.iter().flatten().enumerate() {
        if let Some(part) = &part.config_map {
            let optional = part.optional == Some(true);
            let object = config_map(context, of, &part.name, optional).await?;
            files.extend(project::config_map(
                object.as_deref(),
                part.items.as_deref(),
                mode,
                optional,
            )?);
        }
        if let Some(part) = &part.secret {
            let optional = part.optional == Some(true);
            let object = secret(context, of, &part.name, optional).await?;
            files.extend(project::secret(
                object.as_deref(),
                part.items.as_deref(),
                mode,
                optional,
            )?);
        }
        if let Some(part) = &part.downward_api {
            files.extend(project::downward(
                of,
                part.items.as_deref().unwrap_or_default(),
                mode,
                facts,
            )?);
        }
        if let Some(part) = &part.service_account_token {
            let seconds = part.expiration_seconds.unwrap_or(3600);
            let now = context.clock.now();
            let token = context
                .tokens
                .get(of, part.audience.as_deref(), seconds, now)
                .await
                .map_err(|source| Cause::Fetch { what: "token".into(), source })?;
            let mode = if private { 0o600 } else { mode as u32 };
            files.insert(part.path.clone(), Projected { data: token.token.into_bytes(), mode });
            renew(mounted, token.renew_at);
        }
        if let Some(part) = &part.cluster_trust_bundle {
            let anchors = trust::anchors(context, part).await?;
            let mode = if private { 0o600 } else { mode as u32 };
            files.insert(part.path.clone(), Projected { data: anchors.into_bytes(), mode });
            // Bundles are not watched.
            renew(mounted, context.clock.now() + BUNDLES_AGE);
        }
        if let Some(part) = &part.pod_certificate {
            let now = context.clock.now();
            let bundle = context
                .certificates
                .get(of, (volume, index), part, &context.node_name, now)
                .await?;
            renew(mounted, bundle.renew_at);
            let mode = if private { 0o600 } else { mode as u32 };
            let both = format!("{}{}", bundle.key, bundle.chain);
            for (path, text) in [
                (&part.credential_bundle_path, both),
                (&part.key_path, bundle.key),
                (&part.certificate_chain_path, bundle.chain),
            ] {
                if let Some(path) = path.as_ref().filter(|path| !path.is_empty()) {
                    files.insert(path.clone(), Projected { data: text.into_bytes(), mode });
                }
            }
        }
    }
    Ok(files)
}

/// The user all containers run as, if the pod says so: then a token need be readable to it alone.
fn common_user(of: &Pod) -> Option<u32> {
    let of_pod =
        of.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.run_as_user);
    let mut users = pod::all_containers(of)
        .into_iter()
        .map(|(_, c)| c.security_context.and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

async fn published(
    context: &Context,
    of: &Pod,
    name: &str,
    volume: &csi::Volume,
    mounted: &mut Mounted,
) -> Result<(PathBuf, Plan), Cause> {
    let published = csi::publish(context, of, volume).await?;
    if published.again {
        mounted.republish.insert(name.to_owned());
    }
    Ok((published.path, Plan::Nothing))
}

async fn claimed(
    context: &Context,
    of: &Pod,
    volume_name: &str,
    claim: &str,
    mounted: &mut Mounted,
) -> Result<(PathBuf, Plan), Cause> {
    let fetch = |what: String| move |source| Cause::Fetch { what, source };
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(context.client.clone(), pod::namespace(of));
    let found =
        claims.get(claim).await.map_err(fetch(format!("persistentvolumeclaim {claim:?}")))?;
    let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let name = found.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|_| bound);
    let name = name.ok_or_else(|| Cause::Unbound(claim.into()))?;
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let volume = volumes.get(&name).await.map_err(fetch(format!("persistentvolume {name:?}")))?;
    let spec = volume.spec.unwrap_or_default();
    let growth = csi::Growth::of(&found, &spec);
    if let Some(source) = spec.host_path {
        let kind = source.type_.unwrap_or_default();
        return Ok((on_host(context, &source.path, &kind)?, Plan::HostPath(kind)));
    }
    if let Some(source) = spec.local {
        let path = on_host(context, &source.path, "Directory")?;
        if spec.volume_mode.as_deref() == Some("Block") {
            return Ok((path, Plan::HostPath("BlockDevice".into())));
        }
        return Ok((path, Plan::Local));
    }
    if let Some(source) = &spec.csi {
        let volume = csi::Volume::persistent(&name, &spec, source);
        let published = published(context, of, volume_name, &volume, mounted).await?;
        if let Some(growth) = &growth {
            grow(context, of, volume_name, &volume, growth).await;
        }
        mounted.claims.insert(volume_name.to_owned(), claim.to_owned());
        renew(mounted, context.clock.now() + CLAIMS_AGE);
        return Ok(published);
    }
    Err(Cause::Unsupported("persistentVolume"))
}

/// Has a volume that has grown since it was published grow on the node too.
async fn grow_claimed(context: &Context, of: &Pod, name: &str, claim: &str) {
    let found = async {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(context.client.clone(), pod::namespace(of));
        let claim = claims.get(claim).await?;
        let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
        Ok::<_, kube::Error>((claim, volumes.get(&volume).await?))
    };
    let (claim, volume) = match found.await {
        Ok(found) => found,
        Err(error) => return tracing::debug!(%error, claim, "cannot see whether a claim has grown"),
    };
    let spec = volume.spec.unwrap_or_default();
    if let (Some(growth), Some(source)) = (csi::Growth::of(&claim, &spec), &spec.csi) {
        let own = volume.metadata.name.unwrap_or_default();
        let volume = csi::Volume::persistent(&own, &spec, source);
        grow(context, of, name, &volume, &growth).await;
    }
}

async fn grow(context: &Context, of: &Pod, name: &str, volume: &csi::Volume, growth: &csi::Growth) {
    if let Err(error) = csi::expand(context, of, volume, growth).await {
        let message = format!("MountVolume.NodeExpandVolume failed for volume {name:?} : {error}");
        context.warning(of, None, "VolumeResizeFailed", message);
    }
}

/// The pod's own directory below the kubelet's.
pub fn directory(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

/// Takes away everything of the pod below the kubelet's directory: mounts first, then files.
pub fn tear_down(root: &Path, uid: &str) -> io::Result<()> {
    let directory = directory(root, uid);
    if !directory.exists() {
        return Ok(());
    }
    subpath::release(&directory);
    // A mount that could not be released must not lose its content.
    let plain = directory.join("volume-subpaths");
    if plain.exists() {
        remove_unmounted(&plain)?;
    }
    std::fs::remove_dir_all(&directory)
}

fn remove_unmounted(path: &Path) -> io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let text = path.display().to_string();
    if mounts.lines().filter_map(|l| l.split(' ').nth(4)).any(|p| p.starts_with(&text)) {
        return Err(io::Error::other(format!("{text} still holds a mount")));
    }
    std::fs::remove_dir_all(path)
}
