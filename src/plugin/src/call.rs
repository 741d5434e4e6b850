//! Calls to plugins over their unix sockets.

use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
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

/// Where a plugin listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// A socket's file.
    Path(PathBuf),
    /// Linux' abstract namespace, which has no files.
    Abstract(String),
}

impl Socket {
    async fn open(self) -> std::io::Result<TokioIo<UnixStream>> {
        Ok(TokioIo::new(match self {
            Self::Path(path) => open(&path).await?,
            Self::Abstract(name) => {
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream)?
            }
        }))
    }
}

/// A connection to a plugin.
#[derive(Clone)]
pub struct Plugin {
    channel: Channel,
}

impl Plugin {
    /// Connects to the plugin's socket.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let socket = Socket::Path(path.to_owned());
        let connector = tower::service_fn(move |_: http::Uri| socket.clone().open());
        let endpoint = Endpoint::from_static("http://plugin").timeout(TIMEOUT);
        let failed = |error: tonic::transport::Error| Error::Connect {
            path: path.to_owned(),
            reason: cause(&error),
        };
        let channel = endpoint.connect_with_connector(connector).await.map_err(failed)?;
        Ok(Self { channel })
    }

    /// Connects to the plugin's socket when it is first called, and anew when the connection is gone; how long a call
    /// may take is the caller's to say. Takes a Tokio runtime.
    pub fn lazily(socket: Socket) -> Self {
        let connector = tower::service_fn(move |_: http::Uri| socket.clone().open());
        let endpoint = Endpoint::from_static("http://plugin");
        Self { channel: endpoint.connect_with_connector_lazy(connector) }
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Error> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let ready = client.ready().await;
        ready.map_err(|error| refused(&tonic::Status::unavailable(cause(&error))))?;
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

/// The innermost words of an error.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Connects to a socket whose directory may be deeper than an address is long.
async fn open(path: &Path) -> std::io::Result<UnixStream> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let flags =
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, rustix::fs::Mode::empty())?;
    let short = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), name.to_string_lossy());
    UnixStream::connect(short).await
}
