//! gather → place → a fake kernel → collect → apply, for chosen calls and for random ones.

use super::*;
use crate::syscall::audit::audit;
use crate::syscall::memory::{Fault, PAGE};
use crate::syscall::relocate::{collect, place};
use crate::syscall::table::{self, Row};
use mosix_wire::call::Reply;
use mosix_wire::ids::{Epoch, Pid, Seq, Tid};
use std::cell::RefCell;
use std::collections::BTreeMap;

const IDS: Ids = Ids {
    pid: Pid(100),
    tid: Tid(101),
    epoch: Epoch(3),
    seq: Seq(7),
};
/// Where the deputy sees the buffer.
const BASE: u64 = 0x7e80_1000_0000;

/// Pages of a guest; everything else faults.
#[derive(Default)]
pub(super) struct Fake {
    pages: RefCell<BTreeMap<u64, Vec<u8>>>,
}

impl Fake {
    fn map(&self, start: u64, pages: u64) -> &Self {
        for n in 0..pages {
            self.pages.borrow_mut().insert(start / PAGE + n, vec![0; PAGE as usize]);
        }
        self
    }

    fn put(&self, addr: u64, bytes: &[u8]) -> &Self {
        self.write(addr, bytes).unwrap();
        self
    }

    fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(addr, &mut bytes).unwrap();
        bytes
    }
}

impl GuestMemory for Fake {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let pages = self.pages.borrow();
        for (n, byte) in buf.iter_mut().enumerate() {
            let at = addr.checked_add(n as u64).ok_or(Fault(addr))?;
            *byte = pages.get(&(at / PAGE)).ok_or(Fault(at))?[(at % PAGE) as usize];
        }
        Ok(())
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), Fault> {
        let mut pages = self.pages.borrow_mut();
        for (n, byte) in data.iter().enumerate() {
            let at = addr.checked_add(n as u64).ok_or(Fault(addr))?;
            pages.get_mut(&(at / PAGE)).ok_or(Fault(at))?[(at % PAGE) as usize] = *byte;
        }
        Ok(())
    }
}

fn named(name: &str) -> &'static Row {
    table::rows().find(|row| row.name == name).unwrap()
}

fn forward(name: &str, args: [u64; 6], mem: &Fake) -> Forward {
    match gather(named(name), args, mem, IDS) {
        Gathered::Forward(forward) => {
            audit(table::row(forward.call.nr), &forward.call, &forward.payload)
                .unwrap_or_else(|why| panic!("{name}: {why}"));
            *forward
        }
        other => panic!("{name}: {other:?}"),
    }
}

/// The deputy: gets the arguments and the buffer, which it sees at [`BASE`]; returns the result.
fn home(forward: &Forward, kernel: impl FnOnce([u64; 6], &mut [u8]) -> i64) -> (Reply, Vec<u8>) {
    let mut buffer = vec![0xee; forward.call.size as usize + 64];
    let args = place(&forward.call, &forward.payload, &mut buffer, BASE).unwrap();
    assert!(
        buffer[forward.call.size as usize..].iter().all(|&b| b == 0xee),
        "wrote behind the buffer"
    );
    let result = kernel(args, &mut buffer[..forward.call.size as usize]);
    let (lengths, parts) = collect(&forward.call, result, &buffer[..forward.call.size as usize]);
    let payload = parts
        .iter()
        .flat_map(|&(at, len)| buffer[at as usize..(at + len) as usize].to_vec())
        .collect();
    let reply = Reply {
        pid: IDS.pid,
        tid: IDS.tid,
        seq: IDS.seq,
        result,
        lengths,
    };
    (reply, payload)
}

/// The whole way of one call.
fn call(name: &str, args: [u64; 6], mem: &Fake, kernel: impl FnOnce([u64; 6], &mut [u8]) -> i64) -> i64 {
    let forward = forward(name, args, mem);
    let (reply, payload) = home(&forward, kernel);
    forward.scatter.apply(mem, &reply, &payload).unwrap()
}

/// Offset in the buffer of an address the kernel got.
fn at(address: u64) -> usize {
    usize::try_from(address - BASE).unwrap()
}

fn word(buffer: &[u8], offset: usize) -> u64 {
    vectors::u64_at(buffer, offset)
}

#[test]
fn read_brings_as_much_as_the_result_says() {
    let mem = Fake::default();
    mem.map(0x1000, 1).put(0x1000, &[9; 100]);
    let result = call("read", [3, 0x1010, 50, 0, 0, 0], &mem, |args, buffer| {
        assert_eq!((args[0], args[2]), (3, 50));
        buffer[at(args[1])..][..5].copy_from_slice(b"hello");
        5
    });
    assert_eq!(result, 5);
    assert_eq!(mem.get(0x100f, 8), b"\x09hello\x09\x09");
}

#[test]
fn read_into_a_buffer_with_an_unmapped_tail_is_shortened() {
    let mem = Fake::default();
    mem.map(0x1000, 2);
    let forward = forward("read", [3, 0x1f00, 0x10000, 0, 0, 0], &mem);
    // Two iovecs: what is mapped, and what faults.
    assert_eq!((forward.call.nr, forward.call.args[2]), (libc::SYS_readv as u32, 2));
    assert_eq!(
        (word(&forward.payload, 8), word(&forward.payload, 16)),
        (0x1100, BAD_POINTER)
    );
    assert_eq!(word(&forward.payload, 24), 0x10000 - 0x1100);
    let bad = super::tests::forward("read", [3, 0x9000, 100, 0, 0, 0], &mem);
    assert_eq!(
        (bad.call.args[1], bad.call.args[2], bad.call.size),
        (BAD_POINTER, 100, 0)
    );
    let kernel_address = super::tests::forward("read", [3, 0xffff_8000_0000_0000, 100, 0, 0, 0], &mem);
    assert_eq!(kernel_address.call.args[1], BAD_ADDRESS);
}

#[test]
fn huge_buffers_come_home_only_when_they_are_mapped() {
    struct All;
    impl GuestMemory for All {
        fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Fault> {
            buf.fill(0);
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), Fault> {
            Ok(())
        }
    }
    let big = limits::CALL_BUFFER as u64 + 1;
    for (name, args) in [
        ("read", [3, 0x1000, big, 0, 0, 0]),
        ("write", [1, 0x1000, big, 0, 0, 0]),
    ] {
        assert!(
            matches!(gather(named(name), args, &All, IDS), Gathered::ComeHome(_)),
            "{name}"
        );
        let mut fits = args;
        fits[2] = big - 1;
        assert!(
            matches!(gather(named(name), fits, &All, IDS), Gathered::Forward(_)),
            "{name}"
        );
    }
    let mem = Fake::default();
    mem.map(0x1000, 1);
    assert_eq!(
        forward("write", [1, 0x1000, big, 0, 0, 0], &mem).call.nr,
        libc::SYS_writev as u32
    );
    assert_eq!(
        forward("write", [1, 0x1000, u64::MAX, 0, 0, 0], &mem).call.args[1],
        BAD_ADDRESS
    );
}

#[test]
fn data_keeps_its_alignment_for_direct_io() {
    let mem = Fake::default();
    mem.map(0x10000, 4);
    for (addr, want) in [(0x10000u64, 4096u64), (0x10200, 512)] {
        let forward = forward("pwritev", [3, 0x13f00, 2, 0, 0, 0], {
            mem.put(0x13f00, &addr.to_le_bytes())
                .put(0x13f08, &1024u64.to_le_bytes());
            mem.put(0x13f10, &(addr + 1024).to_le_bytes())
                .put(0x13f18, &512u64.to_le_bytes());
            &mem
        });
        let mut buffer = vec![0; forward.call.size as usize];
        let args = place(&forward.call, &forward.payload, &mut buffer, BASE).unwrap();
        let data = word(&buffer, at(args[1]));
        assert_eq!(data % want.min(1024), 0, "{addr:#x}");
        assert_eq!(word(&buffer, at(args[1]) + 8), 1536);
    }
}

#[test]
fn paths_are_bounded_and_own_memory_in_proc_comes_home() {
    let mem = Fake::default();
    mem.map(0x1000, 4).put(0x1ffd, b"/etc/hosts\0");
    let forward = forward("openat", [-100i64 as u64, 0x1ffd, 0, 0, 0, 0], &mem);
    assert_eq!(forward.payload, b"/etc/hosts\0");
    mem.put(0x1000, &[b'a'; 0x1000]);
    mem.put(0x2000, &[b'a'; 8]);
    assert!(matches!(
        gather(named("open"), [0x1000, 0, 0, 0, 0, 0], &mem, IDS),
        Gathered::Errno(libc::ENAMETOOLONG)
    ));
    mem.put(0x1000, b"/proc/self/mem\0");
    assert!(matches!(
        gather(named("open"), [0x1000, 0, 0, 0, 0, 0], &mem, IDS),
        Gathered::ComeHome(_)
    ));
    mem.put(0x4fff, b"x");
    assert_eq!(
        super::tests::forward("open", [0x4fff, 0, 0, 0, 0, 0], &mem).call.args[0],
        BAD_POINTER
    );
    assert_eq!(super::tests::forward("open", [0, 0, 0, 0, 0, 0], &mem).call.args[0], 0);
}

#[test]
fn vectors_scatter_over_their_ranges() {
    let mem = Fake::default();
    mem.map(0x1000, 3).put(0x1000, &[0xaa; 64]);
    for (n, (base, len)) in [(0x1010u64, 3u64), (0, 0), (0x1020, 4), (0x1030, 100)]
        .iter()
        .enumerate()
    {
        mem.put(0x2000 + n as u64 * 16, &base.to_le_bytes())
            .put(0x2008 + n as u64 * 16, &len.to_le_bytes());
    }
    let result = call("readv", [0, 0x2000, 4, 0, 0, 0], &mem, |args, buffer| {
        assert_eq!(args[2], 1);
        let (base, len) = (word(buffer, at(args[1])), word(buffer, at(args[1]) + 8));
        assert_eq!(len, 107);
        buffer[at(base)..][..9].copy_from_slice(b"123456789");
        9
    });
    assert_eq!(result, 9);
    assert_eq!(
        (mem.get(0x1010, 4), mem.get(0x1020, 5)),
        (b"123\xaa".to_vec(), b"4567\xaa".to_vec())
    );
    assert_eq!(mem.get(0x1030, 3), b"89\xaa");
    let result = call("writev", [1, 0x2000, 3, 0, 0, 0], &mem, |args, buffer| {
        let base = word(buffer, at(args[1]));
        assert_eq!(&buffer[at(base)..][..7], b"1234567");
        7
    });
    assert_eq!(result, 7);
    // Too many, a negative length, an unreadable array: home's kernel gets the same and says so.
    assert_eq!(forward("readv", [0, 0x2000, 1025, 0, 0, 0], &mem).call.args[2], 1025);
    assert_eq!(
        forward("readv", [0, 0x9000, 2, 0, 0, 0], &mem).call.args[1],
        BAD_POINTER
    );
    mem.put(0x2008, &(-1i64).to_le_bytes());
    let negative = forward("readv", [0, 0x2000, 1, 0, 0, 0], &mem);
    assert_eq!(word(&negative.payload, 8) as i64, -1);
}

fn put_msghdr(mem: &Fake, at: u64, name: (u64, u32), iov: (u64, u64), control: (u64, u64)) {
    mem.put(at, &name.0.to_le_bytes()).put(at + 8, &name.1.to_le_bytes());
    mem.put(at + 16, &iov.0.to_le_bytes())
        .put(at + 24, &iov.1.to_le_bytes());
    mem.put(at + 32, &control.0.to_le_bytes())
        .put(at + 40, &control.1.to_le_bytes());
}

#[test]
fn recvmsg_fills_name_data_control_and_lengths() {
    let mem = Fake::default();
    mem.map(0x1000, 4);
    put_msghdr(&mem, 0x1000, (0x2000, 200), (0x1100, 1), (0x2100, 64));
    mem.put(0x1100, &0x3000u64.to_le_bytes())
        .put(0x1108, &100u64.to_le_bytes());
    let result = call("recvmsg", [5, 0x1000, 0, 0, 0, 0], &mem, |args, buffer| {
        let header = at(args[1]);
        assert_eq!(vectors::u32_at(buffer, header + 8), 128);
        let (name, iov) = (at(word(buffer, header)), at(word(buffer, header + 16)));
        let (data, control) = (at(word(buffer, iov)), at(word(buffer, header + 32)));
        buffer[name..name + 4].copy_from_slice(b"name");
        buffer[data..data + 5].copy_from_slice(b"hello");
        buffer[control..control + 20].copy_from_slice(&[7; 20]);
        buffer[header + 8..header + 12].copy_from_slice(&4u32.to_le_bytes());
        buffer[header + 40..header + 48].copy_from_slice(&20u64.to_le_bytes());
        buffer[header + 48..header + 52].copy_from_slice(&libc::MSG_CTRUNC.to_le_bytes());
        5
    });
    assert_eq!(result, 5);
    assert_eq!(
        (mem.get(0x2000, 5), mem.get(0x3000, 6)),
        (b"name\0".to_vec(), b"hello\0".to_vec())
    );
    assert_eq!(mem.get(0x2100, 21), [[7; 20].as_slice(), &[0]].concat());
    let header = mem.get(0x1000, 56);
    assert_eq!(
        (word(&header, 0), word(&header, 16), word(&header, 32)),
        (0x2000, 0x1100, 0x2100),
        "pointers stay"
    );
    assert_eq!((vectors::u32_at(&header, 8), word(&header, 40)), (4, 20));
    assert_eq!(vectors::u32_at(&header, 48), libc::MSG_CTRUNC as u32);
}

#[test]
fn sendmsg_sends_name_data_and_descriptors() {
    let mem = Fake::default();
    mem.map(0x1000, 4);
    put_msghdr(&mem, 0x1000, (0x2000, 4), (0x1100, 2), (0x2100, 20));
    mem.put(0x1100, &0x3000u64.to_le_bytes())
        .put(0x1108, &3u64.to_le_bytes());
    mem.put(0x1110, &0x3100u64.to_le_bytes())
        .put(0x1118, &2u64.to_le_bytes());
    mem.put(0x2000, b"name")
        .put(0x3000, b"abc")
        .put(0x3100, b"de")
        .put(0x2100, &[3; 20]);
    let result = call("sendmsg", [5, 0x1000, 0, 0, 0, 0], &mem, |args, buffer| {
        let header = at(args[1]);
        assert_eq!(&buffer[at(word(buffer, header))..][..4], b"name");
        let iov = at(word(buffer, header + 16));
        assert_eq!(&buffer[at(word(buffer, iov))..][..5], b"abcde");
        assert_eq!(&buffer[at(word(buffer, header + 32))..][..20], &[3; 20]);
        5
    });
    assert_eq!(result, 5);
    let zerocopy = gather(named("sendmsg"), [5, 0x1000, 0x400_0000, 0, 0, 0], &mem, IDS);
    assert!(matches!(zerocopy, Gathered::ComeHome(_)));
}

#[test]
fn recvmmsg_leaves_messages_alone_that_were_not_received() {
    let mem = Fake::default();
    mem.map(0x1000, 4);
    for n in 0..3u64 {
        put_msghdr(&mem, 0x1000 + n * 64, (0, 0), (0x2000 + n * 16, 1), (0, 0));
        mem.put(0x1000 + n * 64 + 56, &77u32.to_le_bytes());
        mem.put(0x2000 + n * 16, &(0x3000 + n * 256).to_le_bytes())
            .put(0x2008 + n * 16, &200u64.to_le_bytes());
        mem.put(0x3000 + n * 256, &[0xcc; 10]);
    }
    let result = call("recvmmsg", [5, 0x1000, 3, 0, 0, 0], &mem, |args, buffer| {
        for n in 0..2usize {
            let header = at(args[1]) + n * 64;
            let data = at(word(buffer, at(word(buffer, header + 16))));
            buffer[data..data + 2].copy_from_slice(&[n as u8; 2]);
            buffer[header + 56..header + 60].copy_from_slice(&2u32.to_le_bytes());
        }
        2
    });
    assert_eq!(result, 2);
    assert_eq!(mem.get(0x3000, 3), [0, 0, 0xcc]);
    assert_eq!(mem.get(0x3100, 3), [1, 1, 0xcc]);
    assert_eq!(mem.get(0x3200, 3), [0xcc; 3]);
    let length = |n: u64| vectors::u32_at(&mem.get(0x1000 + n * 64 + 56, 4), 0);
    assert_eq!((length(0), length(1), length(2)), (2, 2, 77));
}

#[test]
fn accept_brings_address_and_length() {
    let mem = Fake::default();
    mem.map(0x1000, 1)
        .put(0x1000, &[0xff; 32])
        .put(0x1100, &16u32.to_le_bytes());
    let result = call("accept", [3, 0x1000, 0x1100, 0, 0, 0], &mem, |args, buffer| {
        assert_eq!(vectors::u32_at(buffer, at(args[2])), 16);
        buffer[at(args[1])..][..16].fill(1);
        buffer[at(args[2])..][..4].copy_from_slice(&28u32.to_le_bytes());
        9
    });
    assert_eq!(result, 9);
    assert_eq!(mem.get(0x1000, 17), [[1; 16].as_slice(), &[0xff]].concat());
    assert_eq!(mem.get(0x1100, 4), 28u32.to_le_bytes());
    // Without an address the length is not needed.
    assert_eq!(
        call("accept", [3, 0, 0, 0, 0, 0], &mem, |args, _| i64::from(args[1] == 0)),
        1
    );
}

#[test]
fn interrupted_sleep_brings_the_rest_and_a_whole_one_leaves_it() {
    let mem = Fake::default();
    mem.map(0x1000, 1).put(0x1000, &[1; 16]).put(0x1010, &[2; 16]);
    let args = [0x1000, 0x1010, 0, 0, 0, 0];
    assert_eq!(call("nanosleep", args, &mem, |_, _| 0), 0);
    assert_eq!(mem.get(0x1010, 16), [2; 16]);
    let result = call("nanosleep", args, &mem, |args, buffer| {
        buffer[at(args[1])..][..16].fill(5);
        -4
    });
    assert_eq!((result, mem.get(0x1010, 16)), (-4, vec![5; 16]));
    assert_eq!(call("nanosleep", args, &mem, |_, _| -514), -514, "restart codes pass");
}

#[test]
fn waiting_without_a_child_leaves_the_status_alone() {
    let mem = Fake::default();
    mem.map(0x1000, 1).put(0x1000, &[0x5a; 8]);
    assert_eq!(call("wait4", [-1i64 as u64, 0x1000, 1, 0, 0, 0], &mem, |_, _| 0), 0);
    assert_eq!(mem.get(0x1000, 8), [0x5a; 8]);
}

#[test]
fn temporary_masks_stay_with_the_body() {
    let mem = Fake::default();
    mem.map(0x1000, 1).put(0x1000, &0xabcdu64.to_le_bytes());
    mem.put(0x1010, &0x1000u64.to_le_bytes())
        .put(0x1018, &8u64.to_le_bytes());
    let ppoll = forward("ppoll", [0, 0, 0, 0x1000, 8, 0], &mem);
    assert_eq!((ppoll.temp_mask, ppoll.call.args[3]), (Some(0xabcd), 0));
    let pselect = forward("pselect6", [0, 0, 0, 0, 0, 0x1010], &mem);
    assert_eq!((pselect.temp_mask, pselect.call.args[5]), (Some(0xabcd), 0));
    assert_eq!(forward("ppoll", [0, 0, 0, 0, 8, 0], &mem).temp_mask, None);
    let wrong = gather(named("ppoll"), [0, 0, 0, 0x1000, 7, 0], &mem, IDS);
    assert!(matches!(wrong, Gathered::Errno(libc::EINVAL)));
    let fault = gather(named("ppoll"), [0, 0, 0, 0x9000, 8, 0], &mem, IDS);
    assert!(matches!(fault, Gathered::Errno(libc::EFAULT)));
}

#[test]
fn requests_are_known_or_come_home() {
    let mem = Fake::default();
    mem.map(0x1000, 1);
    let result = call("ioctl", [0, 0x5413, 0x1000, 0, 0, 0], &mem, |args, buffer| {
        buffer[at(args[2])..][..8].copy_from_slice(&[24, 0, 80, 0, 0, 0, 0, 0]);
        0
    });
    assert_eq!((result, mem.get(0x1000, 4)), (0, vec![24, 0, 80, 0]));
    for (name, args) in [
        ("ioctl", [0, 0x5412, 0x1000, 0, 0, 0]),
        ("ioctl", [0, 0xdead_beef, 0x1000, 0, 0, 0]),
        ("fcntl", [0, 9999, 0, 0, 0, 0]),
        ("prctl", [4, 1, 0, 0, 0, 0]),
        ("setitimer", [1, 0x1000, 0, 0, 0, 0]),
        ("clock_nanosleep", [2, 0, 0x1000, 0, 0, 0]),
        ("personality", [0x40000, 0, 0, 0, 0, 0]),
        ("setsockopt", [3, 1, 26, 0x1000, 16, 0]),
    ] {
        assert!(
            matches!(gather(named(name), args, &mem, IDS), Gathered::ComeHome(_)),
            "{name} {args:x?}"
        );
    }
    mem.put(0x1000, b"a-name-longer-than-fifteen\0");
    assert_eq!(
        forward("prctl", [15, 0x1000, 0, 0, 0, 0], &mem).payload,
        b"a-name-longer-t\0"
    );
    assert_eq!(forward("fcntl", [3, 2, 1, 0, 0, 0], &mem).call.args[..3], [3, 2, 1]);
}

#[test]
fn message_queue_type_and_text_come_back_together() {
    let mem = Fake::default();
    mem.map(0x1000, 1).put(0x1000, &[0xee; 64]);
    let result = call("msgrcv", [1, 0x1000, 40, 0, 0, 0], &mem, |args, buffer| {
        assert_eq!(args[2], 40);
        buffer[at(args[1])..][..8].copy_from_slice(&3u64.to_le_bytes());
        buffer[at(args[1]) + 8..][..2].copy_from_slice(b"hi");
        2
    });
    assert_eq!(result, 2);
    assert_eq!(mem.get(0x1000, 11), b"\x03\0\0\0\0\0\0\0hi\xee");
}

#[test]
fn replies_that_do_not_fit_are_refused() {
    let mem = Fake::default();
    mem.map(0x1000, 1);
    let forward = forward("read", [3, 0x1000, 10, 0, 0, 0], &mem);
    let reply = |result, lengths: &[u32]| Reply {
        pid: IDS.pid,
        tid: IDS.tid,
        seq: IDS.seq,
        result,
        lengths: lengths.to_vec(),
    };
    for (reply, payload) in [
        (reply(5, &[11]), &[1; 11][..]),
        (reply(5, &[5]), &[1; 4]),
        (reply(5, &[5, 0]), &[1; 5]),
        (reply(5, &[]), &[]),
        (
            Reply {
                seq: Seq(8),
                ..reply(0, &[0])
            },
            &[],
        ),
    ] {
        assert!(forward.scatter.apply(&mem, &reply, payload).is_err(), "{reply:?}");
    }
    assert_eq!(mem.get(0x1000, 12), [0; 12], "nothing was written");
    assert_eq!(forward.scatter.apply(&mem, &reply(-9, &[]), &[]).unwrap(), -9);
    // The page went away while the call ran.
    mem.pages.borrow_mut().clear();
    assert_eq!(
        forward.scatter.apply(&mem, &reply(3, &[3]), &[1; 3]).unwrap(),
        -i64::from(libc::EFAULT)
    );
}

mod random;
mod strings;
