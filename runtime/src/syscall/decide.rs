//! What the agent does with one trapped call.

use super::emulate::{self, Memory};
use super::table::{self, Away, Otherwise, Row};

/// The agent's next step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Let the host's kernel execute it (CONTINUE): all that matters is in registers.
    Native,
    /// Answer with this raw result (negative: errno).
    Answer(i64),
    /// [`gather`](super::marshal::gather) and forward it.
    Home,
    /// Forward it, then do the body's half as the row's note says.
    Both,
    /// The row's own code.
    Special,
    /// Map a file of home privately.
    MapFile,
    /// Bring the process home; why. It runs the call there.
    Return(&'static str),
}

/// Decides about the call `nr` with these register arguments.
pub fn decide(row: &Row, args: &[u64; 6]) -> Decision {
    match row.away {
        Away::Native => Decision::Native,
        Away::NativeIf { rules, otherwise } => {
            if table::matches(rules, args) {
                return Decision::Native;
            }
            match otherwise {
                Otherwise::Emulate => emulated(row.nr, args),
                Otherwise::Home => Decision::Home,
                Otherwise::Special => Decision::Special,
                Otherwise::Return => Decision::Return(reason(row)),
            }
        }
        Away::Emulate => emulated(row.nr, args),
        Away::Home => Decision::Home,
        Away::Both => Decision::Both,
        Away::Special => Decision::Special,
        Away::Return => Decision::Return(reason(row)),
        Away::Refuse(errno) => Decision::Answer(-i64::from(errno)),
    }
}

fn emulated(nr: u32, args: &[u64; 6]) -> Decision {
    match emulate::memory(nr, args) {
        Memory::Continue => Decision::Native,
        Memory::Errno(errno) => Decision::Answer(-i64::from(errno)),
        Memory::File => Decision::MapFile,
        Memory::Return(why) => Decision::Return(why),
    }
}

fn reason(row: &Row) -> &'static str {
    if row.note.is_empty() { row.name } else { row.note }
}
