//! Work that goes on beside a pod's worker, which is woken when the result is there.

use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use tokio_util::task::AbortOnDropHandle;

/// A task and its result; dropped, the task is given up.
pub struct Background<T> {
    result: oneshot::Receiver<T>,
    _task: AbortOnDropHandle<()>,
}

impl<T: Send + 'static> Background<T> {
    /// Starts `work`; `wake` is notified once its result can be had.
    pub fn spawn(work: impl Future<Output = T> + Send + 'static, wake: Arc<Notify>) -> Self {
        let (sender, result) = oneshot::channel();
        let task = tokio::spawn(async move {
            let outcome = work.await;
            let _ = sender.send(outcome);
            wake.notify_one();
        });
        Self { result, _task: AbortOnDropHandle::new(task) }
    }

    /// The result, once: `None` while the work goes on, an error if it panicked.
    pub fn result(&mut self) -> Option<Result<T, Lost>> {
        match self.result.try_recv() {
            Ok(outcome) => Some(Ok(outcome)),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(Lost)),
        }
    }
}

/// The work ended without a result.
#[derive(Debug, thiserror::Error)]
#[error("the task was lost")]
pub struct Lost;
