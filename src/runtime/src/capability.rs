//! Capability sets from a security context.

use k8s_cri::v1;

use crate::oci::launch::Capabilities;

/// What a container gets without asking, in every common runtime.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All capabilities, by name without `CAP_`.
fn all() -> Vec<String> {
    let mut names: Vec<String> =
        caps::all().iter().map(ToString::to_string).map(|name| bare(&name)).collect();
    names.sort();
    names
}

fn bare(name: &str) -> String {
    let upper = name.to_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

/// The sets for a container; an unknown name is an error with that name.
pub fn resolve(context: &v1::LinuxContainerSecurityContext) -> Result<Capabilities, String> {
    let known = all();
    if context.privileged {
        return Ok(Capabilities { allowed: known, ambient: Vec::new() });
    }
    let request = context.capabilities.clone().unwrap_or_default();
    let names = |list: &[String]| -> Result<Vec<String>, String> {
        let names = list.iter().map(|name| bare(name));
        names
            .map(|name| if name == "ALL" || known.contains(&name) { Ok(name) } else { Err(name) })
            .collect()
    };
    let (add, drop) = (names(&request.add_capabilities)?, names(&request.drop_capabilities)?);
    let ambient = names(&request.add_ambient_capabilities)?;
    let has_all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let mut allowed: Vec<String> = DEFAULT.map(str::to_owned).to_vec();
    if has_all(&add) {
        allowed.clone_from(&known);
    }
    if has_all(&drop) {
        allowed.clear();
    }
    allowed.extend(add.into_iter().chain(ambient.iter().cloned()).filter(|name| name != "ALL"));
    allowed.retain(|name| !drop.contains(name));
    allowed.sort();
    allowed.dedup();
    Ok(Capabilities { allowed, ambient })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(add: &[&str], drop: &[&str]) -> Vec<String> {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = v1::Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            add_ambient_capabilities: Vec::new(),
        };
        let context = v1::LinuxContainerSecurityContext {
            capabilities: Some(capabilities),
            ..Default::default()
        };
        resolve(&context).unwrap().allowed
    }

    #[test]
    fn add_and_drop_combine_as_upstream() {
        assert_eq!(resolved(&[], &[]).len(), DEFAULT.len());
        assert!(resolved(&["NET_ADMIN"], &[]).contains(&"NET_ADMIN".to_owned()));
        assert!(!resolved(&[], &["cap_kill"]).contains(&"KILL".to_owned()));
        assert_eq!(resolved(&["NET_BIND_SERVICE"], &["ALL"]), ["NET_BIND_SERVICE"]);
        assert_eq!(resolved(&["ALL"], &["ALL"]), Vec::<String>::new());
        let most = resolved(&["ALL"], &["SYS_ADMIN"]);
        assert!(most.len() > 30 && !most.contains(&"SYS_ADMIN".to_owned()));
    }

    #[test]
    fn unknown_names_are_refused() {
        let capabilities =
            v1::Capability { add_capabilities: vec!["FLY".into()], ..Default::default() };
        let context = v1::LinuxContainerSecurityContext {
            capabilities: Some(capabilities),
            ..Default::default()
        };
        assert_eq!(resolve(&context), Err("FLY".to_owned()));
    }
}
