//! What a shell offers at the end of a command line that is being written: names that only a cluster knows. The rest
//! is in the scripts that clap makes.

use std::time::Duration;

use cli::objects::{Connection, Session};
use serde_json::Value;

use crate::control::Client;
use crate::mend;
use crate::objects;
use crate::paths::Paths;

/// A shell that waits longer is in the way.
const PATIENCE: Duration = Duration::from_secs(2);
/// Flags whose value is a word of its own.
const VALUED: [&str; 15] = [
    "-n",
    "--namespace",
    "-o",
    "--output",
    "-l",
    "--selector",
    "-c",
    "--container",
    "--name",
    "--context",
    "--kubeconfig",
    "--for",
    "--timeout",
    "--tail",
    "--since",
];
/// Where clap's script for zsh registers what it defines.
const ZSH_END: &str = "if [ \"$funcstack[1]\" = \"_rootlet\" ]";

/// Appended to bash's script: first what clap knows, then what a cluster knows.
pub const BASH: &str = r#"
_rootlet_names() {
    _rootlet "$@"
    local names
    names=$(rootlet candidates -- "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null)
    if [ -n "$names" ]; then
        COMPREPLY=($(compgen -W "$names" -- "${COMP_WORDS[COMP_CWORD]}"))
    fi
}
complete -F _rootlet_names -o nosort -o bashdefault -o default rootlet
"#;

/// Appended to fish's script.
pub const FISH: &str = r#"
complete -c rootlet -l name -x -a "(rootlet candidates -- --name)"
complete -c rootlet -n "rootlet candidates -- (commandline -opc)[2..] | string length -q" -f -a "(rootlet candidates -- (commandline -opc)[2..])"
"#;

/// In the place of the end of zsh's script.
const ZSH: &str = r#"
_rootlet_names() {
    local -a names
    names=(${(f)"$(rootlet candidates -- ${words[2,CURRENT-1]} 2>/dev/null)"})
    if (( $#names )); then
        compadd -a names
    else
        _rootlet "$@"
    fi
}
if [ "$funcstack[1]" = "_rootlet" ]; then
    compdef _rootlet_names rootlet
    _rootlet_names "$@"
else
    compdef _rootlet_names rootlet
fi
"#;

/// clap's script for zsh, which then asks for names as well.
pub fn zsh(script: &str) -> String {
    let end = script.find(ZSH_END).unwrap_or(script.len());
    format!("{}{ZSH}", &script[..end])
}

/// What the last word may be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Clusters,
    Contexts,
    Namespaces,
    /// Types of objects.
    Types,
    /// Names of objects of a type.
    Objects(String),
    /// `pod/NAME`.
    Pods,
    /// Containers of a pod.
    Containers(String),
    Images,
}

/// Prints the names, a line each; nothing where there are none, or no way to know them.
pub fn print(words: &[String]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some(kind) = kind(&words) else { return };
    // A shell has no use for an error in the middle of a line.
    for name in names(&kind, &words).unwrap_or_default() {
        println!("{name}");
    }
}

/// Decides by the words before the one that is being written.
fn kind(words: &[&str]) -> Option<Kind> {
    let named = named(words);
    match words {
        [.., "--name"] => Some(Kind::Clusters),
        [.., "--context"] => Some(Kind::Contexts),
        [.., "-n" | "--namespace"] => Some(Kind::Namespaces),
        ["exec" | "logs" | "cp" | "port-forward", .., "-c" | "--container"] => {
            let pod = named.first()?;
            Some(Kind::Containers(pod.strip_prefix("pod/").unwrap_or(pod).to_owned()))
        }
        ["image", "rm" | "save", ..] => Some(Kind::Images),
        [.., last] if last.starts_with('-') && VALUED.contains(last) => None,
        ["get" | "describe" | "delete" | "wait", ..] => match named.as_slice() {
            [] => Some(Kind::Types),
            [of, ..] if of.contains('/') => None,
            [of, ..] => Some(Kind::Objects((*of).to_owned())),
        },
        ["top", "pod" | "pods" | "node" | "nodes", ..] => Some(Kind::Objects(words[1].to_owned())),
        ["why" | "trace" | "exec" | "port-forward" | "logs", ..] => {
            named.is_empty().then_some(Kind::Pods)
        }
        _ => None,
    }
}

/// The words after the command that are neither flags nor their values.
fn named<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let mut named = Vec::new();
    let mut value = false;
    for word in words.iter().skip(1) {
        let flag = word.starts_with('-');
        if !flag && !value {
            named.push(*word);
        }
        value = flag && VALUED.contains(word);
    }
    named
}

/// The value of a flag, if it has been given.
fn value<'a>(words: &[&'a str], flags: &[&str]) -> Option<&'a str> {
    let at = words.iter().position(|word| flags.contains(word))?;
    words.get(at + 1).copied()
}

fn names(kind: &Kind, words: &[&str]) -> anyhow::Result<Vec<String>> {
    let paths = Paths::of(value(words, &["--name"]).unwrap_or("default"))?;
    match kind {
        Kind::Clusters => return Ok(mend::clusters(&paths)),
        Kind::Contexts => {
            let own = std::env::var("KUBECONFIG").ok();
            let file = cli::kubeconfig::user_path(own.as_deref(), &crate::paths::home()?);
            return Ok(cli::kubeconfig::contexts(&file));
        }
        Kind::Images => {
            let images = Client::of_images(&paths).images()?;
            return Ok(images.into_iter().flat_map(|image| image.tags).collect());
        }
        _ => {}
    }
    let own = objects::running(&paths);
    let text = |flags: &[&str]| value(words, flags).map(str::to_owned);
    let mut connection = Connection {
        namespace: text(&["-n", "--namespace"]),
        kubeconfig: text(&["--kubeconfig"]).map(Into::into),
        context: text(&["--context"]),
        name: text(&["--name"]),
        request_timeout: "0".into(),
        ..Connection::default()
    };
    // It knows the clusters of this machine alone.
    if matches!(words, ["trace", ..]) {
        connection.kubeconfig = own.clone();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let found =
            tokio::time::timeout(PATIENCE, known(kind, &connection, own.as_deref())).await?;
        found.map_err(|error| anyhow::anyhow!("{error}"))
    })
}

/// What a cluster knows.
async fn known(
    kind: &Kind,
    connection: &Connection,
    own: Option<&std::path::Path>,
) -> Result<Vec<String>, cli::objects::Error> {
    let session = Session::open(connection, own).await?;
    let namespace = Some(session.namespace.as_str());
    let listed = |list: &Value, prefix: &str| -> Vec<String> {
        let objects = list["items"].as_array().into_iter().flatten();
        let named = objects.filter_map(|object| object["metadata"]["name"].as_str());
        named.map(|name| format!("{prefix}{name}")).collect()
    };
    Ok(match kind {
        Kind::Types => {
            let kinds = session.kinds().await?;
            let mut words: Vec<String> =
                kinds.all().iter().filter(|r| r.allows("list")).map(|r| r.plural.clone()).collect();
            words.sort();
            words.dedup();
            words
        }
        Kind::Objects(of) => {
            let resource = session.kinds().await?.find(of)?.clone();
            listed(&session.api.get(&resource.path(namespace, "")).await?, "")
        }
        Kind::Containers(pod) => {
            let path = format!("/api/v1/namespaces/{}/pods/{pod}", session.namespace);
            let pod = session.api.get(&path).await?;
            let all = ["initContainers", "containers"]
                .into_iter()
                .filter_map(|list| pod["spec"][list].as_array());
            all.flatten().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
        }
        Kind::Namespaces => listed(&session.api.get("/api/v1/namespaces").await?, ""),
        _ => listed(
            &session.api.get(&format!("/api/v1/namespaces/{}/pods", session.namespace)).await?,
            "pod/",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_before_decide() {
        for (words, want) in [
            ("status --name", Some(Kind::Clusters)),
            ("why", Some(Kind::Pods)),
            ("why pod/a", None),
            ("why pod/a -n", Some(Kind::Namespaces)),
            ("trace -n shop", Some(Kind::Pods)),
            ("trace -o", None),
            ("get", Some(Kind::Types)),
            ("get -n shop", Some(Kind::Types)),
            ("get -A deployments", Some(Kind::Objects("deployments".into()))),
            ("describe node", Some(Kind::Objects("node".into()))),
            ("delete pod/a", None),
            ("top pod", Some(Kind::Objects("pod".into()))),
            ("logs -f", Some(Kind::Pods)),
            ("logs pod/a -c", Some(Kind::Containers("a".into()))),
            ("exec a -it -c", Some(Kind::Containers("a".into()))),
            ("image rm", Some(Kind::Images)),
            ("image", None),
            ("", None),
        ] {
            let words: Vec<&str> = words.split_whitespace().collect();
            assert_eq!(kind(&words), want, "{words:?}");
        }
        assert_eq!(value(&["why", "-n", "shop"], &["-n", "--namespace"]), Some("shop"));
        assert_eq!(value(&["why", "-n"], &["-n"]), None);
    }
}
