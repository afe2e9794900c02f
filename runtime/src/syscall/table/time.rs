//! Clocks, sleeps and timers.
//!
//! Clocks of the wall and of the system are the host's, moved by a time namespace; sleeps and timers are home's, because
//! the deputy keeps their deadlines over every move. CPU clocks go with the body.

use super::kinds::{Arg::*, Cond, Otherwise, Restart, Row, Size::*, comes_home, home, int_is, native, native_if};

/// Clocks without CPU time: REALTIME, MONOTONIC, MONOTONIC_RAW, both COARSE, BOOTTIME, both ALARM, TAI.
const CLOCKS: &[&[Cond]] = &[
    &[int_is(0, 0)],
    &[int_is(0, 1)],
    &[int_is(0, 4)],
    &[int_is(0, 5)],
    &[int_is(0, 6)],
    &[int_is(0, 7)],
    &[int_is(0, 8)],
    &[int_is(0, 9)],
    &[int_is(0, 11)],
];

/// ITIMER_VIRTUAL and ITIMER_PROF.
const CPU_TIMERS: &[&[Cond]] = &[&[int_is(0, 1)], &[int_is(0, 2)]];

pub(super) const ROWS: &[Row] = &[
    home(
        35,
        "nanosleep",
        &[In(Fixed(16)), InOutAlways(Fixed(16))],
        Restart::Timed,
    )
    .note("the deputy sleeps and keeps the deadline"),
    native_if(
        36,
        "getitimer",
        &[Only(&[0]), Out(Fixed(32))],
        Restart::None,
        CPU_TIMERS,
        Otherwise::Home,
    )
    .note("timers of CPU time go with the body"),
    home(37, "alarm", &[Int], Restart::None),
    native_if(
        38,
        "setitimer",
        &[Only(&[0]), In(Fixed(32)), Out(Fixed(32))],
        Restart::None,
        CPU_TIMERS,
        Otherwise::Home,
    )
    .note("timers of CPU time go with the body, and count its CPU time alone"),
    native(96, "gettimeofday", &[Addr, Addr], Restart::None),
    home(100, "times", &[Out(Fixed(32))], Restart::None).note(
        "what bodies used on hosts is added, also for children; back home the kernel's answer is home's part alone",
    ),
    comes_home(159, "adjtimex", Restart::None, "sets the machine's clock"),
    comes_home(164, "settimeofday", Restart::None, "sets the machine's clock"),
    native(201, "time", &[Addr], Restart::None),
    home(
        222,
        "timer_create",
        &[Clock, In(Fixed(64)), Out(Fixed(4))],
        Restart::None,
    )
    .partial("timers of CPU clocks come home, and count there alone"),
    home(
        223,
        "timer_settime",
        &[Int, Int, In(Fixed(32)), Out(Fixed(32))],
        Restart::None,
    ),
    home(224, "timer_gettime", &[Int, Out(Fixed(32))], Restart::None),
    home(225, "timer_getoverrun", &[Int], Restart::None),
    home(226, "timer_delete", &[Int], Restart::None),
    comes_home(227, "clock_settime", Restart::None, "sets the machine's clock"),
    native_if(
        228,
        "clock_gettime",
        &[Int, Out(Fixed(16))],
        Restart::None,
        CLOCKS,
        Otherwise::Home,
    )
    .note("CPU clocks: home's, with what bodies used on hosts; by the agent alone while nothing was done at home"),
    native(229, "clock_getres", &[Int, Addr], Restart::None),
    home(
        230,
        "clock_nanosleep",
        &[Clock, Int, In(Fixed(16)), InOutAlways(Fixed(16))],
        Restart::Timed,
    )
    .partial("the deputy sleeps and keeps the deadline; CPU clocks come home"),
    home(283, "timerfd_create", &[Int, Int], Restart::None),
    home(
        286,
        "timerfd_settime",
        &[Fd, Int, In(Fixed(32)), Out(Fixed(32))],
        Restart::None,
    ),
    home(287, "timerfd_gettime", &[Fd, Out(Fixed(32))], Restart::None),
    comes_home(305, "clock_adjtime", Restart::None, "sets the machine's clock"),
];
