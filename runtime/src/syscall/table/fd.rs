//! Calls on descriptors: the deputy holds them, so it executes all of these.

use super::kinds::{Arg::*, Restart, Row, Size::*, comes_home, home};
use super::{commands, ioctl};

pub(super) const ROWS: &[Row] = &[
    home(0, "read", &[Fd, Room(2), Int], Restart::Sys),
    home(1, "write", &[Fd, Data(2), Int], Restart::Sys),
    home(3, "close", &[Fd], Restart::None),
    home(5, "fstat", &[Fd, Out(Fixed(144))], Restart::None),
    home(8, "lseek", &[Fd, Int, Int], Restart::None),
    home(
        16,
        "ioctl",
        &[
            Fd,
            Int,
            By {
                selector: 1,
                list: ioctl::REQUESTS,
            },
        ],
        Restart::Sys,
    )
    .partial("known requests are forwarded, unknown ones come home"),
    home(17, "pread64", &[Fd, Room(2), Int, Int], Restart::Sys),
    home(18, "pwrite64", &[Fd, Data(2), Int, Int], Restart::Sys),
    home(19, "readv", &[Fd, IovOut(2), Int], Restart::Sys),
    home(20, "writev", &[Fd, IovIn(2), Int], Restart::Sys),
    home(22, "pipe", &[Out(Fixed(8))], Restart::None),
    home(32, "dup", &[Fd], Restart::None),
    home(33, "dup2", &[Fd, Fd], Restart::None),
    home(40, "sendfile", &[Fd, Fd, InOut(Fixed(8)), Int], Restart::Sys),
    home(
        72,
        "fcntl",
        &[
            Fd,
            Int,
            By {
                selector: 1,
                list: commands::FCNTL,
            },
        ],
        Restart::Sys,
    )
    .partial("known commands are forwarded, unknown ones come home"),
    home(73, "flock", &[Fd, Int], Restart::Sys),
    home(74, "fsync", &[Fd], Restart::None),
    home(75, "fdatasync", &[Fd], Restart::None),
    home(77, "ftruncate", &[Fd, Int], Restart::None),
    home(78, "getdents", &[Fd, Room(2), Int], Restart::None),
    home(81, "fchdir", &[Fd], Restart::None),
    home(91, "fchmod", &[Fd, Int], Restart::None),
    home(93, "fchown", &[Fd, Int, Int], Restart::None),
    home(138, "fstatfs", &[Fd, Out(Fixed(120))], Restart::None),
    home(187, "readahead", &[Fd, Int, Int], Restart::None),
    home(
        190,
        "fsetxattr",
        &[Fd, Str(256, libc::ERANGE), In(Bytes(3)), Int, Int],
        Restart::None,
    ),
    home(
        193,
        "fgetxattr",
        &[Fd, Str(256, libc::ERANGE), Whole(3), Int],
        Restart::None,
    ),
    home(196, "flistxattr", &[Fd, Whole(2), Int], Restart::None),
    home(199, "fremovexattr", &[Fd, Str(256, libc::ERANGE)], Restart::None),
    home(217, "getdents64", &[Fd, Room(2), Int], Restart::None),
    home(221, "fadvise64", &[Fd, Int, Int, Int], Restart::None),
    home(
        275,
        "splice",
        &[Fd, InOut(Fixed(8)), Fd, InOut(Fixed(8)), Int, Int],
        Restart::Sys,
    ),
    home(276, "tee", &[Fd, Fd, Int, Int], Restart::Sys),
    home(277, "sync_file_range", &[Fd, Int, Int, Int], Restart::None),
    comes_home(
        278,
        "vmsplice",
        Restart::Sys,
        "the kernel keeps references to the caller's pages",
    ),
    home(285, "fallocate", &[Fd, Int, Int, Int], Restart::None),
    home(292, "dup3", &[Fd, Fd, Int], Restart::None),
    home(293, "pipe2", &[Out(Fixed(8)), Int], Restart::None),
    home(295, "preadv", &[Fd, IovOut(2), Int, Int, Int], Restart::Sys),
    home(296, "pwritev", &[Fd, IovIn(2), Int, Int, Int], Restart::Sys),
    home(306, "syncfs", &[Fd], Restart::None),
    home(319, "memfd_create", &[Str(250, libc::EINVAL), Int], Restart::None)
        .note("the descriptor is home's; mapping it comes home"),
    home(
        326,
        "copy_file_range",
        &[Fd, InOut(Fixed(8)), Fd, InOut(Fixed(8)), Int, Int],
        Restart::Sys,
    ),
    home(327, "preadv2", &[Fd, IovOut(2), Int, Int, Int, Int], Restart::Sys),
    home(328, "pwritev2", &[Fd, IovIn(2), Int, Int, Int, Int], Restart::Sys),
    home(436, "close_range", &[Int, Int, Int], Restart::None),
    home(
        451,
        "cachestat",
        &[Fd, In(Fixed(16)), Out(Fixed(40)), Int],
        Restart::None,
    ),
];
