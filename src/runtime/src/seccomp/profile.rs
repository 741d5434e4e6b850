//! What a profile says: the default one as a table, others from JSON in the format that Docker,
//! containerd and CRI-O share.
//!
//! The default has the meaning of containerd's: what a program may need is allowed, what can reach
//! beyond its container is answered `EPERM`, and calls that belong to a capability are allowed to
//! containers that have it.

use std::path::Path;

use seccompiler::SeccompAction;
use serde::Deserialize;

/// Why a profile's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("failed to read seccomp profile {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("failed to parse seccomp profile {path}: {source}")]
    Parse { path: String, source: serde_json::Error },
    #[error("seccomp profile {path}: action {action} is not supported")]
    Action { path: String, action: String },
}

/// The answer to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Allow,
    Errno(u32),
    Log,
    Trap,
    KillThread,
    KillProcess,
}

impl From<Action> for SeccompAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Errno(errno) => Self::Errno(errno),
            Action::Log => Self::Log,
            Action::Trap => Self::Trap,
            Action::KillThread => Self::KillThread,
            Action::KillProcess => Self::KillProcess,
        }
    }
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Operator {
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// `argument & value == value_two`.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// A condition on one argument of a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    pub index: u8,
    pub value: u64,
    #[serde(default)]
    pub value_two: u64,
    pub op: Operator,
}

/// Calls with one answer, if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    pub names: Vec<String>,
    pub action: Action,
    pub arguments: Vec<Argument>,
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Profile {
    /// The answer to calls no rule names.
    pub default: Action,
    pub rules: Vec<Rule>,
}

impl Profile {
    /// The profile `RuntimeDefault` for a container with these capabilities (without `CAP_`).
    pub fn runtime_default(capabilities: &[String]) -> Self {
        let has = |name: &str| capabilities.iter().any(|capability| capability == name);
        let mut rules = vec![allow(ALWAYS)];
        for (capability, calls) in WITH_CAPABILITY {
            if has(capability) {
                rules.push(allow(calls));
            }
        }
        for persona in [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
            rules.push(when("personality", 0, persona, Operator::Equal));
        }
        // Sockets of every family but those that reach the hypervisor and the kernel's crypto.
        for (low, high) in
            [(0, AF_ALG), (AF_ALG + 1, AF_VSOCK), (AF_VSOCK + 1, u64::from(u32::MAX))]
        {
            let at = |value, op| Argument { index: 0, value, value_two: 0, op };
            rules.push(Rule {
                names: vec!["socket".into()],
                action: Action::Allow,
                arguments: vec![at(low, Operator::GreaterOrEqual), at(high, Operator::Less)],
            });
        }
        if !has("SYS_ADMIN") {
            let no_namespaces = Argument {
                index: 0,
                value: NAMESPACE_FLAGS,
                value_two: 0,
                op: Operator::MaskedEqual,
            };
            rules.push(Rule {
                names: vec!["clone".into()],
                action: Action::Allow,
                arguments: vec![no_namespaces],
            });
            // Its flags are behind a pointer; with ENOSYS libraries fall back to clone.
            rules.push(Rule {
                names: vec!["clone3".into()],
                action: Action::Errno(libc::ENOSYS.cast_unsigned()),
                arguments: Vec::new(),
            });
        }
        Self { default: Action::Errno(libc::EPERM.cast_unsigned()), rules }
    }

    /// Reads a profile of the node, as type `Localhost` names it.
    pub fn read(path: &Path, capabilities: &[String]) -> Result<Self, ProfileError> {
        let name = path.display().to_string();
        let text = std::fs::read(path)
            .map_err(|source| ProfileError::Read { path: name.clone(), source })?;
        let file: File = serde_json::from_slice(&text)
            .map_err(|source| ProfileError::Parse { path: name.clone(), source })?;
        file.into_profile(&name, capabilities)
    }
}

fn allow(names: &[&str]) -> Rule {
    let names =
        names.iter().flat_map(|names| names.split_whitespace()).map(str::to_owned).collect();
    Rule { names, action: Action::Allow, arguments: Vec::new() }
}

fn when(name: &str, index: u8, value: u64, op: Operator) -> Rule {
    let arguments = vec![Argument { index, value, value_two: 0, op }];
    Rule { names: vec![name.to_owned()], action: Action::Allow, arguments }
}

/// The JSON format.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<FileRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileRule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Deserialize, Default)]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

impl File {
    fn into_profile(self, path: &str, capabilities: &[String]) -> Result<Profile, ProfileError> {
        let action = |name: &str, errno: Option<u32>| match name {
            "SCMP_ACT_ALLOW" => Ok(Action::Allow),
            "SCMP_ACT_ERRNO" => Ok(Action::Errno(errno.unwrap_or(libc::EPERM.cast_unsigned()))),
            "SCMP_ACT_LOG" => Ok(Action::Log),
            "SCMP_ACT_TRAP" => Ok(Action::Trap),
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(Action::KillThread),
            "SCMP_ACT_KILL_PROCESS" => Ok(Action::KillProcess),
            other => Err(ProfileError::Action { path: path.to_owned(), action: other.to_owned() }),
        };
        let has = |name: &String| {
            capabilities.iter().any(|c| Some(c.as_str()) == name.strip_prefix("CAP_"))
        };
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let default = action(&self.default_action, self.default_errno_ret)?;
        let mut rules = Vec::new();
        for rule in self.syscalls {
            let included = rule.includes.caps.iter().all(has)
                && (rule.includes.arches.is_empty()
                    || rule.includes.arches.iter().any(|a| a == arch));
            let excluded = rule.excludes.caps.iter().any(has)
                || rule.excludes.arches.iter().any(|a| a == arch);
            if !included || excluded {
                continue;
            }
            rules.push(Rule {
                action: action(&rule.action, rule.errno_ret)?,
                names: rule.names.into_iter().chain(rule.name).collect(),
                arguments: rule.args.unwrap_or_default(),
            });
        }
        Ok(Profile { default, rules })
    }
}

const AF_ALG: u64 = libc::AF_ALG as u64;
const AF_VSOCK: u64 = libc::AF_VSOCK as u64;
/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// Allowed to everyone.
const ALWAYS: &[&str] = &[
    // Files and directories.
    "access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat \
     faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync \
     fgetxattr file_getattr file_setattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync \
     ftruncate futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lgetxattr link \
     linkat listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat mkdir \
     mkdirat mknod mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev \
     pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat \
     renameat2 rmdir sendfile setxattr setxattrat splice stat statfs statmount statx symlink \
     symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes \
     vmsplice write writev name_to_handle_at cachestat",
    // Memory.
    "brk get_mempolicy_home_node madvise map_shadow_stack membarrier memfd_create memfd_secret mincore \
     mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc \
     pkey_free pkey_mprotect process_mrelease remap_file_pages",
    // Processes, threads, identity.
    "arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_wait \
     futex_waitv futex_wake get_robust_list get_thread_area getcpu getegid geteuid getgid getgroups \
     getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid \
     gettid getuid kill modify_ldt pidfd_open pidfd_send_signal prctl prlimit64 ptrace \
     process_vm_readv process_vm_writev rseq sched_get_priority_max sched_get_priority_min \
     sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
     sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield set_robust_list \
     set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority setregid \
     setresgid setresuid setreuid setrlimit setsid setuid tgkill tkill uname vfork wait4 waitid \
     sysinfo times alarm pause",
    // Landlock, which only ever restricts.
    "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    // Signals, time, waiting.
    "adjtimex clock_adjtime clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1 \
     epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 \
     fanotify_mark getitimer gettimeofday inotify_add_watch inotify_init inotify_init1 \
     inotify_rm_watch nanosleep poll ppoll pselect6 restart_syscall rt_sigaction rt_sigpending \
     rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo \
     select setitimer sigaltstack signalfd signalfd4 time timer_create timer_delete \
     timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime",
    // Asynchronous I/O and its priorities; io_uring is left out, as upstream does.
    "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioprio_get ioprio_set",
    // Sockets, pipes, queues, System V.
    "accept accept4 bind connect getpeername getsockname getsockopt listen mq_getsetattr mq_notify \
     mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 recvfrom \
     recvmmsg recvmsg semctl semget semop semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl \
     shmdt shmget shutdown socketpair",
    "getrandom",
];

/// Allowed to those who have the capability.
const WITH_CAPABILITY: &[(&str, &[&str])] = &[
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    (
        "SYS_ADMIN",
        &["bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount \
           mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
           sethostname setns syslog umount2 unshare"],
    ),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module finit_module init_module"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"]),
    ("SYS_RAWIO", &["ioperm iopl"]),
    ("SYS_TIME", &["clock_settime settimeofday"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    ("SYS_NICE", &["get_mempolicy mbind set_mempolicy set_mempolicy_home_node"]),
    ("SYSLOG", &["syslog"]),
    ("BPF", &["bpf"]),
    ("PERFMON", &["perf_event_open"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &Profile) -> Vec<&str> {
        let allowed = profile.rules.iter().filter(|rule| rule.action == Action::Allow);
        allowed.flat_map(|rule| &rule.names).map(String::as_str).collect()
    }

    #[test]
    fn capabilities_open_their_calls() {
        let plain = Profile::runtime_default(&[]);
        let admin = Profile::runtime_default(&["SYS_ADMIN".into()]);
        for call in ["mount", "unshare", "bpf", "setns", "clone3"] {
            assert!(!names(&plain).contains(&call), "{call}");
            assert!(names(&admin).contains(&call), "{call}");
        }
        for call in ["keyctl", "add_key", "kexec_load", "io_uring_setup", "userfaultfd"] {
            assert!(!names(&admin).contains(&call), "{call}");
        }
    }

    #[test]
    fn files_are_read_in_dockers_format() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
            {"names":["mount"],"action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        std::fs::write(&path, text).unwrap();
        let profile = Profile::read(&path, &["SYS_ADMIN".into()]).unwrap();
        assert_eq!(profile.default, Action::Allow);
        assert_eq!(profile.rules.len(), 1);
        assert_eq!(profile.rules[0].action, Action::Errno(13));
        std::fs::write(&path, r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#).unwrap();
        let error = Profile::read(&path, &[]).unwrap_err().to_string();
        assert!(error.ends_with("action SCMP_ACT_NOTIFY is not supported"), "{error}");
    }
}
