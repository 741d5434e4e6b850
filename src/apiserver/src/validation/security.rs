//! Rules for security contexts, of pods and of containers, and for what belongs to another operating system.
//!
//! Source: `ValidateSecurityContext`, `ValidatePodSecurityContext` and `validateOS` of
//! `k8s.io/kubernetes/pkg/apis/core/validation`.

use apimachinery::field::{Error, ErrorList, Path};
use serde_json::Value;

use super::container::local_path;
use super::{mistakes, one_of};
use crate::zero::Zero;

const PROFILE_MAX: usize = 4095;
const CREDENTIAL_SPEC_MAX: usize = 64 * 1024;

/// A container's context; `host_users` says whether the pod's users are the node's.
pub fn container(context: &Value, path: &Path, host_users: bool, errors: &mut ErrorList) {
    if context.is_null() {
        return;
    }
    for name in ["runAsUser", "runAsGroup"] {
        id(&context[name], &path.child(name), errors);
    }
    let (mount, at) = (&context["procMount"], path.child("procMount"));
    if let Some(mount) = mount.as_str() {
        one_of(errors, &at, mount, &["Default", "Unmasked"]);
        if host_users && mount == "Unmasked" {
            let detail = "`hostUsers` must be false to use `Unmasked`";
            errors.push(Error::invalid(&at, mount, detail));
        }
    }
    seccomp(&context["seccompProfile"], &path.child("seccompProfile"), errors);
    if context["allowPrivilegeEscalation"].as_bool() == Some(false) {
        if context["privileged"].flag() {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(Error::invalid(path, context.clone(), detail));
        }
        let added = &context["capabilities"]["add"];
        if added.texts().any(|capability| capability == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(Error::invalid(path, context.clone(), detail));
        }
    }
    windows_options(&context["windowsOptions"], &path.child("windowsOptions"), errors);
    app_armor(&context["appArmorProfile"], &path.child("appArmorProfile"), errors);
}

/// A user or group id.
pub fn id(value: &Value, path: &Path, errors: &mut ErrorList) {
    if value.is_set() && !(0..=i64::from(i32::MAX)).contains(&value.int()) {
        let detail = "must be between 0 and 2147483647, inclusive";
        errors.push(Error::invalid(path, value.int(), detail));
    }
}

/// A seccomp profile.
pub fn seccomp(profile: &Value, path: &Path, errors: &mut ErrorList) {
    if profile.is_null() {
        return;
    }
    let (kind, local) = (profile["type"].text(), &profile["localhostProfile"]);
    let at = path.child("localhostProfile");
    if kind.is_empty() {
        let detail = "type is required when seccompProfile is set";
        errors.push(Error::required(&path.child("type"), detail));
    } else {
        let known = ["Localhost", "RuntimeDefault", "Unconfined"];
        one_of(errors, &path.child("type"), kind, &known);
    }
    match (kind, local.as_str()) {
        ("Localhost", None | Some("")) => {
            errors.push(Error::required(&at, "must be set when seccomp type is Localhost"));
        }
        ("Localhost", Some(file)) => local_path(file, &at, errors),
        (_, Some(_)) => {
            let detail = "can only be set when seccomp type is Localhost";
            errors.push(Error::invalid(&at, profile.clone(), detail));
        }
        (_, None) => {}
    }
}

/// An AppArmor profile (`ValidateAppArmorProfileField`).
pub fn app_armor(profile: &Value, path: &Path, errors: &mut ErrorList) {
    if profile.is_null() {
        return;
    }
    let (kind, local) = (profile["type"].text(), profile["localhostProfile"].as_str());
    let at = path.child("localhostProfile");
    match kind {
        "Localhost" => match local {
            None => {
                errors.push(Error::required(&at, "must be set when AppArmor type is Localhost"));
            }
            Some(name) if name.trim() != name => {
                let detail = "must not be padded with whitespace";
                errors.push(Error::invalid(&at, name.trim(), detail));
            }
            Some("") => {
                errors.push(Error::required(&at, "must be set when AppArmor type is Localhost"));
            }
            Some(name) if name.len() > PROFILE_MAX => {
                errors.push(Error::too_long(&at, PROFILE_MAX));
            }
            Some(_) => {}
        },
        "RuntimeDefault" | "Unconfined" => {
            if let Some(name) = local {
                let detail = "can only be set when AppArmor type is Localhost";
                errors.push(Error::invalid(&at, name, detail));
            }
        }
        "" => {
            let detail = "type is required when appArmorProfile is set";
            errors.push(Error::required(&path.child("type"), detail));
        }
        other => {
            let known = ["Localhost", "RuntimeDefault", "Unconfined"];
            errors.push(Error::not_supported(&path.child("type"), other, &known));
        }
    }
}

fn windows_options(options: &Value, path: &Path, errors: &mut ErrorList) {
    if let Some(name) = options["gmsaCredentialSpecName"].as_str() {
        let at = path.child("gmsaCredentialSpecName");
        mistakes(errors, &at, name, apimachinery::names::dns_subdomain(name));
    }
    if let Some(contents) = options["gmsaCredentialSpec"].as_str() {
        let at = path.child("gmsaCredentialSpec");
        if contents.is_empty() {
            let detail = "gmsaCredentialSpec cannot be an empty string";
            errors.push(Error::invalid(&at, "", detail));
        } else if contents.len() > CREDENTIAL_SPEC_MAX {
            let detail = "gmsaCredentialSpec size must be under 64 KiB";
            errors.push(Error::invalid(&at, contents, detail));
        }
    }
    if let Some(user) = options["runAsUserName"].as_str() {
        let at = path.child("runAsUserName");
        if user.is_empty() {
            let detail = "runAsUserName cannot be an empty string";
            errors.push(Error::invalid(&at, "", detail));
        } else if user.chars().any(char::is_control) {
            let detail = "runAsUserName cannot contain control characters";
            errors.push(Error::invalid(&at, user, detail));
        } else if user.matches('\\').count() > 1 {
            let detail = "runAsUserName cannot contain more than one backslash";
            errors.push(Error::invalid(&at, user, detail));
        }
    }
}

/// What pods of Windows cannot have.
const OF_LINUX: [&str; 12] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seLinuxChangePolicy",
    "shareProcessNamespace",
];
const OF_LINUX_CONTAINERS: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// `spec.os`, and that nothing in the pod belongs to the other system.
pub fn os(spec: &Value, path: &Path, errors: &mut ErrorList) {
    if spec["os"].is_null() {
        return;
    }
    let (name, at) = (spec["os"]["name"].text(), path.child("os").child("name"));
    if name.is_empty() {
        errors.push(Error::required(&at, "cannot be empty"));
        return;
    }
    one_of(errors, &at, name, &["linux", "windows"]);
    let (detail, of_pod, of_container) = match name {
        "linux" => {
            let keys = &["windowsOptions"][..];
            ("windows options cannot be set for a linux pod", keys, keys)
        }
        "windows" => ("cannot be set for a windows pod", &OF_LINUX[..], &OF_LINUX_CONTAINERS[..]),
        _ => return,
    };
    let mut refuse = |context: &Value, keys: &[&str], path: &Path| {
        for key in keys.iter().filter(|key| context[**key].is_set()) {
            errors.push(Error::forbidden(&path.child(key), detail));
        }
    };
    let context = path.child("securityContext");
    refuse(&spec["securityContext"], of_pod, &context);
    if name == "windows" {
        refuse(spec, &["hostPID", "hostIPC", "hostUsers"], path);
        refuse(spec, &["shareProcessNamespace"], path);
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (index, container) in spec[list].items().iter().enumerate() {
            let at = path.child(list).index(index).child("securityContext");
            refuse(&container["securityContext"], of_container, &at);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validation::told;

    #[test]
    fn contexts_are_checked() {
        for (context, want) in [
            (
                json!({"procMount": "Unmasked"}),
                "c.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
            ),
            (
                json!({"seccompProfile": {"type": "Localhost"}}),
                "c.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
            ),
            (
                json!({"appArmorProfile": {}}),
                "c.appArmorProfile.type: Required value: type is required when appArmorProfile is set",
            ),
            (
                json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": " a"}}),
                "c.appArmorProfile.localhostProfile: Invalid value: \"a\": must not be padded with whitespace",
            ),
            (
                json!({"appArmorProfile": {"type": "Unconfined", "localhostProfile": "a"}}),
                "c.appArmorProfile.localhostProfile: Invalid value: \"a\": can only be set when AppArmor type is Localhost",
            ),
            (
                json!({"windowsOptions": {"runAsUserName": ""}}),
                "c.windowsOptions.runAsUserName: Invalid value: \"\": runAsUserName cannot be an empty string",
            ),
        ] {
            let got = told(|errors| container(&context, &Path::new("c"), true, errors));
            assert_eq!(got, [want]);
        }
    }

    #[test]
    fn systems_are_not_mixed() {
        let spec = json!({"os": {"name": "windows"}, "hostPID": true,
            "containers": [{"securityContext": {"privileged": true}}]});
        assert_eq!(
            told(|errors| os(&spec, &Path::new("spec"), errors)),
            [
                "spec.hostPID: Forbidden: cannot be set for a windows pod",
                "spec.containers[0].securityContext.privileged: Forbidden: cannot be set for a windows pod",
            ]
        );
    }
}
