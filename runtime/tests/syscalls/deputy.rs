//! A guest whose memory is here and a deputy that is a real process: the way of a forwarded call without agent and link.

use mosix_loader::script::abi::SHARED;
use mosix_loader::script::{Op, STUB_ELF};
use mosix_runtime::process::window::{BUFFERS, Window};
use mosix_runtime::syscall::marshal::{Gathered, Ids, gather};
use mosix_runtime::syscall::memory::{Fault, GuestMemory};
use mosix_runtime::syscall::policy::{JobView, permit};
use mosix_runtime::syscall::relocate::{collect, place};
use mosix_runtime::syscall::table::{self, Row};
use mosix_wire::call::Reply;
use mosix_wire::ids::{Epoch, Pid, Seq, Tid};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

/// Where the guest's memory begins.
const GUEST: u64 = 0x5_0000_0000;
/// Its size.
const ROOM: usize = 8 << 20;

/// The guest: an address space of one mapping, and the deputy that executes its calls.
pub struct Guest {
    pub pid: i32,
    window: Window,
    base: u64,
    hole: std::ops::Range<u64>,
    memory: RefCell<Vec<u8>>,
    used: Cell<usize>,
    seq: Cell<u64>,
    executed: RefCell<BTreeSet<&'static str>>,
}

impl GuestMemory for Guest {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let range = self.range(addr, buf.len())?;
        buf.copy_from_slice(&self.memory.borrow()[range]);
        Ok(())
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), Fault> {
        let range = self.range(addr, data.len())?;
        self.memory.borrow_mut()[range].copy_from_slice(data);
        Ok(())
    }

    fn accessible(&self, addr: u64, len: u64, _write: bool) -> u64 {
        self.prefix(addr, len)
    }
}

impl JobView for Guest {
    fn contains(&self, pid: i32) -> bool {
        pid == self.pid
    }

    fn owns_group(&self, _caller: Pid, _pgid: i32) -> bool {
        false
    }

    fn forbidden(&self) -> &[Vec<u8>] {
        &[]
    }

    fn leads(&self, _thread: i32, _dirfd: i32, path: &[u8]) -> Option<Vec<u8>> {
        Some(path.to_vec())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}

impl Guest {
    /// Starts a deputy: a blank process that executes what its slot says. It has no descriptor of its own.
    pub fn start() -> Self {
        Self::start_at(GUEST, ROOM as u64, 0..0)
    }

    /// As [`Guest::start`], with so much memory at an address, and a hole in it.
    pub fn start_at(base: u64, room: u64, hole: std::ops::Range<u64>) -> Self {
        let program = mosix_sys::shared::memfd("stub", 0).expect("memfd");
        std::fs::File::from(program.try_clone().expect("dup"))
            .write_all(STUB_ELF)
            .expect("stub");
        let (window, fd) = Window::create().expect("window");
        let pid = mosix_sys::spawn::blank(0, program.as_fd(), fd.as_fd()).expect("blank");
        Self {
            pid,
            window,
            base,
            hole,
            memory: RefCell::new(vec![0; room as usize]),
            used: Cell::new(64),
            seq: Cell::new(0),
            executed: RefCell::default(),
        }
    }

    fn range(&self, addr: u64, len: usize) -> Result<std::ops::Range<usize>, Fault> {
        let start = addr.checked_sub(self.base).ok_or(Fault(addr))?;
        let end = start.checked_add(len as u64).ok_or(Fault(addr))?;
        let room = self.memory.borrow().len() as u64;
        if end > room || (start < self.hole.end && end > self.hole.start) {
            return Err(Fault(addr));
        }
        Ok(start as usize..end as usize)
    }

    /// All memory, the hole included.
    pub fn get_all(&self) -> Vec<u8> {
        self.memory.borrow().clone()
    }

    /// The window's shared memory.
    pub fn arena(&self) -> &mosix_sys::shared::Shared {
        self.window.shared()
    }

    /// Executes a call in the deputy as it is.
    pub fn raw<const N: usize>(&self, nr: i64, given: [u64; N]) -> i64 {
        let mut args = [0; 6];
        args[..N].copy_from_slice(&given);
        self.window
            .run(0, &[Op::may(nr, args)], Duration::from_secs(60))
            .expect("script")[0]
    }

    /// Sets bytes aside in the guest and returns their address.
    pub fn room(&self, len: usize) -> u64 {
        let at = self.used.get();
        self.used.set((at + len).next_multiple_of(64));
        self.base + at as u64
    }

    /// Puts bytes into the guest.
    pub fn put(&self, bytes: &[u8]) -> u64 {
        let at = self.room(bytes.len());
        self.write(at, bytes).expect("guest memory");
        at
    }

    /// Puts bytes at an address of the guest.
    pub fn put_at(&self, addr: u64, bytes: &[u8]) {
        self.write(addr, bytes).expect("guest memory");
    }

    /// Puts a C string into the guest.
    pub fn text(&self, text: &str) -> u64 {
        self.put(format!("{text}\0").as_bytes())
    }

    /// Puts 64-bit words into the guest.
    pub fn words(&self, words: &[u64]) -> u64 {
        self.put(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
    }

    /// Bytes of the guest.
    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(addr, &mut bytes).expect("guest memory");
        bytes
    }

    /// An `int` of the guest.
    pub fn int(&self, addr: u64) -> i32 {
        i32::from_le_bytes(self.get(addr, 4).try_into().expect("four bytes"))
    }

    /// A 64-bit word of the guest.
    pub fn word(&self, addr: u64) -> u64 {
        u64::from_le_bytes(self.get(addr, 8).try_into().expect("eight bytes"))
    }

    /// Calls that the deputy has executed.
    pub fn executed(&self) -> BTreeSet<&'static str> {
        self.executed.borrow().clone()
    }

    fn row(name: &str) -> &'static Row {
        table::rows()
            .find(|row| row.name == name)
            .unwrap_or_else(|| panic!("no call {name}"))
    }

    /// Makes a system call the whole way and returns its raw result.
    pub fn call<const N: usize>(&self, name: &str, given: [u64; N]) -> i64 {
        self.try_call(name, given)
            .unwrap_or_else(|why| panic!("{name} comes home: {why}"))
    }

    /// As [`Guest::call`]; an error when the call comes home.
    pub fn try_call<const N: usize>(&self, name: &str, given: [u64; N]) -> Result<i64, &'static str> {
        let mut args = [0; 6];
        args[..N].copy_from_slice(&given);
        let row = Self::row(name);
        self.seq.set(self.seq.get() + 1);
        let ids = Ids {
            pid: Pid(self.pid),
            tid: Tid(self.pid),
            epoch: Epoch(1),
            seq: Seq(self.seq.get()),
        };
        let forward = match gather(row, args, self, ids) {
            Gathered::Forward(forward) => forward,
            Gathered::Errno(errno) => return Ok(-i64::from(errno)),
            Gathered::ComeHome(why) => return Err(why),
        };
        permit(&forward.call, &forward.payload, self).map_err(|denied| denied.reason)?;
        let mut buffer = vec![0; forward.call.size as usize];
        let args = place(&forward.call, &forward.payload, &mut buffer, SHARED + BUFFERS).expect("places");
        self.window.shared().write(BUFFERS, &buffer).expect("buffer");
        let op = Op::may(i64::from(forward.call.nr), args);
        let result = self.window.run(0, &[op], Duration::from_secs(60)).expect(row.name)[0];
        self.window.shared().read(BUFFERS, &mut buffer).expect("buffer");
        let (lengths, parts) = collect(&forward.call, result, &buffer);
        let payload: Vec<u8> = parts
            .iter()
            .flat_map(|&(at, len)| buffer[at as usize..(at + len) as usize].to_vec())
            .collect();
        let reply = Reply {
            pid: ids.pid,
            tid: ids.tid,
            seq: ids.seq,
            result,
            lengths,
        };
        self.executed.borrow_mut().insert(row.name);
        Ok(forward.scatter.apply(self, &reply, &payload).expect("fits"))
    }

    /// Makes a call that must succeed.
    #[track_caller]
    pub fn ok<const N: usize>(&self, name: &str, args: [u64; N]) -> u64 {
        let result = self.call(name, args);
        assert!(
            result >= 0,
            "{name}: {}",
            std::io::Error::from_raw_os_error(-result as i32)
        );
        result as u64
    }

    /// Makes a call that must fail with `errno`.
    #[track_caller]
    pub fn fails<const N: usize>(&self, name: &str, args: [u64; N], errno: i32) {
        assert_eq!(self.call(name, args), -i64::from(errno), "{name}");
    }

    /// Makes a call that may fail with one of `errnos` on some kernels or for some users; returns whether it succeeded.
    #[track_caller]
    pub fn may<const N: usize>(&self, name: &str, args: [u64; N], errnos: &[i32]) -> bool {
        let result = self.call(name, args);
        assert!(result >= 0 || errnos.contains(&(-result as i32)), "{name}: {result}");
        result >= 0
    }
}
