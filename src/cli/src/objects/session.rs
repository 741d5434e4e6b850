//! Which cluster is spoken to, as whom, in which namespace.
//!
//! Source: `k8s.io/client-go/tools/clientcmd` and `k8s.io/cli-runtime/pkg/genericclioptions/config_flags.go`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use kube::config::{AuthInfo, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedContext};
use tokio::sync::OnceCell;

use super::api::Api;
use super::error::Error;
use super::kinds::Kinds;

/// Flags that every command on objects has.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which cluster, and where in it")]
pub struct Connection {
    /// The namespace [default: the context's, or `default`].
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The kubeconfig [default: KUBECONFIG's files, else the running cluster's own, else ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context.
    #[arg(long, value_name = "CONTEXT")]
    pub context: Option<String>,
    /// The kubeconfig's cluster, instead of the context's.
    #[arg(long = "cluster", value_name = "CLUSTER")]
    pub kube_cluster: Option<String>,
    /// The kubeconfig's user, instead of the context's.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Address of the API server.
    #[arg(short, long, value_name = "URL")]
    pub server: Option<String>,
    /// The authority that vouches for the API server.
    #[arg(long, value_name = "FILE")]
    pub certificate_authority: Option<String>,
    /// Believe any API server.
    #[arg(long)]
    pub insecure_skip_tls_verify: bool,
    /// The bearer token to show.
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Act as this user.
    #[arg(long = "as", value_name = "USER")]
    pub as_user: Option<String>,
    /// Act as a member of this group; may be repeated.
    #[arg(long, value_name = "GROUP")]
    pub as_group: Vec<String>,
    /// How long one request may take, such as 30s; 0 is for ever.
    #[arg(long, value_name = "DURATION", default_value = "0", hide_default_value = true)]
    pub request_timeout: String,
    /// A cluster of rootlet's, by its name, instead of a kubeconfig.
    #[arg(long, value_name = "N", env = "ROOTLET_NAME", value_parser = crate::args::cluster_name)]
    pub name: Option<String>,
}

/// A connection with what is known about it.
pub struct Session {
    /// Requests go here.
    pub api: Api,
    /// Where objects are looked for unless they say otherwise.
    pub namespace: String,
    /// Whether that was said on the command line.
    pub namespace_given: bool,
    kinds: OnceCell<Kinds>,
}

impl Session {
    /// Connects as `connection` says; `own` is the kubeconfig of a running cluster of rootlet's, which
    /// serves when no other is named.
    pub async fn open(connection: &Connection, own: Option<&Path>) -> Result<Self, Error> {
        let mut kubeconfig = load(connection, own)?;
        adjust(&mut kubeconfig, connection)?;
        let options = KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(|error| Error::wrong(told(&error)))?;
        config.read_timeout = request_timeout(&connection.request_timeout)?;
        config.write_timeout = None;
        let url = &config.cluster_url;
        let port =
            url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
        let server = format!("{}:{port}", url.host().unwrap_or_default());
        let namespace =
            connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = kube::Client::try_from(config).map_err(|error| Error::wrong(told(&error)))?;
        Ok(Self {
            api: Api::new(client, server),
            namespace,
            namespace_given: connection.namespace.is_some(),
            kinds: OnceCell::new(),
        })
    }

    /// The server's resources.
    pub async fn kinds(&self) -> Result<&Kinds, Error> {
        self.kinds.get_or_try_init(|| Kinds::discover(&self.api)).await
    }
}

fn request_timeout(text: &str) -> Result<Option<Duration>, Error> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    match seconds.or_else(|| apimachinery::time::duration(text)) {
        Some(Duration::ZERO) => Ok(None),
        Some(time) => Ok(Some(time)),
        None => Err(Error::wrong(
            "Invalid timeout value. Timeout must be a single integer in seconds, or an integer followed by a corresponding time unit (e.g. 1s | 2m | 3h)",
        )),
    }
}

fn load(connection: &Connection, own: Option<&Path>) -> Result<Kubeconfig, Error> {
    let read = |path: &Path| {
        Kubeconfig::read_from(path).map_err(|error| {
            if path.exists() {
                let path = path.display().to_string();
                Error::Wrong(format!("error loading config file {path:?}: {}", told(&error)))
            } else {
                Error::Wrong(format!("stat {}: no such file or directory", path.display()))
            }
        })
    };
    if let Some(path) = &connection.kubeconfig {
        return read(path);
    }
    // A context is one of the user's own file, whatever the environment says.
    if connection.name.is_some() && connection.context.is_none() {
        let Some(own) = own else {
            return Err(Error::wrong(format!(
                "cluster {:?} is not running; start it with `rootlet up --name {0}`",
                connection.name.as_deref().unwrap_or_default()
            )));
        };
        return read(own);
    }
    if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty()) {
        return read_list(&list, read);
    }
    // Otherwise the cluster that runs here is meant.
    if let Some(own) = own.filter(|_| connection.context.is_none()) {
        return read(own);
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let path = home.join(".kube/config");
    if path.exists() { read(&path) } else { Ok(Kubeconfig::default()) }
}

/// The files of `KUBECONFIG`, the first of which wins; those that do not exist are left out.
fn read_list(
    list: &std::ffi::OsStr,
    read: impl Fn(&Path) -> Result<Kubeconfig, Error>,
) -> Result<Kubeconfig, Error> {
    let mut all = Kubeconfig::default();
    for path in std::env::split_paths(list).filter(|path| path.exists()) {
        let next = read(&path)?;
        all = all.merge(next).map_err(|error| Error::wrong(told(&error)))?;
    }
    Ok(all)
}

/// Puts what the flags say into the kubeconfig's current context.
fn adjust(kubeconfig: &mut Kubeconfig, flags: &Connection) -> Result<(), Error> {
    let current = flags.context.clone().or_else(|| kubeconfig.current_context.clone());
    let current = current.filter(|name| !name.is_empty());
    let known =
        current.as_ref().and_then(|name| kubeconfig.contexts.iter().find(|c| c.name == *name));
    if let (Some(name), None) = (&flags.context, known) {
        let names = kubeconfig.contexts.iter().map(|c| c.name.as_str());
        let meant = super::kinds::nearest(name, names);
        let hint = meant.map(|m| format!("\nhint: did you mean {m:?}?")).unwrap_or_default();
        return Err(Error::Plain(format!(
            "Error in configuration: context was not found for specified context: {name}{hint}"
        )));
    }
    let mut context = match known {
        Some(known) => known.context.clone().unwrap_or_default(),
        None => Context::default(),
    };
    let place = flags.kube_cluster.clone().unwrap_or_else(|| context.cluster.clone());
    let user = flags.user.clone().or_else(|| context.user.clone()).unwrap_or_default();
    if let Some(name) = &flags.kube_cluster
        && !kubeconfig.clusters.iter().any(|c| c.name == *name)
    {
        return Err(Error::wrong(format!("cluster {name:?} does not exist")));
    }
    if let Some(name) = &flags.user
        && !kubeconfig.auth_infos.iter().any(|u| u.name == *name)
    {
        return Err(Error::wrong(format!("auth info {name:?} does not exist")));
    }
    let named = kubeconfig.clusters.iter().find(|c| c.name == place);
    let mut cluster = named.and_then(|c| c.cluster.clone()).unwrap_or_default();
    if let Some(server) = &flags.server {
        cluster.server = Some(server.clone());
    }
    if let Some(file) = &flags.certificate_authority {
        cluster.certificate_authority = Some(file.clone());
        cluster.certificate_authority_data = None;
    }
    if flags.insecure_skip_tls_verify {
        cluster.insecure_skip_tls_verify = Some(true);
        cluster.certificate_authority = None;
        cluster.certificate_authority_data = None;
    }
    if cluster.server.is_none() {
        return Err(Error::Plain(
            "The connection to the server localhost:8080 was refused - did you specify the right host or port?\nhint: no kubeconfig names a cluster, and no cluster of rootlet's runs: `rootlet up` starts one"
                .into(),
        ));
    }
    let named = kubeconfig.auth_infos.iter().find(|u| u.name == user);
    let mut auth = named.and_then(|u| u.auth_info.clone()).unwrap_or_default();
    identity(&mut auth, flags);
    // Under names of their own, so that nothing else in the file changes its meaning.
    const NAME: &str = "rootlet-command-line";
    context.cluster = NAME.into();
    context.user = Some(NAME.into());
    kubeconfig.clusters = vec![kube::config::NamedCluster {
        name: NAME.into(),
        cluster: Some(cluster),
        ..Default::default()
    }];
    kubeconfig.auth_infos =
        vec![NamedAuthInfo { name: NAME.into(), auth_info: Some(auth), ..Default::default() }];
    kubeconfig.contexts =
        vec![NamedContext { name: NAME.into(), context: Some(context), ..Default::default() }];
    kubeconfig.current_context = Some(NAME.into());
    Ok(())
}

fn identity(auth: &mut AuthInfo, flags: &Connection) {
    if let Some(token) = &flags.token {
        auth.token = Some(token.clone().into());
        auth.token_file = None;
        auth.exec = None;
    }
    if let Some(user) = &flags.as_user {
        auth.impersonate = Some(user.clone());
    }
    if !flags.as_group.is_empty() {
        auth.impersonate_groups = Some(flags.as_group.clone());
    }
}

fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        next = source.source();
    }
    text
}
