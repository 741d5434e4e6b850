//! `rootlet up --manifests DIR`: what the folder's manifests say is applied, and kept so.
//!
//! What was applied is remembered in a ConfigMap, so that an object whose document leaves the folder is
//! removed, also when that happened while nobody looked. Objects that were never in the folder are left alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cli::apply::{Applied, Kinds, delete, files, read_file};
use client::{Recorder, object_reference};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use rustix::fs::inotify;
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;

/// Who owns the fields, and what the ConfigMap in kube-system is called.
const MANAGER: &str = "rootlet-manifests";
const NAMESPACE: &str = "kube-system";
/// How often everything is applied although no file changed, so that what others changed is put right.
const AGAIN: Duration = Duration::from_mins(1);
/// The first wait after a failure; each further one is twice as long.
const RETRY: Duration = Duration::from_millis(500);
/// How long files may go on changing before they are read.
const SETTLE: Duration = Duration::from_millis(100);
/// How often the folder is looked at where the kernel does not tell of changes.
const LOOK: Duration = Duration::from_secs(2);

/// How the folder's objects are, for `rootlet status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    /// The folder.
    pub folder: PathBuf,
    /// Objects that were applied from it.
    pub objects: usize,
    /// What could not be applied, and why.
    pub problems: Vec<String>,
}

/// An object and the file it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    file: String,
    #[serde(flatten)]
    object: Applied,
}

/// Keeps the folder applied.
pub struct Keeper {
    client: kube::Client,
    kept: Arc<Mutex<Kept>>,
    folder: PathBuf,
}

impl Keeper {
    /// For `folder`, as `client`'s user.
    pub fn new(client: kube::Client, folder: PathBuf) -> Self {
        let kept = Kept { folder: folder.clone(), ..Kept::default() };
        Self { client, kept: Arc::new(Mutex::new(kept)), folder }
    }

    /// What `run` found last.
    pub fn kept(&self) -> Arc<Mutex<Kept>> {
        self.kept.clone()
    }

    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut watch = Watch::new(self.folder.clone());
        let recorder = Recorder::new(self.client.clone(), MANAGER, "");
        let mut retry = RETRY;
        loop {
            let problems = self.sync(&recorder).await;
            let wait = if problems == 0 { AGAIN } else { retry };
            retry = if problems == 0 { RETRY } else { (retry * 2).min(AGAIN) };
            tokio::select! {
                () = stop.cancelled() => return,
                () = watch.changed() => retry = RETRY,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Applies what is in the folder, removes what has left it, and tells how much of that failed.
    async fn sync(&self, recorder: &Recorder) -> usize {
        let (objects, problems) = match self.attempt(recorder).await {
            Ok((objects, problems)) => (Some(objects), problems),
            Err(error) => (None, vec![format!("{error:#}")]),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in problems.iter().filter(|problem| !kept.problems.contains(problem)) {
            tracing::warn!("manifests: {problem}");
        }
        kept.objects = objects.unwrap_or(kept.objects);
        kept.problems = problems;
        kept.problems.len()
    }

    async fn attempt(&self, recorder: &Recorder) -> anyhow::Result<(usize, Vec<String>)> {
        let before = self.inventory().await?;
        // A folder that cannot be read is not an empty one: nothing is removed then.
        let files = files(&self.folder)?;
        let (mut after, mut problems) = (Vec::new(), Vec::new());
        let mut kinds = Kinds::new(&self.client, MANAGER);
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            problems.extend(self.apply(&mut kinds, &file, &name, &mut after).await);
        }
        let mut gone = missing(&before, &after);
        if !problems.is_empty() {
            // What seems to have left may be what could not be read: nothing is removed then, either.
            after.append(&mut gone);
        }
        let mut removed = Vec::new();
        for entry in gone.into_iter().rev() {
            match delete(&self.client, &entry.object).await {
                Ok(()) => removed.push(entry.object.to_string()),
                Err(error) => {
                    problems.push(format!("{:#}", anyhow::Error::from(error)));
                    after.push(entry);
                }
            }
        }
        let about = object_reference(&self.remember(&after).await?);
        for object in &removed {
            tracing::info!("manifests: {object} is removed: it left the folder");
            let message = format!("removed {object}, which left {}", self.folder.display());
            recorder.normal(about.clone(), "Pruned", message);
        }
        for problem in &problems {
            recorder.warning(about.clone(), "ApplyFailed", problem.as_str());
        }
        Ok((after.len(), problems))
    }

    /// Applies one file, adds its objects to `after`, and returns what failed.
    async fn apply(
        &self,
        kinds: &mut Kinds<'_>,
        file: &Path,
        name: &str,
        after: &mut Vec<Entry>,
    ) -> Vec<String> {
        let told = |error: cli::apply::Error| format!("{:#}", anyhow::Error::from(error));
        let documents = match read_file(file) {
            Ok(documents) => documents,
            Err(error) => return vec![told(error)],
        };
        let mut problems = Vec::new();
        for document in documents {
            match kinds.apply(&document).await {
                Ok(object) => after.push(Entry { file: name.to_owned(), object }),
                Err(error) => problems.push(told(error)),
            }
        }
        problems
    }

    async fn inventory(&self) -> anyhow::Result<Vec<Entry>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let found = api.get_opt(MANAGER).await?.and_then(|map| map.data);
        let text = found.and_then(|mut data| data.remove("objects"));
        Ok(text.map_or(Ok(Vec::new()), |text| serde_json::from_str(&text))?)
    }

    async fn remember(&self, entries: &[Entry]) -> anyhow::Result<ConfigMap> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let map = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": MANAGER, "namespace": NAMESPACE},
            "data": {"objects": serde_json::to_string(entries)?},
        });
        let parameters = PatchParams::apply(MANAGER).force();
        Ok(api.patch(MANAGER, &parameters, &Patch::Apply(map)).await?)
    }
}

/// Those of `before` whose objects are not in `after`.
fn missing(before: &[Entry], after: &[Entry]) -> Vec<Entry> {
    let here: BTreeSet<&Applied> = after.iter().map(|entry| &entry.object).collect();
    before.iter().filter(|entry| !here.contains(&entry.object)).cloned().collect()
}

/// Tells when a folder's files change: by inotify(7), or by looking where no instance can be had.
struct Watch {
    folder: PathBuf,
    kernel: Option<Receiver>,
    seen: Vec<(PathBuf, Option<SystemTime>, u64)>,
}

impl Watch {
    fn new(folder: PathBuf) -> Self {
        let (kernel, seen) = (ask(&folder), look(&folder));
        Self { folder, kernel, seen }
    }

    async fn changed(&mut self) {
        let told = match &self.kernel {
            Some(kernel) => told(kernel).await,
            None => None,
        };
        if told.is_none() {
            // It was moved away, or there was nobody to tell: the folder of this name may be back.
            self.kernel = None;
            loop {
                tokio::time::sleep(LOOK).await;
                let now = look(&self.folder);
                if now != self.seen {
                    self.seen = now;
                    self.kernel = ask(&self.folder);
                    break;
                }
            }
            return;
        }
        tokio::time::sleep(SETTLE).await;
        if let Some(kernel) = &self.kernel {
            // What came meanwhile is read with the rest.
            drain(kernel);
        }
    }
}

fn ask(folder: &Path) -> Option<Receiver> {
    use inotify::{CreateFlags, WatchFlags};
    let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
    let kernel = inotify::init(flags).ok()?;
    let events = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&kernel, folder, events).ok()?;
    // It is read as a pipe is.
    Receiver::from_owned_fd_unchecked(kernel).ok()
}

/// Waits for a change; `None` when the folder is not there any more.
async fn told(kernel: &Receiver) -> Option<()> {
    kernel.readable().await.ok()?;
    drain(kernel).then_some(())
}

/// Reads what has been told; `false` when the folder itself went.
fn drain(kernel: &Receiver) -> bool {
    let mut buffer = [0; 4096];
    let mut here = true;
    while let Ok(length) = kernel.try_read(&mut buffer) {
        here &= !gone(&buffer[..length]);
    }
    here
}

/// Whether one of these events (inotify(7)) says that the folder itself went.
fn gone(mut events: &[u8]) -> bool {
    use inotify::ReadFlags;
    /// Watch, mask, cookie, length of the name, each of four bytes.
    const HEAD: usize = 16;
    let mut gone = false;
    while let Some(head) = events.get(..HEAD) {
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let end = ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
        gone |= ReadFlags::from_bits_retain(word(4)).intersects(end);
        events = events.get(HEAD + word(12) as usize..).unwrap_or_default();
    }
    gone
}

fn look(folder: &Path) -> Vec<(PathBuf, Option<SystemTime>, u64)> {
    let files = files(folder).unwrap_or_default();
    let seen = files.into_iter().map(|file| {
        let found = std::fs::metadata(&file).ok();
        let changed = found.as_ref().and_then(|found| found.modified().ok());
        (file, changed, found.map_or(0, |found| found.len()))
    });
    seen.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(file: &str, name: &str) -> Entry {
        let object = Applied {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            resource: "configmaps".into(),
            namespace: Some("default".into()),
            name: name.into(),
        };
        Entry { file: file.into(), object }
    }

    #[test]
    fn the_folders_own_end_is_told_from_that_of_its_files() {
        let event = |mask: u32, name: &str| {
            let mut bytes = [1, mask, 0, name.len() as u32].map(u32::to_ne_bytes).concat();
            bytes.extend(name.bytes());
            bytes
        };
        let (deleted, deleted_self) = (0x200, 0x400);
        let file = event(deleted, "a.yaml\0\0");
        assert!(!gone(&file) && !gone(&[]) && !gone(&file[..5]));
        assert!(gone(&[file, event(deleted_self, "")].concat()));
    }

    #[test]
    fn an_object_that_moved_to_another_file_has_not_left() {
        let before = [entry("a.yaml", "one"), entry("a.yaml", "two")];
        let left = missing(&before, &[entry("b.yaml", "one")]);
        assert_eq!(left, [entry("a.yaml", "two")]);
    }

    #[tokio::test]
    async fn changes_are_told_with_and_without_the_kernels_help() {
        for kernel in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let mut watch = Watch::new(folder.path().to_owned());
            if !kernel {
                watch.kernel = None;
            }
            std::fs::write(folder.path().join("a.yaml"), "a").unwrap();
            let told = tokio::time::timeout(Duration::from_secs(20), watch.changed());
            told.await.expect("it is told");
        }
    }

    #[tokio::test]
    async fn a_folder_that_comes_back_is_watched_again() {
        let top = tempfile::tempdir().unwrap();
        let (folder, away) = (top.path().join("here"), top.path().join("away"));
        std::fs::create_dir(&folder).unwrap();
        let mut watch = Watch::new(folder.clone());
        std::fs::rename(&folder, &away).unwrap();
        std::fs::write(away.join("a.yaml"), "a").unwrap();
        let back = async {
            tokio::time::sleep(SETTLE).await;
            std::fs::rename(&away, &folder).unwrap();
        };
        let (told, ()) =
            tokio::join!(tokio::time::timeout(Duration::from_secs(20), watch.changed()), back);
        told.expect("it is told");
    }
}
