//! The auxiliary vector: what the kernel tells a program at its start.
//!
//! Typed for those who build or edit one. After birth a program's vector is never rewritten in what it says of the CPU: the program has
//! already acted on it. What may be edited is the copy that /proc/PID/auxv and PR_SET_MM_MAP show.

/// AT_* types.
pub mod kind {
    /// End of the vector.
    pub const NULL: u64 = 0;
    /// Descriptor of the program, for interpreters of binfmt_misc.
    pub const EXECFD: u64 = 2;
    /// Address of the program headers.
    pub const PHDR: u64 = 3;
    /// Bytes of one program header.
    pub const PHENT: u64 = 4;
    /// Number of program headers.
    pub const PHNUM: u64 = 5;
    /// Bytes of a page.
    pub const PAGESZ: u64 = 6;
    /// Load address of the interpreter.
    pub const BASE: u64 = 7;
    /// Flags.
    pub const FLAGS: u64 = 8;
    /// Entry point of the program.
    pub const ENTRY: u64 = 9;
    /// Real user.
    pub const UID: u64 = 11;
    /// Effective user.
    pub const EUID: u64 = 12;
    /// Real group.
    pub const GID: u64 = 13;
    /// Effective group.
    pub const EGID: u64 = 14;
    /// Address of the platform's name.
    pub const PLATFORM: u64 = 15;
    /// CPU features (CPUID leaf 1 edx).
    pub const HWCAP: u64 = 16;
    /// Ticks per second of times(2).
    pub const CLKTCK: u64 = 17;
    /// 1 for a set-id program.
    pub const SECURE: u64 = 23;
    /// Address of 16 random bytes.
    pub const RANDOM: u64 = 25;
    /// More CPU features: bit 1 is FSGSBASE.
    pub const HWCAP2: u64 = 26;
    /// Size of the rseq area the kernel knows.
    pub const RSEQ_FEATURE_SIZE: u64 = 27;
    /// Its alignment.
    pub const RSEQ_ALIGN: u64 = 28;
    /// Address of the path given to execve.
    pub const EXECFN: u64 = 31;
    /// Address of the vDSO.
    pub const SYSINFO_EHDR: u64 = 33;
    /// Smallest alternate signal stack.
    pub const MINSIGSTKSZ: u64 = 51;
}

/// Most entries accepted from outside. The kernel's own has about 25.
const MAX_ENTRIES: usize = 64;

/// An auxiliary vector without its final AT_NULL, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auxv(pub Vec<(u64, u64)>);

/// What a vector says of the machine and the user. Pointers and program addresses come from the plan and the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Address of the vDSO; `None`: no entry.
    pub vdso: Option<u64>,
    /// AT_MINSIGSTKSZ.
    pub min_signal_stack: u64,
    /// AT_HWCAP.
    pub hwcap: u64,
    /// AT_HWCAP2.
    pub hwcap2: u64,
    /// Real and effective user, real and effective group.
    pub ids: [u32; 4],
    /// AT_SECURE.
    pub secure: bool,
    /// AT_RSEQ_FEATURE_SIZE and AT_RSEQ_ALIGN; `None` where the kernel has no such entries, or rseq is not offered.
    pub rseq: Option<(u64, u64)>,
}

impl Auxv {
    /// Reads a vector as /proc/PID/auxv shows it, up to its AT_NULL. `None` when it has no end or is longer than any kernel's.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut entries = Vec::new();
        for pair in bytes.chunks_exact(16).take(MAX_ENTRIES) {
            let (kind, value) = pair.split_at(8);
            let kind = u64::from_le_bytes(kind.try_into().ok()?);
            if kind == kind::NULL {
                return Some(Self(entries));
            }
            entries.push((kind, u64::from_le_bytes(value.try_into().ok()?)));
        }
        None
    }

    /// The vector as memory holds it, AT_NULL included.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let entries = self.0.iter().chain(std::iter::once(&(kind::NULL, 0)));
        entries
            .flat_map(|(kind, value)| kind.to_le_bytes().into_iter().chain(value.to_le_bytes()))
            .collect()
    }

    /// The value of an entry.
    #[must_use]
    pub fn get(&self, kind: u64) -> Option<u64> {
        self.0.iter().find(|(known, _)| *known == kind).map(|(_, value)| *value)
    }

    /// Sets an entry that exists, or adds it at the end.
    pub fn set(&mut self, kind: u64, value: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == kind) {
            Some(entry) => entry.1 = value,
            None => self.0.push((kind, value)),
        }
    }

    /// Drops an entry.
    pub fn remove(&mut self, kind: u64) {
        self.0.retain(|(known, _)| *known != kind);
    }

    /// What a running program's vector says of its machine: for an exec that must look as if it happened there.
    #[must_use]
    pub fn machine(&self) -> Machine {
        let value = |kind| self.get(kind).unwrap_or(0);
        let id = |kind| u32::try_from(value(kind)).unwrap_or(u32::MAX);
        Machine {
            vdso: self.get(kind::SYSINFO_EHDR),
            min_signal_stack: value(kind::MINSIGSTKSZ),
            hwcap: value(kind::HWCAP),
            hwcap2: value(kind::HWCAP2),
            ids: [id(kind::UID), id(kind::EUID), id(kind::GID), id(kind::EGID)],
            secure: value(kind::SECURE) != 0,
            rseq: self.get(kind::RSEQ_FEATURE_SIZE).zip(self.get(kind::RSEQ_ALIGN)),
        }
    }
}
