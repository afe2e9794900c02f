//! The contract "creation", section Thread: random lives of a process whose threads make threads, with the agent's own book of calls in the
//! middle of a simulated home, host and kernel.
//!
//! Every life is a row of steps in random order: calls and their words on the way, signals, freezes that are undone or end in a move to
//! another host or home, failures of either half, ends of threads. Checked after each step: every number names at most one living body and
//! one living deputy thread, every body has its deputy thread, every call that a program sees succeed has made exactly one thread. Checked
//! at the end, when everything has come to rest: no deputy thread is without a body, and nobody waits.

// A test speaks by panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod random;
mod world;

use world::World;

const LIVES: u64 = 4000;
const STEPS: usize = 120;

#[test]
fn every_number_names_one_thread() {
    let (mut made, mut moved, mut failed, mut undone) = (0, 0, 0, 0);
    for seed in 0..LIVES {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
            world.check();
        }
        world.rest();
        world.check();
        world.check_rest();
        made += world.made;
        moved += world.moved;
        failed += world.failed;
        undone += world.undone;
    }
    // Else the lives were no lives.
    assert!(
        made > 10_000 && moved > 1000 && failed > 100 && undone > 100,
        "{made} threads made, {moved} moves, {failed} failures, {undone} undone"
    );
}
