//! Messages between a job's supervisor at home and its agents on hosts.
//!
//! One session (in order, resumed after a break) carries control, calls and replies; each move has page streams of its own.
//!
//! A page stream belongs to one move. Whoever has the memory and whoever wants it speak on it alone, in one of two ways:
//!
//! ```text
//! out:  sender (supervisor, or source agent) dials the destination's agent
//!         ─▶ Files            ◀─ ToHome::Lacks       before the freeze: the host gets file bytes it lacks
//!         ─▶ FileBytes …
//!         ─▶ Arrive, Pages …, ImageEnd               after the freeze; the answer (Complete, Refused) comes on the session
//! back: the supervisor dials the source's agent
//!         ─▶ Depart{to: Home}                        asks for the image here
//!                             ◀─ Departing, Pages …, ImageEnd, or CannotDepart
//!       and on the session, after every call and action of the body: Frozen. Home needs both.
//! ```
//!
//! Pages of a large body flow on further streams beside it, its lanes, dialled before the freeze by whoever dials the stream. A lane begins
//! with `Lane` and carries `Pages …, ImageEnd`. The move is over for each of them when one of them breaks.
//!
//! A frame is a fixed header, one of these messages in postcard, and a raw payload (bytes of a call, or pages).

use crate::call::{Call, Reply};
use crate::ids::{Epoch, JobId, NodeName, Nonce, Pid, Seq, Tid};
use crate::image::{Clocks, FileRef, ProcessImage, SigAction, SigInfo};
use crate::spent::Spent;
use serde::{Deserialize, Serialize};

/// A run of pages in a page frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PageRun {
    /// Address of the first page.
    pub address: u64,
    /// How many.
    pub pages: u32,
}

/// Home to host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToHost {
    /// First message of a session.
    Hello {
        /// The job.
        job: JobId,
        /// The supervisor's life.
        home: Nonce,
        /// How long the host waits for a silent home before it freezes the bodies, in seconds.
        lease_s: u32,
        /// Home's clocks as this is sent: bodies on the host go on from them.
        clocks: Clocks,
    },
    /// Opens a page stream; which of these files the host lacks is answered by [`ToHome::Lacks`].
    Files {
        /// The process whose image will come.
        pid: Pid,
        /// The epoch that the image will have.
        epoch: Epoch,
        /// What its mappings are of.
        files: Vec<FileRef>,
    },
    /// Bytes of a file at `offset`; the payload. `last` ends the file.
    FileBytes {
        /// The file.
        file: FileRef,
        /// Where the payload goes.
        offset: u64,
        /// No more follows.
        last: bool,
    },
    /// An image will come on this stream: what can be made for it without knowing it is made now, while the program still runs.
    Prepare {
        /// The process.
        pid: Pid,
        /// The epoch of the image.
        epoch: Epoch,
        /// The files that it will probably have, which the host has.
        files: Vec<FileRef>,
        /// The threads that it will probably have, the leader first.
        threads: Vec<Tid>,
        /// Home's clocks, as the sender knows them.
        clocks: Clocks,
    },
    /// A body arrives. Pages follow as [`ToHost::Pages`], then [`ToHost::ImageEnd`].
    Arrive(Box<ProcessImage>),
    /// First message of a further page stream of a move: a lane, on which pages flow beside those of the stream with the image.
    Lane {
        /// The process.
        pid: Pid,
        /// The epoch of the image.
        epoch: Epoch,
        /// Home fetches: pages come to it on this stream. Else they come from it.
        fetch: bool,
    },
    /// The payload are pages of the arriving process `pid`.
    Pages {
        /// The process.
        pid: Pid,
        /// Where they belong, in the payload's order.
        runs: Vec<PageRun>,
    },
    /// All of the image was sent; on a lane, all that comes on this lane.
    ImageEnd {
        /// The process.
        pid: Pid,
        /// Pages sent on this stream.
        pages: u64,
        /// Lanes that carried pages beside this stream; 0 on a lane.
        lanes: u8,
    },
    /// Home has committed: release the body.
    Run {
        /// The process.
        pid: Pid,
        /// The epoch that begins.
        epoch: Epoch,
    },
    /// Forget and kill the body of this or an older epoch.
    Drop {
        /// The process.
        pid: Pid,
        /// The epoch up to which bodies die.
        epoch: Epoch,
    },
    /// The answer to a call; payload: its outputs.
    Reply(Reply),
    /// A signal arrived at home for the body.
    Signal {
        /// The process.
        pid: Pid,
        /// Grows with each signal of the process; one that the body has already comes again after a move and is not taken again.
        number: u64,
        /// The thread, when the signal is thread-directed.
        tid: Option<Tid>,
        /// True siginfo.
        info: SigInfo,
    },
    /// Stop all threads of the body (the deputy stopped), or let them go on.
    Stop {
        /// The process.
        pid: Pid,
        /// Stop, or continue.
        stop: bool,
    },
    /// Freeze the body and send its image to `to`.
    Depart {
        /// The process.
        pid: Pid,
        /// The epoch that the image will have.
        epoch: Epoch,
        /// Where to.
        to: Destination,
        /// Files of which the destination needs no bytes are not asked for again.
        known_files: Vec<FileRef>,
        /// Lanes that home has opened for the pages.
        lanes: u8,
    },
    /// The move failed: the body that is frozen for `attempt` runs on under `epoch`. A body that is not frozen for exactly this
    /// attempt ignores it: a late thaw of an earlier attempt must never wake a copy whose successor may run.
    Thaw {
        /// The process.
        pid: Pid,
        /// The epoch that the failed move would have had ([`ToHost::Depart`]).
        attempt: Epoch,
        /// The epoch under which the body runs on: its old one, or a new one when the failed move had been committed.
        epoch: Epoch,
    },
    /// Home's word that a body of this process will arrive from another host. Only an expected image is built, and only from
    /// the expected agent; older copies of the process on this host are dead.
    Expect {
        /// The process.
        pid: Pid,
        /// The epoch of the image.
        epoch: Epoch,
        /// The host that sends it.
        from: NodeName,
        /// SHA-256 of the sending agent's certificate.
        fingerprint: [u8; 32],
    },
    /// Home's clocks as this is sent; of several the quickest message tells them best.
    Clocks(Clocks),
    /// The answer to [`ToHome::MapFile`].
    MapFile {
        /// The process.
        pid: Pid,
        /// The thread that asked.
        tid: Tid,
        /// What its descriptor means.
        answer: MapAnswer,
    },
    /// A file that was asked for by [`ToHome::WantFile`] cannot be sent.
    NoFile(FileRef),
    /// Asks for [`ToHome::Usage`].
    AskUsage,
    /// Asks what the host's kernel says about a body in /proc: [`ToHome::ProcText`].
    AskProc {
        /// Names the question.
        number: u64,
        /// The process.
        pid: Pid,
        /// The thread, when its own folder is meant.
        tid: Option<Tid>,
        /// The file.
        file: ProcFile,
    },
    /// Home ends the session for good.
    Bye,
}

/// What a descriptor means for a private mapping.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MapAnswer {
    /// This file.
    File(FileRef),
    /// Home's kernel would refuse with this errno.
    Errno(i32),
    /// Something that is mapped at home only: the process comes home.
    AtHome,
}

/// A file of /proc/PID whose text depends on where the body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ProcFile {
    /// maps.
    Maps,
    /// smaps.
    Smaps,
    /// smaps_rollup.
    SmapsRollup,
    /// status.
    Status,
    /// stat.
    Stat,
    /// statm.
    Statm,
}

/// Where a frozen body goes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Destination {
    /// To the supervisor, over this session.
    Home,
    /// To the agent of the same job on this node, over a page stream dialled by the source's node.
    Node {
        /// Its name.
        node: NodeName,
        /// SHA-256 of the agent's certificate.
        fingerprint: [u8; 32],
    },
}

/// Host to home.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToHome {
    /// First answer of a session.
    Welcome {
        /// The agent's life.
        agent: Nonce,
        /// Kernel release, for messages.
        kernel: String,
    },
    /// Files of a [`ToHost::Files`] whose bytes the host needs.
    Lacks(Vec<FileRef>),
    /// The body is built and verified, and waits for [`ToHost::Run`].
    Complete {
        /// The process.
        pid: Pid,
        /// The epoch of its image.
        epoch: Epoch,
        /// Bytes of memory that came with it.
        bytes: u64,
    },
    /// There is no body of this epoch here (any more): it could not be built, or was lost (lease over, killed while frozen, an
    /// order named a body that is not here). Nothing of it is left.
    Refused {
        /// The process.
        pid: Pid,
        /// The epoch of its image, or of the order that found no body.
        epoch: Epoch,
        /// Why, for the user.
        reason: String,
    },
    /// The body runs: the point of no return.
    Running {
        /// The process.
        pid: Pid,
        /// Its epoch.
        epoch: Epoch,
    },
    /// A system call; payload: its input bytes.
    Call(Call),
    /// A handled signal is due for this thread, whose call is open at home: end the call if it can be ended. Home answers the
    /// call in any case: with its result, a restart code, or EINTR (contract "signals"). Unknown or answered calls: ignored.
    Cancel {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Tid,
        /// Epoch of the body.
        epoch: Epoch,
        /// The open call.
        seq: Seq,
    },
    /// A stop signal (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU) with its default action is due in the body. Home raises it in the deputy,
    /// which really stops; the body follows by [`ToHost::Stop`].
    StopSignal {
        /// The process.
        pid: Pid,
        /// Epoch of the body.
        epoch: Epoch,
        /// Signal number.
        signal: u8,
    },
    /// The body has home's signals up to this number, and keeps them through every move: home need not send them again.
    Took {
        /// The process.
        pid: Pid,
        /// Epoch of the body.
        epoch: Epoch,
        /// Number of [`ToHost::Signal`].
        number: u64,
    },
    /// A disposition changed away; home's half follows before any later call.
    Action {
        /// The process.
        pid: Pid,
        /// The thread that changed it.
        tid: Tid,
        /// Epoch of the body.
        epoch: Epoch,
        /// Signal number.
        signal: u8,
        /// The new disposition.
        action: SigAction,
    },
    /// The body has written these pages (payload) of memory that belongs to an object at home. In order with its calls.
    WriteBack {
        /// The process.
        pid: Pid,
        /// Epoch of the body.
        epoch: Epoch,
        /// Where they are, in the body and in the deputy.
        address: u64,
    },
    /// The body wants to come home: it is about to do something that runs only there. Home answers with [`ToHost::Depart`].
    WantHome {
        /// The process.
        pid: Pid,
        /// Its epoch.
        epoch: Epoch,
        /// The call that asks for it, for `mosix ps`.
        nr: u32,
    },
    /// A thread wants to map a file privately, or shared to be read, and waits for [`ToHost::MapFile`].
    MapFile {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Tid,
        /// Epoch of the body.
        epoch: Epoch,
        /// The descriptor, in the deputy.
        fd: i32,
        /// Code is to be mapped.
        exec: bool,
        /// MAP_SHARED, to be read only.
        shared: bool,
    },
    /// The host lacks the bytes of a file that [`MapAnswer::File`] named for this process; they come as [`ToHost::FileBytes`] on the session.
    WantFile {
        /// The process.
        pid: Pid,
        /// The file.
        file: FileRef,
    },
    /// Frozen for a [`ToHost::Depart`] to home; pages follow as [`ToHome::Pages`], then [`ToHome::ImageEnd`].
    Departing(Box<ProcessImage>),
    /// Frozen and captured for another host. Sent before the last byte of the image, after every call and action of the body:
    /// home commits a move only with this and [`ToHome::Complete`].
    Frozen {
        /// The process.
        pid: Pid,
        /// The epoch of the image.
        epoch: Epoch,
        /// How long the body has stood still when this is sent, in microseconds.
        for_us: u64,
    },
    /// The body runs on: it could not be frozen or captured, or its page stream broke *before* the end of the image was sent.
    /// After that only home may wake it ([`ToHost::Thaw`]).
    CannotDepart {
        /// The process.
        pid: Pid,
        /// The epoch that was asked for.
        epoch: Epoch,
        /// Why, for the user.
        reason: String,
    },
    /// Pages of the departing process; the payload.
    Pages {
        /// The process.
        pid: Pid,
        /// Where they belong, in the payload's order.
        runs: Vec<PageRun>,
    },
    /// All of the image was sent; on a lane, all that comes on this lane.
    ImageEnd {
        /// The process.
        pid: Pid,
        /// Pages sent on this stream.
        pages: u64,
        /// Lanes that carried pages beside this stream; 0 on a lane.
        lanes: u8,
    },
    /// A thread of the body ended by exit(2) with this status; home's half ends the deputy's thread.
    ThreadExit {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Tid,
        /// Epoch of the body.
        epoch: Epoch,
        /// exit(2) argument.
        status: i32,
    },
    /// A body has forked: the deputy's child has a body here too, which waits to be told to run.
    Forked {
        /// The parent.
        pid: Pid,
        /// Epoch of the parent's body.
        epoch: Epoch,
        /// The child.
        child: Pid,
    },
    /// A child that the deputy has made gets no body: it never was.
    NotForked {
        /// The parent.
        pid: Pid,
        /// Epoch of the parent's body.
        epoch: Epoch,
        /// The child.
        child: Pid,
    },
    /// The body is gone: exit_group status, or the signal that killed it.
    Exited {
        /// The process.
        pid: Pid,
        /// Epoch of the body.
        epoch: Epoch,
        /// How.
        how: Exit,
    },
    /// The answer to [`ToHost::AskProc`]; the text is the payload, empty when there is none. Files and addresses are in home's terms.
    ProcText {
        /// The question.
        number: u64,
    },
    /// Resources of a body, sent when asked and at its end.
    Usage {
        /// The process.
        pid: Pid,
        /// What it has used so far, here and on earlier hosts.
        spent: Spent,
        /// Resident bytes.
        resident: u64,
        /// Threads.
        threads: u32,
        /// A thread runs or is ready to run.
        running: bool,
    },
}

/// How a body ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Exit {
    /// exit_group(status).
    Code(i32),
    /// Killed by this signal; `core` when home should show a core dump.
    Signal {
        /// Signal number.
        signal: u8,
        /// WCOREDUMP.
        core: bool,
    },
}
