//! Memory of a body as the marshaller and the delivery of results see it: with the body's own protections.

use crate::syscall::memory::{Fault, GuestMemory, PAGE, TASK_END};
use mosix_sys::procmem::ProcMem;

/// The memory that a thread sees, reached from outside by process_vm_readv(2) and process_vm_writev(2).
#[derive(Debug)]
pub struct Guest(ProcMem, i32);

impl Guest {
    /// Makes a view through a thread, by this node's number.
    pub fn of(host: i32) -> Self {
        Self(ProcMem::guest(host), host)
    }
}

impl GuestMemory for Guest {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.0.read(addr, buf).map_err(|_| Fault(addr))
    }

    fn read_some(&self, addr: u64, buf: &mut [u8]) -> usize {
        self.0.read_some(addr, buf).unwrap_or(0)
    }

    /// Exact for mapped memory; that a page is writable shows when it is written.
    fn accessible(&self, addr: u64, len: u64, _write: bool) -> u64 {
        if len <= PAGE && addr % PAGE + len <= PAGE {
            // One page, as nearly always: one byte tells.
            let mut byte = [0];
            return if len > 0 && self.0.read(addr, &mut byte).is_ok() {
                len
            } else {
                0
            };
        }
        mosix_sys::reach::readable(self.1, addr, len.min(TASK_END.saturating_sub(addr))).unwrap_or(0)
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), Fault> {
        self.0.write(addr, data).map_err(|_| Fault(addr))
    }
}
