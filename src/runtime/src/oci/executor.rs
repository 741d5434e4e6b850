//! The last steps inside the container, which libcontainer leaves to its caller: seccomp,
//! capabilities, signals, and the execve itself.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use caps::{CapSet, Capability};
use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::sys::signal::SigSet;
use rustix::fs::Access;

use super::launch::Launch;
use super::trace::PLAIN;

/// What a shell answers for a command it cannot find, and for one it cannot run.
const EXIT_NOT_FOUND: i32 = 127;
const EXIT_NOT_EXECUTABLE: i32 = 126;
/// What runc answers when execve refuses the file itself.
const EXIT_EXEC_FAILED: i32 = 255;

/// Installs seccomp programs, drops capabilities, and executes.
#[derive(Clone)]
pub struct BpfExecutor {
    filters: Vec<Vec<libc::sock_filter>>,
    allowed: HashSet<Capability>,
    ambient: HashSet<Capability>,
}

impl BpfExecutor {
    /// Reads the filters now: inside of the container their files are gone.
    pub fn new(launch: &Launch) -> io::Result<Self> {
        let filters = launch
            .seccomp
            .iter()
            .map(|path| crate::seccomp::read_program(path))
            .collect::<io::Result<_>>()?;
        let set = |names: &[String]| {
            names
                .iter()
                .filter_map(|name| Capability::from_str(&format!("CAP_{name}")).ok())
                .collect()
        };
        Ok(Self {
            filters,
            allowed: set(&launch.capabilities.allowed),
            ambient: set(&launch.capabilities.ambient),
        })
    }

    fn install_filters(&self) -> io::Result<()> {
        self.filters.iter().try_for_each(|program| crate::sys::install_seccomp_filter(program))
    }

    fn enter(&self, no_new_privileges: bool) -> Result<(), String> {
        let bounding = caps::read(None, CapSet::Bounding)
            .map_err(|error| format!("read capabilities: {error}"))?;
        for capability in bounding.difference(&self.allowed) {
            caps::drop(None, CapSet::Bounding, *capability)
                .map_err(|error| format!("drop capability: {error}"))?;
        }
        // Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the drop; with
        // it, it comes last, so that it need not allow what we do here.
        if !no_new_privileges {
            self.install_filters().map_err(|error| format!("install seccomp filter: {error}"))?;
        }
        let permitted = caps::read(None, CapSet::Permitted)
            .map_err(|error| format!("read capabilities: {error}"))?;
        let keep: HashSet<Capability> = self.allowed.intersection(&permitted).copied().collect();
        let ambient: HashSet<Capability> = self.ambient.intersection(&keep).copied().collect();
        let sets = [
            (CapSet::Inheritable, &ambient),
            (CapSet::Effective, &keep),
            (CapSet::Permitted, &keep),
        ];
        for (set, wanted) in sets {
            caps::set(None, set, wanted).map_err(|error| format!("set capabilities: {error}"))?;
        }
        if !ambient.is_empty() {
            caps::set(None, CapSet::Ambient, &ambient)
                .map_err(|error| format!("set ambient capabilities: {error}"))?;
        }
        if no_new_privileges {
            self.install_filters().map_err(|error| format!("install seccomp filter: {error}"))?;
        }
        crate::sys::default_sigpipe();
        Ok(())
    }
}

impl Executor for BpfExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refuse = |message: String| {
            tracing::error!(target: PLAIN, "{message}");
            Err(ExecutorValidationError::ArgValidationError(message))
        };
        let Some(process) = spec.process() else { return refuse("no process to run".into()) };
        match find(process) {
            Ok(_) => Ok(()),
            Err(error) => refuse(error),
        }
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let fail = |message: String, code: i32| -> ! {
            eprintln!("{message}");
            std::process::exit(code)
        };
        let Some(process) = spec.process() else { return Err(ExecutorError::InvalidArg) };
        let path = match find(process) {
            Ok(path) => path,
            Err(error) => fail(error, EXIT_NOT_FOUND),
        };
        let arguments: Option<Vec<CString>> = process
            .args()
            .iter()
            .flatten()
            .map(|argument| CString::new(argument.as_bytes()).ok())
            .collect();
        let file = CString::new(path.as_os_str().as_bytes());
        let (Some(arguments), Ok(file)) = (arguments, file) else {
            fail("an argument contains a NUL byte".into(), EXIT_NOT_FOUND)
        };
        // The shim takes SIGCHLD through a descriptor and so has it blocked. Handed down, it would leave
        // shells that wait for their jobs waiting for ever.
        if let Err(errno) = SigSet::empty().thread_set_mask() {
            fail(format!("unblock signals: {}", errno.desc()), EXIT_EXEC_FAILED);
        }
        if let Err(message) = self.enter(process.no_new_privileges().unwrap_or(false)) {
            fail(message, EXIT_EXEC_FAILED);
        }
        let Err(errno) = nix::unistd::execv(&file, &arguments);
        let code = match errno {
            nix::errno::Errno::EACCES => EXIT_NOT_EXECUTABLE,
            nix::errno::Errno::ENOENT => EXIT_NOT_FOUND,
            _ => EXIT_EXEC_FAILED,
        };
        fail(format!("exec {}: {}", path.display(), lower(errno.desc())), code)
    }
}

/// The program to execute, by the rules and in the words of Go's exec.LookPath, which every
/// other runtime uses.
fn find(process: &Process) -> Result<PathBuf, String> {
    let Some(name) = process.args().iter().flatten().next() else {
        return Err("no command specified".into());
    };
    let error = |what: &str| format!("exec: {name:?}: {what}");
    if name.contains('/') {
        return check(Path::new(name)).map(|()| PathBuf::from(name)).map_err(|errno| match errno {
            rustix::io::Errno::NOENT => error(&format!("stat {name}: no such file or directory")),
            rustix::io::Errno::ISDIR => error("is a directory"),
            _ => error("permission denied"),
        });
    }
    let env = process.env().iter().flatten();
    let path = env.filter_map(|entry| entry.strip_prefix("PATH=")).next_back().unwrap_or_default();
    path.split(':')
        .map(
            |directory| {
                if directory.is_empty() { PathBuf::from(".") } else { PathBuf::from(directory) }
            },
        )
        .map(|directory| directory.join(name))
        .find(|candidate| check(candidate).is_ok())
        .ok_or_else(|| error("executable file not found in $PATH"))
}

fn check(path: &Path) -> Result<(), rustix::io::Errno> {
    let stat = rustix::fs::stat(path)?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(rustix::io::Errno::ISDIR);
    }
    rustix::fs::access(path, Access::EXEC_OK)
}

fn lower(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_lowercase().chain(characters).collect())
        .unwrap_or_default()
}
