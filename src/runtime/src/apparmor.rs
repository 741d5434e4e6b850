//! AppArmor: which profile of the node a container enters. Only root could load another one.

use std::path::Path;

use k8s_cri::v1;
use k8s_cri::v1::security_profile::ProfileType;

use crate::error::Error;

/// Says whether the kernel uses AppArmor.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// A folder for each profile that is loaded, with its name in a file (securityfs, `security/apparmor/apparmorfs.c`).
const LOADED: &str = "/sys/kernel/security/apparmor/policy/profiles";

/// The profile to enter; an error when there is none of that name.
pub fn profile(security: &v1::LinuxContainerSecurityContext) -> Result<Option<String>, Error> {
    let Some(name) = wanted(security)?.filter(|_| !security.privileged) else { return Ok(None) };
    let refuse =
        |why: &str| Err(Error::FailedPrecondition(format!("AppArmor profile {name:?}: {why}")));
    if !std::fs::read_to_string(ENABLED).is_ok_and(|answer| answer.starts_with('Y')) {
        return refuse("this kernel does not use AppArmor");
    }
    // Where the list cannot be seen, the start of the container will tell.
    if loaded(Path::new(LOADED), name) == Some(false) {
        return refuse("it is not loaded");
    }
    Ok(Some(name.to_owned()))
}

/// The profile asked for by name, in the field of today or else in the deprecated one, which tells everything in one
/// word.
fn wanted(security: &v1::LinuxContainerSecurityContext) -> Result<Option<&str>, Error> {
    let name_of = |text| str::strip_prefix(text, "localhost/");
    if let Some(profile) = &security.apparmor {
        let name = &profile.localhost_ref;
        let named = profile.profile_type() == ProfileType::Localhost;
        return Ok(named.then(|| name_of(name).unwrap_or(name)));
    }
    #[allow(deprecated)]
    match security.apparmor_profile.as_str() {
        "" | "runtime/default" | "unconfined" => Ok(None),
        text => name_of(text)
            .map(Some)
            .ok_or_else(|| Error::InvalidArgument(format!("invalid AppArmor profile {text:?}"))),
    }
}

/// Whether `name` is loaded; `None` where that cannot be seen.
fn loaded(folder: &Path, name: &str) -> Option<bool> {
    let mut profiles = std::fs::read_dir(folder).ok()?.flatten();
    Some(profiles.any(|profile| {
        std::fs::read_to_string(profile.path().join("name")).is_ok_and(|own| own.trim_end() == name)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_named_in_either_field() {
        let field = |profile_type: ProfileType, name: &str| {
            let localhost_ref = name.to_owned();
            Some(v1::SecurityProfile { profile_type: profile_type.into(), localhost_ref })
        };
        let local = ProfileType::Localhost;
        let cases = [
            (None, "", Ok(None)),
            (None, "runtime/default", Ok(None)),
            (None, "unconfined", Ok(None)),
            (None, "localhost/old", Ok(Some("old"))),
            (None, "old", Err(())),
            (field(local, "localhost/new"), "localhost/old", Ok(Some("new"))),
            (field(local, "new"), "", Ok(Some("new"))),
            (field(ProfileType::Unconfined, ""), "localhost/old", Ok(None)),
        ];
        for (apparmor, old, want) in cases {
            #[allow(deprecated)]
            let security = v1::LinuxContainerSecurityContext {
                apparmor,
                apparmor_profile: old.to_owned(),
                ..Default::default()
            };
            assert_eq!(wanted(&security).map_err(drop), want, "{security:?}");
        }
    }

    #[test]
    fn what_is_loaded_is_known_by_its_whole_name() {
        let folder = tempfile::tempdir().unwrap();
        for (id, name) in [("usr.bin.man.1", "/usr/bin/man\n"), ("web.7", "web\n")] {
            let own = folder.path().join(id);
            std::fs::create_dir(&own).unwrap();
            std::fs::write(own.join("name"), name).unwrap();
        }
        for (name, want) in [("web", true), ("we", false), ("/usr/bin/man", true)] {
            assert_eq!(loaded(folder.path(), name), Some(want), "{name}");
        }
        assert_eq!(loaded(&folder.path().join("none"), "web"), None);
    }
}
