//! Bad input on the command line and on the port: a clear error, nothing lost, no crash.

use mosix_tests::cluster::text;
use mosix_tests::{Guest, How, Lab, require};
use std::time::Duration;

#[test]
fn unknown_processes_jobs_and_nodes_are_named() {
    require!(require::program("cc"));
    let lab = Lab::shared();
    let guest = Guest::start(
        "counter",
        &[],
        How::Moving {
            lab,
            period: Duration::ZERO,
        },
    );
    let pid = guest.pid().to_string();
    for (args, code, said) in [
        (&["migrate", "2147483647", "n2"][..], 3, "2147483647"),
        (&["migrate", "1", "n2"], 3, "1"),
        (&["migrate", "--job", "no-such-job", "n2"], 3, "no-such-job"),
        (&["migrate", &pid, "n77"], 4, "n77"),
        (&["migrate", "x", "n2"], 2, "x"),
        (&["migrate", &pid], 2, "NODE"),
    ] {
        let output = lab.node(1).mosix(args);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(said), "{args:?}: {text}");
    }
    guest.pass();
}

#[test]
fn a_move_is_reported() {
    require!(require::program("cc"));
    let lab = Lab::shared();
    let guest = Guest::start(
        "counter",
        &[],
        How::Moving {
            lab,
            period: Duration::ZERO,
        },
    );
    let pid = guest.pid();
    let output = lab.node(1).mosix_ok(&["migrate", "--json", &pid.to_string(), "n2"]);
    let report: serde_json::Value = serde_json::from_str(&output).unwrap();
    let moved = &report["moved"][0];
    assert_eq!((&moved["pid"], &moved["to"]), (&pid.into(), &"n2".into()), "{report:#}");
    assert!(
        moved["bytes"].as_u64().unwrap() > 4096 && moved["freeze_us"].as_u64().unwrap() > 0,
        "{report:#}"
    );
    let row = lab.node(1).process(pid).unwrap();
    assert_eq!((&row["where"], &row["moves"]), (&"n2".into(), &1.into()), "{row:#}");
    assert!(
        lab.node(1).agent(row["job_id"].as_str().unwrap()).is_none(),
        "an agent at home"
    );
    assert!(
        lab.node(2).agent(row["job_id"].as_str().unwrap()).is_some(),
        "no agent on n2"
    );
    guest.pass();
}

/// Whatever is sent to the port, the daemon stays, and moves work.
#[test]
fn garbage_on_the_port() {
    require!(require::program("python3"));
    require!(require::program("cc"));
    let lab = Lab::new(2);
    let port = lab.status()["nodes"][1]["port"].to_string();
    let code = "import socket,os,sys,struct\n\
                def send(data):\n\
                \x20 s=socket.create_connection(('10.77.0.2',int(sys.argv[1])),5)\n\
                \x20 s.settimeout(5)\n\
                \x20 try:\n\
                \x20   s.sendall(data)\n\
                \x20   s.recv(100)\n\
                \x20 except OSError: pass\n\
                \x20 s.close()\n\
                send(b'')\n\
                send(b'GET / HTTP/1.0\\r\\n\\r\\n')\n\
                for i in range(20): send(os.urandom(1<<i%17))\n\
                for n in (0,1,0x7fffffff,0xffffffff): send(struct.pack('<I',n)*100)\n\
                for n in (0,1,0x7fffffff,0xffffffff): send(struct.pack('>I',n)*100)\n\
                send(b'\\x16\\x03\\x01'+b'\\xff\\xff'+bytes(70000))\n\
                held=[socket.create_connection(('10.77.0.2',int(sys.argv[1])),5) for _ in range(50)]\n\
                print('done')";
    let before = lab.node(2).daemon();
    let output = lab
        .verb(&["exec", "switch", "--", "/usr/bin/python3", "-c", code, &port])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        before.is_some() && lab.node(2).daemon() == before,
        "mosixd of n2 is gone"
    );
    let mut guest = Guest::start(
        "counter",
        &[],
        How::Moving {
            lab: &lab,
            period: Duration::ZERO,
        },
    );
    guest.migrate("n2");
    guest.migrate("home");
    guest.pass();
}
