//! What the processes of a job have used on hosts, which home's kernel does not know: the one owner of these numbers.
//!
//! ```text
//!  report of a host, image ──▶ own(child) ─── the child is reaped ──▶ children(parent) ─── and so on
//! ```
//! As in the kernel, a parent has the time of a child that it has waited for, and of the children that this one had waited for. Nobody
//! sees a parent at home wait: that a dead child is gone from /proc is taken for it.

use crate::process::stat::Stat;
use crate::syscall::rusage::Elsewhere;
use mosix_wire::spent::Spent;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy)]
struct Account {
    /// With the pid, names the process for good.
    start: u64,
    parent: i32,
    /// Its bodies.
    own: Spent,
    /// Children that it has waited for.
    children: Spent,
}

/// For how long a closed account is known to whoever has just waited for its process, and how many.
const KEPT: Duration = Duration::from_secs(10);
const KEPT_MOST: usize = 1024;

/// All accounts.
#[derive(Debug, Default)]
struct Book {
    open: BTreeMap<i32, Account>,
    /// The latest that were closed: a parent's call may end after its child is gone from /proc.
    closed: VecDeque<(Instant, i32, Spent)>,
}

/// The accounts of a job's processes.
#[derive(Debug, Default)]
pub struct Accounts(Mutex<Book>);

/// What the kernel says of a process: start and parent.
fn seen(pid: i32) -> Option<(u64, i32)> {
    Stat::read(pid).ok().map(|stat| (stat.start, stat.parent))
}

impl Accounts {
    fn lock(&self) -> MutexGuard<'_, Book> {
        // Every change is a few assignments: a panic elsewhere leaves no half of one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a host or an image says that a process has used on all hosts. It only grows.
    pub fn report(&self, pid: i32, spent: Spent) {
        let mut book = self.lock();
        let now = seen(pid);
        if is_other(&book.open, pid, now) {
            book.settle();
        }
        if let Some(account) = open(&mut book.open, pid, now) {
            account.own = account.own.latest(spent);
        }
    }

    /// Closes the accounts of processes that are gone.
    pub fn settle(&self) {
        self.lock().settle();
    }
}

impl Book {
    fn settle(&mut self) {
        let now = Instant::now();
        let closed = settle(&mut self.open, seen);
        self.closed
            .extend(closed.into_iter().map(|(pid, spent)| (now, pid, spent)));
        let old = |(at, _, _): &(Instant, i32, Spent)| at.elapsed() > KEPT;
        while self.closed.len() > KEPT_MOST || self.closed.front().is_some_and(old) {
            self.closed.pop_front();
        }
    }
}

impl Elsewhere for Accounts {
    fn own(&self, pid: i32) -> Spent {
        let book = self.lock();
        let account = book.open.get(&pid).filter(|_| !is_other(&book.open, pid, seen(pid)));
        account.map(|account| account.own).unwrap_or_default()
    }

    fn with_children(&self, pid: i32) -> Spent {
        let book = self.lock();
        if let Some(account) = book.open.get(&pid) {
            return account.own.plus(account.children);
        }
        // It was reaped just now.
        let fresh = |(at, closed, _): &&(Instant, i32, Spent)| *closed == pid && at.elapsed() < KEPT;
        let closed = book.closed.iter().rev().find(fresh);
        closed.map(|(_, _, spent)| *spent).unwrap_or_default()
    }

    fn children(&self, pid: i32) -> Spent {
        let mut book = self.lock();
        book.settle();
        book.open.get(&pid).map(|account| account.children).unwrap_or_default()
    }
}

/// Whether the account of a number is that of another process than has it now.
fn is_other(accounts: &BTreeMap<i32, Account>, pid: i32, now: Option<(u64, i32)>) -> bool {
    let account = accounts.get(&pid);
    account
        .zip(now)
        .is_some_and(|(account, (start, _))| account.start != start)
}

/// The account of a process of which the kernel says `now`; none when there is neither.
fn open(accounts: &mut BTreeMap<i32, Account>, pid: i32, now: Option<(u64, i32)>) -> Option<&mut Account> {
    let Some((start, parent)) = now else {
        return accounts.get_mut(&pid);
    };
    let account = accounts.entry(pid).or_insert(Account {
        start,
        parent,
        own: Spent::default(),
        children: Spent::default(),
    });
    account.parent = parent;
    Some(account)
}

/// Gives what reaped processes have used to their parents, children before their parents; gives them and what it was.
fn settle(accounts: &mut BTreeMap<i32, Account>, seen: impl Fn(i32) -> Option<(u64, i32)>) -> Vec<(i32, Spent)> {
    let mut closed = Vec::new();
    let reaped = |(pid, account): (&i32, &Account)| {
        let same = seen(*pid).is_some_and(|(start, _)| start == account.start);
        (!same).then_some(*pid)
    };
    let mut gone: Vec<i32> = accounts.iter().filter_map(reaped).collect();
    while !gone.is_empty() {
        let parent_of_none = |pid: &i32| {
            let mut others = gone.iter().filter(|other| *other != pid);
            !others.any(|other| accounts.get(other).is_some_and(|account| account.parent == *pid))
        };
        let place = gone.iter().position(parent_of_none).unwrap_or(0);
        let pid = gone.swap_remove(place);
        let Some(account) = accounts.remove(&pid) else { continue };
        let all = account.own.plus(account.children);
        closed.push((pid, all));
        // One whose parent is no more was nobody's to wait for.
        if all != Spent::default()
            && let Some(parent) = open(accounts, account.parent, seen(account.parent))
        {
            parent.children = parent.children.plus(all);
        }
    }
    closed
}

#[cfg(test)]
mod tests {
    use super::*;
    use mosix_wire::spent::CpuTime;

    fn used(user_ns: u64) -> Spent {
        Spent {
            cpu: CpuTime { user_ns, system_ns: 0 },
            ..Spent::default()
        }
    }

    /// Processes that there are: pid, start, parent.
    fn world(processes: &[(i32, u64, i32)]) -> impl Fn(i32) -> Option<(u64, i32)> + '_ {
        |pid| {
            let found = processes.iter().find(|(other, ..)| *other == pid);
            found.map(|(_, start, parent)| (*start, *parent))
        }
    }

    fn earn(accounts: &mut BTreeMap<i32, Account>, pid: i32, ns: u64, processes: &[(i32, u64, i32)]) {
        let account = open(accounts, pid, world(processes)(pid)).unwrap();
        account.own = account.own.latest(used(ns));
    }

    #[test]
    fn a_reaped_child_is_its_parents() {
        let mut accounts = BTreeMap::new();
        let all = [(1, 0, 0), (10, 1, 1), (11, 2, 10)];
        earn(&mut accounts, 11, 5, &all);
        settle(&mut accounts, world(&all));
        assert_eq!(accounts[&11].own, used(5));
        // Its parent never moved and has an account from now on.
        settle(&mut accounts, world(&all[..2]));
        assert_eq!((accounts.len(), accounts[&10].children), (1, used(5)));
    }

    #[test]
    fn grandchildren_go_up_with_their_parents() {
        let mut accounts = BTreeMap::new();
        let all = [(10, 1, 1), (11, 2, 10), (12, 3, 11)];
        for (pid, ns) in [(11, 1), (12, 2), (10, 4)] {
            earn(&mut accounts, pid, ns, &all);
        }
        settle(&mut accounts, world(&all[..1]));
        assert_eq!((accounts[&10].own, accounts[&10].children), (used(4), used(3)));
    }

    #[test]
    fn a_number_that_is_used_again_is_somebody_elses() {
        let mut accounts = BTreeMap::new();
        earn(&mut accounts, 11, 5, &[(10, 1, 1), (11, 2, 10)]);
        let later = [(10, 1, 1), (11, 9, 10)];
        settle(&mut accounts, world(&later));
        earn(&mut accounts, 11, 7, &later);
        assert_eq!((accounts[&10].children, accounts[&11].own), (used(5), used(7)));
    }

    #[test]
    fn reports_never_take_anything_back() {
        let accounts = Accounts::default();
        let me = std::process::id().cast_signed();
        accounts.report(me, used(7));
        accounts.report(me, used(3));
        assert_eq!(accounts.own(me), used(7));
        // Nobody: there is nothing to keep.
        accounts.report(i32::MAX, used(u64::MAX));
        assert_eq!(accounts.own(i32::MAX), Spent::default());
    }

    #[test]
    fn who_waited_is_told_of_a_child_that_is_gone() {
        let accounts = Accounts::default();
        let mut child = std::process::Command::new("sleep").arg("9").spawn().unwrap();
        let pid = child.id().cast_signed();
        accounts.report(pid, used(7));
        child.kill().unwrap();
        child.wait().unwrap();
        accounts.settle();
        assert_eq!(
            (accounts.own(pid), accounts.with_children(pid)),
            (Spent::default(), used(7))
        );
        assert_eq!(accounts.children(std::process::id().cast_signed()), used(7));
    }

    #[test]
    fn circles_end() {
        let mut accounts = BTreeMap::new();
        let all = [(10, 1, 11), (11, 2, 10)];
        earn(&mut accounts, 10, 1, &all);
        earn(&mut accounts, 11, 1, &all);
        settle(&mut accounts, world(&[]));
        assert!(accounts.is_empty());
    }
}
