//! Seccomp profiles: RuntimeDefault from our own table, Localhost from a JSON file of the node;
//! compiled to BPF once and kept as files, since compiling costs more than starting a container.

mod profile;
mod syscalls;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use k8s_cri::v1;

pub use profile::{Profile, ProfileError};

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("compile seccomp profile")]
    Compile(#[from] seccompiler::BackendError),
    #[error("write seccomp program {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// The profile a container asks for; `None` leaves it unconfined, as does saying nothing (CRI:
/// LinuxContainerSecurityContext). Privileged containers have none.
pub fn requested(
    security: &v1::LinuxContainerSecurityContext,
    capabilities: &[String],
) -> Result<Option<Profile>, Error> {
    use v1::security_profile::ProfileType;
    if security.privileged {
        return Ok(None);
    }
    let Some(profile) = &security.seccomp else { return Ok(None) };
    let (kind, file) = (profile.profile_type(), profile.localhost_ref.as_str());
    match kind {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(Profile::runtime_default(capabilities))),
        ProfileType::Localhost => {
            let path = Path::new(file.strip_prefix("localhost/").unwrap_or(file));
            Ok(Some(Profile::read(path, capabilities)?))
        }
    }
}

/// One program per distinct answer: seccompiler gives all matches of a filter one action, and of
/// several installed filters the most severe answer counts (seccomp(2)).
fn compile(profile: &Profile) -> Result<Vec<BpfProgram>, Error> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let mut programs = Vec::new();
    // What the profile answers with an action other than its commonest one is let through by the
    // first program and stopped by one of the others.
    let mut others: BTreeMap<profile::Action, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
    let mut main: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut unconditional: BTreeSet<i64> = BTreeSet::new();
    for rule in &profile.rules {
        for name in &rule.names {
            let Some(number) = syscalls::number(name) else { continue };
            if rule.action != profile::Action::Allow && rule.action != profile.default {
                let rules = others.entry(rule.action).or_default().entry(number).or_default();
                rules.extend(conditions(&rule.arguments)?);
            }
            if rule.action == profile.default || unconditional.contains(&number) {
                continue;
            }
            // An empty list of rules matches whatever the arguments are.
            if rule.arguments.is_empty() {
                main.insert(number, Vec::new());
                unconditional.insert(number);
            } else {
                main.entry(number).or_default().extend(conditions(&rule.arguments)?);
            }
        }
    }
    if profile.default != profile::Action::Allow {
        programs.push(by_halves(main, profile.default.into(), arch)?);
    }
    for (action, rules) in others {
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, action.into(), arch)?;
        programs.push(filter.try_into()?);
    }
    Ok(programs)
}

/// The program that allows what `rules` say.
fn by_halves(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    default: SeccompAction,
    arch: TargetArch,
) -> Result<BpfProgram, Error> {
    let allow = tree::Answer::Return(SeccompAction::Allow.into());
    let answer =
        |rules: &Vec<SeccompRule>| if rules.is_empty() { allow } else { tree::Answer::Rest };
    let answers = rules
        .iter()
        .filter_map(|(number, rules)| Some((u32::try_from(*number).ok()?, answer(rules))))
        .collect();
    let conditional = rules.into_iter().filter(|(_, rules)| !rules.is_empty()).collect();
    let rest = SeccompFilter::new(conditional, default.clone(), SeccompAction::Allow, arch)?;
    Ok(tree::program(&answers, default.into(), &rest.try_into()?))
}

fn conditions(arguments: &[profile::Argument]) -> Result<Option<SeccompRule>, Error> {
    if arguments.is_empty() {
        return Ok(None);
    }
    let conditions = arguments.iter().map(|argument| {
        let operator = match argument.op {
            profile::Operator::Equal => SeccompCmpOp::Eq,
            profile::Operator::NotEqual => SeccompCmpOp::Ne,
            profile::Operator::Less => SeccompCmpOp::Lt,
            profile::Operator::LessOrEqual => SeccompCmpOp::Le,
            profile::Operator::Greater => SeccompCmpOp::Gt,
            profile::Operator::GreaterOrEqual => SeccompCmpOp::Ge,
            profile::Operator::MaskedEqual => SeccompCmpOp::MaskedEq(argument.value),
        };
        let value = if argument.op == profile::Operator::MaskedEqual {
            argument.value_two
        } else {
            argument.value
        };
        SeccompCondition::new(argument.index, SeccompCmpArgLen::Qword, operator, value)
    });
    let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
    Ok(Some(SeccompRule::new(conditions)?))
}

/// Compiles a profile into files below `cache`, unless they are there already, and names them in
/// the order in which to install them.
pub fn programs(profile: &Profile, cache: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), profile).hash(&mut hasher);
    let key = format!("{:016x}", hasher.finish());
    let list = cache.join(format!("{key}.count"));
    let path = |index: usize| cache.join(format!("{key}.{index}.bpf"));
    if let Some(count) =
        std::fs::read_to_string(&list).ok().and_then(|text| text.trim().parse::<usize>().ok())
    {
        return Ok((0..count).map(path).collect());
    }
    let write = |path: &Path, bytes: &[u8]| {
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        std::fs::create_dir_all(cache)
            .and_then(|()| std::fs::write(&temporary, bytes))
            .and_then(|()| std::fs::rename(&temporary, path))
            .map_err(|source| Error::Write { path: path.to_owned(), source })
    };
    let programs = compile(profile)?;
    for (index, program) in programs.iter().enumerate() {
        let bytes: Vec<u8> =
            program.iter().flat_map(|i| instruction_bytes(i.code, i.jt, i.jf, i.k)).collect();
        write(&path(index), &bytes)?;
    }
    write(&list, programs.len().to_string().as_bytes())?;
    Ok((0..programs.len()).map(path).collect())
}

/// The layout of `struct sock_filter`.
fn instruction_bytes(code: u16, jt: u8, jf: u8, k: u32) -> [u8; 8] {
    let (code, k) = (code.to_ne_bytes(), k.to_ne_bytes());
    [code[0], code[1], jt, jf, k[0], k[1], k[2], k[3]]
}

/// Reads a program written by [`programs`].
pub fn read_program(path: &Path) -> io::Result<Vec<libc::sock_filter>> {
    let bytes = std::fs::read(path)?;
    let instructions = bytes.as_chunks::<8>().0.iter().map(|b| libc::sock_filter {
        code: u16::from_ne_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
    });
    Ok(instructions.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_compiled_once() {
        let cache = tempfile::tempdir().unwrap();
        let profile = Profile::runtime_default(&[]);
        let first = programs(&profile, cache.path()).unwrap();
        assert_eq!(first.len(), 2, "allow list, and ENOSYS for clone3");
        let program = read_program(&first[0]).unwrap();
        assert!(program.len() > 100 && program.len() < 4096, "{}", program.len());
        std::fs::write(&first[0], b"").unwrap();
        assert_eq!(programs(&profile, cache.path()).unwrap(), first);
        assert!(read_program(&first[0]).unwrap().is_empty(), "not compiled again");
        let other = Profile::runtime_default(&["SYS_ADMIN".to_owned()]);
        assert_ne!(programs(&other, cache.path()).unwrap(), first);
    }

    #[test]
    fn halving_changes_no_answer() {
        let profile = Profile::runtime_default(&[]);
        let programs = compile(&profile).unwrap();
        let arch = programs[0][1].k;
        let mut most = 0;
        for number in 0..700_u32 {
            let name = |rule: &&profile::Rule| {
                rule.names.iter().any(|name| syscalls::number(name) == Some(i64::from(number)))
            };
            // What another program answers passes the first one.
            let allowing = |rule: &&profile::Rule| rule.action != profile.default;
            let rules: Vec<_> = profile.rules.iter().filter(name).filter(allowing).collect();
            for first in [0, 1, 8, 0x20_0000, 0x1000_0000, 38, 39, 40, 41, u64::from(u32::MAX)] {
                let holds = |argument: &profile::Argument| match argument.op {
                    profile::Operator::Equal => first == argument.value,
                    profile::Operator::Less => first < argument.value,
                    profile::Operator::GreaterOrEqual => first >= argument.value,
                    profile::Operator::MaskedEqual => first & argument.value == argument.value_two,
                    _ => panic!("not in the profile"),
                };
                let allowed = rules.iter().any(|rule| rule.arguments.iter().all(holds));
                let (answer, steps) =
                    tree::tests::run(&programs[0], number, arch, [first, 0, 0, 0, 0, 0]);
                let want = if allowed { SeccompAction::Allow } else { profile.default.into() };
                assert_eq!(answer, u32::from(want), "call {number} with {first:#x}");
                if rules.iter().all(|rule| rule.arguments.is_empty()) {
                    most = most.max(steps);
                }
            }
        }
        assert!(most < 20, "{most} steps for a call without conditions");
    }
}
