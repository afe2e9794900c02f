//! Starting programs that outlive their parent: [setsid(2)](https://man7.org/linux/man-pages/man2/setsid.2.html).

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the program run in a session of its own: no terminal, and no signal to its parent's process group reaches it.
pub fn new_session(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe functions may be called:
    // setsid(2) is one, and the closure does nothing else (making an error from errno does not allocate).
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_leads_a_session() {
        let output = new_session(Command::new("cat").arg("/proc/self/stat"))
            .output()
            .unwrap();
        let stat = String::from_utf8(output.stdout).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let pid = stat.split_whitespace().next().unwrap();
        // state, ppid, pgrp, session
        assert_eq!((fields[2], fields[3]), (pid, pid));
    }
}
