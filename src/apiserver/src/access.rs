//! Who may come in and who may do what, as the server's files say.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::audit;
use crate::authn::configuration::Configuration;
use crate::authn::static_tokens::StaticTokens;
use crate::authz::configuration::{self, Link};
use crate::authz::modes::Modes;
use crate::encryption;
use crate::pki::shared;
use crate::server::Server;

/// How often the files are looked at. inotify's instances are few, and mounted files change behind links.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The files, under the names of kube-apiserver's flags.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `--token-auth-file`
    pub tokens: Option<PathBuf>,
    /// `--authentication-config`
    pub authentication: Option<PathBuf>,
    /// `--authorization-config`
    pub authorization: Option<PathBuf>,
    /// `--authorization-mode`, in the place of that file.
    pub modes: Modes,
    /// `--encryption-provider-config`
    pub encryption: Option<PathBuf>,
    /// `--encryption-provider-config-automatic-reload`
    pub encryption_reload: bool,
    /// `--audit-…`
    pub audit: audit::Options,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It does not say what it should.
    #[error("{path}: {problem}", path = path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// Flags contradict each other, or name what cannot be used.
    #[error("{0}")]
    Flags(String),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] audit::Error),
}

fn text_of(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Reads the text of a file; relative paths in it begin at the second argument.
type Parse<T> = fn(&str, &Path) -> Result<T, String>;

/// What a file says, read anew when it changes. A new text that cannot be used leaves the last good one in
/// force.
pub struct Reloaded<T> {
    file: Option<(PathBuf, Parse<T>)>,
    /// The text that was looked at last, good or not; nothing when it could not be read.
    seen: Mutex<Option<String>>,
    current: RwLock<Arc<T>>,
}

impl<T> Reloaded<T> {
    /// What is so for good.
    pub fn fixed(value: T) -> Self {
        Self { file: None, seen: Mutex::default(), current: RwLock::new(Arc::new(value)) }
    }

    fn load(
        path: Option<&PathBuf>,
        parse: Parse<T>,
        otherwise: impl FnOnce() -> T,
    ) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Self::fixed(otherwise())) };
        let text = text_of(path)?;
        let value = parsed(path, parse, &text)?;
        Ok(Self {
            file: Some((path.clone(), parse)),
            seen: Mutex::new(Some(text)),
            current: RwLock::new(Arc::new(value)),
        })
    }

    /// What is in force.
    pub fn get(&self) -> Arc<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The text of the file as it was looked at last.
    fn text(&self) -> Option<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the file; nothing when it is as it was. `fits` says what else keeps a sound text from taking
    /// the place of the one in force.
    fn look(&self, fits: impl FnOnce(&T, &T) -> Result<(), String>) -> Option<Result<(), Error>> {
        let (path, parse) = self.file.as_ref()?;
        let text = text_of(path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.as_ref() == text.as_ref().ok() {
            return None;
        }
        *seen = text.as_ref().ok().cloned();
        drop(seen);
        Some(text.and_then(|text| {
            let value = parsed(path, *parse, &text)?;
            fits(&self.get(), &value)
                .map_err(|problem| Error::Content { path: path.clone(), problem })?;
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
            Ok(())
        }))
    }
}

fn parsed<T>(path: &Path, parse: Parse<T>, text: &str) -> Result<T, Error> {
    let base = path.parent().unwrap_or(Path::new("/"));
    parse(text, base).map_err(|problem| Error::Content { path: path.to_owned(), problem })
}

/// Follows the files that may change while the server runs, until `shutdown`; that of encryption only where
/// it is asked for.
pub async fn follow(server: Arc<Server>, reload_encryption: bool, shutdown: CancellationToken) {
    let authentication = server.authenticator.configuration();
    let authorization = server.authorizer.chain();
    server.metrics.configured("authentication", authentication.text().as_deref());
    server.metrics.configured("authorization", authorization.text().as_deref());
    let encryption = server.registry.encryption();
    if let Some(encryption) = &encryption {
        let text = encryption.configuration().text();
        server.metrics.configured("encryption", text.as_deref());
    }
    let encryption = encryption.filter(|_| reload_encryption);
    if authentication.file.is_none() && authorization.file.is_none() && encryption.is_none() {
        return;
    }
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let outcome = authentication.look(|_, _| Ok(()));
        tell(&server, "authentication", outcome, &authentication);
        let outcome = authorization.look(|old, new| configuration::may_replace(old, new));
        tell(&server, "authorization", outcome, &authorization);
        if let Some(encryption) = &encryption {
            let configuration = encryption.configuration();
            let outcome = configuration.look(|_, new| {
                // Its plugins must be well before values are written with them.
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(encryption::check(new))
                })
            });
            let changed = matches!(outcome, Some(Ok(())));
            if changed
                && let Err(error) = shared::refresh(server.registry.store(), encryption).await
            {
                tracing::warn!(%error, "the servers' shared keys are not encrypted by the new key yet");
            }
            tell(&server, "encryption", outcome, configuration);
        }
    }
}

fn tell<T>(
    server: &Server,
    what: &'static str,
    outcome: Option<Result<(), Error>>,
    reloaded: &Reloaded<T>,
) {
    match outcome {
        None => (),
        Some(Ok(())) => {
            tracing::info!("the {what} configuration has changed and is in force");
            server.metrics.configured(what, reloaded.text().as_deref());
            server.metrics.reloaded(what, true);
        }
        Some(Err(error)) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(
                %error,
                cause,
                "the {what} configuration has changed and cannot be used; the last one stays in force"
            );
            server.metrics.reloaded(what, false);
        }
    }
}

impl Access {
    /// The users of static tokens.
    pub fn static_tokens(&self) -> Result<StaticTokens, Error> {
        let parse = |text: &str, _: &Path| StaticTokens::parse(text).map_err(|e| e.to_string());
        match &self.tokens {
            Some(path) => parsed(path, parse, &text_of(path)?),
            None => Ok(StaticTokens::default()),
        }
    }

    /// Issuers of tokens, and what requests without credentials may do.
    pub fn authentication(&self) -> Result<Reloaded<Configuration>, Error> {
        let parse = |text: &str, _: &Path| Configuration::parse(text);
        Reloaded::load(self.authentication.as_ref(), parse, Configuration::default)
    }

    /// How values are encrypted in the store, if they are.
    pub fn encryption(&self) -> Result<Option<Reloaded<encryption::Configuration>>, Error> {
        if self.encryption.is_none() {
            return Ok(None);
        }
        let parse = |text: &str, _: &Path| encryption::Configuration::parse(text);
        let otherwise = encryption::Configuration::default;
        Reloaded::load(self.encryption.as_ref(), parse, otherwise).map(Some)
    }

    /// The authorisers.
    pub fn authorization(&self) -> Result<Reloaded<Vec<Link>>, Error> {
        if self.modes.any() {
            if self.authorization.is_some() {
                return Err(Error::Flags(
                    "authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined".into(),
                ));
            }
            return self.modes.links().map(Reloaded::fixed).map_err(Error::Flags);
        }
        Reloaded::load(self.authorization.as_ref(), configuration::parse, configuration::usual)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::attributes::UserInfo;
    use crate::tests::Fixture;

    fn number(text: &str, _: &Path) -> Result<u32, String> {
        text.trim().parse().map_err(|_| format!("{text:?} is no number"))
    }

    #[test]
    fn a_file_is_read_anew_and_its_last_good_text_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("n");
        std::fs::write(&path, "1").expect("written");
        let reloaded = Reloaded::load(Some(&path), number, || 0).expect("a number");
        let fits = |old: &u32, new: &u32| {
            if new < old { Err("it must not go down".into()) } else { Ok(()) }
        };
        let look = || reloaded.look(fits).map(|outcome| outcome.map_err(|e| e.to_string()));
        let path_text = path.display();
        assert_eq!((look(), *reloaded.get()), (None, 1));
        for (text, want, value) in [
            ("2", Ok(()), 2),
            ("x", Err(format!("{path_text}: \"x\" is no number")), 2),
            ("1", Err(format!("{path_text}: it must not go down")), 2),
            ("3", Ok(()), 3),
        ] {
            std::fs::write(&path, text).expect("written");
            assert_eq!((look(), *reloaded.get()), (Some(want), value), "{text}");
            // The same is told once.
            assert_eq!(look(), None, "{text}");
        }
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(look(), Some(Err(format!("cannot read {path_text}"))));
        assert_eq!((look(), *reloaded.get()), (None, 3));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn changed_authorisers_decide_without_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("authorization.yaml");
        let write = |authorizers: &str| {
            let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n";
            std::fs::write(&file, format!("{head}authorizers:\n{authorizers}")).expect("written");
        };
        write("- {type: RBAC, name: rbac}\n");
        let access = Access { authorization: Some(file.clone()), ..Access::default() };
        let f = Fixture::with_access(access).await;
        let f = f.seen_by(UserInfo::new("jane", &[]));
        let path = "/api/v1/namespaces/default/pods";
        assert_eq!(f.get(path).await.code, 403);
        write("- {type: Sorcery, name: x}\n");
        f.until_metric(
            r#"authorization_config_controller_automatic_reloads_total{status="failure""#,
        )
        .await;
        assert_eq!(f.get(path).await.code, 403);
        write("- {type: AlwaysAllow, name: all}\n- {type: RBAC, name: rbac}\n");
        f.until_metric(
            r#"authorization_config_controller_automatic_reloads_total{status="success""#,
        )
        .await;
        let answer = f.get(path).await;
        assert_eq!((answer.code.as_u16(), &answer.body["items"]), (200, &json!([])));
    }
}
