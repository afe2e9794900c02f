//! A program file as a process image: birth and exec on a host.
//!
//! The loader says what execve would have made; here that becomes the same [`ProcessImage`] that a freeze makes, so that one
//! materialiser builds all bodies. Permissions, `#!` paths and files are looked up at home beforehand: only home knows what they mean.
//!
//! The vDSO is the portable one: [`mosix_loader::vdso::portable`]. Whoever builds the body patches its text for the node, as it does
//! with a home's.

use crate::cpu::xsave;
use mosix_loader::LoadError;
use mosix_loader::auxv::Machine;
use mosix_loader::elf::{ElfFile, PROT_EXEC, PROT_READ, PROT_WRITE};
use mosix_loader::map::{Files, mm_fields, work};
use mosix_loader::place::{Dice, draw};
use mosix_loader::plan::{Content, Mapping, Which, plan};
use mosix_loader::stack::{Start, build};
use mosix_loader::vdso::{Presented, VdsoError, portable};
use mosix_wire::ids::{Epoch, Nonce, Pid, Tid};
use mosix_wire::image::{
    Attributes, Backing, Clocks, CpuImage, FileRef, MmImage, ProcessImage, SigAction, ThreadImage, VdsoImage, Vma,
    VmaFlags,
};
use mosix_wire::spent::{CpuTime, Spent};

/// Everything an exec starts from.
#[derive(Debug)]
pub struct Exec<'a> {
    /// Process id at home; the leader's tid as well.
    pub pid: Pid,
    /// Epoch of the new body.
    pub epoch: Epoch,
    /// Life of the home supervisor.
    pub home: Nonce,
    /// Path given to execve.
    pub filename: &'a [u8],
    /// Headers of the program, and the file.
    pub program: (&'a ElfFile, FileRef),
    /// Headers of its ELF interpreter, and the file.
    pub interpreter: Option<(&'a ElfFile, FileRef)>,
    /// Arguments, after scripts were resolved.
    pub argv: &'a [Vec<u8>],
    /// Environment.
    pub envp: &'a [Vec<u8>],
    /// What the auxiliary vector says of machine and user: home's.
    pub machine: &'a Machine,
    /// What the program may use of a CPU: what every node it will visit has, home first.
    pub cpu: CpuImage,
    /// The CPU and the XSAVE area size of the node where it starts: its registers are made for it.
    pub node: (&'a CpuImage, usize),
    /// Clocks to start with.
    pub clocks: Clocks,
    /// Attributes that survive exec; `stack_limit` bounds arguments and stack.
    pub attributes: Attributes,
    /// Blocked signals, which survive exec.
    pub mask: u64,
    /// Bit per signal, number minus one: ignored before and after.
    pub ignored: u64,
    /// Random choices of the address space.
    pub dice: Dice,
    /// AT_RANDOM.
    pub random: [u8; 16],
}

/// Why a program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// As execve says it: [`LoadError::errno`].
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A defect of this binary.
    #[error("portable vDSO: {0}")]
    Vdso(#[from] VdsoError),
}

/// A program ready to be materialised.
#[derive(Debug)]
pub struct Loaded {
    /// The image; its files are the program and its interpreter, in this order.
    pub image: ProcessImage,
    /// Bytes to write into its memory once it is mapped: address, bytes.
    pub writes: Vec<(u64, Vec<u8>)>,
}

/// Makes the image of a program that has not run yet.
///
/// # Errors
/// What execve would say.
pub fn load(exec: Exec<'_>) -> Result<Loaded, ProgramError> {
    let (program, program_file) = exec.program;
    let (interpreter, interpreter_file) = exec.interpreter.unzip();
    let text = portable(Presented {
        cpus: exec.cpu.cpus,
        realtime_offset_ns: 0,
    })?;
    let stack_limit = match exec.attributes.stack_limit {
        0 => u64::MAX,
        limit => limit,
    };
    let layout = draw(program, interpreter, text.len() as u64, stack_limit, &exec.dice)?;
    let plan = plan(program, interpreter, &layout.placement)?;
    let machine = Machine {
        vdso: Some(layout.vdso),
        ..exec.machine.clone()
    };
    let start = Start {
        filename: exec.filename,
        argv: exec.argv,
        envp: exec.envp,
        top: layout.stack_top,
        shift: layout.stack_shift,
        random: exec.random,
        stack_limit,
    };
    let stack = build(&start, &plan, &machine)?;
    // Its calls are not needed, the materialiser makes its own; its checks and bytes are.
    let work = work(
        &plan,
        &stack,
        (layout.vdso, &text),
        Files {
            program: -1,
            interpreter: -1,
        },
    )?;
    let writes = work
        .writes
        .into_iter()
        .filter(|(address, _)| *address != layout.vdso)
        .collect();

    let mut vmas: Vec<Vma> = plan.mappings.iter().map(vma).collect();
    vmas.push(Vma {
        start: layout.vdso,
        end: layout.vdso + text.len() as u64,
        prot: PROT_READ | PROT_EXEC,
        flags: 0,
        backing: Backing::Vdso,
    });
    vmas.push(Vma {
        start: stack.start,
        end: stack.end,
        prot: PROT_READ | PROT_WRITE | if plan.executable_stack { PROT_EXEC } else { 0 },
        flags: VmaFlags::GROWS_DOWN,
        backing: Backing::Anonymous,
    });
    vmas.sort_unstable_by_key(|vma| vma.start);

    let name = exec.filename.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let leader = ThreadImage {
        tid: Tid(exec.pid.0),
        regs: first_registers(plan.start, stack.sp),
        xsave: xsave::fresh(exec.node.0, exec.node.1),
        mask: exec.mask,
        altstack: (0, SS_DISABLE, 0),
        robust: (0, 0),
        clear_child_tid: 0,
        rseq: None,
        pending: Vec::new(),
        timer_slack: 0,
        comm: String::from_utf8_lossy(name.get(..name.len().min(15)).unwrap_or(name)).into_owned(),
        seq: 0,
        in_flight: false,
        since: None,
        cpu: CpuTime::default(),
    };
    let ignore = |signal: u32| {
        if exec.ignored >> signal & 1 == 1 {
            SIG_IGN
        } else {
            SIG_DFL
        }
    };
    let image = ProcessImage {
        pid: exec.pid,
        epoch: exec.epoch,
        home: exec.home,
        uid: machine.ids[0],
        exe: program_file.path.clone(),
        threads: vec![leader],
        vmas,
        files: std::iter::once(program_file).chain(interpreter_file).collect(),
        mm: MmImage {
            fields: mm_fields(&plan, &stack),
            auxv: stack.auxv.to_bytes(),
        },
        actions: (0..64)
            .map(|signal| SigAction {
                handler: ignore(signal),
                ..SigAction::default()
            })
            .collect(),
        pending: Vec::new(),
        signals: 0,
        spent: Spent::default(),
        home_cpu_ns: 0,
        clocks: exec.clocks,
        vdso: Some(VdsoImage {
            base: layout.vdso,
            text,
        }),
        cpu: CpuImage {
            xsave: exec.node.0.xsave.clone(),
            ..exec.cpu
        },
        attributes: Attributes {
            dumpable: 1,
            membarrier: 0,
            ..exec.attributes
        },
    };
    Ok(Loaded { image, writes })
}

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
/// SS_DISABLE of sigaltstack(2).
const SS_DISABLE: i32 = 2;

/// What the kernel's start_thread leaves: nothing but where to run and the stack. `orig_rax` -1: not in a call.
fn first_registers(rip: u64, rsp: u64) -> [u64; 27] {
    const INTERRUPTS: u64 = 0x200;
    const USER_CS: u64 = 0x33;
    const USER_SS: u64 = 0x2b;
    let mut regs = [0; 27];
    for (index, value) in [
        (15, u64::MAX),
        (16, rip),
        (17, USER_CS),
        (18, INTERRUPTS),
        (19, rsp),
        (20, USER_SS),
    ] {
        regs[index] = value;
    }
    regs
}

fn vma(mapping: &Mapping) -> Vma {
    let backing = match mapping.content {
        Content::File {
            which: Which::Program,
            offset,
        } => Backing::File { file: 0, offset },
        Content::File {
            which: Which::Interpreter,
            offset,
        } => Backing::File { file: 1, offset },
        Content::Zero => Backing::Anonymous,
    };
    Vma {
        start: mapping.start,
        end: mapping.end,
        prot: mapping.prot,
        flags: 0,
        backing,
    }
}
