//! Faults in every phase of every kind of move: a process is held at a named point (docs/testing.md), somebody is killed or a cable pulled, and
//! the move goes on. What must come of it is the table [`expected`]; nothing may be left behind.

use mosix_tests::cluster::{kill, text};
use mosix_tests::{Guest, How, Lab, require};
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Labs at work at the same time.
const LABS: usize = 4;
/// How long a cable is out.
const CUT: Duration = Duration::from_millis(1200);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    /// home → n2
    Out,
    /// n2 → n3
    On,
    /// n2 → home
    Back,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Victim {
    Destination,
    Source,
    Supervisor,
    Launcher,
    Deputy,
    Daemon(u32),
    Link(u32),
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon(node) => write!(f, "mosixd n{node}"),
            Self::Link(node) => write!(f, "link n{node}"),
            other => f.pad(&format!("{other:?}").to_lowercase()),
        }
    }
}

const OUT: (&[&str], &[Victim]) = (
    &[
        "home.connected",
        "home.frozen",
        "home.sending",
        "host.building",
        "home.sent",
        "host.built",
        "home.commit",
        "host.running",
        "home.dropping",
    ],
    &[
        Victim::Daemon(1),
        Victim::Daemon(2),
        Victim::Link(2),
        Victim::Destination,
        Victim::Supervisor,
        Victim::Launcher,
        Victim::Deputy,
    ],
);
const ON: (&[&str], &[Victim]) = (
    &[
        "source.leaving",
        "source.frozen",
        "source.sent",
        "host.building",
        "host.built",
        "home.commit",
        "host.running",
    ],
    &[
        Victim::Daemon(1),
        Victim::Daemon(2),
        Victim::Daemon(3),
        Victim::Link(2),
        Victim::Link(3),
        Victim::Destination,
        Victim::Source,
        Victim::Supervisor,
        Victim::Launcher,
        Victim::Deputy,
    ],
);
const BACK: (&[&str], &[Victim]) = (
    &[
        "source.leaving",
        "source.frozen",
        "source.sent",
        "home.receiving",
        "home.landed",
        "home.releasing",
    ],
    &[
        Victim::Daemon(1),
        Victim::Daemon(2),
        Victim::Link(2),
        Victim::Source,
        Victim::Supervisor,
        Victim::Launcher,
        Victim::Deputy,
    ],
);

type Cell = (Kind, &'static str, Victim);

/// What may become of the program. `home`, `n2`, `n3`: it runs there, and passes; `alone`: at home, without its supervisor; `lost`: with a
/// reason that names the node; `125`: lost with its supervisor; `killed`: by SIGKILL, which was meant for it.
fn expected((kind, point, victim): Cell) -> &'static [&'static str] {
    match (kind, victim) {
        (_, Victim::Deputy | Victim::Launcher) => &["killed"],
        // Not yet touched.
        (Kind::Out, Victim::Supervisor) if point == "home.connected" => &["alone"],
        (_, Victim::Supervisor) => &["125"],
        // Nobody is lost by these: the move succeeds, or the program stays.
        (Kind::Out, Victim::Daemon(_) | Victim::Link(_)) => &["home", "n2"],
        (Kind::On, Victim::Daemon(_) | Victim::Link(_)) => &["n2", "n3"],
        (Kind::Back, Victim::Daemon(_) | Victim::Link(_)) => &["home", "n2"],
        // After the first frame of the new body there is no way back; before it there always is.
        (Kind::Out, Victim::Destination) if point == "home.dropping" => &["lost"],
        (Kind::Out, _) => &["home"],
        (Kind::On, Victim::Destination) => &["n2"],
        (Kind::Back, Victim::Destination) => &[],
        // The image is whole at its destination, or the body is lost with its only copy.
        (_, Victim::Source) => match point {
            "source.leaving" | "source.frozen" | "source.sent" => &["lost"],
            "host.building" => &["lost", "n3"],
            "home.receiving" => &["lost", "home"],
            "home.landed" | "home.releasing" => &["home"],
            _ => &["n3"],
        },
    }
}

fn cells() -> Vec<Cell> {
    let mut all = Vec::new();
    for (kind, (points, victims)) in [(Kind::Out, OUT), (Kind::On, ON), (Kind::Back, BACK)] {
        for victim in victims {
            all.extend(points.iter().map(|point| (kind, *point, *victim)));
        }
    }
    all
}

#[test]
fn a_fault_in_every_phase() {
    require!(require::program("cc"));
    let only = std::env::var("MOSIX_TEST_CELLS").unwrap_or_default();
    let mut all = cells();
    all.retain(|(kind, point, victim)| format!("{kind:?} {point} {victim}").contains(&only));
    all.reverse();
    let (queue, table) = (Mutex::new(all), Mutex::new(BTreeMap::new()));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..LABS {
            scope.spawn(|| work(&queue, &table));
        }
    });
    let table = table.into_inner().unwrap();
    let bad = print(&table);
    println!("{} cells in {:.0} s", table.len(), begun.elapsed().as_secs_f64());
    assert!(bad.is_empty(), "not as promised:\n{}", bad.join("\n"));
}

/// Outcome of each cell, with what else was wrong.
type Table = BTreeMap<Cell, Result<String, String>>;

fn print(table: &Table) -> Vec<String> {
    let mut bad = Vec::new();
    for ((kind, point, victim), outcome) in table {
        let word = outcome.as_ref().map_or("FAILED", String::as_str);
        println!("{:5} {point:15} {:12} {word}", format!("{kind:?}"), victim.to_string());
        let cell = (*kind, *point, *victim);
        match outcome {
            Err(why) => bad.push(format!("{kind:?} {point} {victim}: {why}")),
            Ok(word) if !expected(cell).contains(&word.as_str()) => {
                bad.push(format!("{kind:?} {point} {victim}: {word}, not {:?}", expected(cell)));
            }
            Ok(_) => {}
        }
    }
    bad
}

fn work(queue: &Mutex<Vec<Cell>>, table: &Mutex<Table>) {
    let lab = Lab::with_points(3);
    let before = lab.traces();
    play_all(&lab, &before, queue, table);
    gone(&lab, &before).unwrap();
    lab.down();
}

fn play_all(lab: &Lab, before: &[String], queue: &Mutex<Vec<Cell>>, table: &Mutex<Table>) {
    let mut guest = None;
    loop {
        let Some(cell) = queue.lock().unwrap().pop() else { break };
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(lab, guest.take(), cell, before)));
        let outcome = match played {
            Ok((left, outcome)) => {
                guest = left;
                outcome
            }
            Err(panic) => {
                let words = panic.downcast_ref::<String>().cloned();
                repair(lab);
                Err(words.unwrap_or_else(|| "a panic without words".to_owned()))
            }
        };
        table.lock().unwrap().insert(cell, outcome);
    }
    // Whatever it went through, it has computed the right thing.
    if let Some(guest) = guest {
        guest.pass();
    }
}

/// After a cell that went wrong: daemons run, cables are plugged.
fn repair(lab: &Lab) {
    for node in 1..=3 {
        lab.node(node).cable(true);
    }
    let _ = lab.verb(&["up", "--nodes", "3"]).output();
}

/// Plays one cell; gives the guest back when it goes on.
fn play<'a>(
    lab: &'a Lab,
    guest: Option<Guest<'a>>,
    cell: Cell,
    before: &[String],
) -> (Option<Guest<'a>>, Result<String, String>) {
    let (kind, point, victim) = cell;
    let mut guest = guest.unwrap_or_else(|| {
        let period = Duration::from_millis(100);
        Guest::start("counter", &[], How::Moving { lab, period })
    });
    let (from, to) = match kind {
        Kind::Out => ("home", "n2"),
        Kind::On => ("n2", "n3"),
        Kind::Back => ("n2", "home"),
    };
    guest.migrate(from);
    let pid = guest.pid();
    let job = lab.node(1).job_of(pid).expect("the guest's job");
    let id = job["id"].as_str().unwrap().to_owned();
    let held = lab.hold(point);
    let moved = std::thread::scope(|scope| {
        let moving = scope.spawn(|| lab.node(1).mosix(&["migrate", &pid.to_string(), to]));
        if !held.reached(Duration::from_secs(10)) {
            drop(held);
            return Err(format!("{point} was never reached: {}", text(&moving.join().unwrap())));
        }
        let agent = |node: &str| {
            let number = node.trim_start_matches('n').parse().unwrap();
            kill(lab.node(number).agent(&id).expect("the agent's pid"));
        };
        match victim {
            Victim::Destination => agent(to),
            Victim::Source => agent(from),
            Victim::Supervisor => kill(job["supervisor"].as_i64().unwrap().try_into().unwrap()),
            Victim::Launcher => kill(guest.child().id().try_into().unwrap()),
            Victim::Deputy => kill(pid),
            Victim::Daemon(node) => lab.node(node).kill_daemon(),
            Victim::Link(node) => lab.node(node).cable(false),
        }
        drop(held);
        match victim {
            Victim::Link(node) => {
                std::thread::sleep(CUT);
                lab.node(node).cable(true);
            }
            Victim::Daemon(_) => repair(lab),
            _ => {}
        }
        Ok(moving.join().unwrap())
    });
    let moved = match moved {
        Ok(moved) => moved,
        Err(why) => return (None, Err(why)),
    };
    if !moved.status.success() && text(&moved).trim().is_empty() {
        return (
            None,
            Err(format!(
                "mosix migrate says nothing about its failure ({})",
                moved.status
            )),
        );
    }
    let told = text(&moved).trim().to_owned();
    if let Some(place) = settles(lab, &mut guest, &id, victim) {
        return (Some(guest), Ok(place));
    }
    if victim == Victim::Supervisor {
        guest.tell();
    }
    let verdict = guest.end();
    let said = verdict.stderr.as_str();
    let named = said.contains("n2") || said.contains("n3");
    let word = match (verdict.status.code(), verdict.status.signal()) {
        (Some(0), _) if verdict.lines == ["PASS"] && said.contains("goes on at home") => Ok("alone"),
        (Some(125), _) if said.contains("the supervisor was killed") && said.contains("is lost") => Ok("125"),
        (None, Some(9)) if said.contains("is lost") && named => Ok("lost"),
        (None, Some(9)) if said.is_empty() => Ok("killed"),
        _ => Err(format!("it ended: {verdict:?}; the move: {told}")),
    };
    let left = gone(lab, before);
    (None, word.and_then(|word| left.map(|()| word)).map(str::to_owned))
}

/// Where the program settles; `None` when it ended, or is without supervisor.
fn settles(lab: &Lab, guest: &mut Guest<'_>, job: &str, victim: Victim) -> Option<String> {
    if matches!(victim, Victim::Supervisor | Victim::Launcher | Victim::Deputy) {
        return None;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut before = None;
    loop {
        // A body that is lost is not so at once: its agent's end must be seen first.
        std::thread::sleep(Duration::from_millis(150));
        if guest.child().try_wait().unwrap().is_some() {
            return None;
        }
        let row = lab.node(1).process(guest.pid());
        let place = row.map(|row| row["where"].as_str().unwrap().to_owned());
        let lives = |place: &str| match place.strip_prefix('n') {
            Some(number) => lab.node(number.parse().unwrap()).agent(job).is_some(),
            None => true,
        };
        if before == place && before.as_deref().is_some_and(lives) {
            return place;
        }
        before = place;
        assert!(Instant::now() < deadline, "it settles nowhere");
    }
}

/// Nothing of the job is left anywhere.
fn gone(lab: &Lab, before: &[String]) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let mut left: Vec<String> = lab
            .programs()
            .into_iter()
            .map(|(pid, name)| format!("{pid} {name}"))
            .collect();
        left.extend(lab.traces().into_iter().filter(|trace| !before.contains(trace)));
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("left behind: {left:?}"));
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}
