//! The TCP sockets of links: listening and connecting with the congestion control that links want.
//!
//! A connection gets it before it is made: one that began with an algorithm that paces what is sent (BBR) paces for ever, by a timer for
//! every few packets. On a link that is as fast as memory a move then takes up to three times as long.

use super::config::Address;
use rustix::net::sockopt::set_tcp_congestion;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};

/// Listens; accepted connections inherit the congestion control.
///
/// # Errors
/// Those of bind(2).
pub async fn listen(address: SocketAddr, congestion: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    choose(&listener, congestion);
    Ok(listener)
}

/// Connects to the first address of the host that answers.
///
/// # Errors
/// What the last one said, or that there is none.
pub async fn connect(to: &Address, congestion: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in lookup_host((to.host.as_str(), to.port)).await? {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        choose(&socket, congestion);
        match socket.connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Chooses a congestion control, unless the name is empty. That this kernel has none of that name, or gives it to root alone, is no error:
/// the machine's own does as well, slower.
fn choose(socket: impl AsFd, name: &str) {
    if !name.is_empty()
        && let Err(error) = set_tcp_congestion(socket, name)
    {
        tracing::debug!(name, %error, "the machine's own congestion control is used");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt::tcp_congestion;

    #[tokio::test]
    async fn both_ends_have_the_chosen_one_and_an_unknown_one_does_no_harm() {
        // The one that every kernel has and gives to everybody.
        for (name, known) in [("reno", true), ("nosuch", false), ("", false)] {
            let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), name).await.unwrap();
            let to = Address {
                host: "127.0.0.1".to_owned(),
                port: listener.local_addr().unwrap().port(),
            };
            let (dialled, accepted) = tokio::join!(connect(&to, name), listener.accept());
            let ends = [tcp_congestion(dialled.unwrap()), tcp_congestion(accepted.unwrap().0)];
            for end in ends {
                assert!(!known || end.unwrap() == name);
            }
        }
    }
}
