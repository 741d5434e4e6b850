//! The kernel's table of connections (`nfnetlink_conntrack.h`), as far as flows that lead to an
//! endpoint which is gone have to be forgotten.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::netlink::{Requests, Socket, attributes};
use crate::services::Withdrawn;
use crate::{Error, Frontend, Protocol};

mod tuple;

use tuple::read;

const GET: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | 1;
const DELETE: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;

/// Removes the UDP flows that still lead to withdrawn endpoints, and those that led nowhere while a
/// frontend had no endpoint: a client that goes on sending would otherwise never reach another one.
/// TCP connections end by themselves.
pub(crate) fn forget(
    netfilter: &Socket,
    withdrawn: &[Withdrawn],
    gained: &[Frontend],
) -> Result<(), Error> {
    let gone: BTreeSet<(Frontend, SocketAddr)> = withdrawn
        .iter()
        .filter(|w| w.frontend.protocol == Protocol::Udp && !w.kept)
        .map(|w| (w.frontend, w.endpoint))
        .chain(
            // What was not translated is answered from where it was sent to.
            gained
                .iter()
                .filter(|frontend| frontend.protocol == Protocol::Udp)
                .map(|frontend| (*frontend, SocketAddr::new(frontend.address, frontend.port))),
        )
        .collect();
    let families: BTreeSet<bool> = gone.iter().map(|(f, _)| f.address.is_ipv4()).collect();
    for v4 in families {
        let family = if v4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
        let header = [family, 0, 0, 0];
        let mut dump = Requests::new();
        dump.push("list connections", GET, libc::NLM_F_DUMP, &header, |_| {});
        let mut stale: Vec<Vec<u8>> = Vec::new();
        netfilter.dump(&dump, |_, payload| {
            let attributes = || attributes(payload.get(4..).unwrap_or_default());
            let find = |wanted| attributes().find(|(kind, _)| *kind == wanted).map(|(_, v)| v);
            let (Some(original), Some(reply)) = (find(TUPLE_ORIGINAL), find(TUPLE_REPLY)) else {
                return;
            };
            let (Some(asked), Some(answers)) = (read(original), read(reply)) else { return };
            if asked.protocol != Protocol::Udp.number() {
                return;
            }
            let frontend = Frontend {
                address: asked.destination.ip(),
                protocol: Protocol::Udp,
                port: asked.destination.port(),
            };
            if gone.contains(&(frontend, answers.source)) {
                stale.push(original.to_vec());
            }
        })?;
        for tuple in stale {
            let mut delete = Requests::new();
            let kind = TUPLE_ORIGINAL | libc::NLA_F_NESTED as u16;
            delete.push("forget a connection", DELETE, libc::NLM_F_ACK, &header, |a| {
                a.bytes(kind, &tuple);
            });
            match netfilter.execute(&delete) {
                // It ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
    }
    Ok(())
}
