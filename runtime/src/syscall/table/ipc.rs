//! System V and POSIX IPC: objects of home's IPC namespace.

use super::commands;
use super::kinds::{Arg::*, Restart, Row, Size::*, comes_home, home};

/// Name of a POSIX queue: a path of its own file system.
const QUEUE: super::Arg = Str(4096, libc::ENAMETOOLONG);

pub(super) const ROWS: &[Row] = &[
    home(29, "shmget", &[Int, Int, Int], Restart::None),
    comes_home(
        30,
        "shmat",
        Restart::None,
        "shared memory is mapped at home; the process stays",
    ),
    home(
        31,
        "shmctl",
        &[
            Int,
            Int,
            By {
                selector: 1,
                list: commands::SHMCTL,
            },
        ],
        Restart::None,
    ),
    home(64, "semget", &[Int, Int, Int], Restart::None),
    home(65, "semop", &[Int, In(Times(2, 6)), Int], Restart::Eintr),
    home(
        66,
        "semctl",
        &[
            Int,
            Int,
            Int,
            By {
                selector: 2,
                list: commands::SEMCTL,
            },
        ],
        Restart::None,
    )
    .partial("GETALL and SETALL come home"),
    comes_home(67, "shmdt", Restart::None, "shared memory is mapped at home"),
    home(68, "msgget", &[Int, Int], Restart::None),
    home(69, "msgsnd", &[Int, MsgBufIn(2), Int, Int], Restart::NoHand),
    home(70, "msgrcv", &[Int, MsgBufOut(2), Int, Int, Int], Restart::NoHand),
    home(
        71,
        "msgctl",
        &[
            Int,
            Int,
            By {
                selector: 1,
                list: commands::MSGCTL,
            },
        ],
        Restart::None,
    ),
    home(
        220,
        "semtimedop",
        &[Int, In(Times(2, 6)), Int, In(Fixed(16))],
        Restart::Eintr,
    ),
    home(240, "mq_open", &[QUEUE, Int, Int, In(Fixed(64))], Restart::None),
    home(241, "mq_unlink", &[QUEUE], Restart::None),
    home(
        242,
        "mq_timedsend",
        &[Fd, In(Bytes(2)), Int, Int, In(Fixed(16))],
        Restart::Sys,
    ),
    home(
        243,
        "mq_timedreceive",
        &[Fd, Whole(2), Int, Out(Fixed(4)), In(Fixed(16))],
        Restart::Sys,
    ),
    comes_home(
        244,
        "mq_notify",
        Restart::None,
        "its cookie is a pointer inside a pointer",
    ),
    home(
        245,
        "mq_getsetattr",
        &[Fd, In(Fixed(64)), Out(Fixed(64))],
        Restart::None,
    ),
];
