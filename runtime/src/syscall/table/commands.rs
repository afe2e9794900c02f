//! Known fcntl commands, prctl options and IPC commands. What is missing here comes home.

use super::kinds::{Arg, Arg::*, Request, Size::*};

const fn r(value: u32, name: &'static str, arg: Arg) -> Request {
    Request { value, name, arg }
}

/// struct flock: two shorts, two longs, a pid.
const LOCK_IN: Arg = In(Fixed(32));
const LOCK_INOUT: Arg = InOut(Fixed(32));

/// fcntl, by command.
pub(super) const FCNTL: &[Request] = &[
    r(0, "F_DUPFD", Int),
    r(1, "F_GETFD", Int),
    r(2, "F_SETFD", Int),
    r(3, "F_GETFL", Int),
    r(4, "F_SETFL", Int),
    r(5, "F_GETLK", LOCK_INOUT),
    r(6, "F_SETLK", LOCK_IN),
    r(7, "F_SETLKW", LOCK_IN),
    r(8, "F_SETOWN", Int),
    r(9, "F_GETOWN", Int),
    r(10, "F_SETSIG", Int),
    r(11, "F_GETSIG", Int),
    r(15, "F_SETOWN_EX", In(Fixed(8))),
    r(16, "F_GETOWN_EX", Out(Fixed(8))),
    r(17, "F_GETOWNER_UIDS", Out(Fixed(8))),
    r(36, "F_OFD_GETLK", LOCK_INOUT),
    r(37, "F_OFD_SETLK", LOCK_IN),
    r(38, "F_OFD_SETLKW", LOCK_IN),
    r(1024, "F_SETLEASE", Int),
    r(1025, "F_GETLEASE", Int),
    r(1026, "F_NOTIFY", Int),
    r(1027, "F_DUPFD_QUERY", Int),
    r(1028, "F_CREATED_QUERY", Int),
    r(1029, "F_CANCELLK", Int),
    r(1030, "F_DUPFD_CLOEXEC", Int),
    r(1031, "F_SETPIPE_SZ", Int),
    r(1032, "F_GETPIPE_SZ", Int),
    r(1033, "F_ADD_SEALS", Int),
    r(1034, "F_GET_SEALS", Int),
    r(1035, "F_GET_RW_HINT", Out(Fixed(8))),
    r(1036, "F_SET_RW_HINT", In(Fixed(8))),
    r(1037, "F_GET_FILE_RW_HINT", Out(Fixed(8))),
    r(1038, "F_SET_FILE_RW_HINT", In(Fixed(8))),
];

/// prctl, by option; the kind is that of argument 1, the others are numbers.
pub(super) const PRCTL: &[Request] = &[
    r(1, "PR_SET_PDEATHSIG", Int),
    r(2, "PR_GET_PDEATHSIG", Out(Fixed(4))),
    r(3, "PR_GET_DUMPABLE", Int),
    r(7, "PR_GET_KEEPCAPS", Int),
    r(8, "PR_SET_KEEPCAPS", Int),
    r(15, "PR_SET_NAME", Text(16)),
    r(16, "PR_GET_NAME", Out(Fixed(16))),
    r(21, "PR_GET_SECCOMP", Int),
    r(23, "PR_CAPBSET_READ", Int),
    r(24, "PR_CAPBSET_DROP", Int),
    r(27, "PR_GET_SECUREBITS", Int),
    r(28, "PR_SET_SECUREBITS", Int),
    r(29, "PR_SET_TIMERSLACK", Int),
    r(30, "PR_GET_TIMERSLACK", Int),
    r(34, "PR_MCE_KILL_GET", Int),
    r(36, "PR_SET_CHILD_SUBREAPER", Int),
    r(37, "PR_GET_CHILD_SUBREAPER", Out(Fixed(4))),
    r(38, "PR_SET_NO_NEW_PRIVS", Int),
    r(39, "PR_GET_NO_NEW_PRIVS", Int),
    r(47, "PR_CAP_AMBIENT", Int),
    r(52, "PR_GET_SPECULATION_CTRL", Int),
];

const SHMID: u32 = 112;
const SEMID: u32 = 104;
const MSQID: u32 = 120;

/// shmctl, by command.
pub(super) const SHMCTL: &[Request] = &[
    r(0, "IPC_RMID", Int),
    r(1, "IPC_SET", In(Fixed(SHMID))),
    r(2, "IPC_STAT", Out(Fixed(SHMID))),
    r(3, "IPC_INFO", Out(Fixed(72))),
    r(11, "SHM_LOCK", Int),
    r(12, "SHM_UNLOCK", Int),
    r(13, "SHM_STAT", Out(Fixed(SHMID))),
    r(14, "SHM_INFO", Out(Fixed(48))),
    r(15, "SHM_STAT_ANY", Out(Fixed(SHMID))),
];

/// semctl, by command. GETALL and SETALL need the number of semaphores in the set: they come home.
pub(super) const SEMCTL: &[Request] = &[
    r(0, "IPC_RMID", Int),
    r(1, "IPC_SET", In(Fixed(SEMID))),
    r(2, "IPC_STAT", Out(Fixed(SEMID))),
    r(3, "IPC_INFO", Out(Fixed(40))),
    r(11, "GETPID", Int),
    r(12, "GETVAL", Int),
    r(14, "GETNCNT", Int),
    r(15, "GETZCNT", Int),
    r(16, "SETVAL", Int),
    r(18, "SEM_STAT", Out(Fixed(SEMID))),
    r(19, "SEM_INFO", Out(Fixed(40))),
    r(20, "SEM_STAT_ANY", Out(Fixed(SEMID))),
];

/// msgctl, by command.
pub(super) const MSGCTL: &[Request] = &[
    r(0, "IPC_RMID", Int),
    r(1, "IPC_SET", In(Fixed(MSQID))),
    r(2, "IPC_STAT", Out(Fixed(MSQID))),
    r(3, "IPC_INFO", Out(Fixed(32))),
    r(11, "MSG_STAT", Out(Fixed(MSQID))),
    r(12, "MSG_INFO", Out(Fixed(32))),
    r(13, "MSG_STAT_ANY", Out(Fixed(MSQID))),
];

/// landlock_add_rule, by rule type.
pub(super) const LANDLOCK: &[Request] = &[
    r(1, "LANDLOCK_RULE_PATH_BENEATH", In(Fixed(12))),
    r(2, "LANDLOCK_RULE_NET_PORT", In(Fixed(16))),
];
