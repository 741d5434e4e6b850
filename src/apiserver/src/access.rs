//! Who may come in and who may do what, as the server's files say.

use std::path::{Path, PathBuf};

use crate::audit;
use crate::authn::configuration::Configuration;
use crate::authn::static_tokens::StaticTokens;
use crate::authz::configuration::{self, Link};

/// The files, under the names of kube-apiserver's flags.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `--token-auth-file`
    pub tokens: Option<PathBuf>,
    /// `--authentication-config`
    pub authentication: Option<PathBuf>,
    /// `--authorization-config`
    pub authorization: Option<PathBuf>,
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
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] audit::Error),
}

fn read<T>(
    path: Option<&PathBuf>,
    parse: impl FnOnce(&str, &Path) -> Result<T, String>,
    otherwise: impl FnOnce() -> T,
) -> Result<T, Error> {
    let Some(path) = path else { return Ok(otherwise()) };
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Read { path: path.clone(), source })?;
    let base = path.parent().unwrap_or(Path::new("/"));
    parse(&text, base).map_err(|problem| Error::Content { path: path.clone(), problem })
}

impl Access {
    /// The users of static tokens.
    pub fn static_tokens(&self) -> Result<StaticTokens, Error> {
        let parse = |text: &str, _: &Path| StaticTokens::parse(text).map_err(|e| e.to_string());
        read(self.tokens.as_ref(), parse, StaticTokens::default)
    }

    /// Issuers of tokens, and what requests without credentials may do.
    pub fn authentication(&self) -> Result<Configuration, Error> {
        let parse = |text: &str, _: &Path| Configuration::parse(text);
        read(self.authentication.as_ref(), parse, Configuration::default)
    }

    /// The authorisers.
    pub fn authorization(&self) -> Result<Vec<Link>, Error> {
        read(self.authorization.as_ref(), configuration::parse, configuration::usual)
    }
}
