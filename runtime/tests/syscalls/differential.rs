//! The same random calls made twice: natively by one process on its own memory, and by a guest whose memory is elsewhere.
//!
//! Both start with the same descriptors and the same memory, with a hole in the middle. After every call the results and
//! all bytes of memory must be the same. What a program may see differently is listed in [`differs`], with the reason.

use crate::deputy::Guest;
use libc::*;

/// Small generator with a fixed seed: the same calls in every run.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Pages of the guest; the hole is the seventh and eighth.
const PAGES: u64 = 16;
const PAGE: u64 = 4096;
const HOLE: std::ops::Range<u64> = 6..8;

/// Where the native process has its memory: in its window's arena, which this test shares.
const OFFSET: u64 = mosix_runtime::process::window::BUFFERS;
const BASE: u64 = mosix_loader::script::abi::SHARED + OFFSET;

/// What an argument is made of.
#[derive(Clone, Copy)]
enum A {
    /// Any descriptor, or none.
    Fd,
    /// A socket.
    Socket,
    /// A buffer address.
    Ptr,
    /// A buffer address or null.
    Null,
    /// A length.
    Len,
    /// A small number.
    Small,
    /// This value.
    Is(u64),
    /// One of these.
    Of(&'static [u64]),
    /// Address of an iovec array; the next argument is its length.
    Iov,
    /// Length of the iovec array.
    IovLen,
    /// Address of a msghdr.
    Msg,
    /// Address of an `int` that holds a length.
    IntLen,
    /// Address of a path.
    Path,
    /// Address of a zero timespec.
    Zero,
    /// The process's message queue.
    Queue,
    /// Address of pollfds; the next argument is their number.
    Poll,
}

use A::{Fd, Iov, IovLen, Is, Len, Msg, Null, Of, Path, Poll, Ptr, Queue, Small, Socket, Zero};

const NOWAIT: u64 = (MSG_DONTWAIT | MSG_NOSIGNAL) as u64;
const RECEIVE: &[u64] = &[NOWAIT, NOWAIT | MSG_PEEK as u64, NOWAIT | MSG_TRUNC as u64];

const CALLS: &[(&str, &[A])] = &[
    ("read", &[Fd, Ptr, Len]),
    ("write", &[Fd, Ptr, Len]),
    ("pread64", &[Fd, Ptr, Len, Small]),
    ("pwrite64", &[Fd, Ptr, Len, Small]),
    ("lseek", &[Fd, Small, Of(&[0, 1, 2, 3, 9])]),
    ("readv", &[Fd, Iov, IovLen]),
    ("writev", &[Fd, Iov, IovLen]),
    ("preadv", &[Fd, Iov, IovLen, Small, Is(0)]),
    ("pwritev", &[Fd, Iov, IovLen, Small, Is(0)]),
    ("preadv2", &[Fd, Iov, IovLen, Small, Is(0), Of(&[0, 0, 8])]),
    ("sendto", &[Socket, Ptr, Len, Is(NOWAIT), Null, Small]),
    ("recvfrom", &[Socket, Ptr, Len, Of(RECEIVE), Null, A::IntLen]),
    ("sendmsg", &[Socket, Msg, Is(NOWAIT)]),
    ("recvmsg", &[Socket, Msg, Of(RECEIVE)]),
    ("getsockname", &[Of(&[0, 3, 4, 5, 6, 99]), Ptr, A::IntLen]),
    ("getpeername", &[Socket, Null, A::IntLen]),
    (
        "getsockopt",
        &[
            Socket,
            Of(&[1, 6, 0]),
            Of(&[3, 4, 7, 8, 16, 20, 30, 39, 99]),
            Ptr,
            A::IntLen,
        ],
    ),
    ("setsockopt", &[Socket, Of(&[1, 1, 6]), Of(&[7, 8, 15, 99]), Ptr, Small]),
    ("poll", &[Poll, Small, Is(0)]),
    ("ppoll", &[Poll, Small, Zero, Is(0), Is(8)]),
    (
        "select",
        &[Of(&[0, 1, 7, 20, 64, 65, u64::MAX]), Null, Null, Null, Zero],
    ),
    ("epoll_wait", &[Fd, Ptr, Of(&[0, 1, 3, 100, 100_000, u64::MAX]), Is(0)]),
    ("epoll_ctl", &[Fd, Of(&[1, 2, 3, 9]), Fd, Null]),
    ("getcwd", &[Ptr, Len]),
    ("readlink", &[Path, Ptr, Of(&[0, 1, 5, 64, 4096, 10_000])]),
    ("open", &[Path, Is(O_RDONLY as u64 | O_NONBLOCK as u64 | 0o100_000_000)]),
    ("access", &[Path, Of(&[0, 4, 99])]),
    ("stat", &[Path, Ptr]),
    ("lstat", &[Path, Ptr]),
    ("fstat", &[Of(&[0, 8, 99]), Ptr]),
    (
        "statx",
        &[Is(AT_FDCWD as i64 as u64), Path, Of(&[0, 0x1000, 1]), Is(0x0202), Ptr],
    ),
    ("truncate", &[Path, Small]),
    ("getxattr", &[Path, Ptr, Ptr, Small]),
    (
        "fcntl",
        &[Fd, Of(&[1, 3, 5, 9, 11, 15, 16, 17, 1025, 1032, 1034]), Null],
    ),
    (
        "ioctl",
        &[
            Fd,
            Of(&[
                0x5401, 0x5402, 0x540f, 0x5413, 0x541b, 0x5421, 0x5451, 0x8905, 2, 0x8913,
            ]),
            Null,
        ],
    ),
    ("getgroups", &[Of(&[0, 1, 100, u64::MAX]), Null]),
    ("getresuid", &[Ptr, Ptr, Ptr]),
    ("uname", &[Null]),
    ("getrlimit", &[Of(&[0, 7, 15, 16, 99]), Null]),
    ("prlimit64", &[Is(0), Of(&[0, 7, 15, 99]), Is(0), Null]),
    ("sched_getaffinity", &[Is(0), Of(&[0, 4, 8, 128, 4096, 100_000]), Ptr]),
    ("capget", &[Null, Null]),
    ("getitimer", &[Is(0), Null]),
    ("timer_gettime", &[Is(0), Null]),
    ("wait4", &[Is(u64::MAX), Null, Is(1), Null]),
    ("waitid", &[Is(0), Is(0), Null, Of(&[1, 4, 5]), Null]),
    ("prctl", &[Of(&[15, 16, 37, 2]), Null]),
    ("nanosleep", &[Zero, Null]),
    ("getdents64", &[Fd, Ptr, Len]),
    ("sendfile", &[Fd, Fd, Null, Small]),
    ("copy_file_range", &[Fd, Null, Fd, Null, Small, Is(0)]),
    (
        "msgsnd",
        &[Queue, Ptr, Of(&[0, 1, 50, 8000, 9000, u64::MAX]), Is(IPC_NOWAIT as u64)],
    ),
    (
        "msgrcv",
        &[
            Queue,
            Ptr,
            Of(&[0, 1, 50, 8000, 9000, 1 << 40, u64::MAX]),
            Is(0),
            Of(&[IPC_NOWAIT as u64, (IPC_NOWAIT | 0o10000) as u64]),
        ],
    ),
    (
        "sched_getattr",
        &[Is(0), Ptr, Of(&[0, 48, 56, 64, 100, 4096, 5000]), Is(0)],
    ),
    ("setitimer", &[Is(0), Zero, Null]),
    ("utimensat", &[Is(AT_FDCWD as i64 as u64), Path, Zero, Is(0)]),
    ("mq_open", &[Path, Is(0), Is(0), Null]),
    ("getrusage", &[Of(&[5, 99]), Ptr]),
    ("times", &[Is(0x10)]),
    ("statfs", &[Path, Is(0)]),
];

/// Both sides of one sequence.
pub struct Pair {
    native: Guest,
    guest: Guest,
    queues: (u64, u64),
    random: Random,
    /// The sides have seen something different that was no defect: the sequence ends.
    pub diverged: bool,
    paths: Vec<String>,
}

impl Pair {
    pub fn new(dir: &str, seed: u64) -> Self {
        let native = Guest::start();
        let guest = Guest::start_at(BASE, PAGES * PAGE, HOLE.start * PAGE..HOLE.end * PAGE);
        let mut pair = Self {
            native,
            guest,
            queues: (0, 0),
            diverged: false,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            paths: vec![
                format!("{dir}/file"),
                format!("{dir}/link"),
                format!("{dir}/none"),
                dir.to_owned(),
                String::new(),
            ],
        };
        for hole in [HOLE, PAGES..PAGES + 64] {
            pair.native
                .raw(SYS_munmap, [BASE + hole.start * PAGE, (hole.end - hole.start) * PAGE]);
        }
        let text = |p: &Self, text: &str| p.fill(BASE, format!("{text}\0").as_bytes());
        let nonblock = O_NONBLOCK as u64;
        text(&pair, dir);
        pair.both(SYS_chdir, [BASE, 0, 0, 0, 0, 0]);
        // 0: a file; 1, 2: a pipe; 3, 4: stream sockets; 5, 6: datagram sockets; 7: epoll; 8: a folder; 9: a counter;
        // 10: a listening socket.
        text(&pair, &pair.paths[0]);
        pair.both(SYS_open, [BASE, O_RDWR as u64, 0, 0, 0, 0]);
        pair.both(SYS_pipe2, [BASE, nonblock, 0, 0, 0, 0]);
        for kind in [SOCK_STREAM, SOCK_DGRAM] {
            pair.both(SYS_socketpair, [AF_UNIX as u64, kind as u64 | nonblock, 0, BASE, 0, 0]);
        }
        pair.both(SYS_epoll_create1, [0; 6]);
        text(&pair, dir);
        pair.both(SYS_open, [BASE, O_DIRECTORY as u64, 0, 0, 0, 0]);
        pair.both(SYS_eventfd2, [7, nonblock, 0, 0, 0, 0]);
        pair.both(SYS_socket, [AF_INET as u64, SOCK_STREAM as u64 | nonblock, 0, 0, 0, 0]);
        pair.both(SYS_listen, [10, 5, 0, 0, 0, 0]);
        let queue = |guest: &Guest| guest.raw(SYS_msgget, [0, 0o600]) as u64;
        pair.queues = (queue(&pair.native), queue(&pair.guest));
        pair
    }

    /// Prepares both sides with a call that is made in both processes directly.
    fn both(&self, nr: i64, args: [u64; 6]) {
        // The guest's deputy has this memory too, as long as the call is not forwarded: its own window's arena.
        let results = (self.native.raw(nr, args), self.guest.raw(nr, args));
        assert!(results.0 >= 0 && results.0 == results.1, "{nr}: {results:?}");
    }

    /// Writes the same bytes to both processes' memory and to the guest's.
    fn fill(&self, addr: u64, bytes: &[u8]) {
        for side in [&self.native, &self.guest] {
            side.arena().write(OFFSET + (addr - BASE), bytes).expect("arena");
        }
        self.guest.put_at(addr, bytes);
    }

    fn address(&mut self) -> u64 {
        let r = &mut self.random;
        let edge = r.pick(&[0, 1, HOLE.start, HOLE.start, HOLE.end, HOLE.end, PAGES, PAGES, 7, 12]) * PAGE;
        BASE + match r.below(8) {
            0 => return r.pick(&[0x10, 0x1000, u64::MAX, 1 << 63, 0x7fff_ffff_f000, 0x7fff_ffff_ef00]),
            1 => edge,
            2 => (edge + PAGE * PAGES - 1) % (PAGE * PAGES),
            3 => (edge + PAGE * PAGES - r.below(300)) % (PAGE * PAGES),
            _ => r.below(PAGES * PAGE - 200),
        }
    }

    fn length(&mut self) -> u64 {
        let r = &mut self.random;
        match r.below(6) {
            0 => r.pick(&[
                0,
                1,
                4096,
                8192,
                40_000,
                1 << 31,
                1 << 40,
                u64::MAX,
                i64::MAX as u64,
                0x7fff_f000,
            ]),
            1 => r.below(20_000),
            _ => r.below(300),
        }
    }

    /// Whether these bytes can be written at `addr`, outside the hole.
    fn mapped(addr: u64, len: u64) -> bool {
        let Some(start) = addr.checked_sub(BASE) else {
            return false;
        };
        let Some(end) = start.checked_add(len) else {
            return false;
        };
        end <= PAGES * PAGE && (end <= HOLE.start * PAGE || start >= HOLE.end * PAGE)
    }

    fn words(&mut self, addr: u64, words: &[u64]) {
        if Self::mapped(addr, words.len() as u64 * 8) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.fill(addr, &bytes);
        }
    }

    fn vector(&mut self) -> (u64, u64) {
        let addr = self.address();
        let count = self.random.pick(&[0, 1, 1, 2, 3, 5, 1025, u64::MAX]);
        let words: Vec<u64> = (0..count.min(5))
            .flat_map(|_| [self.address(), self.length()])
            .collect();
        self.words(addr, &words);
        (addr, count)
    }

    fn message(&mut self) -> u64 {
        let addr = self.address();
        let (iov, count) = self.vector();
        let name = if self.random.below(2) == 0 { 0 } else { self.address() };
        let name_len = self.random.pick(&[0, 2, 110, 128, 200, 0xffff_ffff]);
        let control = if self.random.below(2) == 0 { 0 } else { self.address() };
        let control_len = self.random.pick(&[0, 8, 16, 24, 100]);
        let words = [name, name_len, iov, count, control, control_len, 0];
        self.words(addr, &words);
        addr
    }

    fn argument(&mut self, kind: A, iov_len: &mut u64) -> u64 {
        match kind {
            Fd => self
                .random
                .pick(&[0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99, u64::MAX]),
            Socket => self.random.pick(&[3, 4, 5, 6, 3, 4, 5, 6, 10, 0, 99]),
            Ptr => self.address(),
            Null => {
                if self.random.below(3) == 0 {
                    0
                } else {
                    self.address()
                }
            }
            Len => self.length(),
            Small => self.random.pick(&[0, 1, 2, 4, 5, 8, 16, 100, 128, 129, 500]),
            Is(value) => value,
            Of(values) => self.random.pick(values),
            Iov => {
                let (addr, count) = self.vector();
                *iov_len = count;
                addr
            }
            IovLen => *iov_len,
            Msg => self.message(),
            A::IntLen => {
                let addr = self.address();
                let value = self.random.pick(&[0u32, 1, 2, 4, 8, 16, 128, 200, 5000, u32::MAX]);
                if Self::mapped(addr, 4) {
                    self.fill(addr, &value.to_le_bytes());
                }
                addr
            }
            Path => {
                // Often so that the string ends where memory does.
                let n = self.random.below(self.paths.len() as u64) as usize;
                let text = format!("{}\0", self.paths[n]);
                let len = text.len() as u64;
                let addr = match self.random.below(4) {
                    0 => BASE + HOLE.start * PAGE - len,
                    1 => BASE + PAGES * PAGE - len,
                    _ => self.address(),
                };
                if Self::mapped(addr, len) {
                    self.fill(addr, text.as_bytes());
                }
                addr
            }
            Zero => {
                let addr = self.address();
                self.words(addr, &[0, 0, 0, 0]);
                // Never an address whose bytes are another time.
                if Self::mapped(addr, 32) { addr } else { 0x10 }
            }
            Queue => u64::MAX,
            Poll => {
                let addr = self.address();
                for n in 0..8 {
                    let fd = self.random.pick(&[0u64, 1, 2, 3, 5, 9, 99, 0xffff_ffff]);
                    self.words(addr.wrapping_add(n * 8), &[fd | 5 << 32 | 0xffff << 48]);
                }
                addr
            }
        }
    }

    /// The words of a structure, for a failure's message.
    fn show(&self, addr: u64) -> String {
        if Self::mapped(addr, 56) {
            let word = |n: u64| self.guest.word(addr + n * 8);
            format!("{:x?}", (0..7).map(word).collect::<Vec<_>>())
        } else {
            String::new()
        }
    }

    /// Makes one call on both sides and compares.
    pub fn step(&mut self) -> Result<bool, String> {
        let noise: Vec<u8> = (0..PAGES * PAGE).map(|_| self.random.below(4) as u8 * 61).collect();
        for page in (0..PAGES).filter(|page| !HOLE.contains(page)) {
            let at = (page * PAGE) as usize;
            self.fill(BASE + page * PAGE, &noise[at..at + PAGE as usize]);
        }
        let (name, kinds) = self.random.pick(CALLS);
        let (mut args, mut iov_len) = ([0; 6], 0);
        for (n, &kind) in kinds.iter().enumerate() {
            args[n] = self.argument(kind, &mut iov_len);
        }
        let (mut native, mut guest) = (args, args);
        for (n, kind) in kinds.iter().enumerate() {
            if matches!(kind, Queue) {
                (native[n], guest[n]) = (self.queues.0, self.queues.1);
            }
        }
        let before = self.guest.get_all();
        let nr = mosix_runtime::syscall::table::rows()
            .find(|row| row.name == name)
            .expect(name)
            .nr;
        let there = match self.guest.try_call(name, guest) {
            Ok(result) => result,
            // It comes home: nothing to compare, and neither side has made it.
            Err(_) => return Ok(false),
        };
        let here = self.native.raw(i64::from(nr), native);
        let own: Vec<u8> = {
            let mut bytes = vec![0; (PAGES * PAGE) as usize];
            self.native.arena().read(OFFSET, &mut bytes).expect("arena");
            bytes
        };
        let mut theirs = self.guest.get_all();
        for side in [&own] {
            for page in HOLE {
                let at = (page * PAGE) as usize;
                theirs[at..at + PAGE as usize].copy_from_slice(&side[at..at + PAGE as usize]);
            }
        }
        let first = own.iter().zip(&theirs).position(|(a, b)| a != b);
        if here == there && (first.is_none() || overlap(&args)) {
            return Ok(true);
        }
        if differs(name, here, there) {
            self.diverged = here != there;
            return Ok(true);
        }
        let at = first.map(|at| (at, own[at], theirs[at], before[at]));
        let shown = if name.contains("msg") {
            self.show(args[1])
        } else {
            String::new()
        };
        Err(format!(
            "{name} {args:x?} {shown}: native {here}, forwarded {there}; first difference {at:x?}"
        ))
    }
}

/// Whether two arguments may name the same memory: which of the outputs wins is unspecified.
fn overlap(args: &[u64; 6]) -> bool {
    let inside = |&&at: &&u64| (BASE..BASE + PAGES * PAGE).contains(&at);
    args.iter()
        .filter(inside)
        .enumerate()
        .any(|(n, a)| args.iter().filter(inside).skip(n + 1).any(|b| a.abs_diff(*b) < 1100))
}

/// Differences that are known and harmless.
fn differs(name: &str, here: i64, there: i64) -> bool {
    let fault = -i64::from(EFAULT);
    match name {
        // Bytes between entries that the kernel does not write.
        "getdents64" if here == there => true,
        // The kernel reads as much of the value as the option has, the marshaller does not know how much.
        "setsockopt" => here == fault || there == fault,
        // Half a header at the end of memory: without data the kernel reads only its first half.
        "capget" => here == 0 && there == fault,
        // Two errors apply and one of them is a bad address: which comes first may differ. What a call that fails so has
        // written before is unspecified.
        // Memory ends in the middle of the data: how much of it a pipe or socket takes before the fault is its own choice.
        "write" | "writev" | "pwritev" => {
            there > 0 && here > 0 && (there - here).unsigned_abs() < PAGE || here < 0 && there < 0
        }
        _ => here < 0 && there < 0 && (here == fault || there == fault),
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.native.raw(SYS_msgctl, [self.queues.0, IPC_RMID as u64]);
        self.guest.raw(SYS_msgctl, [self.queues.1, IPC_RMID as u64]);
    }
}
