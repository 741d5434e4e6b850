//! The command line's own description, as one page of Markdown and as manual pages (man-pages(7)), so that neither
//! can say anything else than `--help`.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command};

/// What is to be said of one command.
#[derive(Debug)]
struct Page {
    /// Such as `rootlet image load`.
    name: String,
    about: String,
    usage: String,
    options: Vec<(String, String)>,
    subcommands: Vec<(String, String)>,
    after: String,
}

/// The commands of `root`, itself first, each followed by those below it.
fn pages(mut root: Command) -> Vec<Page> {
    root.build();
    let mut found = Vec::new();
    collect(&root, root.get_name(), &mut found);
    found
}

fn collect(command: &Command, name: &str, found: &mut Vec<Page>) {
    let text = |styled: Option<&clap::builder::StyledStr>| {
        styled.map(ToString::to_string).unwrap_or_default()
    };
    let shown = || command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let usage = command.clone().render_usage().to_string();
    // Of every command, so said once.
    let everywhere = |arg: &&Arg| ["help", "version", "quiet"].contains(&arg.get_id().as_str());
    let arguments = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let top = !name.contains(' ');
    found.push(Page {
        name: name.to_owned(),
        about: text(command.get_about()),
        usage: usage.trim_start_matches("Usage: ").trim().to_owned(),
        options: arguments.filter(|arg| top || !everywhere(arg)).map(option).collect(),
        subcommands: shown()
            .map(|sub| (sub.get_name().to_owned(), text(sub.get_about())))
            .collect(),
        after: text(command.get_after_help()),
    });
    for sub in shown() {
        collect(sub, &format!("{name} {}", sub.get_name()), found);
    }
}

/// An argument as it is written, and what it means.
fn option(arg: &Arg) -> (String, String) {
    let names = arg.get_value_names().unwrap_or_default();
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let values = if takes { names.join(" ") } else { String::new() };
    let mut written = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, Some(long)) => format!("--{long}"),
        (None, None) => {
            return (values, arg.get_help().map(ToString::to_string).unwrap_or_default());
        }
    };
    if !values.is_empty() {
        let _ = write!(written, " {values}");
    }
    let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let possible: Vec<String> = if takes {
        let shown = arg.get_possible_values().into_iter().filter(|value| !value.is_hide_set());
        shown.map(|value| value.get_name().to_owned()).collect()
    } else {
        Vec::new()
    };
    // Some are told in the text.
    if possible.iter().any(|value| !help.contains(value.as_str())) {
        let _ = write!(help, " [possible values: {}]", possible.join(", "));
    }
    let plain = |value: &&std::ffi::OsStr| !value.is_empty();
    let defaults: Vec<_> =
        arg.get_default_values().iter().map(AsRef::as_ref).filter(plain).collect();
    if let (true, Some(default)) = (takes, defaults.first()) {
        let _ = write!(help, " [default: {}]", default.to_string_lossy());
    }
    if let Some(variable) = arg.get_env() {
        let _ = write!(help, " [env: {}]", variable.to_string_lossy());
    }
    (written, help)
}

/// Everything on one page.
pub fn markdown(root: Command) -> String {
    let mut out = String::from(
        "# Reference\n\nWhat `rootlet --help` and `rootlet COMMAND --help` say. Written by `make reference`.\n",
    );
    for page in pages(root) {
        let _ = write!(out, "\n## {}\n\n{}\n\n", page.name, sentence(&page.about));
        let _ = write!(out, "```\n{}\n```\n", page.usage);
        if !page.options.is_empty() {
            out.push_str("\n| | |\n|---|---|\n");
        }
        for (written, help) in &page.options {
            let help = help.replace('|', "\\|").replace('\n', " ");
            let _ = writeln!(out, "| `{}` | {help} |", written.replace('|', "\\|"));
        }
        if !page.subcommands.is_empty() {
            out.push_str("\n| | |\n|---|---|\n");
        }
        for (name, about) in &page.subcommands {
            let whole = format!("{} {name}", page.name);
            let anchor = whole.replace(' ', "-");
            let _ = writeln!(out, "| [`{name}`](#{anchor}) | {} |", about.replace('|', "\\|"));
        }
        if !page.after.is_empty() {
            let _ = write!(out, "\n```\n{}\n```\n", page.after.trim_end());
        }
    }
    out
}

fn sentence(about: &str) -> String {
    let about = about.trim_end_matches('.');
    format!("{about}.")
}

/// The manual pages: their files' names and texts.
pub fn manual(root: Command, version: &str) -> Vec<(String, String)> {
    let pages = pages(root);
    let names: Vec<String> = pages.iter().map(|page| page.name.replace(' ', "-")).collect();
    let manual = pages.iter().zip(&names).map(|(page, name)| {
        let mut out = format!(
            ".TH {} 1 \"\" \"rootlet {version}\" \"User Commands\"\n.SH NAME\n{} \\- {}\n",
            name.to_uppercase(),
            roff(name),
            roff(page.about.trim_end_matches('.'))
        );
        let _ = write!(out, ".SH SYNOPSIS\n.nf\n{}\n.fi\n", roff(&page.usage));
        for (heading, entries) in [("OPTIONS", &page.options), ("COMMANDS", &page.subcommands)] {
            if entries.is_empty() {
                continue;
            }
            let _ = writeln!(out, ".SH {heading}");
            for (written, help) in entries {
                let written = if heading == "COMMANDS" {
                    format!("{} {written}", page.name)
                } else {
                    written.clone()
                };
                let _ = write!(out, ".TP\n\\fB{}\\fR\n{}\n", roff(&written), roff(help));
            }
        }
        if !page.after.is_empty() {
            let _ = write!(out, ".SH NOTES\n.nf\n{}\n.fi\n", roff(page.after.trim_end()));
        }
        let others: Vec<String> = names
            .iter()
            .filter(|other| *other != name && related(name, other))
            .map(|other| format!("\\fB{}\\fR(1)", roff(other)))
            .collect();
        if !others.is_empty() {
            let _ = write!(out, ".SH SEE ALSO\n{}\n", others.join(", "));
        }
        (format!("{name}.1"), out)
    });
    manual.collect()
}

/// One is directly above the other.
fn related(one: &str, other: &str) -> bool {
    let above = |parent: &str, child: &str| {
        child
            .strip_prefix(parent)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|rest| !rest.contains('-'))
    };
    above(one, other) || above(other, one)
}

/// Text as groff(7) reads it.
fn roff(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_reference_in_the_documentation_is_what_the_command_line_says() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference.md");
        let written = std::fs::read_to_string(file).unwrap_or_default();
        let said = markdown(crate::args::Cli::command());
        let differs = written.lines().zip(said.lines()).find(|(written, said)| written != said);
        assert!(
            written == said,
            "docs/reference.md is not what the command line says, first at {differs:?}; run `make reference`"
        );
    }

    #[test]
    fn manual_pages_are_of_every_command() {
        let manual = manual(crate::args::Cli::command(), "1.0");
        let page = |name: &str| {
            let found = manual.iter().find(|(file, _)| file == name);
            found.unwrap_or_else(|| panic!("{name}")).1.as_str()
        };
        assert!(page("rootlet.1").contains("\\fB\\-q, \\-\\-quiet\\fR"));
        let load = page("rootlet-image-load.1");
        assert!(load.contains("rootlet\\-image\\-load \\- Load archives"), "{load}");
        assert!(load.contains(".SH SEE ALSO\n\\fBrootlet\\-image\\fR(1)"), "{load}");
        for (file, text) in &manual {
            assert!(!text.lines().any(|line| line.starts_with('\'')), "{file}");
        }
    }

    #[test]
    fn text_is_not_taken_for_requests() {
        assert_eq!(roff(".x\n'y\na-b\\n"), "\\&.x\n\\&'y\na\\-b\\en");
    }
}
