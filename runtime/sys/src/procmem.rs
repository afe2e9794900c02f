//! Memory of another process: process_vm_readv/writev where protections allow, /proc/PID/mem where they do not.
//!
//! See [process_vm_readv(2)](https://man7.org/linux/man-pages/man2/process_vm_readv.2.html) and
//! [proc_pid_mem(5)](https://man7.org/linux/man-pages/man5/proc_pid_mem.5.html).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// Memory of a stopped or blocked process, reached through one of its live threads.
#[derive(Debug)]
pub struct ProcMem {
    tid: i32,
    file: Option<File>,
}

impl ProcMem {
    /// Makes a view that uses process_vm_* alone: respects the guest's protections, as the kernel does for its system calls.
    pub fn guest(tid: i32) -> Self {
        Self { tid, file: None }
    }

    /// Makes a view that also reaches memory the guest may not touch; needs ptrace rights, on newer kernels ptrace itself.
    pub fn force(tid: i32) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{tid}/mem"))?;
        Ok(Self { tid, file: Some(file) })
    }

    /// Reads bytes at `address`; returns how many, fewer when the rest cannot be read.
    pub fn read_some(&self, address: u64, out: &mut [u8]) -> io::Result<usize> {
        match vm_copy(self.tid, address, out.as_mut_ptr(), out.len(), false) {
            Ok(count) if count == out.len() => Ok(count),
            partial => match (&self.file, partial) {
                (Some(file), partial) => {
                    let done = partial.unwrap_or(0);
                    match file.read_at(&mut out[done..], address + done as u64) {
                        Ok(count) => Ok(done + count),
                        Err(_) if done > 0 => Ok(done),
                        Err(error) => Err(error),
                    }
                }
                (None, partial) => partial,
            },
        }
    }

    /// Reads exactly `out.len()` bytes, or fails with EFAULT.
    pub fn read(&self, address: u64, out: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < out.len() {
            match self.read_some(address + done as u64, &mut out[done..])? {
                0 => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
                count => done += count,
            }
        }
        Ok(())
    }

    /// Writes bytes at `address`; returns how many, fewer when the rest cannot be written.
    pub fn write_some(&self, address: u64, bytes: &[u8]) -> io::Result<usize> {
        match vm_copy(self.tid, address, bytes.as_ptr().cast_mut(), bytes.len(), true) {
            Ok(count) if count == bytes.len() => Ok(count),
            partial => match &self.file {
                Some(file) => {
                    let done = partial.unwrap_or(0);
                    file.write_at(&bytes[done..], address + done as u64)
                        .map(|count| done + count)
                }
                None => partial,
            },
        }
    }

    /// Writes all bytes, or fails with EFAULT.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match self.write_some(address + done as u64, &bytes[done..])? {
                0 => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
                count => done += count,
            }
        }
        Ok(())
    }

    /// Reads runs of memory, one behind the other, into `out`; returns how many bytes, fewer when something cannot be read. `out` holds
    /// them all; of more than 1024 runs the rest is not read.
    pub fn read_runs(&self, runs: &[(u64, usize)], out: &mut [u8]) -> io::Result<usize> {
        vm_copy_runs(self.tid, runs, out.as_mut_ptr(), out.len(), false)
    }

    /// Writes `bytes`, in order, to runs of memory; returns how many bytes, fewer when something cannot be written.
    pub fn write_runs(&self, runs: &[(u64, usize)], bytes: &[u8]) -> io::Result<usize> {
        vm_copy_runs(self.tid, runs, bytes.as_ptr().cast_mut(), bytes.len(), true)
    }

    /// Reads a little-endian u64.
    pub fn read_u64(&self, address: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

fn vm_copy_runs(tid: i32, runs: &[(u64, usize)], local: *mut u8, length: usize, write: bool) -> io::Result<usize> {
    const MOST: usize = 1024;
    let remote: Vec<libc::iovec> = runs
        .iter()
        .take(MOST)
        .map(|(address, length)| libc::iovec {
            iov_base: *address as *mut libc::c_void,
            iov_len: *length,
        })
        .collect();
    if remote.is_empty() || length == 0 {
        return Ok(0);
    }
    let local = libc::iovec {
        iov_base: local.cast(),
        iov_len: length,
    };
    // SAFETY: `local` is a caller's slice of this length, written only when reading: the kernel copies no more than it holds. `remote` is
    // a live array of this length, whose ranges the kernel checks.
    let count = unsafe {
        if write {
            libc::process_vm_writev(tid, &local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0)
        } else {
            libc::process_vm_readv(tid, &local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0)
        }
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn vm_copy(tid: i32, address: u64, local: *mut u8, length: usize, write: bool) -> io::Result<usize> {
    if length == 0 {
        return Ok(0);
    }
    let local = libc::iovec {
        iov_base: local.cast(),
        iov_len: length,
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: length,
    };
    // SAFETY: `local` is a caller's slice of this length, written only when reading; `remote` is checked by the kernel.
    let count = unsafe {
        if write {
            libc::process_vm_writev(tid, &local, 1, &remote, 1, 0)
        } else {
            libc::process_vm_readv(tid, &local, 1, &remote, 1, 0)
        }
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
