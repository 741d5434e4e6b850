//! What claimed volumes hold, as metrics: what alerts on volumes that fill up look at.
//!
//! Source of names: `pkg/kubelet/metrics/collectors/volume_stats.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::metrics::{Text, float};
use crate::node::machine::{self, Disk};
use crate::{pod, volumes};

/// How long those who ask wait for what is measured.
const PATIENCE: Duration = Duration::from_secs(1);

/// Pods, and where their volumes are.
pub type Placed = [(Arc<Pod>, BTreeMap<String, PathBuf>)];

/// The file systems of claimed volumes, as they were when they last answered. One whose server is gone keeps one
/// thread and no more.
#[derive(Default)]
pub struct Disks(Mutex<BTreeMap<PathBuf, Place>>);

#[derive(Default)]
struct Place {
    last: Option<Disk>,
    asked: bool,
}

impl Disks {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures the volumes of claims of `pods`, those apart that have not answered earlier questions, and returns
    /// what is known after at most a second.
    pub async fn measure(self: &Arc<Self>, pods: &Placed) -> BTreeMap<PathBuf, Disk> {
        let claimed = pods.iter().flat_map(|(of, paths)| volumes::usage::claimed(of, paths));
        self.ask(claimed.map(|place| place.path).collect(), |path| {
            // Others are block devices.
            path.is_dir().then(|| machine::disk(path)).flatten()
        })
        .await
    }

    async fn ask(
        self: &Arc<Self>,
        paths: BTreeSet<PathBuf>,
        look: fn(&Path) -> Option<Disk>,
    ) -> BTreeMap<PathBuf, Disk> {
        let mut answers = Vec::new();
        {
            let mut places = self.lock();
            places.retain(|path, place| place.asked || paths.contains(path));
            for path in &paths {
                let place = places.entry(path.clone()).or_default();
                if std::mem::replace(&mut place.asked, true) {
                    continue;
                }
                let (disks, path) = (self.clone(), path.clone());
                answers.push(tokio::task::spawn_blocking(move || {
                    let last = look(&path);
                    disks.lock().insert(path, Place { last, asked: false });
                }));
            }
        }
        let all = async {
            for answer in answers {
                let _ = answer.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, all).await;
        let places = self.lock();
        let known = places.iter().filter(|(path, _)| paths.contains(*path));
        known.filter_map(|(path, place)| Some((path.clone(), place.last?))).collect()
    }
}

/// Namespace and name of a claim, and the file system of its volume.
type Row = (String, String, Disk);

fn rows(pods: &Placed, disks: &BTreeMap<PathBuf, Disk>) -> Vec<Row> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for (of, paths) in pods {
        for place in volumes::usage::claimed(of, paths) {
            let (namespace, claim) =
                (pod::namespace(of).to_owned(), place.claim.unwrap_or_default());
            // Pods may share one.
            if !seen.insert((namespace.clone(), claim.clone())) {
                continue;
            }
            out.extend(disks.get(&place.path).map(|disk| (namespace, claim, *disk)));
        }
    }
    out
}

/// Writes the metrics of the claims that `pods` use.
pub fn write(text: &mut Text, pods: &Placed, disks: &BTreeMap<PathBuf, Disk>) {
    let rows = rows(pods, disks);
    let metrics: [(&str, &str, fn(&Disk) -> u64); 6] = [
        ("capacity_bytes", "Capacity in bytes of the volume", |disk| disk.bytes),
        ("available_bytes", "Number of available bytes in the volume", |disk| disk.available_bytes),
        ("used_bytes", "Number of used bytes in the volume", |disk| {
            disk.bytes.saturating_sub(disk.free_bytes)
        }),
        ("inodes", "Maximum number of inodes in the volume", |disk| disk.inodes),
        ("inodes_free", "Number of free inodes in the volume", |disk| disk.inodes_free),
        ("inodes_used", "Number of used inodes in the volume", |disk| {
            disk.inodes.saturating_sub(disk.inodes_free)
        }),
    ];
    for (name, help, value) in metrics.into_iter().filter(|_| !rows.is_empty()) {
        let name = format!("kubelet_volume_stats_{name}");
        text.family(&name, "gauge", &format!("[ALPHA] {help}"));
        for (namespace, claim, disk) in &rows {
            let names =
                [("namespace", namespace.as_str()), ("persistentvolumeclaim", claim.as_str())];
            text.sample(&name, &names, float(value(disk)), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    static HUNG: Mutex<Option<mpsc::Receiver<()>>> = Mutex::new(None);

    /// One path never answers until it is let go.
    fn look(path: &Path) -> Option<Disk> {
        if path.ends_with("hung") {
            let gate = HUNG.lock().unwrap().take().expect("asked but once");
            let _ = gate.recv();
        }
        machine::disk(Path::new("/"))
    }

    #[tokio::test]
    async fn a_volume_that_does_not_answer_keeps_no_one() {
        let (go, gate) = mpsc::channel();
        *HUNG.lock().unwrap() = Some(gate);
        let disks = Arc::new(Disks::default());
        let paths = BTreeSet::from(["fine".into(), "hung".into()]);
        for _ in 0..2 {
            let known = disks.ask(paths.clone(), look).await;
            assert_eq!(known.into_keys().collect::<Vec<_>>(), [PathBuf::from("fine")]);
        }
        drop(go);
    }
}
