//! Children that are made away: they run where their parent is, and move each by itself.

use crate::threads::{Maker, make_in_moves, stay_where_told, stays};
use mosix_tests::{Lab, guest, require};
use serde_json::Value;
use std::process::Stdio;

const MAKERS: [&str; 3] = ["fork_away", "vfork_away", "fork_tree"];

#[test]
fn stay_where_they_are() {
    require!(require::program("cc"));
    stay_where_told(&MAKERS);
}

#[test]
fn in_the_middle_of_moves() {
    require!(require::program("cc"));
    make_in_moves(&MAKERS);
}

/// Children that were born on n2 are there, and go on to n3, home and to stay, each by itself; their parent hears of each end.
#[test]
fn move_by_themselves() {
    require!(require::program("cc"));
    let node = Lab::shared().node(1);
    let program = guest::compile("fork_stay").into_os_string();
    let mut command = node.command(["mosix".into(), "run".into(), program]);
    command.stderr(Stdio::inherit());
    let mut parent = Maker::start(command);
    let pid = parent.ready();
    node.mosix_ok(&["migrate", &pid.to_string(), "n2"]);
    parent.tell();
    let made = parent.made();
    let children: Vec<i32> = made.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert_eq!(children.len(), 3, "{made}");
    let place = |pid: i32| node.process(pid).map(|row| row["where"].clone());
    for child in &children {
        assert_eq!(place(*child), Some(Value::from("n2")), "child {child} of {pid}");
    }
    node.mosix_ok(&["migrate", &children[0].to_string(), "n3"]);
    node.mosix_ok(&["migrate", &children[1].to_string(), "home"]);
    node.mosix_ok(&["migrate", &pid.to_string(), "n3"]);
    let places = [pid, children[0], children[1], children[2]].map(|pid| place(pid).unwrap_or_default());
    assert_eq!(places, ["n3", "n3", "home", "n2"].map(Value::from));
    parent.tell();
    assert_eq!(parent.end(), ["PASS"]);
}

/// Shell scripts with pipelines, subshells, here-documents and traps: the shell and all that it starts run where it was moved to.
#[test]
fn of_shell_scripts() {
    for shell in ["bash", "dash"] {
        require!(require::program(shell));
        stays(&[shell.into(), "-c".into(), SCRIPT.into()]);
    }
}

const SCRIPT: &str = r#"
echo "READY pid=$$"
trap 'got=$((got+1))' USR1
while read line; do
  got=0 out=
  for i in 1 2 3 4 5; do
    n=$(ls /usr/bin | grep -c z | tr -d ' ')
    (cd /; /bin/true; exit 3)
    r=$?
    m=$(cat <<X | wc -c
hello $i
X
)
    kill -USR1 $$
    sleep 0.01 &
    wait $!
    out="$out $n $r $m $?"
  done
  echo "MADE$out $got"
done
echo END
"#;
