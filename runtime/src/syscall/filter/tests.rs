//! The programs answer as the table says: in an interpreter for many calls, and in the kernel for a few.

use super::*;
use proptest::prelude::*;

const X86_64: u32 = 0xc000_003e;

/// What seccomp shows a program.
#[derive(Clone, Copy, Debug)]
struct Data {
    nr: u32,
    arch: u32,
    ip: u64,
    args: [u64; 6],
}

impl Data {
    fn word(&self, at: u32) -> u32 {
        let half = |value: u64, high: bool| if high { (value >> 32) as u32 } else { value as u32 };
        match at {
            0 => self.nr,
            4 => self.arch,
            8 | 12 => half(self.ip, at == 12),
            at => half(self.args[(at as usize - 16) / 8], at % 8 == 4),
        }
    }
}

/// Classic BPF as far as the programs use it; returns the verdict and the instructions executed.
fn run(program: &[Instruction], data: Data) -> (u32, usize) {
    let (mut pc, mut a, mut steps) = (0, 0u32, 0);
    loop {
        let i = program[pc];
        pc += 1;
        steps += 1;
        let mut branch = |yes: bool| pc += usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            0x20 => a = data.word(i.k),
            0x54 => a &= i.k,
            0x05 => pc += i.k as usize,
            0x15 => branch(a == i.k),
            0x25 => branch(a > i.k),
            0x35 => branch(a >= i.k),
            0x45 => branch(a & i.k != 0),
            0x06 => return (i.k, steps),
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn expected_away(data: Data) -> u32 {
    if data.arch != X86_64 || data.nr & X32 != 0 {
        return verdict::ENOSYS;
    }
    match table::row(data.nr).away {
        Away::Native => verdict::ALLOW,
        Away::NativeIf { rules, .. } if table::matches(rules, &data.args) => verdict::ALLOW,
        _ => verdict::NOTIFY,
    }
}

fn expected_home(data: Data) -> u32 {
    let exec: &[u32] = match data.arch {
        X86_64 => &[59, 322, 520 | X32, 545 | X32],
        ARCH_I386 => &[11, 358],
        _ => &[],
    };
    if exec.contains(&data.nr) {
        verdict::NOTIFY
    } else {
        verdict::ALLOW
    }
}

/// Values near every constant that a rule compares with, and random ones.
fn value() -> impl Strategy<Value = u64> {
    let mut constants = vec![0, 1, 2, 3, 0x22, 0x32, 0x20022, 0x2022, u64::MAX];
    for row in table::rows() {
        if let Away::NativeIf { rules, .. } = row.away {
            constants.extend(rules.iter().flat_map(|rule| rule.iter().map(|cond| cond.value)));
        }
    }
    let near = (proptest::sample::select(constants), -1i64..=1).prop_map(|(c, d)| c.wrapping_add_signed(d));
    prop_oneof![4 => near, 1 => any::<u64>(), 1 => any::<u32>().prop_map(u64::from)]
}

fn data() -> impl Strategy<Value = Data> {
    let conditional: Vec<u32> = table::rows()
        .filter(|row| matches!(row.away, Away::NativeIf { .. }))
        .map(|row| row.nr)
        .collect();
    let nr = prop_oneof![
        4 => proptest::sample::select(conditional),
        4 => 0u32..512,
        1 => prop_oneof![Just(11u32), Just(358), Just(520 | X32), Just(545 | X32), Just(59 | X32)],
        1 => any::<u32>(),
    ];
    let arch = prop_oneof![8 => Just(X86_64), 1 => Just(ARCH_I386), 1 => any::<u32>()];
    (
        nr,
        arch,
        any::<u64>(),
        [value(), value(), value(), value(), value(), value()],
    )
        .prop_map(|(nr, arch, ip, args)| Data { nr, arch, ip, args })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50_000))]

    #[test]
    fn programs_answer_as_the_table(data in data()) {
        thread_local! {
            static PROGRAMS: (Vec<Instruction>, Vec<Instruction>) = (away(None).unwrap(), home().unwrap());
        }
        PROGRAMS.with(|(away, home)| {
            prop_assert_eq!(run(away, data).0, expected_away(data));
            prop_assert_eq!(run(home, data).0, expected_home(data));
            Ok(())
        })?;
    }
}

#[test]
fn every_number_is_decided_as_the_table_says() {
    let (away, home) = (away(None).unwrap(), home().unwrap());
    assert!(away.len() < 1500, "{} instructions", away.len());
    assert!(home.len() < 50, "{} instructions", home.len());
    for nr in 0..1024 {
        for arch in [X86_64, ARCH_I386] {
            let data = Data {
                nr,
                arch,
                ip: 0,
                args: [0; 6],
            };
            assert_eq!(run(&away, data).0, expected_away(data), "{nr}");
            assert_eq!(run(&home, data).0, expected_home(data), "{nr}");
        }
    }
}

/// Nothing that is allowed may look at the instruction pointer on its way: the kernel's bitmap depends on it.
#[test]
fn allowed_calls_never_reach_the_epilogue() {
    let program = away(Some(0x7e80_0000_0000..0x7e80_0000_1000)).unwrap();
    let plain = away(None).unwrap();
    for row in table::rows().filter(|row| row.away == Away::Native) {
        let data = Data {
            nr: row.nr,
            arch: X86_64,
            ip: 0,
            args: [0; 6],
        };
        assert_eq!(run(&program, data), run(&plain, data), "{}", row.name);
    }
}

#[test]
fn stub_is_exempt_exactly_within_its_range() {
    let program = away(Some(0x7e80_0000_0000..0x7e80_0000_1000)).unwrap();
    let at = |ip, nr| {
        run(
            &program,
            Data {
                nr,
                arch: X86_64,
                ip,
                args: [0; 6],
            },
        )
        .0
    };
    assert_eq!(at(0x7e80_0000_0002, 257), verdict::ALLOW);
    assert_eq!(
        at(0x7e80_0000_1000, 257),
        verdict::ALLOW,
        "the pointer behind the last instruction"
    );
    for ip in [
        0,
        0x1000,
        0x7e7f_ffff_ffff,
        0x7e80_0000_1001,
        0x7e81_0000_0002,
        u64::MAX,
    ] {
        assert_eq!(at(ip, 257), verdict::NOTIFY, "{ip:#x}");
    }
    assert_eq!(at(0x7e80_0000_0002, 257 | X32), verdict::ENOSYS, "x32 never runs");
    // A range across a 4 GiB boundary is not exempted at all.
    let program = away(Some(0xffff_f000..0x1_0000_1000)).unwrap();
    assert_eq!(
        run(
            &program,
            Data {
                nr: 257,
                arch: X86_64,
                ip: 0xffff_f002,
                args: [0; 6]
            }
        )
        .0,
        verdict::NOTIFY
    );
}

/// The kernel accepts the program and does what the interpreter says: a thread's trapped call arrives at the listener,
/// its native calls do not.
#[test]
fn kernel_runs_the_away_program() {
    use mosix_sys::notif::Listener;
    use mosix_sys::seccomp::{Privs, install_with_listener};
    use std::sync::mpsc;

    let program = away(None).unwrap();
    let (send, receive) = mpsc::sync_channel(1);
    let guest = std::thread::spawn(move || {
        // Everything this thread allocates from here on must be native or answered below.
        let installed = install_with_listener(&program, Privs::WhenNeeded);
        let listener = installed.map(|installed| installed.listener);
        let failed = listener.is_err();
        send.send(listener).unwrap();
        if failed {
            return (0, 0);
        }
        std::thread::yield_now();
        (nix::unistd::getpid().as_raw(), nix::unistd::getppid().as_raw())
    });
    let listener = match receive.recv().unwrap() {
        Ok(fd) => Listener::new(fd).unwrap(),
        Err(nix::errno::Errno::EBUSY) => {
            eprintln!("SKIPPED: another seccomp listener is in place here (EBUSY)");
            guest.join().unwrap();
            return;
        }
        Err(errno) => panic!("install: {errno}"),
    };
    let mut seen = Vec::new();
    while let Ok(Some(notification)) = listener.recv(None) {
        let nr = notification.nr;
        seen.push(nr);
        let answer = if i64::from(nr) == libc::SYS_getppid {
            mosix_sys::notif::Answer::Result(4711)
        } else {
            mosix_sys::notif::Answer::Continue
        };
        listener.send(notification.id, answer).unwrap();
    }
    assert_eq!(guest.join().unwrap(), (nix::unistd::getpid().as_raw(), 4711));
    assert!(seen.contains(&(libc::SYS_getppid as i32)), "{seen:?}");
    for native in [
        libc::SYS_getpid,
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_rt_sigprocmask,
        libc::SYS_brk,
    ] {
        assert!(!seen.contains(&(native as i32)), "{native} in {seen:?}");
    }
}
