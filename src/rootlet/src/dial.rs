//! Where the API server's own connections lead: to pods through the node process, to the rest from
//! here, by the names that the host knows.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use apiserver::webhook::{Dial, Place};
use hickory_resolver::TokioResolver;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// A dialer whose pods' network is `network`'s.
pub fn through(network: netns::Control) -> Dial {
    let hosts = to_hosts();
    Arc::new(move |place| match place {
        Place::Pods(address) => {
            let network = network.clone();
            Box::pin(async move { network.connect_tcp(address).await.map_err(io::Error::other) })
        }
        place @ Place::Host(..) => hosts(place),
    })
}

/// A dialer that knows hosts by name; the pods' network is the host's.
pub fn to_hosts() -> Dial {
    let resolver: Arc<OnceCell<TokioResolver>> = Arc::default();
    let direct = apiserver::webhook::direct();
    Arc::new(move |place| match place {
        Place::Host(name, port) if is_name(&name) => {
            let resolver = resolver.clone();
            Box::pin(async move { by_name(&resolver, &name, port).await })
        }
        place => direct(place),
    })
}

fn is_name(host: &str) -> bool {
    host != "localhost" && host.trim_matches(['[', ']']).parse::<IpAddr>().is_err()
}

async fn by_name(
    resolver: &OnceCell<TokioResolver>,
    name: &str,
    port: u16,
) -> io::Result<TcpStream> {
    let unknown = |error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::NotFound, format!("lookup {name}: {error}"))
    };
    let build = async || TokioResolver::builder_tokio()?.build();
    let resolver = resolver.get_or_try_init(build).await.map_err(|error| unknown(&error))?;
    let found = resolver.lookup_ip(name).await.map_err(|error| unknown(&error))?;
    let mut last = unknown(&"no such host");
    for address in found.iter() {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
