//! The filter of a job at home: traps execve and execveat, and nothing else.
//!
//! The kernel caches calls that a filter always allows in a bitmap, so everything else costs a few nanoseconds. Both numbers of
//! the other two ABIs are trapped as well (int 0x80 and x32 programs run programs too); their other calls pass.

use mosix_sys::seccomp::Instruction;

const LD_ABS: u16 = 0x20;
const JEQ: u16 = 0x15;
const RET: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;

/// execve and execveat of one ABI.
const X86_64: [u32; 4] = [59, 322, X32_BIT | 520, X32_BIT | 545];
const I386: [u32; 2] = [11, 358];

/// Builds the program.
pub fn home() -> Vec<Instruction> {
    let op = |code, k| Instruction { code, jt: 0, jf: 0, k };
    let jeq = |k, jt, jf| Instruction { code: JEQ, jt, jf, k };
    // 0 ld arch; 1 x86-64? -> 4; 2 i386? -> 11; 3 allow; 4 ld nr; 5-8 compare -> notify; then allow
    let mut p = vec![
        op(LD_ABS, ARCH),
        jeq(AUDIT_ARCH_X86_64, 2, 0),
        jeq(AUDIT_ARCH_I386, 8, 0),
        op(RET, libc::SECCOMP_RET_ALLOW),
    ];
    for numbers in [&X86_64[..], &I386[..]] {
        p.push(op(LD_ABS, NR));
        for (i, nr) in numbers.iter().enumerate() {
            // Over the remaining comparisons and the "allow" behind them.
            let over = u8::try_from(numbers.len() - i).unwrap_or(u8::MAX);
            p.push(jeq(*nr, over, 0));
        }
        p.push(op(RET, libc::SECCOMP_RET_ALLOW));
        p.push(op(RET, libc::SECCOMP_RET_USER_NOTIF));
    }
    p
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minimal interpreter of the three operations used.
    fn run(program: &[Instruction], arch: u32, nr: u32) -> u32 {
        let (mut pc, mut acc) = (0, 0);
        loop {
            let i = program[pc];
            pc += 1;
            match i.code {
                LD_ABS => acc = if i.k == ARCH { arch } else { nr },
                JEQ => pc += usize::from(if acc == i.k { i.jt } else { i.jf }),
                RET => return i.k,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    fn exactly_the_exec_calls_are_trapped() {
        let program = home();
        for (arch, trapped) in [
            (AUDIT_ARCH_X86_64, &X86_64[..]),
            (AUDIT_ARCH_I386, &I386[..]),
            (0xc000_00b7 /* aarch64 */, &[]),
        ] {
            for nr in (0..1024).chain((0..1024).map(|n| n | X32_BIT)).chain([u32::MAX]) {
                let want = if trapped.contains(&nr) {
                    libc::SECCOMP_RET_USER_NOTIF
                } else {
                    libc::SECCOMP_RET_ALLOW
                };
                assert_eq!(run(&program, arch, nr), want, "arch {arch:#x} nr {nr:#x}");
            }
        }
    }
}
