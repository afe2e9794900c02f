//! The migration engine of a supervisor: moves processes of its job out, on, and home again.
//!
//! ```text
//!  tracer thread (engine)              worker thread of a move             link reader of a host
//!  ──────────────────────              ───────────────────────             ─────────────────────
//!  Migrate ───────────────────────────▶ connect, send files the host lacks
//!  freeze, inject, capture ◀─ Prepared ─┘
//!  image ─────────────────────────────▶ Arrive, pages, ImageEnd
//!  commit rules ◀────────────────────────────────────────────────────────── Complete, Running, Refused …
//!  signals, cancels, ends                                                    calls ──▶ deputy, without the engine
//! ```
//! Where a body is and who may run is decided by [`crate::contract::commit::Home`] alone; this module carries its effects out.
//!
//! - [`engine`]: the engine in the tracer loop.
//! - [`process`]: one process that has moved, or is moving.
//! - [`hosts`]: sessions with agents.
//! - [`outgoing`], [`incoming`]: worker threads that stream images.
//! - [`births`]: new threads of a body that is away.
//! - [`exec`]: new programs of a process whose body is away.
//! - [`home`]: taking a body back into its deputy.
//! - [`mapped`]: files that a body maps while away.
//! - [`signals`]: what the tracer does with a deputy's stops.

mod ask;
mod births;
pub mod engine;
mod exec;
mod home;
pub mod hosts;
mod incoming;
mod limits;
mod mapped;
mod outgoing;
mod process;
mod signals;
pub mod view;
mod walk;
mod wish;
mod write_back;

pub use engine::HomeEngine;

use crate::deputy::calls::Ended;
use mosix_wire::ids::{Epoch, NodeName, Pid};
use mosix_wire::image::ProcessImage;
use mosix_wire::link::ToHome;
use std::sync::Arc;

/// What the engine's threads tell it.
#[derive(Debug)]
pub enum Message {
    /// A worker has connected and sent the files: freeze now.
    Prepared {
        /// The process.
        pid: i32,
        /// Epoch of the image.
        attempt: Epoch,
    },
    /// A worker could not do its part.
    Failed {
        /// The process.
        pid: i32,
        /// Epoch of the image.
        attempt: Epoch,
        /// Why, for the user.
        why: String,
    },
    /// All of an image was sent: bytes.
    Sent {
        /// The process.
        pid: i32,
        /// Epoch of the image.
        attempt: Epoch,
        /// Bytes of memory.
        bytes: u64,
    },
    /// The image of a returning body, before its pages.
    Image {
        /// The process.
        pid: i32,
        /// Epoch of the image.
        attempt: Epoch,
        /// The image.
        image: Box<ProcessImage>,
    },
    /// All pages of a returning body are in place: bytes.
    Landed {
        /// The process.
        pid: i32,
        /// Epoch of the image.
        attempt: Epoch,
        /// Bytes of memory.
        bytes: u64,
    },
    /// A host said something that is not a call.
    From(NodeName, Box<ToHome>),
    /// The first frame of an epoch was accepted.
    First(NodeName, Pid, Epoch),
    /// A session is over for good.
    Lost(NodeName, String),
    /// A host can be used: its session stands.
    Connected(NodeName, Arc<hosts::Host>),
    /// A call ended whose thread lingers in the stub although its body is home.
    Lingered(i32, Ended),
}
