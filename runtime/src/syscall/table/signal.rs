//! Signals: the body's kernel holds masks and pending signals, home raises them.
//!
//! Nothing that could raise a signal asynchronously is native, because the agent would not learn of it while one of the
//! body's calls is under way.

use super::kinds::{Arg::*, Otherwise, Restart, Row, Size::*, comes_home, home, is, native, native_if};

pub(super) const ROWS: &[Row] = &[
    native_if(
        13,
        "rt_sigaction",
        &[Int, In(Fixed(32)), Out(Fixed(32)), Int],
        Restart::None,
        // Who only asks tells home nothing.
        &[&[is(1, 0)]],
        Otherwise::Special,
    )
    .note("native on the host; class and flags of a new handler reach the deputy before the next forwarded call"),
    native(14, "rt_sigprocmask", &[Int, Addr, Addr, Int], Restart::None),
    native(15, "rt_sigreturn", &[], Restart::None),
    native(34, "pause", &[], Restart::NoHand),
    home(62, "kill", &[Int, Int], Restart::None)
        .note("a signal to the caller itself must arrive at the body before the reply"),
    native(127, "rt_sigpending", &[Addr, Int], Restart::None),
    native(128, "rt_sigtimedwait", &[Addr, Addr, Addr, Int], Restart::Eintr),
    home(129, "rt_sigqueueinfo", &[Int, Int, In(Fixed(128))], Restart::None),
    native(130, "rt_sigsuspend", &[Addr, Int], Restart::NoHand),
    native(131, "sigaltstack", &[Addr, Addr], Restart::None),
    home(200, "tkill", &[Int, Int], Restart::None),
    native(219, "restart_syscall", &[], Restart::Timed),
    home(234, "tgkill", &[Int, Int, Int], Restart::None)
        .note("a signal to the caller itself must arrive at the body before the reply"),
    comes_home(
        282,
        "signalfd",
        Restart::None,
        "reads the deputy's pending signals; the process stays at home",
    ),
    comes_home(
        289,
        "signalfd4",
        Restart::None,
        "reads the deputy's pending signals; the process stays at home",
    ),
    home(
        297,
        "rt_tgsigqueueinfo",
        &[Int, Int, Int, In(Fixed(128))],
        Restart::None,
    ),
    comes_home(
        424,
        "pidfd_send_signal",
        Restart::None,
        "its target cannot be checked against the job",
    ),
];
