//! Waiting for descriptors, and the descriptors made for it.

use super::kinds::{Arg::*, Restart, Row, Size::*, comes_home, home};

pub(super) const ROWS: &[Row] = &[
    home(7, "poll", &[PollFds(1), Int, Int], Restart::Timed),
    home(
        23,
        "select",
        &[Int, FdSet(0), FdSet(0), FdSet(0), InOutAlways(Fixed(16))],
        Restart::NoHand,
    ),
    comes_home(
        206,
        "io_setup",
        Restart::None,
        "the completion ring is memory of the home kernel",
    ),
    comes_home(
        207,
        "io_destroy",
        Restart::None,
        "the completion ring is memory of the home kernel",
    ),
    comes_home(
        208,
        "io_getevents",
        Restart::Eintr,
        "the completion ring is memory of the home kernel",
    ),
    comes_home(
        209,
        "io_submit",
        Restart::None,
        "the completion ring is memory of the home kernel",
    ),
    comes_home(
        210,
        "io_cancel",
        Restart::None,
        "the completion ring is memory of the home kernel",
    ),
    home(213, "epoll_create", &[Int], Restart::None),
    home(232, "epoll_wait", &[Fd, Items(2, 12), Int, Int], Restart::Eintr),
    home(233, "epoll_ctl", &[Fd, Int, Fd, In(Fixed(12))], Restart::None),
    home(253, "inotify_init", &[], Restart::None),
    home(254, "inotify_add_watch", &[Fd, Path, Int], Restart::None),
    home(255, "inotify_rm_watch", &[Fd, Int], Restart::None),
    home(
        270,
        "pselect6",
        &[Int, FdSet(0), FdSet(0), FdSet(0), InOutAlways(Fixed(16)), TempMaskPair],
        Restart::NoHand,
    )
    .note("the agent applies the temporary mask to the body"),
    home(
        271,
        "ppoll",
        &[PollFds(1), Int, InOutAlways(Fixed(16)), TempMask(4), Int],
        Restart::NoHand,
    )
    .note("the agent applies the temporary mask to the body"),
    home(
        281,
        "epoll_pwait",
        &[Fd, Items(2, 12), Int, Int, TempMask(5), Int],
        Restart::Eintr,
    )
    .note("the agent applies the temporary mask to the body"),
    home(284, "eventfd", &[Int], Restart::None),
    home(290, "eventfd2", &[Int, Int], Restart::None),
    home(291, "epoll_create1", &[Int], Restart::None),
    home(294, "inotify_init1", &[Int], Restart::None),
    comes_home(300, "fanotify_init", Restart::None, "administration"),
    comes_home(301, "fanotify_mark", Restart::None, "administration"),
    comes_home(
        333,
        "io_pgetevents",
        Restart::Eintr,
        "the completion ring is memory of the home kernel",
    ),
    comes_home(
        425,
        "io_uring_setup",
        Restart::None,
        "its rings are memory of the home kernel",
    ),
    comes_home(
        426,
        "io_uring_enter",
        Restart::Sys,
        "its rings are memory of the home kernel",
    ),
    comes_home(
        427,
        "io_uring_register",
        Restart::None,
        "its rings are memory of the home kernel",
    ),
    home(
        441,
        "epoll_pwait2",
        &[Fd, Items(2, 12), Int, In(Fixed(16)), TempMask(5), Int],
        Restart::Eintr,
    )
    .note("the agent applies the temporary mask to the body"),
];
