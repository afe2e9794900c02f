//! Messages of daemons on asynchronous connections, within limits of size and time.

use mosix_wire::control::{decode, decode_len, encode};
use serde::{Serialize, de::DeserializeOwned};
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A connection of any kind.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

fn invalid(error: mosix_wire::control::MessageError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Writes a message.
pub async fn send<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin + ?Sized),
    message: &T,
    limit: usize,
) -> io::Result<()> {
    to.write_all(&encode(message, limit).map_err(invalid)?).await?;
    to.flush().await
}

/// Reads a message; not cancel safe. No byte behind the message is read.
pub async fn recv<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin + ?Sized), limit: usize) -> io::Result<T> {
    let mut len = [0; 4];
    from.read_exact(&mut len).await?;
    let mut bytes = vec![0; decode_len(len, limit).map_err(invalid)?];
    from.read_exact(&mut bytes).await?;
    decode(&bytes).map_err(invalid)
}

/// Bounds an operation in time; `what` names it in the error.
pub async fn within<T>(time: Duration, what: &str, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(time, work).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{what}: nothing within {:.1} s", time.as_secs_f32()),
        )),
    }
}
