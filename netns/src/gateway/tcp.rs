//! TCP: the node's transparent listener has accepted under the address the pod asked for.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::sync::Arc;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use super::{Flows, Held};
use crate::attention::stir;
use crate::family::Family;
use crate::relay::{relay, reset_on_close};
use crate::sys;

const BACKLOG: i32 = 4096;
/// The congestion control that every kernel has and lets everybody choose.
pub(super) const PLAIN: &[u8] = b"reno";

/// The transparent listener, in the namespace of the calling thread. Port 0 chooses one.
pub(crate) fn listen(family: Family, port: u16) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(domain(family), Type::STREAM.nonblocking().cloexec(), None)?;
    sys::set_transparent(&socket, family)?;
    socket.set_reuse_address(true)?;
    // Several threads listen at one port, and the kernel spreads the connections.
    socket.set_reuse_port(true)?;
    // What is accepted inherits these.
    socket.set_keepalive(true)?;
    socket.set_tcp_nodelay(true)?;
    // The way to the pods is memory: there is nothing to find out about it, as BBR does at a price.
    let _ = socket.set_tcp_congestion(PLAIN);
    socket.bind(&SocketAddr::new(family.loopback(), port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

pub(super) fn domain(family: Family) -> Domain {
    match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    }
}

/// Accepts for ever.
pub(crate) async fn serve(
    listener: TcpListener,
    held: Arc<Held>,
    flows: Arc<Flows>,
    tasks: TaskTracker,
) {
    let own = listener.local_addr().ok();
    loop {
        let (client, source) = super::accept(&listener).await;
        stir();
        let Ok(destination) = client.local_addr() else { continue };
        if Some(destination) == own {
            reset_on_close(&client);
            continue;
        }
        let server = held.claim(source, destination);
        let Some(place) = flows.admit(source.ip()) else {
            reset_on_close(&client);
            continue;
        };
        let token = flows.of(source.ip());
        tasks.spawn(async move {
            token.run_until_cancelled(carry(client, server, destination)).await;
            drop(place);
        });
    }
}

async fn carry(client: TcpStream, server: Option<StdTcpStream>, destination: SocketAddr) {
    let server = match server {
        Some(server) => TcpStream::from_std(server),
        None => TcpStream::connect(destination).await,
    };
    match server {
        Ok(server) => {
            let _ = SockRef::from(&server).set_keepalive(true);
            let _ = server.set_nodelay(true);
            relay(client, server).await;
        }
        Err(error) => {
            tracing::debug!(%destination, %error, "egress connection failed");
            reset_on_close(&client);
        }
    }
}
