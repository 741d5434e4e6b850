//! Whose program is at the other end of a loopback connection. The kernel tells it of every socket, see
//! proc_net_tcp(5) in the kernel's documentation.

use std::net::SocketAddr;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::TcpListener;

/// The user that has the other end, where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(Option<u32>);

impl Peer {
    /// Whether it is the user of this process, or root, who needs no door.
    pub fn may_come_in(self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        self.0.is_none_or(|user| user == own || user == 0)
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        let (peer, own) = (*stream.remote_addr(), stream.io().local_addr().ok());
        // A socket of the other family may speak through a mapped address.
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
        let found = tables.iter().find_map(|table| {
            let text = std::fs::read_to_string(table).ok()?;
            owner(&text, peer, own?)
        });
        Self(found)
    }
}

/// The user of the socket that is at `local` and connected to `remote`, from one of the kernel's tables.
fn owner(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let (local, remote) = (told(local), told(remote));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (here, there) = (fields.next()?, fields.next()?);
        (here.ends_with(&local) && there.ends_with(&remote)).then(|| fields.nth(4)?.parse().ok())?
    })
}

/// An address as the tables have it: the words of memory it takes, and the port. Of a mapped one this is the end.
fn told(address: SocketAddr) -> String {
    let words: Vec<u8> = match address.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => ip.octets().into(),
        std::net::IpAddr::V6(ip) => ip.octets().into(),
    };
    let words = words.chunks(4).map(|word| {
        let word: [u8; 4] = word.try_into().unwrap_or_default();
        format!("{:08X}", u32::from_ne_bytes(word))
    });
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1
   1: 0100007F:1F41 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 2 1
   2: 0100007F:C350 0100007F:1F41 01 00000000:00000000 00:00000000 00000000  1001        0 3 1
   3: 0000000000000000FFFF00000100007F:C351 0000000000000000FFFF00000100007F:1F41 01 00000000:00000000 00:00000000 00000000  1002        0 4 1
";

    #[test]
    fn the_other_ends_user_is_found() {
        let own = "127.0.0.1:8001".parse().unwrap();
        for (peer, want) in [
            ("127.0.0.1:50000", Some(1001)),
            ("127.0.0.1:50001", Some(1002)),
            ("127.0.0.1:50002", None),
        ] {
            assert_eq!(owner(TABLES, peer.parse().unwrap(), own), want, "{peer}");
        }
    }

    #[test]
    fn only_the_own_user_and_root_come_in() {
        let own = rustix::process::geteuid().as_raw();
        for (user, want) in
            [(Some(own), true), (Some(0), true), (None, true), (Some(own + 1), false)]
        {
            assert_eq!(Peer(user).may_come_in(), want, "{user:?}");
        }
    }
}
