//! Streaming a blob: checked while it flows, taken up again where a connection broke.

use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::mpsc;

use super::client::{Ask, Client, describe};
use super::endpoint::Endpoint;
use crate::channel::Chunk;
use crate::digest::Hasher;
use crate::error::Error;
use crate::manifest::Descriptor;
use crate::progress::{LayerEvent, Progress};

/// Breaks in a row without a byte in between, until it is given up.
const FRUITLESS: u32 = 5;

/// What came of a download, for the thread that unpacks it: set before the stream ends.
#[derive(Clone, Default)]
pub(crate) struct Verdict(Arc<Mutex<Option<Result<(), String>>>>);

impl Verdict {
    fn set(&self, result: Result<(), String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    }

    /// Whether the whole blob came and had the right digest. To be asked after the stream's end.
    pub fn check(&self, descriptor: &Descriptor) -> Result<(), Error> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known
            .unwrap_or_else(|| Err("the download was abandoned".to_owned()))
            .map_err(|reason| Error::corrupt(format!("blob {}", descriptor.digest), reason))
    }

    /// Whether it is known that the blob came with another digest.
    pub fn is_damaged(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Some(Err(_)))
    }
}

/// Where a blob may be had, and who wants to hear of it.
pub(crate) struct Download<'a> {
    pub client: &'a Client,
    pub endpoints: &'a [Endpoint],
    pub descriptor: &'a Descriptor,
    pub progress: &'a dyn Progress,
}

impl Download<'_> {
    /// Sends the blob into `sink`. An error of the receiving side ends it quietly: that side knows more.
    pub async fn run(&self, sink: mpsc::Sender<Chunk>, verdict: &Verdict) -> Result<(), Error> {
        let descriptor = self.descriptor;
        let mut hasher = Hasher::new(descriptor.digest.algorithm());
        let mut received = 0;
        let mut fruitless = 0;
        let mut endpoint = 0;
        while received < descriptor.size || descriptor.size == 0 {
            let before = received;
            let what = format!("failed to copy blob {}", descriptor.digest);
            let failure = match self.open(&self.endpoints[endpoint], received, &what).await {
                Ok(response) => {
                    let flow = self.flow(response, &mut received, &mut hasher, &sink).await;
                    match flow {
                        Ok(true) => break,
                        Ok(false) => return Ok(()),
                        Err(error) => error,
                    }
                }
                // The next endpoint may have what this one lacks.
                Err(error) if endpoint + 1 < self.endpoints.len() => {
                    tracing::debug!(%error, "trying the next endpoint for a blob");
                    endpoint += 1;
                    continue;
                }
                Err(error) => return fail(&sink, error).await,
            };
            fruitless = if received > before { 0 } else { fruitless + 1 };
            if matches!(failure, Error::Corrupt { .. }) || fruitless >= FRUITLESS {
                return fail(&sink, failure).await;
            }
            tracing::debug!(error = %failure, at = received, "resuming a blob");
            self.progress.layer(&descriptor.digest, LayerEvent::Resumed { at: received });
        }
        let found = hasher.finish();
        let result = if found == descriptor.digest {
            Ok(())
        } else {
            Err(format!("the registry sent content with digest {found}"))
        };
        verdict.set(result);
        Ok(())
    }

    async fn open(&self, endpoint: &Endpoint, at: u64, what: &str) -> Result<Response, Error> {
        let mut headers = HeaderMap::new();
        if at > 0 {
            let range = format!("bytes={at}-");
            headers
                .insert(RANGE, HeaderValue::from_str(&range).expect("digits are a header value"));
        }
        let name = self.descriptor.digest.to_string();
        let ask = Ask { endpoint, method: Method::GET, kind: "blobs", name: &name, headers, what };
        self.client.send(&ask).await
    }

    /// Passes on one response. `Ok(true)`: the blob is complete. `Ok(false)`: nobody reads any more.
    async fn flow(
        &self,
        mut response: Response,
        received: &mut u64,
        hasher: &mut Hasher,
        sink: &mpsc::Sender<Chunk>,
    ) -> Result<bool, Error> {
        let descriptor = self.descriptor;
        let what = || format!("blob {}", descriptor.digest);
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, *received) => 0,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(Error::corrupt(what(), "the registry has another length for it"));
            }
            // A server without ranges sends everything again.
            _ => *received,
        };
        loop {
            let chunk = response
                .chunk()
                .await
                .map_err(|error| Error::Unreachable { what: what(), reason: describe(&error) })?;
            let Some(mut chunk) = chunk else {
                if *received == descriptor.size {
                    return Ok(true);
                }
                let size = descriptor.size;
                return Err(Error::Unreachable {
                    what: what(),
                    reason: format!("the connection ended after {received} of {size} bytes"),
                });
            };
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let _ = chunk.split_to(skipped as usize);
            if chunk.is_empty() {
                continue;
            }
            if *received + chunk.len() as u64 > descriptor.size {
                let reason =
                    format!("it is longer than the {} bytes of its descriptor", descriptor.size);
                return Err(Error::corrupt(what(), reason));
            }
            hasher.update(&chunk);
            *received += chunk.len() as u64;
            if sink.send(Ok(chunk)).await.is_err() {
                return Ok(false);
            }
            let event = LayerEvent::Received { bytes: *received, of: descriptor.size };
            self.progress.layer(&descriptor.digest, event);
        }
    }
}

/// Tells the reader that nothing more comes, and the caller why.
async fn fail(sink: &mpsc::Sender<Chunk>, error: Error) -> Result<(), Error> {
    let _ = sink.send(Err(std::io::Error::other("the download failed"))).await;
    Err(error)
}

/// Whether a partial answer begins where it was asked to.
fn starts_at(response: &Response, at: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range
        .and_then(|text| text.trim().strip_prefix("bytes "))
        .and_then(|text| text.split('-').next())
        .and_then(|text| text.trim().parse::<u64>().ok());
    start == Some(at)
}
