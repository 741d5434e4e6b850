//! What `rootlet doctor --fix` can do without root, and what it looks at for that.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cli::doctor::Check;

use crate::paths::{Paths, home};
use crate::{lock, service};

/// After this, whoever locked a kubeconfig is gone: kubectl holds the lock for milliseconds.
const LOCK_AGE: Duration = Duration::from_mins(1);

/// Something of the user's that is not as it should be.
struct Flaw {
    check: &'static str,
    found: String,
    remedy: String,
    mend: Box<dyn Fn() -> anyhow::Result<()>>,
}

/// The flaws as checks; with `fix` they are mended first, and what was done is told.
pub fn checks(fix: bool) -> Vec<Check> {
    let mut flaws = flaws();
    if fix {
        for flaw in &flaws {
            match (flaw.mend)() {
                Ok(()) => say!("mended   {}: {}", flaw.check, flaw.found),
                Err(error) => eprintln!("error: {}: {error:#}", flaw.check),
            }
        }
        flaws = self::flaws();
    }
    if flaws.is_empty() {
        return vec![Check::ok("own files", "nothing is left of clusters that are gone")];
    }
    let told = flaws.into_iter().map(|flaw| {
        let remedy = format!("{}        (or: rootlet doctor --fix)", flaw.remedy);
        Check::limited(flaw.check, flaw.found, remedy)
    });
    told.collect()
}

fn flaws() -> Vec<Flaw> {
    let mut found = Vec::new();
    if let Ok(home) = home() {
        let file = cli::kubeconfig::user_path(std::env::var("KUBECONFIG").ok().as_deref(), &home);
        found.extend(stale_lock(&file));
        found.extend(contexts(&file));
    }
    // The folders of all clusters are beside each other.
    if let Ok(paths) = Paths::of("default") {
        for name in clusters(&paths) {
            if let Ok(paths) = Paths::of(&name) {
                found.extend(open_to_others(&paths));
                found.extend(sockets(&paths));
                found.extend(lingering(&paths));
            }
        }
    }
    found
}

/// Names of the clusters that have data.
pub fn clusters(any: &Paths) -> Vec<String> {
    let Some(folder) = any.data.parent() else { return Vec::new() };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join("settings.json").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn stale_lock(kubeconfig: &Path) -> Option<Flaw> {
    let mut name = kubeconfig.as_os_str().to_os_string();
    name.push(".lock");
    let file = PathBuf::from(name);
    let age = fs::metadata(&file).ok()?.modified().ok()?.elapsed().ok()?;
    (age > LOCK_AGE).then(|| Flaw {
        check: "kubeconfig",
        found: format!("{} is left of a program that is gone", file.display()),
        remedy: format!("rm {}", file.display()),
        mend: Box::new(move || Ok(fs::remove_file(&file)?)),
    })
}

/// Contexts of clusters that have no data any more.
fn contexts(kubeconfig: &Path) -> Vec<Flaw> {
    let gone = |context: &String| {
        let name = match context.strip_prefix("rootlet") {
            Some("") => "default",
            Some(rest) => rest.strip_prefix('-')?,
            None => return None,
        };
        let paths = Paths::of(name).ok()?;
        (!paths.data.exists()).then_some(())
    };
    let contexts = cli::kubeconfig::local_contexts(kubeconfig);
    let gone = contexts.into_iter().filter(|context| gone(context).is_some());
    gone.map(|context| {
        let file = kubeconfig.to_owned();
        Flaw {
            check: "kubeconfig",
            found: format!("{} names {context}, a cluster that is gone", file.display()),
            remedy: format!("kubectl config delete-context {context}"),
            mend: Box::new(move || {
                cli::kubeconfig::remove(&file, &context)?;
                Ok(())
            }),
        }
    })
    .collect()
}

fn open_to_others(paths: &Paths) -> Option<Flaw> {
    let folder = paths.data.clone();
    let mode = fs::metadata(&folder).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| Flaw {
        check: "data folder",
        found: format!("{} can be read by others, and secrets are in it", folder.display()),
        remedy: format!("chmod 700 {}", folder.display()),
        mend: Box::new(move || {
            Ok(fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?)
        }),
    })
}

/// Sockets whose processes have all ended.
fn sockets(paths: &Paths) -> Option<Flaw> {
    let roles = ["daemon", "node", "runtime", "agent", "up"];
    if roles.iter().any(|role| lock::holder(&paths.lock(role)).is_some()) {
        return None;
    }
    let entries = fs::read_dir(&paths.run).ok()?.flatten();
    let stale: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .map(|entry| entry.path())
        .collect();
    (!stale.is_empty()).then(|| Flaw {
        check: "sockets",
        found: format!("{} has sockets that nobody serves", paths.run.display()),
        remedy: format!("rm {}/*.sock", paths.run.display()),
        mend: Box::new(move || {
            stale.iter().try_for_each(fs::remove_file)?;
            Ok(())
        }),
    })
}

/// A service that would end with the last session.
fn lingering(paths: &Paths) -> Option<Flaw> {
    let installed = service::unit_file(&paths.name).is_ok_and(|file| file.exists());
    (installed && !service::lingers()).then(|| Flaw {
        check: "service",
        found: format!("cluster {:?} starts with the first login, not at boot", paths.name),
        remedy: "loginctl enable-linger".to_owned(),
        mend: Box::new(|| {
            let asked =
                Command::new("loginctl").arg("enable-linger").stdin(Stdio::null()).status()?;
            anyhow::ensure!(asked.success(), "loginctl enable-linger: {asked}");
            Ok(())
        }),
    })
}
