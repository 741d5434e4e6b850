//! What a shell offers at the end of a command line that is being written: names that only a cluster knows. The rest
//! is in the scripts that clap makes.

use std::time::Duration;

use crate::control::{self, Client};
use crate::mend;
use crate::paths::Paths;

/// A shell that waits longer is in the way.
const PATIENCE: Duration = Duration::from_secs(2);

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

/// What the last word may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Clusters,
    Contexts,
    Namespaces,
    Pods,
    Images,
}

/// Prints the names, a line each; nothing where there are none, or no way to know them.
pub fn print(words: &[String]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some(kind) = kind(&words) else { return };
    // A shell has no use for an error in the middle of a line.
    for name in names(kind, &words).unwrap_or_default() {
        println!("{name}");
    }
}

/// Decides by the words before the one that is being written.
fn kind(words: &[&str]) -> Option<Kind> {
    match words {
        [.., "--name"] => Some(Kind::Clusters),
        [.., "--context"] => Some(Kind::Contexts),
        [.., "-n" | "--namespace"] => Some(Kind::Namespaces),
        ["image", "rm" | "save", ..] => Some(Kind::Images),
        [.., last] if last.starts_with('-') => None,
        ["why" | "trace" | "exec" | "port-forward" | "logs", ..] => {
            let named = words[1..].iter().any(|word| word.starts_with("pod/"));
            (!named).then_some(Kind::Pods)
        }
        _ => None,
    }
}

/// The value of a flag, if it has been given.
fn value<'a>(words: &[&'a str], flags: &[&str]) -> Option<&'a str> {
    let at = words.iter().position(|word| flags.contains(word))?;
    words.get(at + 1).copied()
}

fn names(kind: Kind, words: &[&str]) -> anyhow::Result<Vec<String>> {
    let paths = Paths::of(value(words, &["--name"]).unwrap_or("default"))?;
    let namespace = value(words, &["-n", "--namespace"]).unwrap_or("default");
    let path = match kind {
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
        Kind::Namespaces => "/api/v1/namespaces".to_owned(),
        Kind::Pods => format!("/api/v1/namespaces/{namespace}/pods"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let list = runtime.block_on(async {
        let client = control::api(&paths).await?;
        anyhow::Ok(tokio::time::timeout(PATIENCE, cli::report::get(&client, &path)).await??)
    })?;
    let objects = list["items"].as_array().into_iter().flatten();
    let named = objects.filter_map(|object| object["metadata"]["name"].as_str());
    Ok(match kind {
        Kind::Pods => named.map(|name| format!("pod/{name}")).collect(),
        _ => named.map(str::to_owned).collect(),
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
