//! The other processes' side.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::{Request, Response, frame};
use crate::{
    Adopted, AttachRequest, Attachment, Cidr, Error, Forward, PolicyTable, Publication, Refused,
    ServiceChange, ServiceTable,
};

/// How long a node process that went away is left alone.
const RETRY: Duration = Duration::from_millis(250);

/// A handle on the node process. Cheap to clone; survives the node process's restarts.
#[derive(Clone, Debug)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// Finds the node process at its control socket and checks that it answers.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        let control = Self { path: path.as_ref().to_owned() };
        control.pod_cidr().await?;
        Ok(control)
    }

    async fn call(
        &self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(Response, Option<OwnedFd>), Error> {
        let failed = |e| {
            let path = self.path.display();
            Error::system(format!("talk to the node process at {path}"), e)
        };
        let mut stream = UnixStream::connect(&self.path).await.map_err(failed)?;
        frame::send(&mut stream, request, descriptor).await.map_err(failed)?;
        match frame::receive(&mut stream).await.map_err(failed)? {
            (Response::Error { message }, _) => Err(Error::Remote { message }),
            answer => Ok(answer),
        }
    }

    /// Waits until the node process is gone, or another one has taken its place: what it was told has
    /// to be told again. Returns soon if it cannot be reached.
    pub async fn until_lost(&self) {
        let connect = async {
            let mut stream = UnixStream::connect(&self.path).await?;
            frame::send(&mut stream, &Request::Watch, None).await?;
            frame::receive::<Response>(&mut stream).await?;
            std::io::Result::Ok(stream)
        };
        match connect.await {
            Ok(mut stream) => {
                // The next thing to come is the end.
                let _ = frame::receive::<Response>(&mut stream).await;
                tracing::debug!("the node process is gone");
            }
            Err(error) => {
                tracing::debug!(%error, "the node process cannot be reached");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn done(&self, request: &Request) -> Result<(), Error> {
        match self.call(request, None).await? {
            (Response::Done, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn descriptor(&self, request: &Request) -> Result<OwnedFd, Error> {
        match self.call(request, None).await? {
            (Response::Done, Some(descriptor)) => Ok(descriptor),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Connects a pod's network namespace: interface, address, routes. Idempotent by id; a new
    /// namespace under an old id replaces the old attachment.
    pub async fn attach(
        &self,
        request: AttachRequest,
        namespace: BorrowedFd<'_>,
    ) -> Result<Attachment, Error> {
        let request = Request::Attach(request);
        match self.call(&request, Some(namespace)).await? {
            (Response::Attachment(attachment), _) => Ok(attachment),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Disconnects a pod and frees its address. Not an error if it is not attached.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        self.done(&Request::Detach { id: id.to_owned() }).await
    }

    /// Makes services and policies hold for a pod that somebody else attached to the node's network,
    /// until it is detached. Idempotent by id.
    pub async fn adopt(&self, id: &str, pod: Adopted) -> Result<(), Error> {
        self.done(&Request::Adopt { id: id.to_owned(), pod }).await
    }

    /// The pods that are connected.
    pub async fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        match self.call(&Request::Attachments, None).await? {
            (Response::Attachments(attachments), _) => Ok(attachments),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The range that pods get their addresses from.
    pub async fn pod_cidr(&self) -> Result<Cidr, Error> {
        match self.call(&Request::PodCidr, None).await? {
            (Response::PodCidr(cidr), _) => Ok(cidr),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The node's own addresses in its network, one of each family that is told of.
    pub async fn gateways(&self) -> Result<Vec<IpAddr>, Error> {
        match self.call(&Request::Gateways, None).await? {
            (Response::Gateways(gateways), _) => Ok(gateways),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Connects to `peer` from within the node network: pods, services, and what pods can reach.
    /// The error of a failed connection is the kernel's own, as [`Error::raw_os_error`].
    pub async fn connect_tcp(&self, peer: SocketAddr) -> Result<TcpStream, Error> {
        let socket = self.descriptor(&Request::TcpSocket { peer }).await?;
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        socket.connect(peer).await.map_err(|e| Error::system(format!("connect to {peer}"), e))
    }

    /// The network namespace of the node, for pods that share it.
    pub async fn node_netns(&self) -> Result<OwnedFd, Error> {
        self.descriptor(&Request::NodeNamespace).await
    }

    /// Makes the services exactly these, by difference.
    pub async fn apply_services(&self, table: ServiceTable) -> Result<(), Error> {
        self.done(&Request::ApplyServices(table)).await
    }

    /// Changes some of the services, of those that were applied last.
    pub async fn change_services(&self, change: ServiceChange) -> Result<(), Error> {
        self.done(&Request::ChangeServices(change)).await
    }

    /// Makes the policies exactly these; established connections go on. From then on a pod with
    /// a member's name is attached only when the policies know it.
    pub async fn apply_policies(&self, table: PolicyTable) -> Result<(), Error> {
        self.done(&Request::ApplyPolicies(table)).await
    }

    /// Makes the published ports of the host exactly these. The answers are in the same order;
    /// None is success. A port that could not be had is tried again with the next call.
    pub async fn publish(&self, wanted: Vec<Publication>) -> Result<Vec<Option<Refused>>, Error> {
        match self.call(&Request::Publish(wanted), None).await? {
            (Response::Published(answers), _) => Ok(answers),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Makes the forwards from the node network to the host exactly these.
    pub async fn set_forwards(&self, forwards: Vec<Forward>) -> Result<(), Error> {
        self.done(&Request::SetForwards(forwards)).await
    }
}

fn unexpected(response: &Response) -> Error {
    Error::Remote { message: format!("the node process gave an unexpected answer: {response:?}") }
}
