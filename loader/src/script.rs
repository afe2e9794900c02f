//! Scripts of raw system calls for the stub, and the window they run in.
//!
//! The layout is shared with the stub by compiling the same file: see `stub/src/abi.rs`.

#[path = "../stub/src/abi.rs"]
pub mod abi;

pub use abi::Op;

/// The compiled stub as an ELF program whose one segment lies at [`abi::WINDOW`].
pub static STUB_ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stub.elf"));

const _: () = assert!(size_of::<Op>() as u64 == abi::OP_SIZE);
const _: () = assert!(abi::SLOT_INLINE + abi::SLOT_INLINE_OPS as u64 * abi::OP_SIZE <= abi::SLOT_BUFFER);
const _: () = assert!(abi::SLOT_BUFFER + abi::SLOT_BUFFER_SIZE + 0x1000 <= abi::SLOT_STACK_TOP);
const _: () = assert!(abi::SLOTS + abi::SLOT_COUNT * abi::SLOT_SIZE <= abi::ARENA);
const _: () = assert!(abi::SHARED + abi::SHARED_SIZE <= abi::WINDOW_END);

impl Op {
    /// Makes a system call whose failure ends the script.
    pub fn must(nr: i64, args: [u64; 6]) -> Self {
        Self {
            nr: nr as u32,
            flags: abi::OP_STOP_ON_ERROR,
            args,
            ..Self::default()
        }
    }

    /// Makes a system call whose failure is looked at afterwards.
    pub fn may(nr: i64, args: [u64; 6]) -> Self {
        Self {
            nr: nr as u32,
            args,
            ..Self::default()
        }
    }

    /// Marks the operation for whoever reads its result.
    pub fn tagged(mut self, tag: u64) -> Self {
        self.tag = tag;
        self
    }

    /// Writes the operation as the stub reads it.
    pub fn to_bytes(&self) -> [u8; abi::OP_SIZE as usize] {
        let mut bytes = [0; abi::OP_SIZE as usize];
        bytes[0..4].copy_from_slice(&self.nr.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        for (chunk, arg) in bytes[8..56].chunks_exact_mut(8).zip(self.args) {
            chunk.copy_from_slice(&arg.to_le_bytes());
        }
        bytes[56..64].copy_from_slice(&self.ret.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.tag.to_le_bytes());
        bytes
    }
}

/// The stub's code: bytes to put at [`abi::WINDOW`], and where its threads begin.
#[derive(Debug, Clone)]
pub struct Stub {
    /// The text, to be mapped read-execute at [`abi::WINDOW`].
    pub text: &'static [u8],
    /// Entry for a thread with rdi = slot address, rsp = the slot's stack top.
    pub deputy_entry: u64,
    /// Address of a system call instruction in the text, for calls that a tracer makes a thread execute.
    pub syscall: u64,
}

/// Why the compiled stub cannot be used; a defect of the build, not of input.
#[derive(Debug, thiserror::Error)]
#[error("the stub in this binary is damaged: {0}")]
pub struct StubError(&'static str);

/// Finds text and entry in the compiled stub.
pub fn stub() -> Result<Stub, StubError> {
    let elf = goblin::elf::Elf::parse(STUB_ELF).map_err(|_| StubError("not an ELF file"))?;
    let load = elf
        .program_headers
        .iter()
        .find(|header| header.p_type == goblin::elf::program_header::PT_LOAD)
        .ok_or(StubError("no segment"))?;
    if load.p_vaddr != abi::WINDOW || load.p_filesz > abi::TEXT_ROOM || load.p_filesz != load.p_memsz {
        return Err(StubError("its segment does not fit the window"));
    }
    let text = STUB_ELF
        .get(load.p_offset as usize..(load.p_offset + load.p_filesz) as usize)
        .ok_or(StubError("its segment lies outside the file"))?;
    if !text.starts_with(&[0x0f, 0x05, 0xc3]) {
        return Err(StubError("it does not begin with a system call"));
    }
    let deputy_entry = elf
        .syms
        .iter()
        .find(|symbol| elf.strtab.get_at(symbol.st_name) == Some("stub_deputy"))
        .ok_or(StubError("no stub_deputy"))?
        .st_value;
    let syscall = text
        .windows(2)
        .position(|pair| pair == [0x0f, 0x05])
        .ok_or(StubError("no system call instruction"))?;
    Ok(Stub {
        text,
        deputy_entry,
        syscall: abi::WINDOW + syscall as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stub_is_whole() {
        let stub = stub().expect("stub");
        assert!(stub.text.len() > 100 && stub.deputy_entry > abi::WINDOW);
    }

    #[test]
    fn op_bytes_follow_the_struct() {
        let op = Op {
            nr: 1,
            flags: 2,
            args: [3, 4, 5, 6, 7, 8],
            ret: -9,
            tag: 10,
        };
        let bytes = op.to_bytes();
        assert_eq!(&bytes[48..56], &8u64.to_le_bytes());
        assert_eq!(&bytes[56..64], &(-9i64).to_le_bytes());
        assert_eq!(&bytes[64..72], &10u64.to_le_bytes());
    }
}
