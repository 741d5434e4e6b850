//! Whom a container runs as, from its security context, its image, and the image's own
//! /etc/passwd and /etc/group, which are parsed here: NSS must not be asked.

use std::path::Path;

use serde_json::{Value, json};

use super::launch::UserRequest;
use super::rootfs;
use crate::shim::protocol::Identity;

/// Why the user of a container cannot be told. The texts are those of containerd and runc.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("uids and gids must be in range 0-{max}, not {0}", max = i32::MAX)]
    Range(i64),
    #[error(
        "{what} {id} does not exist on this node, which has only {ids}; `rootlet doctor` tells how to get more"
    )]
    Unmapped { what: &'static str, id: u32, ids: u64 },
    #[error(
        "supplemental groups cannot be set on this node, which has only one id; `rootlet doctor` tells how to get more"
    )]
    NoGroups,
}

/// Ids of the user namespace that containers live in (user_namespaces(7)).
#[derive(Debug, Default)]
pub struct Ids {
    /// First ids and counts.
    users: Vec<(u32, u32)>,
    groups: Vec<(u32, u32)>,
    /// Whether supplementary groups may be set; not so where a user mapped its own id alone.
    setgroups: bool,
}

impl Ids {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let read =
            |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        Self {
            users: ranges(&read("uid_map")),
            groups: ranges(&read("gid_map")),
            setgroups: read("setgroups").trim() != "deny",
        }
    }
}

fn ranges(map: &str) -> Vec<(u32, u32)> {
    map.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
        })
        .collect()
}

fn mapped(what: &'static str, id: u32, ranges: &[(u32, u32)]) -> Result<(), Error> {
    if ranges.iter().any(|(start, count)| id.checked_sub(*start).is_some_and(|at| at < *count)) {
        return Ok(());
    }
    let ids = ranges.iter().map(|(_, count)| u64::from(*count)).sum();
    Err(Error::Unmapped { what, id, ids })
}

/// A user with the directory that HOME names.
#[derive(Debug, PartialEq, Eq)]
pub struct Account {
    pub identity: Identity,
    pub home: String,
}

/// Resolves a request against the files of the root file system.
pub fn resolve(request: &UserRequest, root: &Path) -> Result<Account, Error> {
    let read = |path| rootfs::read(root, path).unwrap_or_default();
    resolve_in(request, &read("etc/passwd"), &read("etc/group"))
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Passwd { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((name, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or_default()))
    })
}

fn resolve_in(
    request: &UserRequest,
    passwd_text: &str,
    group_text: &str,
) -> Result<Account, Error> {
    let from_context = request
        .uid
        .map(|uid| uid.to_string())
        .or((!request.name.is_empty()).then(|| request.name.clone()));
    let (user, image_group) = match (&from_context, request.image.split_once(':')) {
        (Some(user), _) => (user.as_str(), None),
        (None, Some((user, group))) => (user, Some(group)),
        (None, None) => (request.image.as_str(), None),
    };
    let user = if user.is_empty() { "0" } else { user };

    let number = user.parse::<i64>().ok();
    let uid = number.map(id).transpose()?;
    let entry = passwd(passwd_text).find(|entry| entry.name == user || Some(entry.uid) == uid);
    let uid = match (&entry, uid) {
        (_, Some(uid)) => uid,
        (Some(entry), None) => entry.uid,
        (None, None) => return Err(Error::NoUser(user.to_owned())),
    };
    let gid = match (request.gid, image_group.filter(|group| !group.is_empty())) {
        (Some(gid), _) => id(gid)?,
        (None, Some(group)) => match group.parse::<i64>() {
            Ok(gid) => id(gid)?,
            Err(_) => groups(group_text)
                .find(|(name, ..)| *name == group)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| Error::NoGroup(group.to_owned()))?,
        },
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };

    let mut all = vec![gid];
    if let (false, Some(entry)) = (request.strict_groups, &entry) {
        let memberships = groups(group_text)
            .filter(|(.., members)| members.split(',').any(|member| member == entry.name));
        all.extend(memberships.map(|(_, gid, _)| gid));
    }
    for group in &request.groups {
        all.push(id(*group)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|gid| seen.insert(*gid));
    let home = entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/");
    Ok(Account { identity: Identity { uid, gid, groups: all }, home: home.to_owned() })
}

fn id(number: i64) -> Result<u32, Error> {
    u32::try_from(number).ok().filter(|id| i32::try_from(*id).is_ok()).ok_or(Error::Range(number))
}

impl Account {
    /// Checks that the ids exist. Groups that only the image speaks of are left out where none can be set.
    pub fn fit(&mut self, request: &UserRequest, ids: &Ids) -> Result<(), Error> {
        let identity = &mut self.identity;
        mapped("user", identity.uid, &ids.users)?;
        mapped("group", identity.gid, &ids.groups)?;
        if !ids.setgroups {
            let own = i64::from(identity.gid);
            if request.groups.iter().any(|group| *group != own) {
                return Err(Error::NoGroups);
            }
            identity.groups.clear();
        }
        identity.groups.iter().try_for_each(|group| mapped("group", *group, &ids.groups))
    }

    /// Writes user and HOME into an OCI spec.
    pub fn apply(&self, spec: &mut Value) {
        let identity = &self.identity;
        spec["process"]["user"] =
            json!({"uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups});
        if let Some(env) = spec["process"]["env"].as_array_mut() {
            // Without HOME libcontainer would ask the image's NSS libraries.
            env.retain(|entry| entry != "HOME=");
            if !env.iter().any(|entry| entry.as_str().is_some_and(|e| e.starts_with("HOME="))) {
                env.push(format!("HOME={}", self.home).into());
            }
        }
    }
}

/// The user of an OCI process.
pub fn identity_of(process: &Value) -> Identity {
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let user = &process["user"];
    Identity {
        uid: number(&user["uid"]),
        gid: number(&user["gid"]),
        groups: user["additionalGids"].as_array().into_iter().flatten().map(number).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\nbad line\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:40:root,web\n";

    fn request(image: &str) -> UserRequest {
        UserRequest { image: image.into(), ..UserRequest::default() }
    }

    #[test]
    fn users_are_found() {
        let with_uid = |uid| UserRequest { uid: Some(uid), ..request("web") };
        for (request, uid, gid, groups, home) in [
            (request(""), 0, 0, vec![0, 40], "/root"),
            (request("web"), 33, 34, vec![34, 40], "/var/www"),
            (request("33"), 33, 34, vec![34, 40], "/var/www"),
            (request("web:logs"), 33, 40, vec![40], "/var/www"),
            (request("1000:7"), 1000, 7, vec![7], "/"),
            (with_uid(1000), 1000, 0, vec![0], "/"),
            (UserRequest { gid: Some(5), ..with_uid(33) }, 33, 5, vec![5, 40], "/var/www"),
            (
                UserRequest { groups: vec![9, 40], ..with_uid(33) },
                33,
                34,
                vec![34, 40, 9],
                "/var/www",
            ),
            (UserRequest { strict_groups: true, ..with_uid(33) }, 33, 34, vec![34], "/var/www"),
            (
                UserRequest { name: "web".into(), ..request("root") },
                33,
                34,
                vec![34, 40],
                "/var/www",
            ),
        ] {
            let account = resolve_in(&request, PASSWD, GROUP).unwrap();
            let identity = Identity { uid, gid, groups };
            assert_eq!(account, Account { identity, home: home.into() }, "{request:?}");
        }
    }

    #[test]
    fn ids_must_exist_on_the_node() {
        let text = "         0       1500          1\n         1     100000      65536\n";
        let many = || Ids { users: ranges(text), groups: ranges(text), setgroups: true };
        let one = || Ids { users: vec![(0, 1)], groups: vec![(0, 1)], setgroups: false };
        let grouped = |groups| UserRequest { groups, ..request("0") };
        let user = |id, ids| Error::Unmapped { what: "user", id, ids };
        let group = |id, ids| Error::Unmapped { what: "group", id, ids };
        for (request, ids, want) in [
            (request("0"), many(), Ok(vec![0, 40])),
            (request("65536:65536"), many(), Ok(vec![65536])),
            (request("65537"), many(), Err(user(65537, 65537))),
            (request("1:70000"), many(), Err(group(70000, 65537))),
            (grouped(vec![70000]), many(), Err(group(70000, 65537))),
            (request("0"), one(), Ok(vec![])),
            (grouped(vec![0]), one(), Ok(vec![])),
            (grouped(vec![5]), one(), Err(Error::NoGroups)),
            (request("web"), one(), Err(user(33, 1))),
        ] {
            let mut account = resolve_in(&request, PASSWD, GROUP).unwrap();
            let fits = account.fit(&request, &ids).map(|()| account.identity.groups);
            assert_eq!(fits, want, "{request:?} {ids:?}");
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        for (image, error) in [
            ("nobody", Error::NoUser("nobody".into())),
            ("web:none", Error::NoGroup("none".into())),
            ("-1", Error::Range(-1)),
            ("4294967295", Error::Range(4_294_967_295)),
        ] {
            assert_eq!(resolve_in(&request(image), PASSWD, GROUP), Err(error));
        }
    }

    #[test]
    fn home_is_always_set() {
        let account = Account { identity: Identity::default(), home: "/root".into() };
        for (env, expected) in [
            (json!([]), json!(["HOME=/root"])),
            (json!(["HOME="]), json!(["HOME=/root"])),
            (json!(["HOME=/x", "A=b"]), json!(["HOME=/x", "A=b"])),
        ] {
            let mut spec = json!({"process": {"env": env}});
            account.apply(&mut spec);
            assert_eq!(spec["process"]["env"], expected);
        }
    }
}
