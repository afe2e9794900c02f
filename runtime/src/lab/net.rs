//! The lab's network, by iproute2's `ip` and `tc` run inside the namespace that they change.
//!
//! Whole batches go to one `ip` by stdin: starting a program per link would make a lab of 50 nodes take seconds.

use super::LabError;
use super::spec::{BRIDGE, LabNode, Rate, SWITCH_ADDRESS};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Makes the bridge in the switch, which is the calling thread's namespace.
pub fn switch() -> Result<(), LabError> {
    // No spanning tree and no multicast snooping: ports forward from the first moment.
    ip(
        "the switch",
        &format!(
            "link set lo up\nlink add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             addr add {SWITCH_ADDRESS}/24 dev {BRIDGE}\nlink set {BRIDGE} up\n"
        ),
    )
}

/// Connects the calling thread's namespace as `node` to the switch at `switch`, a path of its namespace.
pub fn node(node: &LabNode, port: usize, switch: &str, rate: Option<Rate>) -> Result<(), LabError> {
    let mut batch = String::from("link set lo up\n");
    // Writing to a String cannot fail.
    let _ = writeln!(batch, "link add veth0 type veth peer name p{port} netns {switch}");
    let _ = writeln!(batch, "addr add {}/24 dev veth0", node.address);
    let _ = writeln!(batch, "link set veth0 up");
    ip(&node.name, &batch)?;
    shape(&node.name, "veth0", rate)
}

/// Plugs the switch's ends of `ports` nodes in; the calling thread's namespace is the switch.
pub fn plug(ports: usize, rate: Option<Rate>) -> Result<(), LabError> {
    let mut batch = String::new();
    for port in 1..=ports {
        let _ = writeln!(batch, "link set p{port} master {BRIDGE} up");
    }
    ip("the switch", &batch)?;
    (1..=ports).try_for_each(|port| shape("the switch", &format!("p{port}"), rate))
}

/// Bounds what leaves by a device; each end of a cable has its own, so both directions have the full rate.
fn shape(object: &str, device: &str, rate: Option<Rate>) -> Result<(), LabError> {
    let Some(rate) = rate else { return Ok(()) };
    let line = format!(
        "qdisc add dev {device} root tbf rate {}bit burst {} latency 20ms\n",
        rate.0,
        rate.burst()
    );
    batch("tc", object, &line)
}

fn ip(object: &str, lines: &str) -> Result<(), LabError> {
    batch("ip", object, lines)
}

fn batch(program: &'static str, object: &str, lines: &str) -> Result<(), LabError> {
    let what = || format!("cannot run `{program}`");
    // An ordinary user's PATH often lacks the sbin folders where distributions put these.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut child = Command::new(program)
        .env("PATH", path)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => LabError::Missing {
                program,
                package: "iproute2",
            },
            _ => LabError::io(what())(e),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops at the first bad line closes the pipe; its message says more than EPIPE.
        let _ = stdin.write_all(lines.as_bytes());
    }
    let output = child.wait_with_output().map_err(LabError::io(what()))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(LabError::Tool {
        program,
        object: object.to_owned(),
        message,
    })
}
