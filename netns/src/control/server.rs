//! The node process's side.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;

use tokio::net::{UnixListener, UnixStream};

use super::{Request, Response, frame};
use crate::{Error, Node};

impl Node {
    /// Serves the control socket until the node is shut down. Who may connect is decided by the
    /// mode of the socket and its directory, and by the peer's user: it must be this process's.
    pub fn serve_control(&self, listener: StdUnixListener) -> Result<(), Error> {
        let failed = |e| Error::system("serve the control socket", e);
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let node = self.clone();
        self.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) if is_own_user(&stream) => {
                        let served = node.clone();
                        node.spawn(async move {
                            if let Err(error) = served.answer(stream).await {
                                tracing::debug!(%error, "a control connection broke off");
                            }
                        });
                    }
                    Ok(_) => tracing::warn!("refused another user on the control socket"),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept on the control socket");
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    }
                }
            }
        });
        Ok(())
    }

    async fn answer(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let (request, descriptor) = frame::receive::<Request>(&mut stream).await?;
        if matches!(request, Request::Watch) {
            frame::send(&mut stream, &Response::Done, None).await?;
            // Until the other side goes, or this task ends with the node.
            return match frame::receive::<Request>(&mut stream).await {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
                other => other.map(drop),
            };
        }
        let (response, descriptor) = match self.carry_out(request, descriptor).await {
            Ok(answer) => answer,
            Err(error) => {
                let message = error.chain();
                (Response::Error { message }, None)
            }
        };
        let descriptor = descriptor.as_ref().map(AsFd::as_fd);
        frame::send(&mut stream, &response, descriptor).await
    }

    async fn carry_out(
        &self,
        request: Request,
        descriptor: Option<OwnedFd>,
    ) -> Result<(Response, Option<OwnedFd>), Error> {
        let response = match request {
            Request::Attach(request) => {
                let namespace = descriptor.ok_or_else(|| {
                    Error::Invalid("attach needs the pod's network namespace".into())
                })?;
                Response::Attachment(self.attach(request, namespace).await?)
            }
            Request::Detach { id } => {
                self.detach(id).await?;
                Response::Done
            }
            Request::Adopt { id, pod } => {
                self.adopt(id, pod).await?;
                Response::Done
            }
            Request::Attachments => Response::Attachments(self.attachments().await?),
            Request::TcpSocket { peer } => {
                return Ok((Response::Done, Some(self.tcp_socket(peer).await?)));
            }
            Request::NodeNamespace => {
                return Ok((Response::Done, Some(self.namespace().await?)));
            }
            Request::ApplyServices(table) => {
                self.apply_services(table).await?;
                Response::Done
            }
            Request::ChangeServices(change) => {
                self.change_services(change).await?;
                Response::Done
            }
            Request::ApplyPolicies(table) => {
                self.apply_policies(table).await?;
                Response::Done
            }
            Request::Publish(wanted) => Response::Published(self.publish(&wanted).await),
            Request::SetForwards(forwards) => {
                self.set_forwards(&forwards).await?;
                Response::Done
            }
            Request::Watch => Response::Done,
            Request::Gateways => Response::Gateways(self.gateways().await?),
            Request::PodCidr => Response::PodCidr(self.pod_cidr().await?),
        };
        Ok((response, None))
    }
}

fn is_own_user(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own)
}
