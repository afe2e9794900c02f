//! `mosix ctl check`: tries each thing and says what is missing.
//!
//! Nothing here is concluded from a version or a config file where it can be done instead: kernels are patched, and security modules
//! forbid what a kernel has.

use super::probes;
use crate::exit::Exit;
use serde_json::json;
use std::process::ExitCode;

/// What a feature is needed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum For {
    /// `mosix run`.
    Home,
    /// Moving a process away from this node.
    Move,
    /// Hosting processes of other nodes.
    Host,
    /// Speed or comfort; there is another way.
    Better,
}

impl For {
    fn name(self) -> &'static str {
        match self {
            Self::Home => "run",
            Self::Move => "move",
            Self::Host => "host",
            Self::Better => "better",
        }
    }
}

/// The outcome of one trial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Item {
    /// What was tried.
    pub name: &'static str,
    /// What it is for.
    pub needed: For,
    /// Whether it works, and what was seen.
    pub outcome: Result<String, String>,
    /// What helps when it does not.
    pub remedy: &'static str,
}

/// Tries everything and prints it.
pub fn run(as_json: bool) -> anyhow::Result<ExitCode> {
    let items = probes::all();
    let missing = |what: For| items.iter().any(|i| i.needed == what && i.outcome.is_err());
    let (run, moves, host) = (
        !missing(For::Home),
        !missing(For::Home) && !missing(For::Move),
        !missing(For::Host),
    );
    if as_json {
        let list: Vec<_> = items
            .iter()
            .map(|i| {
                let (ok, found) = match &i.outcome {
                    Ok(found) => (true, found),
                    Err(found) => (false, found),
                };
                json!({ "name": i.name, "for": i.needed.name(), "ok": ok, "found": found,
                        "remedy": if ok { "" } else { i.remedy } })
            })
            .collect();
        println!(
            "{}",
            json!({ "checks": list, "can_run": run, "can_move": moves, "can_host": host })
        );
    } else {
        for item in &items {
            match &item.outcome {
                Ok(found) => println!("ok       {}: {found}", item.name),
                Err(found) => {
                    let word = if item.needed == For::Better {
                        "weaker"
                    } else {
                        "missing"
                    };
                    println!("{word:<8} {}: {found}", item.name);
                    if !item.remedy.is_empty() {
                        println!("         remedy: {}", item.remedy);
                    }
                }
            }
        }
        let yes = |can: bool| if can { "yes" } else { "no" };
        println!(
            "\nrun programs here: {}; move them away: {}; host those of other nodes: {}",
            yes(run),
            yes(moves),
            yes(host)
        );
    }
    Ok(if run && moves && host { Exit::Done } else { Exit::Failed }.into())
}
