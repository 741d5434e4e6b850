//! The client's end of a remote command, whichever protocol carries it.

pub use super::message::{Incoming, Size, channel};
use super::{spdy, websocket};

/// The client's end of a session.
pub enum Socket {
    /// Channels are the first byte of each message.
    Web(Box<websocket::Socket>),
    /// Channels are streams.
    Spdy(Box<spdy::Channels>),
}

impl Socket {
    /// Waits until the client is ready to use these channels; false when it does not become so.
    pub async fn opened(&mut self, wanted: &[u8]) -> bool {
        match self {
            Self::Web(_) => true,
            Self::Spdy(channels) => channels.opened(wanted).await,
        }
    }

    /// The next word of the client; `None` when it has gone. Safe to cancel.
    pub async fn next(&mut self) -> Option<Incoming> {
        match self {
            Self::Web(socket) => socket.next().await,
            Self::Spdy(channels) => channels.next().await,
        }
    }

    /// Sends bytes on a channel. A client that has gone is noticed by [`Socket::next`].
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> bool {
        match self {
            Self::Web(socket) => socket.send(channel, bytes).await,
            Self::Spdy(channels) => channels.send(channel, bytes).await,
        }
    }

    /// Tells how it ended, as a `Status`.
    pub async fn end(&mut self, status: &serde_json::Value) {
        match self {
            Self::Web(socket) => socket.end(status).await,
            Self::Spdy(channels) => {
                channels.send(channel::ERROR, status.to_string().as_bytes()).await;
            }
        }
    }

    /// Says good-bye.
    pub async fn close(self) {
        match self {
            Self::Web(socket) => socket.close().await,
            Self::Spdy(channels) => channels.close().await,
        }
    }
}
