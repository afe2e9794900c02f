//! Outcomes of tests, added up.

use std::fmt;
use std::ops::AddAssign;
use std::process::ExitCode;

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Shown to hold.
    pub passed: u64,
    /// Shown not to hold.
    pub failed: u64,
    /// Not run; somebody has said why.
    pub skipped: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }
}

/// The last line of a run.
impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// A failed test fails the run.
impl From<Count> for ExitCode {
    fn from(count: Count) -> Self {
        if count.failed > 0 { Self::FAILURE } else { Self::SUCCESS }
    }
}
