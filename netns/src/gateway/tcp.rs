//! TCP: the node's transparent listener has accepted under the address the pod asked for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use super::Flows;
use crate::relay::{relay, reset_on_close};

const BACKLOG: i32 = 4096;

/// The transparent listener, in the namespace of the calling thread. Port 0 chooses one.
pub(crate) fn listen(port: u16) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_reuse_address(true)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts for ever.
pub(crate) async fn serve(listener: TcpListener, flows: Arc<Flows>, tasks: TaskTracker) {
    let own = listener.local_addr().ok();
    loop {
        let client = super::accept(&listener).await;
        let (Ok(destination), Ok(source)) = (client.local_addr(), client.peer_addr()) else {
            continue;
        };
        let IpAddr::V4(pod) = source.ip() else {
            continue;
        };
        if Some(destination) == own {
            reset_on_close(&client);
            continue;
        }
        let token = flows.of(pod);
        tasks.spawn(async move {
            token.run_until_cancelled(carry(client, destination)).await;
        });
    }
}

async fn carry(client: TcpStream, destination: SocketAddr) {
    let _ = SockRef::from(&client).set_keepalive(true);
    match TcpStream::connect(destination).await {
        Ok(server) => {
            let _ = SockRef::from(&server).set_keepalive(true);
            relay(client, server).await;
        }
        Err(error) => {
            tracing::debug!(%destination, %error, "egress connection failed");
            reset_on_close(&client);
        }
    }
}
