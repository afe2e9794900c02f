//! A process as a value: everything needed to build its body again. Pages travel beside it, not in it.

use crate::ids::{Epoch, Nonce, Pid, Tid};
use crate::spent::{CpuTime, Spent};
use serde::{Deserialize, Serialize};

/// The body of one process at a freeze point.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProcessImage {
    /// Thread-group id at home.
    pub pid: Pid,
    /// The epoch that this image becomes when home commits it.
    pub epoch: Epoch,
    /// Life of the home supervisor.
    pub home: Nonce,
    /// The user whose number the body shows in siginfo; all real identity stays at home.
    pub uid: u32,
    /// Path of the program as home names it, for `mosix ps` and /proc/PID/exe.
    pub exe: String,
    /// All threads; the first is the leader.
    pub threads: Vec<ThreadImage>,
    /// Mappings in ascending order. None lies in the window or covers the node's own vDSO.
    pub vmas: Vec<Vma>,
    /// Files behind private mappings, indexed by [`Backing::File`].
    pub files: Vec<FileRef>,
    /// Fields of the kernel's mm_struct that a program can observe.
    pub mm: MmImage,
    /// Dispositions of signals 1 to 64, by number minus one.
    pub actions: Vec<SigAction>,
    /// Signals pending for the process, as raw 128-byte siginfo.
    pub pending: Vec<SigInfo>,
    /// Number of the last signal of home that the process has.
    pub signals: u64,
    /// What it has used on hosts so far, ended threads included.
    pub spent: Spent,
    /// CPU time that its deputy's kernel counts at the last departure from home, in nanoseconds.
    pub home_cpu_ns: u64,
    /// Clocks of the capturing node at capture, for the time namespace of the next.
    pub clocks: Clocks,
    /// Home's vDSO, which the body keeps at its old address.
    pub vdso: Option<VdsoImage>,
    /// What the body may use of a CPU.
    pub cpu: CpuImage,
    /// Results of prctl and personality calls that the body carries.
    pub attributes: Attributes,
}

/// One thread of the body.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ThreadImage {
    /// Thread id at home.
    pub tid: Tid,
    /// `struct user_regs_struct` in its order: r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags
    /// rsp ss fs_base gs_base ds es fs gs. A thread stopped inside a call that starts again keeps orig_rax = the call and rax = its
    /// restart code (-512, -513 or -514): set on a stopped thread, the kernel there does what it does natively, handler or not.
    pub regs: [u64; 27],
    /// NT_X86_XSTATE regset, non-compacted format.
    #[serde(with = "serde_bytes")]
    pub xsave: Vec<u8>,
    /// Blocked signals.
    pub mask: u64,
    /// Alternate signal stack as `stack_t`: sp, flags, size.
    pub altstack: (u64, i32, u64),
    /// Robust futex list: head, length.
    pub robust: (u64, u64),
    /// Address that the kernel clears and wakes at the thread's end.
    pub clear_child_tid: u64,
    /// rseq registration, when there is one.
    pub rseq: Option<Rseq>,
    /// Signals pending for this thread alone.
    pub pending: Vec<SigInfo>,
    /// Timer slack in nanoseconds.
    pub timer_slack: u64,
    /// Thread name, as in /proc/PID/comm.
    pub comm: String,
    /// Last seq the thread used; continues on the next node.
    pub seq: u64,
    /// True when call `seq` is still open at home: the thread re-issues it and the next agent binds it to the open call.
    pub in_flight: bool,
    /// When the time-out that the arguments of the interrupted call show began to count, in nanoseconds of the body's monotonic clock;
    /// none when the call has no relative time-out.
    pub since: Option<i64>,
    /// CPU time on hosts so far.
    pub cpu: CpuTime,
}

/// rseq registration of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rseq {
    /// Address of the area.
    pub address: u64,
    /// Registered size.
    pub size: u32,
    /// Abort signature.
    pub signature: u32,
}

/// One mapping.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vma {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// PROT_READ | PROT_WRITE | PROT_EXEC.
    pub prot: u8,
    /// Attributes that travel; a set of [`VmaFlags`] bits.
    pub flags: u32,
    /// What lies behind it.
    pub backing: Backing,
}

/// What lies behind a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Backing {
    /// Private anonymous memory: present pages travel, the rest is zeros.
    Anonymous,
    /// A private file mapping: index into `files`, offset in bytes. Only changed pages travel once the host has the file.
    File {
        /// Index into [`ProcessImage::files`].
        file: u32,
        /// Offset of `start` in the file.
        offset: u64,
    },
    /// Home's vDSO text; its bytes are in [`VdsoImage`].
    Vdso,
    /// Home's vvar pages and the like: kept free, never readable away.
    Reserved,
}

/// Bits of [`Vma::flags`].
pub struct VmaFlags;

impl VmaFlags {
    /// MAP_GROWSDOWN.
    pub const GROWS_DOWN: u32 = 1;
    /// mlocked.
    pub const LOCKED: u32 = 2;
    /// MADV_DONTFORK.
    pub const DONT_FORK: u32 = 4;
    /// MADV_WIPEONFORK.
    pub const WIPE_ON_FORK: u32 = 8;
    /// MADV_DONTDUMP.
    pub const DONT_DUMP: u32 = 16;
    /// MADV_HUGEPAGE.
    pub const HUGE: u32 = 32;
    /// MADV_NOHUGEPAGE.
    pub const NO_HUGE: u32 = 64;
    /// MAP_NORESERVE.
    pub const NO_RESERVE: u32 = 128;
    /// The mapping was shared and read-only at home; it travels as a private copy.
    pub const WAS_SHARED: u32 = 256;
    /// MADV_SEQUENTIAL or MADV_RANDOM are dropped knowingly; this bit only says that home's mapping is a droppable one.
    pub const DROPPABLE: u32 = 512;
}

/// A file behind private mappings, as home identifies it. The host never opens a path: bytes come from home.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct FileRef {
    /// Device and inode at home.
    pub device: u64,
    /// Inode number at home.
    pub inode: u64,
    /// Size in bytes when captured.
    pub size: u64,
    /// Modification time in nanoseconds.
    pub mtime_ns: i64,
    /// Path at home, for /proc/PID/maps only.
    pub path: String,
}

/// Fields of mm_struct, as prctl(PR_SET_MM_MAP) takes them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MmImage {
    /// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start, env_end.
    pub fields: [u64; 11],
    /// /proc/PID/auxv.
    #[serde(with = "serde_bytes")]
    pub auxv: Vec<u8>,
}

/// `struct kernel_sigaction`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SigAction {
    /// Handler address, SIG_DFL or SIG_IGN.
    pub handler: u64,
    /// SA_* flags.
    pub flags: u64,
    /// Restorer address.
    pub restorer: u64,
    /// Mask while the handler runs.
    pub mask: u64,
}

/// A raw kernel siginfo, 128 bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SigInfo(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl SigInfo {
    /// The signal's number, as it stands there; 0 when nothing does.
    pub fn signal(&self) -> i32 {
        self.0.first_chunk::<4>().map_or(0, |bytes| i32::from_le_bytes(*bytes))
    }
}

/// Clock readings in nanoseconds, taken together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Clocks {
    /// CLOCK_MONOTONIC as the body sees it.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME as the body sees it.
    pub boottime: i64,
    /// CLOCK_REALTIME.
    pub realtime: i64,
}

/// Home's vDSO as the body carries it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VdsoImage {
    /// Its address.
    pub base: u64,
    /// Its unpatched text, whole pages.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}

/// What a body may use of a CPU, recorded at birth.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CpuImage {
    /// Flags, named as in /proc/cpuinfo, that user programs can use and detect.
    pub flags: Vec<String>,
    /// XCR0 of the birth node; 0 when it saves state with FXSAVE only.
    pub xcr0: u64,
    /// Where the *capturing* node keeps each extended state in an XSAVE area; rewritten at each capture. Places differ between CPUs.
    pub xsave: Vec<XsaveComponent>,
    /// CPUs that home shows; numbers stay below it everywhere.
    pub cpus: u32,
}

/// Place of one state component in an XSAVE area of the standard format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct XsaveComponent {
    /// Bit number in XCR0; 2 (AVX) and up.
    pub number: u8,
    /// Its first byte in the area.
    pub offset: u32,
    /// Its bytes.
    pub size: u32,
}

/// Results of prctl and personality calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Attributes {
    /// personality(2).
    pub personality: u32,
    /// PR_GET_THP_DISABLE.
    pub thp_disable: bool,
    /// PR_GET_DUMPABLE.
    pub dumpable: u8,
    /// membarrier registrations (MEMBARRIER_CMD_GET_REGISTRATIONS).
    pub membarrier: u32,
    /// RLIMIT_STACK soft limit, which bounds the growth of the stack.
    pub stack_limit: u64,
    /// RLIMIT_CPU in seconds, soft and hard; none when neither is limited.
    pub cpu_limit: Option<(u64, u64)>,
    /// ITIMER_VIRTUAL and ITIMER_PROF.
    pub cpu_timers: [IntervalTimer; 2],
}

/// `struct itimerval` of setitimer(2), in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct IntervalTimer {
    /// Until it fires; 0 when it is not set.
    pub left_us: u64,
    /// From there on; 0 when it fires once.
    pub every_us: u64,
}

impl Attributes {
    /// Whether a timer of CPU time is set.
    pub fn has_cpu_timers(&self) -> bool {
        self.cpu_timers.iter().any(|timer| timer.left_us > 0)
    }
}
