//! Images of Docker and Podman on this machine, over the socket that both serve.
//!
//! Source: the Docker Engine API (`GET /images/{name}/json` and `/images/{name}/get`), which Podman serves as
//! well; the sockets' places from both programs' documentation.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio_util::io::ReaderStream;

use crate::control::Body;

/// What the engines of this machine say about an image.
pub enum Found {
    /// Its archive.
    Archive(Body),
    /// None has it; who was asked, and what was wrong with them.
    Absent(Vec<String>),
}

/// An archive of the image from the first engine here that has it.
pub async fn find(reference: &str) -> anyhow::Result<Found> {
    let mut asked = Vec::new();
    for socket in sockets() {
        match from_socket(&socket, reference).await {
            Ok(Some(archive)) => return Ok(Found::Archive(archive)),
            Ok(None) => asked.push(socket.display().to_string()),
            Err(error) => asked.push(format!("{}: {error:#}", socket.display())),
        }
    }
    Ok(from_podman(reference).await?.map_or(Found::Absent(asked), Found::Archive))
}

/// The archive, or an error that tells what else could be done.
pub async fn export(reference: &str) -> anyhow::Result<Body> {
    let asked = match find(reference).await? {
        Found::Archive(archive) => return Ok(archive),
        Found::Absent(asked) if asked.is_empty() => {
            "and there is no Docker or Podman to ask for an image of that name".to_owned()
        }
        Found::Absent(asked) => {
            format!("and no image of Docker or Podman (asked: {})", asked.join(", "))
        }
    };
    bail!(
        "{reference:?} is no file here, {asked}; `rootlet image pull {reference}` gets it from its registry"
    )
}

/// The sockets there are, those that the environment names first.
fn sockets() -> Vec<PathBuf> {
    let named = ["DOCKER_HOST", "CONTAINER_HOST"].into_iter().filter_map(|variable| {
        let address = std::env::var(variable).ok()?;
        Some(PathBuf::from(address.strip_prefix("unix://")?))
    });
    let run = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let own = run.iter().flat_map(|run| [run.join("docker.sock"), run.join("podman/podman.sock")]);
    let usual = ["/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock"];
    let mut found: Vec<PathBuf> = Vec::new();
    for socket in named.chain(own).chain(usual.map(PathBuf::from)) {
        // One may be a link to the other.
        let Ok(whole) = std::fs::canonicalize(&socket) else { continue };
        if !found.contains(&whole) {
            found.push(whole);
        }
    }
    found
}

/// `None` when the engine has no such image.
async fn from_socket(socket: &Path, reference: &str) -> anyhow::Result<Option<Body>> {
    let known = get(socket, &format!("/images/{reference}/json")).await?;
    match known.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        other => bail!("{other} {}", text(known).await),
    }
    let archive = get(socket, &format!("/images/{reference}/get")).await?;
    if archive.status() != StatusCode::OK {
        bail!("{} {}", archive.status(), text(archive).await);
    }
    Ok(Some(archive.into_body().map_err(std::io::Error::other).boxed()))
}

async fn get(socket: &Path, path: &str) -> anyhow::Result<http::Response<Incoming>> {
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
    sender.send_request(request).await.context("it does not answer")
}

async fn text(response: http::Response<Incoming>) -> String {
    let body = response.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    String::from_utf8_lossy(&body.unwrap_or_default()).trim().to_owned()
}

/// Podman without its service: the program itself writes the archive. `None` when it is not installed, or has
/// no such image.
async fn from_podman(reference: &str) -> anyhow::Result<Option<Body>> {
    let podman = |words: &[&str]| {
        let mut command = tokio::process::Command::new("podman");
        command.args(words).arg("--").arg(reference).stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    let known = podman(&["image", "exists"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !known.await.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let mut saving = podman(&["image", "save", "--quiet", "--format", "docker-archive"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run podman")?;
    let output = saving.stdout.take().context("podman's output is a pipe")?;
    let chunks = ReaderStream::with_capacity(output, 256 * 1024);
    // It lives as long as somebody reads what it writes.
    let frames = futures::StreamExt::map(chunks, move |chunk| {
        let _ = &saving;
        chunk.map(Frame::data)
    });
    Ok(Some(BodyExt::boxed(StreamBody::new(frames))))
}
