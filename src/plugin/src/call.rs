//! Calls to plugins over their unix sockets.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use hyper_util::rt::TokioIo;
use prost::Message;
pub use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Drivers may have to wait for a device; upstream gives them two minutes.
const TIMEOUT: Duration = Duration::from_mins(2);

/// A plugin that does not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its socket cannot be reached.
    #[error("connect to the plugin at {path}: {reason}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It refused; these are its own words.
    #[error("rpc error: code = {code:?} desc = {message}")]
    Refused {
        /// The gRPC code.
        code: Code,
        /// Why.
        message: String,
    },
}

/// A connection to a plugin.
#[derive(Clone)]
pub struct Plugin {
    channel: Channel,
}

impl Plugin {
    /// Connects to the plugin's socket.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let failed = |reason: String| Error::Connect { path: path.to_owned(), reason };
        let socket = path.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(open(&socket).await?)) }
        });
        let endpoint = Endpoint::try_from("http://plugin").map_err(|e| failed(e.to_string()))?;
        let channel = endpoint.timeout(TIMEOUT).connect_with_connector(connector).await;
        let told = |error: tonic::transport::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            failed(cause.unwrap_or_else(|| error.to_string()))
        };
        Ok(Self { channel: channel.map_err(told)? })
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Error> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let ready = client.ready().await;
        ready.map_err(|e| refused(&tonic::Status::unavailable(e.to_string())))?;
        Ok(client)
    }

    /// Calls `method`, `/package.Service/Method`.
    pub async fn call<Request, Answer>(
        &self,
        method: &'static str,
        request: Request,
    ) -> Result<Answer, Error>
    where
        Request: Message + 'static,
        Answer: Message + Default + 'static,
    {
        let mut client = self.ready().await?;
        let codec = ProstCodec::<Request, Answer>::default();
        let path = http::uri::PathAndQuery::from_static(method);
        let answer = client.unary(tonic::Request::new(request), path, codec).await;
        Ok(answer.map_err(|status| refused(&status))?.into_inner())
    }

    /// Calls `method`, which answers with one message after another.
    pub async fn stream<Request, Answer>(
        &self,
        method: &'static str,
        request: Request,
    ) -> Result<BoxStream<'static, Result<Answer, Error>>, Error>
    where
        Request: Message + 'static,
        Answer: Message + Default + 'static,
    {
        let mut client = self.ready().await?;
        let codec = ProstCodec::<Request, Answer>::default();
        let path = http::uri::PathAndQuery::from_static(method);
        let answer = client.server_streaming(tonic::Request::new(request), path, codec).await;
        let stream = answer.map_err(|status| refused(&status))?.into_inner();
        Ok(stream.map_err(|status| refused(&status)).boxed())
    }
}

fn refused(status: &tonic::Status) -> Error {
    Error::Refused { code: status.code(), message: status.message().to_owned() }
}

/// Connects to a socket whose directory may be deeper than an address is long.
async fn open(path: &Path) -> std::io::Result<tokio::net::UnixStream> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let flags =
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, rustix::fs::Mode::empty())?;
    let short = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), name.to_string_lossy());
    tokio::net::UnixStream::connect(short).await
}
