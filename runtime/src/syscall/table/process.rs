//! Processes, threads, credentials, limits, scheduling.

use super::commands;
use super::kinds::{
    Arg::*, Otherwise, Restart, Row, Size::*, at_least, at_most, below, comes_home, home, int_is, native, native_if,
    refused, special,
};
use super::mem::{LOW_LENGTH, LOW_START, WINDOW_END};

const PR_SET_VMA: u32 = 0x5356_4d41;

const EXEC: &str = "the deputy executes it; the new program goes on where the old one was";

pub(super) const ROWS: &[Row] = &[
    native(24, "sched_yield", &[], Restart::None),
    native(39, "getpid", &[], Restart::None).note("true on a host: the job has a pid namespace with home's numbers"),
    special(56, "clone", &[Int, Int, Int, Int, Int], Restart::NoInt, "")
        .partial("threads and children are made in both halves, with home's number; rare flags come home"),
    special(
        57,
        "fork",
        &[],
        Restart::NoInt,
        "the child is made in both halves, with home's number",
    ),
    special(
        58,
        "vfork",
        &[],
        Restart::NoInt,
        "as fork; the child has its parent's memory on the host too",
    ),
    special(59, "execve", &[Path, Strings, Strings], Restart::None, EXEC).trapped(),
    special(
        60,
        "exit",
        &[Int],
        Restart::None,
        "the agent reports it home, the deputy's thread ends the same way",
    ),
    home(
        61,
        "wait4",
        &[Int, InOut(Fixed(4)), Int, InOut(Fixed(144))],
        Restart::Sys,
    )
    .partial("the usage includes what the child used on hosts, unless the caller is at home"),
    home(63, "uname", &[Out(Fixed(390))], Restart::None),
    home(97, "getrlimit", &[Int, Out(Fixed(16))], Restart::None),
    home(98, "getrusage", &[Int, Out(Fixed(144))], Restart::None)
        .partial("CPU time, faults and peak of bodies on hosts are added, also for children; back home the kernel's answer is home's part alone"),
    home(99, "sysinfo", &[Out(Fixed(112))], Restart::None).note("describes home"),
    comes_home(101, "ptrace", Restart::None, "a tracer stays at home"),
    home(102, "getuid", &[], Restart::None),
    home(104, "getgid", &[], Restart::None),
    home(105, "setuid", &[Int], Restart::None),
    home(106, "setgid", &[Int], Restart::None),
    home(107, "geteuid", &[], Restart::None),
    home(108, "getegid", &[], Restart::None),
    home(109, "setpgid", &[Int, Int], Restart::None),
    home(110, "getppid", &[], Restart::None),
    home(111, "getpgrp", &[], Restart::None),
    home(112, "setsid", &[], Restart::None),
    home(113, "setreuid", &[Int, Int], Restart::None),
    home(114, "setregid", &[Int, Int], Restart::None),
    home(115, "getgroups", &[Int, Items(0, 4)], Restart::None),
    home(116, "setgroups", &[Int, In(Times(0, 4))], Restart::None),
    home(117, "setresuid", &[Int, Int, Int], Restart::None),
    home(
        118,
        "getresuid",
        &[Out(Fixed(4)), Out(Fixed(4)), Out(Fixed(4))],
        Restart::None,
    ),
    home(119, "setresgid", &[Int, Int, Int], Restart::None),
    home(
        120,
        "getresgid",
        &[Out(Fixed(4)), Out(Fixed(4)), Out(Fixed(4))],
        Restart::None,
    ),
    home(121, "getpgid", &[Int], Restart::None),
    home(122, "setfsuid", &[Int], Restart::None),
    home(123, "setfsgid", &[Int], Restart::None),
    home(124, "getsid", &[Int], Restart::None),
    home(125, "capget", &[InOutAlways(Fixed(8)), InOut(Fixed(24))], Restart::None),
    home(126, "capset", &[InOutAlways(Fixed(8)), In(Fixed(24))], Restart::None),
    refused(134, "uselib", "not in 64-bit kernels"),
    home(135, "personality", &[Only(&[0xffff_ffff])], Restart::None)
        .partial("asking is forwarded, changing comes home"),
    home(140, "getpriority", &[Int, Int], Restart::None),
    home(141, "setpriority", &[Int, Int, Int], Restart::None)
        .partial("a body on a host keeps the priority it arrived with"),
    home(142, "sched_setparam", &[Int, In(Fixed(4))], Restart::None)
        .partial("a body on a host keeps the scheduling it arrived with"),
    home(143, "sched_getparam", &[Int, Out(Fixed(4))], Restart::None),
    home(144, "sched_setscheduler", &[Int, Int, In(Fixed(4))], Restart::None)
        .partial("a body on a host keeps the scheduling it arrived with"),
    home(145, "sched_getscheduler", &[Int], Restart::None),
    native(146, "sched_get_priority_max", &[Int], Restart::None),
    native(147, "sched_get_priority_min", &[Int], Restart::None),
    home(148, "sched_rr_get_interval", &[Int, Out(Fixed(16))], Restart::None),
    native_if(
        157,
        "prctl",
        &[
            Int,
            By {
                selector: 0,
                list: commands::PRCTL,
            },
            Int,
            Int,
            Int,
        ],
        Restart::None,
        &[
            // Names of anonymous mappings, outside the window; own tid address, THP and W^X settings of the body.
            &[int_is(0, PR_SET_VMA), at_least(2, WINDOW_END)],
            &[int_is(0, PR_SET_VMA), below(2, LOW_START), at_most(3, LOW_LENGTH)],
            &[int_is(0, 40)],
            &[int_is(0, 42)],
            &[int_is(0, 66)],
        ],
        Otherwise::Home,
    )
    .partial("known options are forwarded, others (seccomp, dumpable, PR_SET_MM …) come home"),
    home(160, "setrlimit", &[Int, In(Fixed(16))], Restart::None)
        .both()
        .note("holds for what home does; of a body only RLIMIT_CPU, others are its host's"),
    home(
        302,
        "prlimit64",
        &[Int, Int, In(Fixed(16)), Out(Fixed(16))],
        Restart::None,
    )
    .both()
    .note("as setrlimit when a new limit is given"),
    native(186, "gettid", &[], Restart::None).note("true on a host, as getpid"),
    home(203, "sched_setaffinity", &[Int, Int, In(Bytes(1))], Restart::None)
        .partial("applies at home; a body on a host is not pinned"),
    home(204, "sched_getaffinity", &[Int, Int, Whole(1)], Restart::None)
        .note("home's CPUs: tables sized at birth stay right"),
    special(
        231,
        "exit_group",
        &[Int],
        Restart::None,
        "the agent reports it home, the deputy ends the same way",
    ),
    home(
        247,
        "waitid",
        &[Int, Int, InOutAlways(Fixed(128)), Int, InOut(Fixed(144))],
        Restart::Sys,
    )
    .partial("the usage includes what the child used on hosts, unless the caller is at home"),
    home(251, "ioprio_set", &[Int, Int, Int], Restart::None),
    home(252, "ioprio_get", &[Int, Int], Restart::None),
    comes_home(272, "unshare", Restart::None, "changes namespaces; returns and stays"),
    comes_home(308, "setns", Restart::None, "changes namespaces; returns and stays"),
    comes_home(312, "kcmp", Restart::None, "compares kernel objects of two processes"),
    comes_home(314, "sched_setattr", Restart::None, "rare: nested sizes"),
    home(315, "sched_getattr", &[Int, InOut(Bytes(2)), Int, Int], Restart::None),
    comes_home(
        317,
        "seccomp",
        Restart::None,
        "a process with a filter of its own stays at home",
    ),
    special(322, "execveat", &[Fd, Path, Strings, Strings, Int], Restart::None, EXEC).trapped(),
    home(434, "pidfd_open", &[Int, Int], Restart::None),
    special(435, "clone3", &[Int, Int], Restart::NoInt, "")
        .partial("ENOSYS for new threads, so that libraries use clone; new processes come home"),
    comes_home(
        438,
        "pidfd_getfd",
        Restart::None,
        "takes a descriptor from another process",
    ),
    home(444, "landlock_create_ruleset", &[In(Bytes(1)), Int, Int], Restart::None),
    home(
        445,
        "landlock_add_rule",
        &[
            Fd,
            Int,
            By {
                selector: 1,
                list: commands::LANDLOCK,
            },
            Int,
        ],
        Restart::None,
    ),
    home(446, "landlock_restrict_self", &[Fd, Int], Restart::None)
        .note("restricts the deputy, which does all file access"),
    comes_home(459, "lsm_get_self_attr", Restart::None, "rare: nested sizes"),
    comes_home(460, "lsm_set_self_attr", Restart::None, "rare: nested sizes"),
    comes_home(461, "lsm_list_modules", Restart::None, "rare: nested sizes"),
    refused(205, "set_thread_area", "32-bit only"),
    refused(211, "get_thread_area", "32-bit only"),
];
