//! The vocabulary of the syscall table: dispositions, conditions, argument kinds, restart classes.
//!
//! Everything here is plain constant data, so that a row can be read like a line of documentation and every user of the
//! table (filters, marshalling, audit at home, reports) derives its behaviour from the same words.

/// What happens to a call while the process is whole, at home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// The kernel executes it; nothing of ours is involved.
    Native,
    /// The launcher's filter reports it to the supervisor, which answers with CONTINUE (only execve and execveat).
    Trap,
}

/// What happens to a call while the body is on a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Away {
    /// The host's kernel executes it: it touches the body alone.
    Native,
    /// Native when one of the rules matches the register arguments, else `otherwise`.
    NativeIf {
        /// Alternatives; a rule matches when all its conditions hold.
        rules: &'static [&'static [Cond]],
        /// What happens when no rule matches.
        otherwise: Otherwise,
    },
    /// The agent answers from the arguments alone, see [`crate::syscall::emulate`].
    Emulate,
    /// Forwarded: the deputy executes it.
    Home,
    /// Forwarded first; then the agent does the body's half, as the note says.
    Both,
    /// Hand-written in the agent, as the note says.
    Special,
    /// The process comes home and executes the call there, natively.
    Return,
    /// Fails with this errno, as it does at home.
    Refuse(i32),
}

/// What a [`Away::NativeIf`] row does when its conditions fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Otherwise {
    /// As [`Away::Emulate`].
    Emulate,
    /// As [`Away::Home`].
    Home,
    /// As [`Away::Special`].
    Special,
    /// As [`Away::Return`].
    Return,
}

/// A condition on one register argument; expressible in classic BPF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cond {
    /// Argument 0 to 5.
    pub arg: u8,
    /// Whether all 64 bits are compared, or the low 32 (`int` arguments).
    pub wide: bool,
    /// The comparison.
    pub op: Op,
    /// Its right side.
    pub value: u64,
}

/// Comparison of a [`Cond`]; unsigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Equal.
    Eq,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater or equal.
    Ge,
    /// `argument & mask == value`.
    Masked(u64),
}

impl Cond {
    /// Whether the condition holds for these arguments.
    pub const fn holds(&self, args: &[u64; 6]) -> bool {
        let mut left = args[self.arg as usize];
        let mut right = self.value;
        if !self.wide {
            left &= 0xffff_ffff;
            right &= 0xffff_ffff;
        }
        match self.op {
            Op::Eq => left == right,
            Op::Lt => left < right,
            Op::Le => left <= right,
            Op::Ge => left >= right,
            Op::Masked(mask) => left & mask == right & mask,
        }
    }
}

/// `int` argument equal to.
pub const fn int_is(arg: u8, value: u32) -> Cond {
    Cond {
        arg,
        wide: false,
        op: Op::Eq,
        value: value as u64,
    }
}

/// `long` argument equal to.
pub const fn is(arg: u8, value: u64) -> Cond {
    Cond {
        arg,
        wide: true,
        op: Op::Eq,
        value,
    }
}

/// `long` argument less than.
pub const fn below(arg: u8, value: u64) -> Cond {
    Cond {
        arg,
        wide: true,
        op: Op::Lt,
        value,
    }
}

/// `long` argument at most.
pub const fn at_most(arg: u8, value: u64) -> Cond {
    Cond {
        arg,
        wide: true,
        op: Op::Le,
        value,
    }
}

/// `long` argument at least.
pub const fn at_least(arg: u8, value: u64) -> Cond {
    Cond {
        arg,
        wide: true,
        op: Op::Ge,
        value,
    }
}

/// `long` argument whose bits under the mask are `value`.
pub const fn masked(arg: u8, mask: u64, value: u64) -> Cond {
    Cond {
        arg,
        wide: true,
        op: Op::Masked(mask),
        value,
    }
}

/// Size of a structure or array behind a pointer, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// Always this many.
    Fixed(u32),
    /// As many as this argument says.
    Bytes(u8),
    /// `count` argument times element size.
    Times(u8, u32),
}

/// Kind and direction of one argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arg {
    /// Passed as it is: number, flags, id, opaque value.
    Int,
    /// A descriptor of the process (home's number).
    Fd,
    /// An address that the kernel does not follow, or that only the body's own kernel follows.
    Addr,
    /// In: path, a C string of at most PATH_MAX bytes.
    Path,
    /// In: C string of at most so many bytes with its NUL, else this errno.
    Str(u32, i32),
    /// In: C string that the kernel cuts after so many bytes.
    Text(u32),
    /// In: vector of strings, ended by a null pointer (argv, envp).
    Strings,
    /// In: structure or array.
    In(Size),
    /// In and out, written back when the call did not fail. Also for outputs that the kernel leaves alone in some successes.
    InOut(Size),
    /// In and out, written back also when the call failed.
    InOutAlways(Size),
    /// Out, complete when the call did not fail.
    Out(Size),
    /// In: bytes, their number in this argument; fewer when the tail is not mapped, as write(2) does.
    Data(u8),
    /// Out: bytes, the room in this argument, as many as the result says, as read(2) does.
    Room(u8),
    /// Out: as [`Arg::Room`], for calls that judge the room itself: it is never cut.
    Whole(u8),
    /// Out: array, its room in this argument in elements of so many bytes, as many as the result says.
    Items(u8, u32),
    /// In: array of iovec, its length in this argument.
    IovIn(u8),
    /// Out: array of iovec, its length in this argument; the result says how many bytes.
    IovOut(u8),
    /// In: struct msghdr with name, data and control messages.
    MsgIn,
    /// Out: struct msghdr with name, data and control messages.
    MsgOut,
    /// In: array of struct mmsghdr, its length in this argument.
    MmsgIn(u8),
    /// Out: array of struct mmsghdr, its length in this argument.
    MmsgOut(u8),
    /// Flags of a send: MSG_ZEROCOPY comes home, the kernel would keep pages of the deputy.
    SendFlags,
    /// In: socket address, its length in this argument.
    NameIn(u8),
    /// Out: socket address, its in-out length behind this argument.
    NameOut(u8),
    /// In-out `socklen_t` of the [`Arg::NameOut`] or [`Arg::OptOut`] argument just before it.
    NameLen,
    /// In: option of setsockopt (level in argument 1, name in 2), its length in argument 4.
    OptIn,
    /// Out: option of getsockopt, its in-out length behind argument 4.
    OptOut,
    /// In-out: pollfd array, its length in this argument.
    PollFds(u8),
    /// In-out: fd_set for as many descriptors as this argument says.
    FdSet(u8),
    /// In: temporary signal mask, its size in this argument. The agent applies it to the body; home gets none.
    TempMask(u8),
    /// In: pointer to (mask, size) of pselect6; as [`Arg::TempMask`].
    TempMaskPair,
    /// A clock id; CPU clocks come home, because the deputy consumes no CPU.
    Clock,
    /// An `int` that the marshaller knows only with one of these values.
    Only(&'static [u32]),
    /// In: struct msgbuf: eight bytes of type and as many bytes as this argument says.
    MsgBufIn(u8),
    /// Out: struct msgbuf: eight bytes of type and the result's number of bytes, at most what this argument says.
    MsgBufOut(u8),
    /// Depends on the value of argument `selector`, by this list; unknown values come home.
    By {
        /// The argument that selects.
        selector: u8,
        /// Known values.
        list: &'static [Request],
    },
}

/// One known ioctl request, fcntl command, prctl option or IPC command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The selector's value, compared as `unsigned int`.
    pub value: u32,
    /// Its name in the kernel's headers.
    pub name: &'static str,
    /// Kind of the argument it selects.
    pub arg: Arg,
}

/// What the kernel does with the call when a stop or a signal interrupts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restart {
    /// Does not sleep interruptibly.
    None,
    /// -ERESTARTSYS (512): restarted without a handler or under SA_RESTART, else EINTR.
    Sys,
    /// -ERESTARTNOINTR (513): always restarted.
    NoInt,
    /// -ERESTARTNOHAND (514): restarted without a handler, else EINTR.
    NoHand,
    /// EINTR at once, even for a mere stop: to be rewound when no handled signal is due.
    Eintr,
    /// Keeps a deadline in the restart block (516): continued by restart_syscall.
    Timed,
}

/// How much of the call works while the body is away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// As at home.
    Full,
    /// With the difference that the note names.
    Partial,
    /// By coming home.
    ComesHome,
}

/// One system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// x86-64 number.
    pub nr: u32,
    /// Name in the kernel's table.
    pub name: &'static str,
    /// Disposition at home.
    pub home: Home,
    /// Disposition away.
    pub away: Away,
    /// Its arguments, at most six.
    pub args: &'static [Arg],
    /// Restart class.
    pub restart: Restart,
    /// Support level.
    pub support: Support,
    /// What a reader should know, or empty.
    pub note: &'static str,
}

impl Row {
    /// Sets the note.
    #[must_use]
    pub const fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    /// Marks the row as partly supported and says in which way it differs.
    #[must_use]
    pub const fn partial(mut self, note: &'static str) -> Self {
        self.support = Support::Partial;
        self.note = note;
        self
    }

    /// Makes the home filter report the call.
    #[must_use]
    pub const fn trapped(mut self) -> Self {
        self.home = Home::Trap;
        self
    }

    /// Forwarded first, then the agent's half.
    #[must_use]
    pub const fn both(mut self) -> Self {
        self.away = Away::Both;
        self
    }

    /// Whether home accepts the call in a [`mosix_wire::call::Call`]: only what the table forwards.
    pub const fn forwards(&self) -> bool {
        matches!(
            self.away,
            Away::Home
                | Away::Both
                | Away::NativeIf {
                    otherwise: Otherwise::Home,
                    ..
                }
        )
    }
}

const fn row(nr: u32, name: &'static str, away: Away, args: &'static [Arg], restart: Restart, support: Support) -> Row {
    Row {
        nr,
        name,
        home: Home::Native,
        away,
        args,
        restart,
        support,
        note: "",
    }
}

/// A forwarded call.
pub(super) const fn home(nr: u32, name: &'static str, args: &'static [Arg], restart: Restart) -> Row {
    row(nr, name, Away::Home, args, restart, Support::Full)
}

/// A call of the body alone.
pub(super) const fn native(nr: u32, name: &'static str, args: &'static [Arg], restart: Restart) -> Row {
    row(nr, name, Away::Native, args, restart, Support::Full)
}

/// A call of the body alone under conditions.
pub(super) const fn native_if(
    nr: u32,
    name: &'static str,
    args: &'static [Arg],
    restart: Restart,
    rules: &'static [&'static [Cond]],
    otherwise: Otherwise,
) -> Row {
    row(
        nr,
        name,
        Away::NativeIf { rules, otherwise },
        args,
        restart,
        Support::Full,
    )
}

/// A call for which the process comes home. The arguments are not described: nothing marshals them.
pub(super) const fn comes_home(nr: u32, name: &'static str, restart: Restart, note: &'static str) -> Row {
    row(nr, name, Away::Return, &[], restart, Support::ComesHome).note(note)
}

/// A hand-written call.
pub(super) const fn special(
    nr: u32,
    name: &'static str,
    args: &'static [Arg],
    restart: Restart,
    note: &'static str,
) -> Row {
    row(nr, name, Away::Special, args, restart, Support::Full).note(note)
}

/// A call that fails at home too.
pub(super) const fn refused(nr: u32, name: &'static str, note: &'static str) -> Row {
    row(nr, name, Away::Refuse(libc::ENOSYS), &[], Restart::None, Support::Full).note(note)
}
