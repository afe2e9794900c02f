//! Jobs at home: `mosix run` must be indistinguishable from no mosix, for programs, shells and terminals.

mod bad_input;
mod faithful;
mod faults;
mod job_control;
mod listing;
mod privileges;
mod stand;
