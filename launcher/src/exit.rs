//! Exit codes of `mosix`.
//!
//! `mosix run` ends as its program did: with its exit code, or killed by the same signal. Its own failures are 125 to 127, as
//! env(1) and shells use them. All other verbs use the codes below.

/// Why `mosix` ends, when it is not the program of `mosix run` that decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done as asked.
    Done = 0,
    /// Not done; the message says why. `mosix ctl check`: something that mosix needs is missing.
    Failed = 1,
    /// Bad arguments (not for `mosix run`, whose code is 125).
    Usage = 2,
    /// No such process, or no such job.
    UnknownProcess = 3,
    /// No such node, or it does not answer.
    UnknownNode = 4,
    /// The process cannot move; `mosix ps` shows why.
    CannotMove = 5,
    /// The destination refused the process, or lacks something that it needs.
    NotAdmitted = 6,
    /// The caller may not do that.
    Forbidden = 7,
    /// `mosix run` itself failed: the program was not tried.
    RunFailed = 125,
    /// `mosix run`: the program is there and cannot be executed.
    CannotExecute = 126,
    /// `mosix run`: there is no such program.
    NotFound = 127,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
