//! Explicit-state search over the commit rules: home and two hosts, every order of messages, page streams that break,
//! processes that die at any moment, time-outs and leases that end too early.
//!
//! The machines under test are the product's own (`mosix_runtime::contract::commit`); the world around them is in [`world`],
//! what must hold in [`check`]. [`mutant`] holds deliberately wrong rules: each must be caught, or this test could not fail.

#![allow(clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]

mod check;
mod mutant;
mod search;
mod world;

use mutant::Mutant;
use search::{Outcome, search, search_from};
use world::{Budget, World};

/// Runs a search that must find nothing.
fn holds(budget: Budget) {
    nothing_in(search(budget, Mutant::None), budget);
}

fn nothing_in(outcome: Outcome, budget: Budget) {
    match outcome {
        Outcome::Holds { states, ends } => {
            eprintln!("{states} states, {ends} ends: {budget:?}");
            assert!(
                ends > 10,
                "only {ends} ends among {states} states: the search explored nothing"
            );
        }
        Outcome::Broken { why, trace } => panic!("{why}\n{trace}"),
    }
}

/// Runs a search with a wrong rule, which must be caught for the named reason.
fn caught(budget: Budget, mutant: Mutant, reason: &str) {
    match search(budget, mutant) {
        Outcome::Broken { why, trace } => {
            assert!(
                why.contains(reason),
                "{mutant:?} was caught for another reason: {why}\n{trace}"
            );
            eprintln!("{mutant:?}: {why}\n{trace}");
        }
        Outcome::Holds { states, .. } => panic!("{mutant:?} was not caught in {states} states"),
    }
}

#[test]
fn three_moves_and_two_faults() {
    holds(Budget {
        moves: 3,
        faults: 2,
        calls: 1,
        exits: 0,
        wants: 0,
        doubles: 0,
        losses: 0,
        execs: 0,
    });
}

#[test]
fn two_moves_and_three_faults() {
    holds(Budget {
        moves: 2,
        faults: 3,
        calls: 0,
        exits: 0,
        wants: 0,
        doubles: 0,
        losses: 0,
        execs: 0,
    });
}

#[test]
fn two_moves_one_fault_with_calls_exit_and_wish_to_come_home() {
    holds(Budget {
        moves: 2,
        faults: 1,
        calls: 2,
        exits: 1,
        wants: 1,
        doubles: 0,
        losses: 0,
        execs: 0,
    });
}

/// An execve that is open at home succeeds or fails at any moment of two moves: the process is one program afterwards, at one place.
#[test]
fn programs_are_executed_in_the_middle_of_moves() {
    let none = Budget { execs: 1, ..NOTHING };
    holds(Budget {
        moves: 2,
        faults: 2,
        ..none
    });
    holds(Budget {
        moves: 3,
        faults: 1,
        ..none
    });
    holds(Budget {
        moves: 2,
        faults: 1,
        calls: 1,
        exits: 1,
        wants: 1,
        ..none
    });
    holds(Budget {
        moves: 2,
        execs: 2,
        doubles: 1,
        ..NOTHING
    });
    holds(Budget {
        moves: 2,
        losses: 1,
        ..none
    });
}

/// A child of a body that is away, from the word of its birth on.
#[test]
fn a_birth_away_two_moves_and_two_faults() {
    let budget = Budget {
        moves: 2,
        faults: 2,
        calls: 1,
        exits: 0,
        wants: 0,
        doubles: 0,
        losses: 0,
        execs: 1,
    };
    nothing_in(search_from(World::born(budget), Mutant::None), budget);
}

/// The sessions promise order and no doubles; the rules must be safe even where they break that promise.
#[test]
fn doubled_messages_are_harmless() {
    holds(Budget {
        moves: 2,
        faults: 1,
        calls: 1,
        exits: 0,
        wants: 0,
        doubles: 1,
        losses: 0,
        execs: 0,
    });
}

/// Lost messages may cost liveness (the sessions resend), never safety.
#[test]
fn lost_messages_never_make_two_bodies() {
    holds(Budget {
        moves: 2,
        faults: 1,
        calls: 1,
        exits: 0,
        wants: 0,
        doubles: 0,
        losses: 1,
        execs: 0,
    });
}

const NOTHING: Budget = Budget {
    moves: 0,
    faults: 0,
    calls: 0,
    exits: 0,
    wants: 0,
    doubles: 0,
    losses: 0,
    execs: 0,
};

const ONE: Budget = Budget {
    moves: 2,
    faults: 1,
    calls: 1,
    exits: 0,
    wants: 0,
    doubles: 0,
    losses: 0,
    execs: 0,
};

#[test]
fn caught_source_resumes_on_timeout_without_asking_home() {
    caught(ONE, Mutant::SourceResumesAlone, "frame of a body was refused");
}

#[test]
fn caught_commit_before_the_source_is_drained() {
    caught(ONE, Mutant::CommitUndrained, "frame of a body was refused");
}

#[test]
fn caught_home_accepts_every_epoch() {
    caught(Budget { calls: 2, ..ONE }, Mutant::NoEpochCheck, "stale body");
}

#[test]
fn caught_old_copy_dropped_at_the_commit() {
    caught(ONE, Mutant::DropOldAtCommit, "lost although");
}

#[test]
fn caught_source_gone_is_taken_for_lost() {
    caught(ONE, Mutant::SourceGoneIsLost, "a good copy is left");
}

#[test]
fn caught_thaw_without_its_attempt() {
    let budget = Budget {
        moves: 3,
        faults: 1,
        calls: 1,
        exits: 0,
        wants: 0,
        doubles: 1,
        losses: 0,
        execs: 0,
    };
    caught(budget, Mutant::ThawAny, "frame of a body was refused");
}

#[test]
fn caught_refusal_not_told() {
    caught(ONE, Mutant::SilentRefusal, "for ever");
}

#[test]
fn caught_hosts_are_not_told_of_another_program() {
    let budget = Budget {
        execs: 1,
        calls: 0,
        faults: 0,
        ..ONE
    };
    caught(budget, Mutant::ExecutedUntold, "at home, yet not running there alone");
}

#[test]
fn caught_another_program_does_not_end_a_move() {
    let budget = Budget {
        execs: 1,
        calls: 0,
        faults: 0,
        ..ONE
    };
    caught(budget, Mutant::ExecutedUnseen, "can have effects");
}
