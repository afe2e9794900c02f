//! Memory of a body as the marshaller and the delivery of results see it: with the body's own protections.

use crate::syscall::memory::{Fault, GuestMemory};
use mosix_sys::procmem::ProcMem;

/// The memory that a thread sees, reached from outside by process_vm_readv(2) and process_vm_writev(2).
#[derive(Debug)]
pub struct Guest(ProcMem);

impl Guest {
    /// Makes a view through a thread, by this node's number.
    pub fn of(host: i32) -> Self {
        Self(ProcMem::guest(host))
    }
}

impl GuestMemory for Guest {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.0.read(addr, buf).map_err(|_| Fault(addr))
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), Fault> {
        self.0.write(addr, data).map_err(|_| Fault(addr))
    }
}
