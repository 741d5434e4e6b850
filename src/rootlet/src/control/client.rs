//! The command line's side.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncRead};

use super::{Checked, ImageLine, Progress, Pruned, Restored, Status};
use crate::engine;
use crate::paths::Paths;

/// What is sent.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// Where an archive of images comes from.
#[derive(Clone, Copy)]
pub enum Archive<'a> {
    /// Standard input.
    Stdin,
    /// A file.
    File(&'a std::path::Path),
    /// Docker or Podman, which has an image of this name.
    Engine(&'a str),
}

impl<'a> Archive<'a> {
    /// What a word of the command line stands for.
    pub fn of(word: &'a std::path::Path) -> Self {
        match word.to_str() {
            Some("-") => Self::Stdin,
            Some(name) if !word.exists() && !name.starts_with(['.', '/']) => Self::Engine(name),
            _ => Self::File(word),
        }
    }
}

/// Speaks with the daemon of one cluster.
pub struct Client {
    socket: PathBuf,
    not_running: String,
}

impl Client {
    /// A client for the cluster; nothing is opened yet.
    pub fn new(paths: &Paths) -> Self {
        Self { socket: paths.daemon_socket(), not_running: paths.not_running() }
    }

    /// A client of whoever has the images: the cluster, or a runtime that runs without one.
    pub fn of_images(paths: &Paths) -> Self {
        let socket = match super::runtime_alone(paths) {
            Some(_) => paths.runtime_socket(),
            None => paths.daemon_socket(),
        };
        Self { socket, not_running: paths.not_running() }
    }

    /// How the cluster is.
    pub fn status(&self) -> anyhow::Result<Status> {
        run(self.get("/status"))
    }

    /// Stops the pods and then the daemon; returns when the pods are stopped.
    pub fn down(&self) -> anyhow::Result<()> {
        run(async {
            let response = self.send(Method::POST, "/down", empty()).await?;
            response.into_body().collect().await.context("the daemon ended too early")?;
            Ok(())
        })
    }

    /// What was recorded about a pod.
    pub fn trace(&self, namespace: &str, name: &str) -> anyhow::Result<cli::trace::Trace> {
        run(self.ask_trace(namespace, name))
    }

    /// The same, for who waits for other things meanwhile.
    pub async fn ask_trace(
        &self,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<cli::trace::Trace> {
        self.get(&format!("/trace/{namespace}/{name}")).await
    }

    /// The images of the node.
    pub fn images(&self) -> anyhow::Result<Vec<ImageLine>> {
        run(self.get("/images"))
    }

    /// Removes an image by name or id.
    pub fn remove_image(&self, reference: &str) -> anyhow::Result<()> {
        run(async {
            let path = format!("/images?{}", query("reference", reference));
            self.send(Method::DELETE, &path, empty()).await.map(drop)
        })
    }

    /// Says whether an image stays when room is made.
    pub fn pin(&self, reference: &str, pinned: bool) -> anyhow::Result<()> {
        run(async {
            let path = format!("/images/pin?{}&flag={pinned}", query("reference", reference));
            self.send(Method::POST, &path, empty()).await.map(drop)
        })
    }

    /// Pulls an image, telling `progress` how it goes.
    pub fn pull(
        &self,
        reference: &str,
        progress: impl FnMut(&Progress),
    ) -> anyhow::Result<Vec<ImageLine>> {
        run(async {
            let path = format!("/images/pull?{}", query("reference", reference));
            follow(self.send(Method::POST, &path, empty()).await?, progress).await
        })
    }

    /// Loads an archive.
    pub fn load(
        &self,
        archive: Archive<'_>,
        progress: impl FnMut(&Progress),
    ) -> anyhow::Result<Vec<ImageLine>> {
        run(async {
            let body = match archive {
                Archive::Stdin => upload(None).await?,
                Archive::File(file) => upload(Some(file)).await?,
                Archive::Engine(reference) => engine::export(reference).await?,
            };
            follow(self.send(Method::POST, "/images/load", body).await?, progress).await
        })
    }

    /// Brings an image in: from an archive of that name, from another engine on this machine, or from its
    /// registry.
    pub fn bring(&self, image: &str) -> anyhow::Result<Vec<ImageLine>> {
        let archive = Archive::of(std::path::Path::new(image));
        if let Archive::Engine(reference) = archive {
            let found = run(async {
                let engine::Found::Archive(body) = engine::find(reference).await? else {
                    return Ok(None);
                };
                let answer = self.send(Method::POST, "/images/load", body).await?;
                follow(answer, |_| {}).await.map(Some)
            })?;
            return found.map_or_else(|| self.pull(reference, |_| {}), Ok);
        }
        self.load(archive, |_| {})
    }

    /// Writes an archive of images to `output`.
    pub fn save(
        &self,
        references: &[String],
        mut output: impl std::io::Write,
    ) -> anyhow::Result<()> {
        run(async {
            let pairs = references.iter().map(|reference| ("reference", reference));
            let query =
                url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
            let response =
                self.send(Method::GET, &format!("/images/save?{query}"), empty()).await?;
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                let frame = frame.context("the archive is not whole; the daemon's log says why")?;
                if let Some(bytes) = frame.data_ref() {
                    output.write_all(bytes).context("cannot write the archive")?;
                }
            }
            output.flush().context("cannot write the archive")
        })
    }

    /// Writes the cluster's objects to `output`; tells how many bytes they are.
    pub fn save_snapshot(&self, mut output: impl std::io::Write) -> anyhow::Result<u64> {
        run(async {
            let response = self.send(Method::GET, "/snapshot", empty()).await?;
            let mut chunks = response.into_body().into_data_stream();
            let mut bytes = 0;
            while let Some(chunk) = chunks.next().await {
                let chunk =
                    chunk.context("the snapshot broke off; `rootlet status` may say why")?;
                output.write_all(&chunk).context("cannot write the snapshot")?;
                bytes += chunk.len() as u64;
            }
            Ok(bytes)
        })
    }

    /// Puts a snapshot back, from a file or, when `file` is `None`, from standard input.
    pub fn restore_snapshot(&self, file: Option<&std::path::Path>) -> anyhow::Result<Restored> {
        run(async {
            let body = upload(file).await?;
            let response = self.send(Method::POST, "/snapshot", body).await?;
            let body = response.into_body().collect().await.context("the daemon ended")?;
            serde_json::from_slice(&body.to_bytes())
                .context("the daemon is of another version; restart it")
        })
    }

    /// Removes images nobody uses: those without a tag, or `all`.
    pub fn prune(&self, all: bool) -> anyhow::Result<Pruned> {
        let path = format!("/images/prune?flag={all}");
        run(self.answer(Method::POST, &path))
    }

    /// Compares images with their digests; with `repair` removes what is damaged.
    pub fn fsck(&self, repair: bool) -> anyhow::Result<Checked> {
        let path = format!("/images/fsck?flag={repair}");
        run(self.answer(Method::POST, &path))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.answer(Method::GET, path).await
    }

    async fn answer<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<T> {
        let response = self.send(method, path, empty()).await?;
        let body = response.into_body().collect().await.context("the daemon ended")?.to_bytes();
        serde_json::from_slice(&body).context("the daemon is of another version; restart it")
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> anyhow::Result<Response<Incoming>> {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        let stream = tokio::net::UnixStream::connect(&self.socket).await.map_err(|error| {
            match error.kind() {
                ConnectionRefused | NotFound => anyhow!(self.not_running.clone()),
                _ => anyhow!(error).context(self.not_running.clone()),
            }
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request =
            Request::builder().method(method).uri(path).header("host", "rootlet").body(body)?;
        let response = sender.send_request(request).await.context("the daemon does not answer")?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let text = response.into_body().collect().await?.to_bytes();
        bail!("{}", String::from_utf8_lossy(&text))
    }
}

fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(work);
    // A read from a terminal that nobody ends must not hold the process.
    runtime.shutdown_background();
    answer
}

/// The bytes of a file, or of standard input.
async fn upload(file: Option<&std::path::Path>) -> anyhow::Result<Body> {
    let reader: Box<dyn AsyncRead + Send + Sync + Unpin> = match file {
        None => Box::new(tokio::io::stdin()),
        Some(folder) if folder.is_dir() => bail!(
            "{0} is a folder; if it is an OCI layout, pack it: tar -C {0} -cf - . | rootlet image load -",
            folder.display()
        ),
        Some(file) => Box::new(
            tokio::fs::File::open(file)
                .await
                .with_context(|| format!("cannot read {}", file.display()))?,
        ),
    };
    let frames = tokio_util::io::ReaderStream::with_capacity(reader, 256 * 1024)
        .map(|chunk| chunk.map(Frame::data));
    Ok(BodyExt::boxed(StreamBody::new(frames)))
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}

fn query(key: &str, value: &str) -> String {
    url::form_urlencoded::Serializer::new(String::new()).append_pair(key, value).finish()
}

async fn follow(
    response: Response<Incoming>,
    mut progress: impl FnMut(&Progress),
) -> anyhow::Result<Vec<ImageLine>> {
    let stream =
        response.into_body().into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other));
    let mut lines = tokio_util::io::StreamReader::new(stream).lines();
    while let Some(line) = lines.next_line().await.context("the daemon ended")? {
        let line: Progress =
            serde_json::from_str(&line).context("the daemon is of another version")?;
        match line {
            Progress::Images { images } => return Ok(images),
            Progress::Error { message } => bail!("{message}"),
            Progress::Layer { .. } => progress(&line),
        }
    }
    bail!("the daemon ended before the images were there")
}
