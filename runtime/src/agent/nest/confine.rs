//! What the agent's own code may ask of the kernel.
//!
//! The agent parses what strangers send: handshakes, frames, images. [`files`] binds the whole agent to /proc and the folder of its
//! socket, by Landlock where the kernel has it. [`threads`] binds every thread but the tracer, which are those that read such bytes, to
//! the calls they need, by seccomp. The tracer parses nothing; it makes the bodies, and a body would inherit its filter.
//!
//! A call that is not listed fails with EPERM; one that nobody but an intruder makes ends the agent, and with it its bodies. The kernel's
//! log tells of both.
//!
//! See [landlock(7)](https://man7.org/linux/man-pages/man7/landlock.7.html).

use super::NestError;
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::path::Path;

/// What the threads need: memory and threads, their connections, notifications, files in memory, memory of bodies, /proc, the log.
const NEEDED: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_uname,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_accept4,
    // Only to sockets of this machine, by the rule for socket(2): the daemon's.
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_readv,
    libc::SYS_statx,
    libc::SYS_unlink,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_prlimit64,
    // Answered with ENOSYS by a filter of its own: glibc then uses clone, whose flags can be looked at.
    libc::SYS_clone3,
];

/// What no thread of an agent ever asks for.
const NEVER: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_bind,
    libc::SYS_kill,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_pidfd_getfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_setuid,
    libc::SYS_setresuid,
    libc::SYS_capset,
];

/// ioctl(2) requests: notifications, and what the standard library asks of sockets.
const IOCTLS: [u64; 6] = [0xc050_2100, 0xc018_2101, 0x4008_2102, 0x4018_2103, 0x4008_2104, 0x5421];

fn failed(error: impl std::fmt::Display) -> NestError {
    NestError::Rights(format!("the agent's own filter: {error}"))
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    others: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, NestError> {
    let filter = SeccompFilter::new(rules, others, these, TargetArch::x86_64).map_err(failed)?;
    BpfProgram::try_from(filter).map_err(failed)
}

/// The calls that may be made only with such an argument.
fn conditional() -> Result<Vec<(i64, Vec<SeccompRule>)>, NestError> {
    let rule = |arg, size, op, value| {
        let condition = SeccompCondition::new(arg, size, op, value).map_err(failed)?;
        SeccompRule::new(vec![condition]).map_err(failed)
    };
    let (dword, qword) = (SeccompCmpArgLen::Dword, SeccompCmpArgLen::Qword);
    let no_code = || rule(2, qword.clone(), SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0);
    let ioctls: Result<Vec<_>, _> = IOCTLS
        .into_iter()
        .map(|request| rule(1, dword.clone(), SeccompCmpOp::Eq, request))
        .collect();
    let thread = libc::CLONE_THREAD as u64;
    Ok(vec![
        (libc::SYS_mmap, vec![no_code()?]),
        (libc::SYS_mprotect, vec![no_code()?]),
        (libc::SYS_ioctl, ioctls?),
        (
            libc::SYS_socket,
            vec![rule(0, dword.clone(), SeccompCmpOp::Eq, libc::AF_UNIX as u64)?],
        ),
        (
            libc::SYS_clone,
            vec![rule(0, qword.clone(), SeccompCmpOp::MaskedEq(thread), thread)?],
        ),
        (
            libc::SYS_prctl,
            vec![
                rule(0, dword.clone(), SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?,
                rule(0, dword, SeccompCmpOp::Eq, libc::PR_SET_VMA as u64)?,
            ],
        ),
    ])
}

/// Binds the calling thread, and all that it will start, to the calls that an agent's threads need. Irreversible.
///
/// # Errors
/// When the kernel refuses; the agent must not serve then.
pub fn threads() -> Result<(), NestError> {
    let plain = |calls: &[i64]| calls.iter().map(|nr| (*nr, Vec::new())).collect::<BTreeMap<_, _>>();
    let mut needed = plain(NEEDED);
    needed.extend(conditional()?);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let programs = [
        compile(
            plain(&[libc::SYS_clone3]),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
        )?,
        compile(plain(NEVER), SeccompAction::Allow, SeccompAction::KillProcess)?,
        compile(needed, refuse, SeccompAction::Allow)?,
    ];
    for program in &programs {
        seccompiler::apply_filter(program).map_err(failed)?;
    }
    Ok(())
}

/// Binds the calling thread, and all that it will start, to /proc and to removing files in `folder`; whether the kernel can.
/// Irreversible.
///
/// # Errors
/// When the kernel knows Landlock but refuses.
pub fn files(folder: &Path) -> Result<bool, NestError> {
    let failed = |error: landlock::RulesetError| NestError::Rights(format!("Landlock: {error}"));
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|rules| rules.scope(landlock::Scope::AbstractUnixSocket | landlock::Scope::Signal))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for (path, access) in [
        (Path::new("/proc"), read | AccessFs::WriteFile | AccessFs::Truncate),
        (Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile),
        (folder, AccessFs::RemoveFile.into()),
    ] {
        // What is not there cannot be opened either.
        if let Ok(fd) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(fd, access)).map_err(failed)?;
        }
    }
    let status = rules.restrict_self().map_err(failed)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}
