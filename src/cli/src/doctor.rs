//! What `rootlet doctor` found, and how it is told.

use std::fmt::Write;

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// rootlet works, with less.
    Limited,
    /// rootlet cannot start.
    Broken,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it, as commands; empty when nothing is to be done.
    pub remedy: String,
}

impl Check {
    /// Nothing to mend.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, found: found.into(), remedy: String::new() }
    }

    /// Something is less than it could be.
    pub fn limited(
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name, level: Level::Limited, found: found.into(), remedy: remedy.into() }
    }

    /// Nothing will work until it is mended.
    pub fn broken(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, level: Level::Broken, found: found.into(), remedy: remedy.into() }
    }
}

/// The findings, a line each, with the remedies below those that need one.
pub fn text(checks: &[Check]) -> String {
    let mut out = String::new();
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    for check in checks {
        let mark = match check.level {
            Level::Ok => "ok     ",
            Level::Limited => "limited",
            Level::Broken => "broken ",
        };
        let _ = writeln!(out, "{mark}  {:width$}  {}", check.name, check.found);
        for line in check.remedy.lines() {
            let _ = writeln!(out, "{:>9}{:width$}  {line}", "", "");
        }
    }
    let of = |level| checks.iter().filter(|check| check.level == level).count();
    let _ = match (of(Level::Broken), of(Level::Limited)) {
        (0, 0) => writeln!(out, "\nEverything rootlet uses is here."),
        (0, limited) => {
            writeln!(out, "\nrootlet works here; {limited} of its features are limited.")
        }
        (broken, _) => writeln!(out, "\nrootlet cannot start here: {broken} to mend first."),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_stand_below_their_finding() {
        let checks = [
            Check::ok("overlay", "works in a user namespace"),
            Check::limited("cgroups", "not delegated", "systemctl …\nlog in again"),
        ];
        insta::assert_snapshot!(text(&checks), @r"
        ok       overlay  works in a user namespace
        limited  cgroups  not delegated
                          systemctl …
                          log in again

        rootlet works here; 1 of its features are limited.
        ");
    }
}
