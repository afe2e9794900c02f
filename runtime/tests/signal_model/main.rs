//! Random interleavings of calls, signals, handlers, wire delays and moves, against what a native kernel could have done.
//!
//! The decisions under test are the product's (`mosix_runtime::contract::signals`). [`world`] is a process away from home in two
//! halves: deputies at home, a body's kernel and an agent on a host, messages between them. [`native`] watches what the program
//! could see and accepts only what a native kernel could have shown it. Wrong rules ([`world::Mutant`]) must be caught.

#![allow(clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]

mod native;
mod random;
mod world;

use random::Random;
use world::{Mutant, World};

/// Runs many random lives; returns the first broken promise with its seed and history.
fn lives(count: u64, mutant: Mutant) -> Result<native::Seen, String> {
    let mut seen = native::Seen::default();
    for seed in 1..=count {
        let mut world = World::new(Random::new(seed), mutant);
        for _ in 0..200 {
            world.step();
        }
        world.settle();
        seen.add(&world.native.seen);
        if let Some(why) = world.native.broken {
            let history = world.native.history.join("\n  ");
            return Err(format!("seed {seed}: {why}\n  {history}"));
        }
    }
    Ok(seen)
}

#[test]
fn a_program_sees_what_a_native_kernel_would_show() {
    let seen = lives(20_000, Mutant::None).unwrap_or_else(|why| panic!("{why}"));
    eprintln!("{seen:?}");
    // The walk must have gone everywhere, or it proves nothing.
    for (what, count) in seen.counts() {
        assert!(count > 1_000, "only {count} times: {what}");
    }
}

/// Runs with a wrong rule, which must be caught for the named reason.
fn caught(mutant: Mutant, reason: &str) {
    match lives(20_000, mutant) {
        Err(why) => assert!(why.contains(reason), "{mutant:?} was caught for another reason: {why}"),
        Ok(_) => panic!("{mutant:?} was not caught"),
    }
}

#[test]
fn caught_host_never_cancels() {
    caught(Mutant::NeverCancel, "never handled");
}

#[test]
fn caught_home_reports_every_interruption() {
    caught(Mutant::ReportAlways, "EINTR although nothing");
}

#[test]
fn caught_short_write_reported() {
    caught(Mutant::ShortWrite, "short count");
}

#[test]
fn caught_time_starts_again() {
    caught(Mutant::WholeTimeAgain, "deadline moved");
}

#[test]
fn caught_restart_block_taken_for_a_restart() {
    caught(Mutant::BlockAgain, "deadline moved");
}

#[test]
fn caught_internal_code_as_result() {
    caught(Mutant::CodeAsResult, "internal errno");
}

#[test]
fn caught_stop_left_to_the_body() {
    caught(Mutant::StopInTheBody, "discarded");
}

#[test]
fn caught_signal_forgotten_when_sent() {
    caught(Mutant::ForgetSent, "never handled");
}

#[test]
fn caught_signal_taken_again() {
    caught(Mutant::TakeAgain, "handled twice");
}

#[test]
fn caught_signal_said_to_be_taken_by_a_captured_body() {
    caught(Mutant::TookWhileFrozen, "never handled");
}

#[test]
fn caught_number_left_behind() {
    caught(Mutant::NumberLeftBehind, "handled twice");
}

#[test]
fn caught_call_executed_again_after_a_move() {
    caught(Mutant::ExecuteTwice, "bytes");
}
