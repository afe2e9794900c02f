//! The contracts that home and hosts keep, as pure state machines and decision functions.
//!
//! Nothing here does I/O, reads a clock or knows a file descriptor: an event goes in, the next state and a list of effects
//! come out. The supervisor's migration engine and the agents embed these types and carry the effects out; the model tests in
//! `runtime/tests/` embed the same types in a simulated cluster and try every order of messages, losses and deaths.
//!
//! * [`commit`]: where the body of a process is, and who may let it run (design: "Commit: home alone decides").
//! * [`owner`]: which side has a signal, so that none is lost or taken twice.
//! * [`signals`]: who takes a signal, and what becomes of the call that it meets.

pub mod commit;
pub mod owner;
pub mod signals;
