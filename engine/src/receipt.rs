//! The answer to a write: a plain `Future` that needs no runtime.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::channel::oneshot;
use sonde_storage_format::SeqRange;

use crate::error::{Error, Result};

/// Resolves once the batch is durable and visible, or refused. Block on it, `.await` it, or poll it with a waker.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<SeqRange>>);

/// The writer's end of a receipt.
pub(crate) type Reply = oneshot::Sender<Result<SeqRange>>;

impl Receipt {
    pub(crate) fn new() -> (Reply, Self) {
        let (reply, receipt) = oneshot::channel();
        (reply, Self(receipt))
    }

    /// Blocks until the write is answered: the sequence numbers that the batch took.
    pub fn wait(self) -> Result<SeqRange> {
        futures::executor::block_on(self)
    }
}

impl Future for Receipt {
    type Output = Result<SeqRange>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A writer that went away without an answer has stopped.
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(Error::Closed)))
    }
}
