//! /proc/PID/status, of a process or of one thread, in one read. See proc_pid_status(5).

use std::io;
use std::str::FromStr;

/// What the kernel says of a process or thread.
#[derive(Debug)]
pub struct Status(String);

impl Status {
    /// Reads it, of a process by its pid or of a thread by its own number.
    ///
    /// # Errors
    /// `NotFound` when there is no such thread.
    pub fn read(tid: i32) -> io::Result<Self> {
        let bytes = std::fs::read(format!("/proc/{tid}/status"))?;
        // The name of a program need not be text.
        Ok(Self(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// What stands behind a field's name.
    pub fn value(&self, field: &str) -> Option<&str> {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(':'));
        lines.find_map(|(name, value)| (name == field).then(|| value.trim()))
    }

    /// The words of a field.
    pub fn words(&self, field: &str) -> impl Iterator<Item = &str> {
        self.value(field).unwrap_or_default().split_ascii_whitespace()
    }

    /// The first word of a field, as a number.
    pub fn number<T: FromStr>(&self, field: &str) -> Option<T> {
        self.words(field).next()?.parse().ok()
    }

    /// A set of signals: signal 1 is bit 0.
    pub fn signals(&self, field: &str) -> Option<u64> {
        u64::from_str_radix(self.value(field)?, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_found_in_it() {
        let me = std::process::id().cast_signed();
        let status = Status::read(me).unwrap();
        assert_eq!(status.number("Tgid"), Some(me));
        assert_eq!(status.words("Uid").count(), 4);
        assert!(status.number::<u64>("VmRSS").is_some_and(|kib| kib > 0));
        assert!(status.signals("SigBlk").is_some());
        assert!(Status::read(i32::MAX).is_err());
    }

    #[test]
    fn a_name_is_no_field() {
        let status = Status("Name:\tPid:7\nPid:\t9\nSigBlk:\t0000000000000004\n".to_owned());
        assert_eq!((status.number("Pid"), status.signals("SigBlk")), (Some(9), Some(4)));
        assert_eq!((status.value("Pi"), status.number::<i32>("Name")), (None, None));
    }
}
