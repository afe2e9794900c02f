//! Sockets: the deputy's, in home's network namespace.

use super::kinds::{Arg::*, Restart, Row, Size::*, home};

pub(super) const ROWS: &[Row] = &[
    home(41, "socket", &[Int, Int, Int], Restart::None),
    home(42, "connect", &[Fd, NameIn(2), Int], Restart::Sys),
    home(43, "accept", &[Fd, NameOut(2), NameLen], Restart::Sys),
    home(
        44,
        "sendto",
        &[Fd, In(Bytes(2)), Int, SendFlags, NameIn(5), Int],
        Restart::Sys,
    ),
    home(
        45,
        "recvfrom",
        &[Fd, Room(2), Int, Int, NameOut(5), NameLen],
        Restart::Sys,
    ),
    home(46, "sendmsg", &[Fd, MsgIn, SendFlags], Restart::Sys),
    home(47, "recvmsg", &[Fd, MsgOut, Int], Restart::Sys),
    home(48, "shutdown", &[Fd, Int], Restart::None),
    home(49, "bind", &[Fd, NameIn(2), Int], Restart::None),
    home(50, "listen", &[Fd, Int], Restart::None),
    home(51, "getsockname", &[Fd, NameOut(2), NameLen], Restart::None),
    home(52, "getpeername", &[Fd, NameOut(2), NameLen], Restart::None),
    home(53, "socketpair", &[Int, Int, Int, Out(Fixed(8))], Restart::None),
    home(54, "setsockopt", &[Fd, Int, Int, OptIn, Int], Restart::None)
        .partial("options that hold pointers or let the kernel keep user pages come home"),
    home(55, "getsockopt", &[Fd, Int, Int, OptOut, NameLen], Restart::None)
        .partial("options that hold pointers come home"),
    home(288, "accept4", &[Fd, NameOut(2), NameLen, Int], Restart::Sys),
    home(
        299,
        "recvmmsg",
        &[Fd, MmsgOut(2), Int, Int, InOut(Fixed(16))],
        Restart::Sys,
    ),
    home(307, "sendmmsg", &[Fd, MmsgIn(2), Int, SendFlags], Restart::Sys),
];
