//! An agent that echoes: what a real one does on its links, without bodies.

use mosix_runtime::link::{Identity, Pins, Security, Session, SessionOptions, Stream};
use mosix_runtime::node::{AgentReady, AgentSocket, AgentStart, Transport};
use mosix_wire::control::Purpose;
use std::process::ExitCode;
use std::sync::Arc;

pub fn main() -> ExitCode {
    let start = AgentStart::read(std::io::stdin()).unwrap();
    // A few users ask for agents that fail.
    match start.uid {
        6001 => {
            eprintln!("this is what the agent wrote");
            return ExitCode::from(3);
        }
        6002 => {
            AgentReady::Error("no user namespaces here".to_owned())
                .write(std::io::stdout())
                .unwrap();
            return ExitCode::FAILURE;
        }
        6003 => {
            println!("what?");
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let identity = Identity::generate().unwrap();
    let pins = Pins::one(start.supervisor().unwrap());
    let security = match start.transport {
        Transport::Tls => Security::tls(&identity, &pins).unwrap(),
        Transport::Plain => Security::Plain,
    };
    let mut socket = AgentSocket::bind(&start.state_dir, start.identity(identity.fingerprint()).unwrap()).unwrap();
    AgentReady::Fingerprint(identity.fingerprint().to_string())
        .write(std::io::stdout())
        .unwrap();

    let session = Arc::new(Session::accept(SessionOptions::default()).unwrap());
    let echo = session.clone();
    std::thread::spawn(move || {
        while let Ok(frame) = echo.recv() {
            if echo.send(&frame.body, &[&frame.payload]).is_err() {
                break;
            }
        }
        std::process::exit(0);
    });
    loop {
        let incoming = socket.accept().unwrap();
        let (session, security) = (session.clone(), security.clone());
        std::thread::spawn(move || {
            let outcome = Stream::accept(incoming.fd, &security).and_then(|mut stream| match incoming.hello.purpose {
                Purpose::Session => session.attach(stream),
                Purpose::Pages => {
                    let frame = stream.recv()?;
                    let sum: u64 = frame.payload.iter().map(|byte| u64::from(*byte)).sum();
                    stream.send(&sum.to_le_bytes(), &[])
                }
            });
            if let Err(error) = outcome {
                eprintln!("a stream of {}: {error}", incoming.hello.from);
            }
        });
    }
}
