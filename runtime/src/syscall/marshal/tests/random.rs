//! Random rows with random arguments: nothing panics, nothing is lost, nothing leaves its bounds.

use super::*;
use crate::syscall::policy::{JobView, permit};
use mosix_wire::call::{Call, Extent, Output, Place};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::Cell;

/// A guest with a few pages: two runs with holes around them, filled with small numbers and own addresses, so that
/// structures read from it hold plausible pointers and lengths.
fn guest(seed: &[u8]) -> Fake {
    let mem = Fake::default();
    mem.map(0x1_0000, 6).map(0x2_0000, 2).map(0x7000_0000_0000, 40);
    let mut pages = mem.pages.borrow_mut();
    for (n, (page, bytes)) in pages.iter_mut().enumerate() {
        for (k, word) in bytes.chunks_exact_mut(8).enumerate() {
            let s = u64::from(seed[(n * 31 + k) % seed.len()]);
            let value = match s % 7 {
                0 => 0,
                1 => s,
                2 => page * PAGE + s * 8 % PAGE,
                3 => 0x1_0000 + s * 64,
                4 => 8 * (s % 40),
                5 => 0x7000_0000_0000 + s * 600,
                _ => s << 56,
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    drop(pages);
    mem
}

/// A guest memory that knows its pages, as an agent's does; the default of the trait overlooks holes in the middle.
struct Exact(Fake);

impl GuestMemory for Exact {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.0.read(addr, buf)
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), Fault> {
        self.0.write(addr, data)
    }

    fn accessible(&self, addr: u64, len: u64, _write: bool) -> u64 {
        let pages = self.0.pages.borrow();
        let mut end = addr;
        while end < addr.saturating_add(len) && pages.contains_key(&(end / PAGE)) {
            end = (end / PAGE + 1) * PAGE;
        }
        (end - addr).min(len)
    }
}

fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => Just(0),
        3 => 0u64..64,
        2 => 64u64..5000,
        4 => (0u64..6 * PAGE).prop_map(|n| 0x1_0000 + n),
        2 => (0u64..40 * PAGE).prop_map(|n| 0x7000_0000_0000 + n),
        1 => Just(0x2_1fff),
        1 => any::<u64>(),
        1 => any::<u32>().prop_map(u64::from),
        1 => proptest::sample::select(vec![u64::MAX, 1 << 63, TASK_END, TASK_END - 1, 0x5401, 0x5413, 0x8912, 15, 1030]),
    ]
}

fn runner(cases: u32) -> TestRunner {
    // Fixed seed: the same calls in every run.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[42; 32]);
    TestRunner::new_with_rng(
        Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        },
        rng,
    )
}

/// What the kernel gets has the same meaning at home as in the guest: every address of the buffer is filled by the
/// "kernel", and exactly the ranges that the row names change in the guest.
#[test]
fn random_calls_make_the_whole_way() {
    let rows: Vec<&'static Row> = table::rows().filter(|row| row.forwards()).collect();
    assert!(rows.len() > 200);
    let strategy = (
        proptest::sample::select(rows),
        [argument(), argument(), argument(), argument(), argument(), argument()],
        proptest::collection::vec(any::<u8>(), 64),
        prop_oneof![Just(0i64), Just(-4), Just(-514), 0i64..200, Just(i64::from(i32::MAX))],
    );
    let (forwarded, with_outputs) = (Cell::new(0u32), Cell::new(0u32));
    runner(12_000)
        .run(&strategy, |(row, args, seed, result)| {
            let mem = Exact(guest(&seed));
            let before = mem.0.pages.borrow().clone();
            let Gathered::Forward(forward) = gather(row, args, &mem, IDS) else {
                return Ok(());
            };
            forwarded.set(forwarded.get() + 1);
            prop_assert!(forward.payload.len() <= forward.call.size as usize);
            if let Err(why) = audit(table::row(forward.call.nr), &forward.call, &forward.payload) {
                return Err(TestCaseError::fail(format!("{}: own call is refused: {why}", row.name)));
            }
            // The kernel fills every output's room, and lengths with anything.
            let (reply, payload) = home(&forward, |_, buffer| {
                for output in &forward.call.outputs {
                    buffer[output.offset as usize..][..output.room as usize].fill(seed[0] | 1);
                }
                result
            });
            let end = forward.scatter.apply(&mem, &reply, &payload);
            let fits = |&(addr, len): &(u64, u64)| mem.accessible(addr, len, true) == len;
            let accessible = forward.scatter.pieces.iter().all(|piece| piece.to.iter().all(fits));
            let fault = result >= 0 && !accessible && end == Ok(-i64::from(libc::EFAULT));
            prop_assert!(fault || end == Ok(result), "{}: {end:?} instead of {result}", row.name);
            // Only named ranges changed.
            let mut allowed = Vec::new();
            for piece in &forward.scatter.pieces {
                allowed.extend(piece.to.iter().map(|&(addr, len)| addr..addr + len));
            }
            with_outputs.set(with_outputs.get() + u32::from(!allowed.is_empty()));
            for (page, bytes) in mem.0.pages.borrow().iter() {
                if bytes != &before[page] {
                    for (n, (new, old)) in bytes.iter().zip(&before[page]).enumerate() {
                        let addr = page * PAGE + n as u64;
                        prop_assert!(
                            new == old || allowed.iter().any(|range| range.contains(&addr)),
                            "{}: {addr:#x}",
                            row.name
                        );
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    let (forwarded, with_outputs) = (forwarded.get(), with_outputs.get());
    assert!(
        forwarded > 6_000 && with_outputs > 1_200,
        "{forwarded} forwarded, {with_outputs} with outputs"
    );
}

fn hostile_call() -> impl Strategy<Value = (Call, Vec<u8>)> {
    let number = || prop_oneof![4 => 0u32..300, 1 => any::<u32>(), 1 => Just(BUFFER_EDGE)];
    let place = prop_oneof![(0u8..8).prop_map(Place::Arg), number().prop_map(Place::At)];
    let extent = prop_oneof![
        Just(Extent::Success),
        Just(Extent::Always),
        Just(Extent::Result),
        any::<u32>().prop_map(Extent::Elements),
        number().prop_map(Extent::LengthAt),
        number().prop_map(Extent::LongLengthAt),
    ];
    let output = (number(), number(), extent).prop_map(|(offset, room, extent)| Output { offset, room, extent });
    let arg = prop_oneof![4 => 0u64..300, 1 => any::<u64>(), 1 => Just(BAD_POINTER)];
    (
        (
            0u32..520,
            [arg.clone(), arg.clone(), arg.clone(), arg.clone(), arg.clone(), arg],
        ),
        proptest::collection::vec(place, 0..6),
        prop_oneof![4 => 0u32..400, 1 => any::<u32>()],
        proptest::collection::vec(output, 0..4),
        proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..300),
    )
        .prop_map(|((nr, args), relocs, size, outputs, payload)| {
            let call = Call {
                pid: IDS.pid,
                tid: IDS.tid,
                epoch: IDS.epoch,
                seq: IDS.seq,
                nr,
                args,
                relocs,
                size,
                outputs,
                exec: None,
            };
            (call, payload)
        })
}

const BUFFER_EDGE: u32 = limits::FRAME_PAYLOAD as u32;

/// A job of process 100.
struct OneProcess;

impl JobView for OneProcess {
    fn contains(&self, pid: i32) -> bool {
        pid == 100
    }

    fn owns_group(&self, _: Pid, pgid: i32) -> bool {
        pgid == 100
    }

    fn forbidden(&self) -> &[Vec<u8>] {
        &[]
    }

    fn leads(&self, _: i32, _: i32, path: &[u8]) -> Option<Vec<u8>> {
        Some([b"/tmp/", path].concat())
    }
}

/// What a lying host sends is placed within its bounds or refused.
#[test]
fn random_calls_from_a_lying_host_stay_within_the_buffer() {
    let (placed, audited) = (Cell::new(0u32), Cell::new(0u32));
    runner(60_000)
        .run(&(hostile_call(), any::<i64>()), |((call, payload), result)| {
            let mut buffer = vec![0xee; 1000];
            let judged = permit(&call, &payload, &OneProcess);
            let Ok(args) = place(&call, &payload, &mut buffer, BASE) else {
                return Ok(());
            };
            placed.set(placed.get() + 1);
            let size = call.size as usize;
            prop_assert!(buffer[size..].iter().all(|&b| b == 0xee));
            for n in 0..6u8 {
                let arg = args[usize::from(n)];
                if call.relocs.contains(&Place::Arg(n)) {
                    prop_assert!(arg >= BASE && arg < BASE + size as u64);
                } else {
                    prop_assert_eq!(arg, call.args[usize::from(n)]);
                }
            }
            let (lengths, parts) = collect(&call, result, &buffer[..size]);
            prop_assert_eq!(lengths.len(), call.outputs.len());
            for (len, output) in lengths.iter().zip(&call.outputs) {
                prop_assert!(*len <= output.room);
            }
            for (at, len) in parts {
                prop_assert!((at + len) as usize <= size);
            }
            audited.set(audited.get() + u32::from(judged.is_ok()));
            Ok(())
        })
        .unwrap();
    let (placed, audited) = (placed.get(), audited.get());
    assert!(placed > 1_000 && audited > 200, "{placed} placed, {audited} audited");
}
